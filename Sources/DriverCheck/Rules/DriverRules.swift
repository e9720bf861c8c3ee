/// The rules for drivers, and where a device can observe each.
public import Conform

/// Where a rule can be observed.
public enum RuleSeam: Character, CaseIterable, Sendable {
  /// The rings and the requests in them, over any transport.
  case rings = "Q"
  /// Kicks, of a queue that has any.
  case kicks = "K"
  /// Registers of any kind.
  case registers = "R"
  /// Registers of the modern interfaces.
  case modern = "N"
  case legacy = "L"
  case mmio = "M"
  case pci = "P"

  /// The bus that a rule applies to; `nil`: any.
  var needs: String? {
    switch self {
    case .rings, .kicks: nil
    case .registers: "registers"
    case .modern: "registers of a modern interface"
    case .legacy: "registers of the legacy interface"
    case .mmio: "virtio-mmio version 2"
    case .pci: "modern virtio-pci"
    }
  }
}

/// One rule: a sentence of the specification that binds a driver, or something that follows from it.
public struct DriverRule: Sendable {
  public enum Sight: Sendable {
    case checked(RuleSeam)
    /// No device can observe it, for this reason.
    case unseen(String)
  }

  public var clause: Clause
  public var sight: Sight
}

/// All rules, in the order of the texts.
public enum DriverRules {
  public static let all: [DriverRule] = [core, ring, registers, block].flatMap(parse)

  static let places: [String: Int] = Dictionary(
    uniqueKeysWithValues: all.enumerated().map { ($0.element.clause.id, $0.offset) })

  private static func parse(_ table: String) -> [DriverRule] {
    table.split(separator: "\n").map { line in
      let fields = line.split(separator: "|", maxSplits: 5).map(String.init)
      guard fields.count == 6, let level = Level(rawValue: fields[2]) else { preconditionFailure("no rule: \(line)") }
      let clause = Clause(id: fields[0], area: fields[1], level: level, section: fields[3], words: fields[4])
      let sight = fields[5].dropFirst()
      guard fields[5].hasPrefix("=") else { return DriverRule(clause: clause, sight: .unseen(String(sight))) }
      guard let letter = sight.first, let seam = RuleSeam(rawValue: letter) else { preconditionFailure("no seam: \(line)") }
      return DriverRule(clause: clause, sight: .checked(seam))
    }
  }
}
