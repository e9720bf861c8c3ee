/// The outcome of a check.

public enum Outcome: String, CaseIterable, Sendable {
  /// The clause holds as far as the check can see.
  case kept
  /// It does not.
  case broken
  /// The illegal input was not executed, and the device is alive: it answered a good request afterwards, if necessary after a
  /// reset.
  case rejected
  /// No answer to a good request, or no device any more.
  case wedged
  /// Not on this device, or not over this transport; with the reason.
  case notApplicable = "n/a"

  var isFailure: Bool { self == .broken || self == .wedged }

  /// Which of several outcomes counts for a clause: the worst, and any rather than none.
  var weight: Int {
    switch self {
    case .wedged: 4
    case .broken: 3
    case .kept: 2
    case .rejected: 1
    case .notApplicable: 0
    }
  }
}

/// What the body of a check returns if nothing is wrong.
struct Seen {
  var outcome: Outcome
  var words: String

  static func kept(_ words: String = "") -> Seen { Seen(outcome: .kept, words: words) }
  static func rejected(_ words: String) -> Seen { Seen(outcome: .rejected, words: words) }
}

/// What it throws otherwise.
enum Trouble: Error {
  /// A rule is broken, with what was observed.
  case broken(String)
  case wedged(String)
  case notApplicable(String)

  static let noRoom = Trouble.notApplicable("with the device's limits, the requests of this check do not fit into its rings")
}

/// Checks that something holds.
func expect(_ isSo: Bool, _ seen: @autoclosure () -> String) throws { if !isSo { throw Trouble.broken(seen()) } }

/// One check on one device with one kind of ring.
public struct Finding: Sendable {
  public var check: String
  public var clauses: [String]
  /// `split`, `packed`, or `-` if rings do not matter.
  public var ring: String
  public var outcome: Outcome
  public var seen: String
  public var seconds: Double
  /// It failed, but not when it was repeated alone: the device does this sometimes, or something before had an effect.
  public var failedBefore = false

  /// The strictest level among its clauses.
  public var level: Level {
    clauses.map { ClauseTable.clause($0).level }.max { $0.weight < $1.weight } ?? .robust
  }

  /// The device does not conform: a MUST is broken, or the device is dead.
  public var isFailure: Bool { outcome == .wedged || outcome == .broken && level.isBinding }
}
