/// The buffer of one worker's trace: private memory of a fixed size. The oldest records are overwritten.
internal import SystemPackage
internal import VirtioCore

/// What is recorded of a request until it is answered. All 0: it was not traced when it was popped.
struct TracedRequest {
  var taken: UInt64 = 0
  var started: UInt64 = 0
  var completed: UInt64 = 0
  var sector: UInt64 = 0
  var bytes: UInt64 = 0
}

/// Appends records to a buffer. It holds only pointers, so that writing counts no references; its owner keeps the buffer alive.
@safe
struct TraceWriter {
  fileprivate let records: UnsafeMutablePointer<TraceRecord>
  fileprivate let requests: UnsafeMutablePointer<TracedRequest>
  /// The number of records written so far.
  fileprivate let written: UnsafeMutablePointer<UInt64>
  fileprivate let mask: UInt64
  private let clock = TickClock.shared

  var now: UInt64 { @inline(__always) get { clock.now } }

  /// The time between two readings of the clock.
  func nanoseconds(from start: UInt64, to end: UInt64) -> UInt64 { clock.nanoseconds(from: start, to: end) }

  func append(_ record: TraceRecord) {
    let number = unsafe written.pointee
    unsafe records[Int(truncatingIfNeeded: number & mask)] = record
    unsafe written.pointee = number &+ 1
  }

  /// What is recorded of a lane's requests, by their slots.
  func requests(ofLane lane: Int) -> UnsafeMutablePointer<TracedRequest> { unsafe requests + lane * LaneContext.slots }
}

/// Belongs to its worker from the order to trace until the worker reports that it has stopped, and to the control plane before
/// and after: it is handed over under the locks of the mailbox and the news.
@safe
package final class TraceBuffer: @unchecked Sendable {
  /// Bytes for the number of records, apart from the records.
  private static let headSize = 64

  /// Records, a power of two.
  package let capacity: Int
  private let mapping: Mapping
  let writer: TraceWriter
  /// About how many records are written in a tenth of a second.
  let budget: UInt64

  /// - Parameters:
  ///   - capacity: records, a power of two. Memory is allocated as they are written.
  ///   - budget: about how many records are written in a tenth of a second; `nil`: all.
  ///   - lanes: queues that the worker may have.
  /// - Throws: if there is not enough memory.
  init(capacity: Int, budget: Int?, lanes: Int) throws(Errno) {
    let (size, slots) = (capacity * TraceRecord.size, lanes * LaneContext.slots)
    mapping = try Mapping(anonymous: Self.headSize + size + slots * MemoryLayout<TracedRequest>.stride)
    unsafe writer = TraceWriter(
      records: (mapping.base + Self.headSize).bindMemory(to: TraceRecord.self, capacity: capacity),
      requests: (mapping.base + Self.headSize + size).bindMemory(to: TracedRequest.self, capacity: slots),
      written: mapping.base.bindMemory(to: UInt64.self, capacity: 1), mask: UInt64(capacity) - 1)
    self.capacity = capacity
    self.budget = budget.map { UInt64(max($0, 1)) } ?? .max
  }

  var written: UInt64 { unsafe writer.written.pointee }

  /// Records that are still there.
  package var count: Int { Int(min(written, UInt64(capacity))) }
  /// Those that were overwritten.
  package var overwritten: UInt64 { written - UInt64(count) }

  /// The bytes of some of the records that are there, the oldest first.
  ///
  /// - Parameters:
  ///   - first: 0 for the oldest.
  ///   - limit: records, at most.
  package func bytes(from first: Int, limit: Int) -> [UInt8] {
    guard (0..<count).contains(first), limit > 0 else { return [] }
    let oldest = written - UInt64(count)
    var bytes: [UInt8] = []
    for number in first..<min(count, first + min(limit, count)) {
      let record = unsafe writer.records + Int((oldest + UInt64(number)) & writer.mask)
      unsafe bytes += UnsafeRawBufferPointer(start: record, count: TraceRecord.size)
    }
    return bytes
  }
}

/// An order to a worker about its trace.
enum TraceOrder: Sendable {
  case start(TraceBuffer)
  /// With the number of the trace, which is reported back.
  case stop(UInt64)
}

/// A lane's part of a trace.
@safe
struct LaneTrace {
  let writer: TraceWriter
  /// By slots.
  let requests: UnsafeMutablePointer<TracedRequest>
  /// When it began.
  let began: UInt64
  /// Requests that were recorded when they were popped, and are not answered yet.
  var inFlight = 0
  /// Requests that are popped at present are not recorded.
  var isResting = false
}
