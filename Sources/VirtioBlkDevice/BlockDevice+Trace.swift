/// A trace of what happens to a disk's requests, started and stopped while it is served.
package import SystemPackage
internal import VirtioCore

/// One trace of one device; used on the thread that calls the device's methods.
package final class DeviceTrace {
  /// Distinguishes it from earlier traces.
  package let number: UInt64
  /// Records for each thread.
  package let capacity: Int
  package let start: TraceMoment
  /// `nil`: it is still running.
  package fileprivate(set) var end: TraceMoment?
  /// Of the threads that ran in the meantime.
  fileprivate var buffers: [Int: TraceBuffer] = [:]
  /// Threads that have not yet reported that they have stopped writing.
  package fileprivate(set) var pending: Set<Int> = []

  fileprivate let budget: Int?

  fileprivate init(number: UInt64, capacity: Int, budget: Int?) {
    self.number = number
    self.capacity = capacity
    self.budget = budget
    start = .now
  }

  /// Whether it has stopped and all of it can be read.
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
  /// Starts to record what happens to requests. The previous trace is released.
  ///
  /// - Parameter records: for each of the device's threads, 1 … 2^24, rounded up to a power of two, of `TraceRecord.size` bytes
  ///   each; older ones are overwritten.
  /// - Parameter budget: about how many records each thread writes in a tenth of a second; `nil`: all.
  /// - Throws: if there is not enough memory.
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

  /// Stops the trace. It can be read once `DeviceTrace.isComplete` is true: some time later, when the device's events have been
  /// taken.
  package func stopTrace() {
    guard let trace, trace.end == nil else { return }
    trace.end = .now
    for index in trace.buffers.keys {
      if places[index].worker?.mailbox.post({ $0.trace = .stop(trace.number) }) == true { trace.pending.insert(index) }
    }
  }

  /// Releases the trace, and stops it first if it is running.
  package func dropTrace() {
    stopTrace()
    trace = nil
  }

  /// The order for a worker that is being made; `nil`: nothing is traced.
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

  /// A worker has stopped writing.
  func traceStopped(worker: Int, number: UInt64) {
    if trace?.number == number { trace?.pending.remove(worker) }
  }

  /// A worker has ended, whatever its orders were.
  func traceEnded(worker: Int) { trace?.pending.remove(worker) }

  func laneCount(ofPlace index: Int) -> Int { (queueCount - index + threadCount - 1) / threadCount }
}

extension BlockDevice {
  /// Bytes that a trace may take, with a thread in every place.
  package func memoryOfTrace(records: Int) -> Int { Self.capacity(records) * TraceRecord.size * threadCount }

  /// Bytes that the current or latest trace may take.
  package var traceMemory: Int { trace.map { memoryOfTrace(records: $0.capacity) } ?? 0 }

  static func capacity(_ records: Int) -> Int { 1 << (Int.bitWidth - max(records - 1, 1).leadingZeroBitCount) }
}
