/// The end of a worker that shares its thread.
internal import Dispatch

final class SeatEnd: Sendable {
  private let semaphore = DispatchSemaphore(value: 0)

  /// The worker has ended.
  func come() { semaphore.signal() }

  /// Waits for that.
  func wait() {
    semaphore.wait()
    // For the next call.
    semaphore.signal()
  }
}
