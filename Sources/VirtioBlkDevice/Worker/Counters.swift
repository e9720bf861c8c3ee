/// A worker's counters: only the worker writes them, and anybody may read them at any time.
internal import VirtioCore

/// Totals since the device was made.
public struct BlockCounters: Hashable, Sendable {
  /// IN requests that were popped, whatever their outcome.
  public var reads: UInt64 = 0
  /// OUT requests.
  public var writes: UInt64 = 0
  /// FLUSH requests.
  public var flushes: UInt64 = 0
  /// DISCARD requests.
  public var discards: UInt64 = 0
  /// WRITE_ZEROES requests.
  public var writeZeroes: UInt64 = 0
  /// GET_ID, GET_LIFETIME, SECURE_ERASE, zone commands and reports, and requests that were refused because of their type.
  public var others: UInt64 = 0
  /// Requests answered with a status other than OK.
  public var failures: UInt64 = 0
  /// Of those, answered with IOERR.
  public var ioErrors: UInt64 = 0
  /// Of those, answered with UNSUPP.
  public var unsupported: UInt64 = 0
  /// Of those with IOERR: requests that the medium failed, or that could no longer be submitted.
  public var mediumFailures: UInt64 = 0
  /// Bytes requested by reads.
  public var bytesRead: UInt64 = 0
  /// Bytes supplied by writes.
  public var bytesWritten: UInt64 = 0
  /// Reads and writes that had to wait for a limit.
  public var throttled: UInt64 = 0
  /// How long queues had a request waiting for a limit, all queues together: nanoseconds.
  public var throttledNanoseconds: UInt64 = 0
  /// Kicks that were noticed.
  public var kicks: UInt64 = 0
  /// Notifications sent to the driver.
  public var calls: UInt64 = 0
  /// Passes of a worker over its queues.
  public var turns: UInt64 = 0
  /// System calls of the engine.
  public var systemCalls: UInt64 = 0
  /// Requests that went through an aligned copy.
  public var bounces: UInt64 = 0

  /// Of those with IOERR: requests that never reached the medium, because they were malformed, outside the disk, or not
  /// allowed. If it is read while queues run, it may be off by a few.
  public var refusals: UInt64 { ioErrors > mediumFailures ? ioErrors - mediumFailures : 0 }

  /// All requests that were popped.
  public var requests: UInt64 { reads &+ writes &+ flushes &+ discards &+ writeZeroes &+ others }
}

/// One worker's counters, in memory that belongs to the device: written without a lock by one thread, and read by others.
@safe
struct CounterBlock: @unchecked Sendable {
  enum Counter: Int, CaseIterable {
    case reads, writes, flushes, discards, writeZeroes, others, bytesRead, bytesWritten
    case kicks, calls, turns, systemCalls, bounces
    case ioErrors, unsupported, mediumFailures, throttled, throttledNanoseconds
  }

  private let base: UnsafeMutablePointer<UInt64>

  /// Zeroed counters on separate cache lines; not freed before `deallocate`.
  init() {
    unsafe base = UnsafeMutableRawPointer.allocate(byteCount: 256, alignment: 128).bindMemory(to: UInt64.self, capacity: 32)
    unsafe base.initialize(repeating: 0, count: 32)
  }

  /// Nobody may use the block afterwards.
  func deallocate() { unsafe base.deallocate() }

  @inline(__always)
  private func cell(_ counter: Counter) -> SharedCell<UInt64> { unsafe SharedCell(base + counter.rawValue) }

  /// Only the owning worker adds.
  @inline(__always)
  func add(_ counter: Counter, _ amount: UInt64 = 1) {
    let cell = cell(counter)
    cell.storeRelaxed(cell.loadRelaxed() &+ amount)
  }

  @inline(__always)
  func set(_ counter: Counter, _ value: UInt64) { cell(counter).storeRelaxed(value) }

  func value(_ counter: Counter) -> UInt64 { cell(counter).loadRelaxed() }

  func addTo(_ total: inout BlockCounters) {
    total.reads &+= value(.reads)
    total.writes &+= value(.writes)
    total.flushes &+= value(.flushes)
    total.discards &+= value(.discards)
    total.writeZeroes &+= value(.writeZeroes)
    total.others &+= value(.others)
    total.bytesRead &+= value(.bytesRead)
    total.bytesWritten &+= value(.bytesWritten)
    total.kicks &+= value(.kicks)
    total.calls &+= value(.calls)
    total.turns &+= value(.turns)
    total.systemCalls &+= value(.systemCalls)
    total.bounces &+= value(.bounces)
    let (ioErrors, unsupported) = (value(.ioErrors), value(.unsupported))
    total.ioErrors &+= ioErrors
    total.unsupported &+= unsupported
    total.failures &+= ioErrors &+ unsupported
    total.mediumFailures &+= value(.mediumFailures)
    total.throttled &+= value(.throttled)
    total.throttledNanoseconds &+= value(.throttledNanoseconds)
  }
}
