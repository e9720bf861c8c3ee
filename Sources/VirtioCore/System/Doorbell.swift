/// A 32-bit counter in shared memory that is rung by adding one and waking the futex on it: an eventfd for two sides that share
/// nothing but memory.
internal import CLinux

/// One shared word. Ringing never blocks; waiting is done with the kernel's futex calls or by polling.
public struct Doorbell: Sendable {
  /// The word: the number of rings, modulo 2^32.
  public let counter: SharedCell<UInt32>

  /// - Parameter counter: a word that stays mapped for as long as the doorbell is used.
  public init(_ counter: SharedCell<UInt32>) { self.counter = counter }

  /// Adds one and wakes all who wait on the word.
  public func ring() {
    _ = counter.increment()
    _ = unsafe clinux_futex_wake(counter.address, Int32.max)
  }

  /// Waits until the counter is no longer `seen`, until a spurious wake-up, or until the time is over.
  ///
  /// - Parameter nanoseconds: `nil` waits without limit.
  /// - Returns: the counter's value afterwards.
  @discardableResult
  public func wait(whileEquals seen: UInt32, nanoseconds: Int64? = nil) -> UInt32 {
    if counter.loadAcquire() == seen { _ = unsafe clinux_futex_wait(counter.address, seen, nanoseconds ?? -1) }
    return counter.loadAcquire()
  }
}
