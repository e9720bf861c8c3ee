/// A trace of what happens to a disk's requests, started and stopped while it is served.
package import SystemPackage
internal import VirtioCore

/// One trace of one device; used on the thread that calls the device's methods.
package final class DeviceTrace {
  /// Tells it from those before.
  package let number: UInt64
  /// Records for each thread.
  package let capacity: Int
  package let start: TraceMoment
  /// `nil`: it runs.
  package fileprivate(set) var end: TraceMoment?
  /// Of the threads that were there in the meantime.
  fileprivate var buffers: [Int: TraceBuffer] = [:]
  /// Threads that have not reported yet that they write no more.
  package fileprivate(set) var pending: Set<Int> = []

  fileprivate let budget: Int?

  fileprivate init(number: UInt64, capacity: Int, budget: Int?) {
    self.number = number
    self.capacity = capacity
    self.budget = budget
    start = .now
  }

  /// It is stopped, and all of it can be read.
  package var isComplete: Bool { end != nil && pending.isEmpty }

  /// Threads that can be read, by their numbers.
  package var threads: [(number: Int, buffer: TraceBuffer)] {
    guard end != nil else { return [] }
    return buffers.filter { !pending.contains($0.key) }.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
  }
}

extension TraceMoment {
  static var now: Self {
    let before = Clock.now
    let ticks = TickClock.shared.now
    return Self(ticks: ticks, time: before &+ (Clock.now &- before) / 2)
  }
}

extension BlockDevice {
  /// Begins to write down what happens to requests. Whatever was traced before is released.
  ///
  /// - Parameter records: for each of the device's threads, 1 … 2^24, rounded up to a power of two, of `TraceRecord.size`
  ///   bytes each; what is older is overwritten.
  /// - Parameter budget: those that each thread writes within a tenth of a second, about; `nil`: all.
  /// - Throws: there is no memory.
  package func startTrace(records: Int, budget: Int? = nil) throws(Errno) {
    traceNumber &+= 1
    let capacity = Self.capacity(records)
    let trace = DeviceTrace(number: traceNumber, capacity: capacity, budget: budget)
    for index in places.indices where places[index].worker != nil {
      trace.buffers[index] = try TraceBuffer(capacity: capacity, budget: budget, lanes: laneCount(ofPlace: index))
    }
    self.trace = trace
    for (index, buffer) in trace.buffers {
      if places[index].worker?.mailbox.post({ $0.trace = .start(buffer) }) != true { trace.buffers[index] = nil }
    }
  }

  /// Ends it. It can be read when `DeviceTrace.isComplete`, some time later when the device's events have been taken.
  package func stopTrace() {
    guard let trace, trace.end == nil else { return }
    trace.end = .now
    for index in trace.buffers.keys {
      if places[index].worker?.mailbox.post({ $0.trace = .stop(trace.number) }) == true { trace.pending.insert(index) }
    }
  }

  /// Releases what was traced, and stops it if it runs.
  package func dropTrace() {
    stopTrace()
    trace = nil
  }

  /// For a worker that is made now; `nil`: nothing is traced.
  func traceOrder(ofPlace index: Int) -> TraceOrder? {
    guard let trace, trace.end == nil else { return nil }
    if let buffer = trace.buffers[index] { return .start(buffer) }
    // A trace without this thread is better than none.
    guard let buffer = try? TraceBuffer(capacity: trace.capacity, budget: trace.budget, lanes: laneCount(ofPlace: index)) else {
      return nil
    }
    trace.buffers[index] = buffer
    return .start(buffer)
  }

  /// A worker writes no more.
  func traceStopped(worker: Int, number: UInt64) {
    if trace?.number == number { trace?.pending.remove(worker) }
  }

  /// A worker is over, whatever its orders were.
  func traceEnded(worker: Int) { trace?.pending.remove(worker) }

  func laneCount(ofPlace index: Int) -> Int { (queueCount - index + threadCount - 1) / threadCount }
}

extension BlockDevice {
  /// Bytes that a trace may come to, with a thread in every place.
  package func memoryOfTrace(records: Int) -> Int { Self.capacity(records) * TraceRecord.size * threadCount }

  /// Bytes that what is traced, or was last, may come to.
  package var traceMemory: Int { trace.map { memoryOfTrace(records: $0.capacity) } ?? 0 }

  static func capacity(_ records: Int) -> Int { 1 << (Int.bitWidth - max(records - 1, 1).leadingZeroBitCount) }
}
