/// Places between two stores at which tests can crash the process. A release build has none of them.
#if DEBUG
internal import Glibc
internal import Synchronization
#endif

/// The places in the path of a request: of a ring with an in-flight record, but for one.
public enum KillPoint: String, CaseIterable, Sendable {
  // A chain is taken.
  /// Nothing is recorded of it yet.
  case takeBegins
  /// Its place in the order is recorded, and for a packed ring its descriptors.
  case takeOrdered
  /// It is marked as in flight.
  case takeMarked

  // It is answered.
  /// The used element has the chain's head or buffer ID.
  case answerNamed
  /// The used element has its length. A packed ring writes that before the buffer ID.
  case answerWritten
  /// It is linked to the chain answered before it; in a packed ring, to the free entries.
  case answerLinked
  /// The record has it as the last one that was answered.
  case answerCounted

  // Answers are published, and their heads or entries are freed.
  /// The driver can see them: the used index, or a descriptor's flags, are stored.
  case publishShown
  /// One head, or one chain's entries, are free in the record.
  case publishFreed
  /// The record says that the batch is published.
  case publishOver

  // The driver is notified.
  /// It wants a notification, and has not got it yet.
  case callDue
  /// It was notified.
  case callDone

  // A region is used for the first time.
  /// One of its entries is cleared.
  case recoveryCleared
  /// It has its size.
  case recoverySized
  /// It has the positions of the ring.
  case recoveryCopied
  /// It has its version, and is valid from now on.
  case recoveryBegun

  // A region is used again.
  /// Entries that were published, or that cannot be in flight, are free.
  case recoveryFreed
  /// The record agrees with the ring.
  case recoveryFinished
  /// One chain that was in flight is taken again.
  case recoveryResumed

  // A ring without records.
  /// An answer is pushed, and the driver is not notified yet.
  case answerPushed

  #if DEBUG
  /// Called at every place that this task reaches, before a crash that is set for it.
  @TaskLocal public static var observer: (@Sendable (KillPoint) -> Void)?

  /// The setting of `VMM_BLK_KILL_AT=place:count`: the process is ended by SIGKILL when it reaches the place for the count-th
  /// time. `recovery` stands for every place that it reaches before it takes a new chain or has notified the driver.
  private static let order: (place: KillPoint?, count: Int)? = {
    guard let text = unsafe getenv("VMM_BLK_KILL_AT").map({ unsafe String(cString: $0) }) else { return nil }
    let words = text.split(separator: ":")
    guard words.count == 2, let count = Int(words[1]), count > 0 else { refuse(text) }
    if words[0] == "recovery" { return (nil, count) }
    guard let place = KillPoint(rawValue: String(words[0])) else { refuse(text) }
    return (place, count)
  }()

  private static func refuse(_ text: String) -> Never {
    fatalError("VMM_BLK_KILL_AT is '\(text)', not PLACE:COUNT; places: \(allCases.map(\.rawValue)), recovery")
  }
  private static let passed = Atomic<Int>(0)
  #endif

  /// The program reaches this place.
  @inlinable @inline(__always)
  public static func pass(_ place: KillPoint) {
    #if DEBUG
    place.arrive()
    #endif
  }

  #if DEBUG
  /// A new chain was taken, or the driver was notified.
  private static let hasRecovered = Atomic<Bool>(false)

  @usableFromInline func arrive() {
    Self.observer?(self)
    guard let order = Self.order else { return }
    if let place = order.place {
      guard place == self else { return }
    } else {
      if self == .takeBegins || self == .callDone { Self.hasRecovered.store(true, ordering: .relaxed) }
      guard !Self.hasRecovered.load(ordering: .relaxed) else { return }
    }
    if Self.passed.wrappingAdd(1, ordering: .relaxed).newValue == order.count { raise(SIGKILL) }
  }
  #endif
}
