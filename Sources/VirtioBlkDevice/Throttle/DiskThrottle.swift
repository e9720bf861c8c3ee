/// The limits of a disk, shared by its queues, which run on different threads.
///
/// A queue books the time at which its next requests may start, a few at once, and sleeps until then; only then does it book
/// again. So no queue wakes up in vain, and waiting queues take turns, however much each has waiting.
internal import Synchronization
internal import VirtioCore

/// The kinds of requests that have separate limits.
enum ThrottledKind: CaseIterable {
  case read, write
}

/// Requests of one queue that may start at the same moment.
struct Booking: Equatable {
  /// Nanoseconds of the clock used for booking; if it has passed, they may start at once.
  var due: UInt64
  /// How many; at least 1.
  var count: Int
}

final class DiskThrottle: Sendable {
  /// The most that one booking may take, as time at the limit's rate, unless it is a single request.
  static let quantum: UInt64 = 5_000_000  // nanoseconds

  private struct State {
    /// By `ThrottledKind`, and for both.
    var requests: (read: TokenBucket?, write: TokenBucket?, total: TokenBucket?)
    var bytes: (read: TokenBucket?, write: TokenBucket?, total: TokenBucket?)
    var isLimited = false

    /// When the next request of a kind may start; in the past: at once.
    func ready(_ kind: ThrottledKind) -> UInt64 {
      let own = kind == .read ? (requests.read, bytes.read) : (requests.write, bytes.write)
      return max(
        max(requests.total?.ready ?? 0, bytes.total?.ready ?? 0), max(own.0?.ready ?? 0, own.1?.ready ?? 0))
    }

    mutating func take(_ kind: ThrottledKind, bytes count: UInt64, now: UInt64) {
      requests.total?.take(1, now: now)
      bytes.total?.take(count, now: now)
      switch kind {
      case .read:
        requests.read?.take(1, now: now)
        bytes.read?.take(count, now: now)
      case .write:
        requests.write?.take(1, now: now)
        bytes.write?.take(count, now: now)
      }
    }
  }

  private let state: Mutex<State>

  init(_ limits: RateLimits, now: UInt64) { state = Mutex(Self.state(limits, now: now, isFull: true)) }

  private static func state(_ limits: RateLimits, now: UInt64, isFull: Bool) -> State {
    func bucket(_ limit: RateLimit?) -> TokenBucket? { limit.map { TokenBucket($0, now: now, isFull: isFull) } }
    return State(
      requests: (bucket(limits.readIOPS), bucket(limits.writeIOPS), bucket(limits.totalIOPS)),
      bytes: (bucket(limits.readBytes), bucket(limits.writeBytes), bucket(limits.totalBytes)), isLimited: !limits.isEmpty)
  }

  /// Replaces the limits. Debts are cancelled, and the buckets start empty. Bookings become void: queues have to book again.
  func set(_ limits: RateLimits, now: UInt64) {
    let new = Self.state(limits, now: now, isFull: false)
    state.withLock { $0 = new }
  }

  /// Whether there is any limit.
  var isLimited: Bool { state.withLock { $0.isLimited } }

  /// When everything that was taken so far is paid for; in the past: it is. A kind without a limit owes nothing.
  var ready: UInt64 { state.withLock { state in ThrottledKind.allCases.map { state.ready($0) }.max() ?? 0 } }

  /// Books for the first of some requests of one queue.
  ///
  /// - Parameters:
  ///   - sizes: their bytes, in their order; at least one.
  func book(_ kind: ThrottledKind, sizes: UnsafeBufferPointer<UInt64>, now: UInt64) -> Booking {
    state.withLock { state in
      let due = state.ready(kind)
      let horizon = max(due, now).addingReportingOverflow(Self.quantum)
      let end = horizon.overflow ? .max : horizon.partialValue
      var count = 0
      repeat {
        state.take(kind, bytes: unsafe sizes[count], now: now)
        count += 1
      } while count < sizes.count && state.ready(kind) < end
      return Booking(due: due, count: count)
    }
  }

  /// Takes tokens for a request that starts at once whatever the limits say; others pay for it by waiting.
  func charge(_ kind: ThrottledKind, bytes: UInt64, now: UInt64) {
    state.withLock { $0.take(kind, bytes: bytes, now: now) }
  }
}
