/// What was observed of a driver, rule by rule, from any thread.
internal import Synchronization
internal import VirtioCore

/// One violation of a rule.
public struct Violation: Hashable, Sendable {
  /// Since the device began, nanoseconds.
  public var nanoseconds: UInt64
  /// `nil`: it is not about one queue.
  public var queue: Int?
  /// Where: a ring entry, a descriptor, a register.
  public var place: String
  /// What was there.
  public var bytes: [UInt8]
  public var words: String

  /// For people.
  public var description: String {
    let seconds = nanoseconds / 1_000_000
    let time = "\(seconds / 1000).\(String(1000 + seconds % 1000).dropFirst()) s"
    let hexadecimal = bytes.prefix(32).map { String(256 + Int($0), radix: 16).dropFirst() }.joined(separator: " ")
    return "after \(time)\(queue.map { ", queue \($0)" } ?? ""), \(place): \(words)"
      + (bytes.isEmpty ? "" : " [\(hexadecimal)\(bytes.count > 32 ? " …" : "")]")
  }
}

/// The account of all rules for one driver's device.
public final class DriverFindings: Sendable {
  /// What is known of one rule.
  struct Account {
    var kept: UInt64 = 0
    var broken: UInt64 = 0
    /// The first few.
    var violations: [Violation] = []
  }

  /// Violations of one rule that are reported in full: a driver can cause as many as it likes.
  static let remembered = 5

  private let start = Clock.now
  private let accounts = Mutex([Account](repeating: Account(), count: DriverRules.all.count))

  /// Whether a legacy driver accepted ANY_LAYOUT, which only its registers show; `nil`: they were not observed.
  private let layout = Mutex<Bool?>(nil)

  init() {}

  var anyLayout: Bool? { layout.withLock { $0 } }
  func noteAnyLayout(_ isAccepted: Bool) { layout.withLock { $0 = isAccepted } }

  /// - Precondition: the rule exists: the rules and their checks are both in this library.
  private static func place(_ rule: String) -> Int {
    guard let place = DriverRules.places[rule] else { preconditionFailure("no rule has the id \(rule)") }
    return place
  }

  func kept(_ rules: String...) { accounts.withLock { accounts in for rule in rules { accounts[Self.place(rule)].kept += 1 } } }

  func broken(_ rule: String, queue: Int? = nil, _ place: String, bytes: [UInt8] = [], _ words: String) {
    let index = Self.place(rule)
    let now = Clock.now &- start
    accounts.withLock { accounts in
      accounts[index].broken += 1
      guard accounts[index].violations.count < Self.remembered else { return }
      accounts[index].violations.append(
        Violation(nanoseconds: now, queue: queue, place: place, bytes: bytes, words: words))
    }
  }

  /// Records that a rule was checked, and the outcome.
  /// - Returns: whether it was kept.
  @discardableResult func judge(
    _ rule: String, _ isKept: Bool, queue: Int? = nil, _ place: @autoclosure () -> String,
    bytes: @autoclosure () -> [UInt8] = [], _ words: @autoclosure () -> String
  ) -> Bool {
    if isKept { kept(rule) } else { broken(rule, queue: queue, place(), bytes: bytes(), words()) }
    return isKept
  }

  func account(_ rule: String) -> Account { accounts.withLock { $0[Self.place(rule)] } }
  var all: [Account] { accounts.withLock { $0 } }
}
