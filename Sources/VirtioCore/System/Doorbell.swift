/// A 32-bit counter in shared memory that is rung by adding one and waking the futex on it: the eventfd of those who share
/// memory and nothing else.
internal import CLinux

/// One shared word. Ringing never blocks; waiting is done with the kernel's futex calls or by looking.
public struct Doorbell: Sendable {
  /// The word: how often it was rung, modulo 2^32.
  public let counter: SharedCell<UInt32>

  /// - Parameter counter: a word that stays mapped for as long as the doorbell is used.
  public init(_ counter: SharedCell<UInt32>) { self.counter = counter }

  /// Adds one and wakes everybody who waits on the word.
  public func ring() {
    _ = counter.increment()
    _ = unsafe clinux_futex_wake(counter.address, Int32.max)
  }

  /// Waits until the counter is no longer `seen`, a spurious wake-up, or the time is over.
  ///
  /// - Parameter nanoseconds: `nil` waits without limit.
  /// - Returns: the counter now.
  @discardableResult
  public func wait(whileEquals seen: UInt32, nanoseconds: Int64? = nil) -> UInt32 {
    if counter.loadAcquire() == seen { _ = unsafe clinux_futex_wait(counter.address, seen, nanoseconds ?? -1) }
    return counter.loadAcquire()
  }
}
