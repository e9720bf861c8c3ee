/// What a device can be checked against: one sentence of the specification, or one rule that follows from it.

/// How binding a clause is.
public enum Level: String, CaseIterable, Sendable {
  case must = "MUST"
  case mustNot = "MUST NOT"
  case should = "SHOULD"
  case shouldNot = "SHOULD NOT"
  case may = "MAY"
  /// It follows from the text without being stated.
  case implied = "IMPLIED"
  /// No text requires it: what a device has to survive.
  case robust = "ROBUST"

  /// A device that breaks it does not conform.
  public var isBinding: Bool { self == .must || self == .mustNot }

  /// Which level counts for a check that covers both.
  var weight: Int {
    switch self {
    case .must, .mustNot: 4
    case .should, .shouldNot: 3
    case .implied: 2
    case .robust: 1
    case .may: 0
    }
  }
}

public struct Clause: Hashable, Sendable {
  /// `blk.op.5`: what `--only` takes.
  public var id: String
  /// What it is about: `core`, `split`, `packed`, `mmio`, `pci`, `legacy`, `blk`, `blk-zoned`, `vhost-user` or `input`.
  public var area: String
  public var level: Level
  /// The section of the virtio specification, or of the document that `area` names.
  public var section: String
  public var words: String

  package init(id: String, area: String, level: Level, section: String, words: String) {
    self.id = id
    self.area = area
    self.level = level
    self.section = section
    self.words = words
  }
}

/// All clauses, in the order of the specification.
public enum ClauseTable {
  public static let all: [Clause] = [core, registers, block, vhostUser, input].flatMap(parse)

  static let byID: [String: Clause] = Dictionary(uniqueKeysWithValues: all.map { ($0.id, $0) })

  /// - Precondition: the clause exists: the tables and the checks are both in this library.
  static func clause(_ id: String) -> Clause {
    guard let clause = byID[id] else { preconditionFailure("no clause has the id \(id)") }
    return clause
  }

  private static func parse(_ table: String) -> [Clause] {
    table.split(separator: "\n").map { line in
      let fields = line.split(separator: "|", maxSplits: 4).map(String.init)
      guard fields.count == 5, let level = Level(rawValue: fields[2]) else { preconditionFailure("no clause: \(line)") }
      return Clause(id: fields[0], area: fields[1], level: level, section: fields[3], words: fields[4])
    }
  }
}
