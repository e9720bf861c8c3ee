/// How long somebody waits for an image that is being opened.
internal import Synchronization
internal import VirtioCore

/// How long somebody waits for an image that is being opened.
///
/// Shared by who waits and by who opens, on any threads.
public final class OpeningPatience: Sendable {
  private let isEnded = Atomic<Bool>(false)
  private let end = Atomic<UInt64>(0)
  private let asks: @Sendable () -> Bool

  /// - Parameter isOver: asked often, by any thread; must not wait.
  public init(isOver: @escaping @Sendable () -> Bool = { false }) { asks = isOver }

  /// Nobody waits any more: nothing more is to be done.
  public var isOver: Bool { isEnded.load(ordering: .acquiring) || asks() }

  /// Does not wait any longer.
  public func giveUp() { isEnded.store(true, ordering: .releasing) }

  /// What is being opened needs more time than a medium, and knows its own limit. - Parameter seconds: from now on.
  func extend(seconds: Int) { end.store(Clock.now &+ UInt64(seconds) &* 1_000_000_000, ordering: .relaxed) }

  /// What is left of that, nanoseconds; 0: nothing, or nothing like that is being opened.
  public var extraTime: UInt64 {
    let (now, end) = (Clock.now, end.load(ordering: .relaxed))
    return end > now ? end &- now : 0
  }
}
