/// Places between two stores where tests can put a crash. A release build has none of them.
#if DEBUG
internal import Glibc
internal import Synchronization
#endif

/// The places of a split ring with an in-flight record, in the path of a request.
public enum KillPoint: String, CaseIterable, Sendable {
  // A head is taken.
  case takeBegins, takeOrdered, takeMarked
  // Its used element is written, and it is linked into the batch.
  case answerNamed, answerWritten, answerLinked, answerCounted
  // The batch is published, and its heads are free.
  case publishShown, publishFreed, publishOver
  // The driver is notified.
  case callDue, callDone
  // A region is used for the first time.
  case recoveryCleared, recoverySized, recoveryCopied, recoveryBegun
  // A batch that had been published is freed, and what was left is taken again.
  case recoveryFreed, recoveryFinished, recoveryResumed

  #if DEBUG
  /// Called at every place that this task reaches, before a crash that is due there.
  @TaskLocal public static var observer: (@Sendable (KillPoint) -> Void)?

  /// What `VMM_BLK_KILL_AT=place:count` asks for: the process ends by SIGKILL when it reaches the place for the given time.
  /// `recovery` stands for every place that it reaches before it takes anything new or has notified of anything.
  private static let order: (place: KillPoint?, count: Int)? = {
    guard let text = unsafe getenv("VMM_BLK_KILL_AT").map({ unsafe String(cString: $0) }) else { return nil }
    let words = text.split(separator: ":")
    guard words.count == 2, let count = Int(words[1]), count > 0 else { refuse(text) }
    if words[0] == "recovery" { return (nil, count) }
    guard let place = KillPoint(rawValue: String(words[0])) else { refuse(text) }
    return (place, count)
  }()

  private static func refuse(_ text: String) -> Never {
    fatalError("VMM_BLK_KILL_AT is '\(text)', which is no place and count: \(allCases.map(\.rawValue)), or recovery")
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
  /// Something new was taken, or the driver was notified.
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
