/// The trace of one disk, decoded: in order of time, and with the times of this machine's clock.
package import VirtioBlkDevice

/// One request, from its ring back to it. Nanoseconds of CLOCK_MONOTONIC.
package struct TracedRequest: Hashable, Sendable {
  package var kind: RequestKind
  package var queue: Int
  /// The head, which identifies the chain in the ring.
  package var head: UInt16
  package var sector: UInt64
  package var bytes: UInt64
  package var status: UInt8
  /// Popped and parsed.
  package var taken: UInt64
  /// Submitted to the medium: at once, or when a limit allowed it.
  package var started: UInt64
  /// Completed by the medium.
  package var completed: UInt64
  /// Its used element was written; `nil`: it was in flight when the trace ended.
  package var answered: UInt64?
  /// Published to the driver; `nil` if not within the trace.
  package var published: UInt64?
  /// When the driver was sent a call for its batch; `nil` if none was wanted.
  package var called: UInt64?
}

/// What a thread does between requests.
package struct TracedSpan: Hashable, Sendable {
  package enum Kind: String, Sendable {
    case asleep, polling
    /// Nothing was recorded, whatever was done.
    case rest = "not recorded"
  }
  package var kind: Kind
  package var range: Range<UInt64>
  /// Requests in flight when it began.
  package var inFlight: Int
}

/// What one thread of a disk did.
package struct TracedThread: Sendable {
  package var number: Int
  /// Earlier records that were overwritten.
  package var overwritten: UInt64
  package var requests: [TracedRequest] = []
  package var spans: [TracedSpan] = []
  /// Moments at which notifications of the driver were noticed.
  package var kicks: [UInt64] = []
  /// Moments at which it was sent calls, and for which queue.
  package var calls: [(queue: Int, time: UInt64)] = []
  /// Moments at which chains were published to the driver, for which queue, and how many.
  package var publications: [(queue: Int, time: UInt64, count: Int)] = []
  /// From the first record that was kept to the end of the trace.
  package var range: Range<UInt64>
}

package struct TracedDisk: Sendable {
  package var name: String
  package var engine: String
  package var threads: [TracedThread] = []
  /// Threads that did not respond, whose records are missing.
  package var silent: [Int] = []
  private let start: TraceMoment
  private let end: TraceMoment

  package init(name: String, engine: String, start: TraceMoment, end: TraceMoment) {
    self.name = name
    self.engine = engine
    self.start = start
    self.end = end
  }

  /// The whole time that was traced, nanoseconds of CLOCK_MONOTONIC.
  package var range: Range<UInt64> { start.time..<max(start.time, end.time) }

  /// Adds what a thread wrote.
  ///
  /// - Parameter records: in the order in which they were written.
  package mutating func add(thread number: Int, _ records: [TraceRecord], overwritten: UInt64 = 0) {
    let first = overwritten == 0 ? range.lowerBound : records.first.map { time(earliest($0)) } ?? range.lowerBound
    var thread = TracedThread(
      number: number, overwritten: overwritten, range: first..<max(first, range.upperBound))
    // For each queue: requests that are answered and not yet published.
    var waiting: [Int: [Int]] = [:]
    for record in records {
      switch record.kind {
      case .request:
        thread.requests.append(request(record))
        if record.answered != 0 { waiting[record.queue, default: []].append(thread.requests.count - 1) }
      case .publication:
        let (shown, called) = (time(record.begin), record.next == 0 ? nil : time(record.next))
        for index in waiting[record.queue] ?? [] {
          thread.requests[index].published = max(shown, thread.requests[index].answered ?? shown)
          thread.requests[index].called = called
        }
        waiting[record.queue] = []
        if record.sector > 0 { thread.publications.append((record.queue, shown, Int(clamping: record.sector))) }
        if let called { thread.calls.append((record.queue, called)) }
      case .asleep, .polling, .rest:
        let begin = time(record.begin)
        let kind: TracedSpan.Kind = record.kind == .asleep ? .asleep : record.kind == .polling ? .polling : .rest
        thread.spans.append(TracedSpan(kind: kind, range: begin..<max(begin, time(record.next)), inFlight: 0))
      case .kick: thread.kicks.append(time(record.begin))
      }
    }
    countInFlight(&thread)
    threads.append(thread)
  }

  private func earliest(_ record: TraceRecord) -> UInt64 { record.begin }

  private func request(_ record: TraceRecord) -> TracedRequest {
    let taken = time(record.begin)
    return TracedRequest(
      kind: record.request, queue: record.queue, head: record.head, sector: record.sector, bytes: record.bytes,
      status: record.status, taken: taken, started: record.next == 0 ? taken : time(record.next),
      completed: time(record.completed), answered: record.answered == 0 ? nil : time(record.answered))
  }

  /// Counts what was in flight at the beginning of each span: requests popped before it less those answered before it.
  private func countInFlight(_ thread: inout TracedThread) {
    let taken = thread.requests.map(\.taken).sorted()
    let answered = thread.requests.compactMap(\.answered).sorted()
    var (come, gone) = (0, 0)
    for index in thread.spans.indices {
      let begin = thread.spans[index].range.lowerBound
      while come < taken.count, taken[come] <= begin { come += 1 }
      while gone < answered.count, answered[gone] <= begin { gone += 1 }
      thread.spans[index].inFlight = max(0, come - gone)
    }
  }

  /// Converts ticks to nanoseconds. Both clocks are known at both ends, and neither changes its rate in between. A thread may
  /// write for a moment after the end.
  private func time(_ ticks: UInt64) -> UInt64 {
    guard end.ticks > start.ticks, end.time > start.time else { return start.time }
    let pace = Double(end.time - start.time) / Double(end.ticks - start.ticks)
    let offset = Double(Int64(bitPattern: ticks &- start.ticks)) * pace
    let latest = Double(end.time - start.time) + Self.grace
    return start.time &+ UInt64(max(0, min(offset, latest)))
  }

  /// Nanoseconds.
  private static let grace = 60e9
}

extension Range<UInt64> {
  /// The length of a span of time, in nanoseconds.
  var length: UInt64 { upperBound - lowerBound }
}

extension TracedDisk {
  /// Every request of every thread, in the order in which they were taken.
  package var requests: [TracedRequest] { threads.flatMap(\.requests).sorted { $0.taken < $1.taken } }
}
