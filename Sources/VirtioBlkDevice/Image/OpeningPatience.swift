/// How long the caller waits for an image that is being opened.
internal import Synchronization
internal import VirtioCore

/// How long the caller waits for an image that is being opened.
///
/// Shared by the one who waits and the one who opens, on any threads.
public final class OpeningPatience: Sendable {
  private let isEnded = Atomic<Bool>(false)
  private let end = Atomic<UInt64>(0)
  private let asks: @Sendable () -> Bool

  /// - Parameter isOver: whether nobody waits any more. Called often, from any thread; must not wait.
  public init(isOver: @escaping @Sendable () -> Bool = { false }) { asks = isOver }

  /// Nobody waits any more, so opening may stop.
  public var isOver: Bool { isEnded.load(ordering: .acquiring) || asks() }

  /// Stops waiting.
  public func giveUp() { isEnded.store(true, ordering: .releasing) }

  /// The image that is being opened needs more time than other media, and has its own limit. - Parameter seconds: from now on.
  func extend(seconds: Int) { end.store(Clock.now &+ UInt64(seconds) &* 1_000_000_000, ordering: .relaxed) }

  /// What is left of that time, nanoseconds; 0: none, or no such image is being opened.
  public var extraTime: UInt64 {
    let (now, end) = (Clock.now, end.load(ordering: .relaxed))
    return end > now ? end &- now : 0
  }
}
