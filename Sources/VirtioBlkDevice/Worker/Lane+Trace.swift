/// Tracing. While there is a trace, every request takes the slow paths, which call these functions: the fast path of a transfer
/// does not check for a trace.
internal import VirtioCore

extension Lane where Ring: ~Copyable {
  /// Records requests that are popped from now on.
  ///
  /// - Parameter number: among its worker's lanes.
  mutating func startTrace(_ buffer: TraceBuffer, lane number: Int) {
    // After a pause of the recording, there may be requests that were popped before it.
    if trace == nil {
      let requests = unsafe buffer.writer.requests(ofLane: number)
      // Clears what another lane left there.
      unsafe requests.update(repeating: TracedRequest(), count: slab.capacity)
      unsafe trace = LaneTrace(writer: buffer.writer, requests: requests, began: buffer.writer.now)
    }
    trace?.isResting = false
    looksAtOthers = true
    looksAtAnswers = true
    // The kinds of requests have to be distinguished.
    if meter == nil { arrival = .untimed }
    plainBytes = 0
    plainFaults = .max
    account.answers.stopPlain()
  }

  /// Records requests that are still in flight as such, including those popped before there was a trace: traces are used to
  /// find requests that hang.
  mutating func stopTrace() {
    guard let trace else { return }
    for index in 0..<slab.begun where unsafe slab.slot(index).pointee.stage != .none {
      var request = unsafe trace.requests[index]
      let wasSeen = request.taken != 0
      if !wasSeen { request.taken = trace.began }
      // Without times, the kind of earlier requests was not recorded.
      let kind = wasSeen || meter != nil ? nil : RequestKind.other
      trace.writer.append(record(request, index, unsafe slab.slot(index).pointee, answered: 0, kind: kind))
    }
    leaveTrace()
  }

  /// Stops recording new requests; those that were popped before are recorded to their end.
  mutating func restTrace() {
    trace?.isResting = true
    plainBytes = looksFirst ? 0 : rules.plainBytes
  }

  /// Whether every request that was recorded when it was popped has been answered and published.
  var hasFinishedTrace: Bool { trace?.inFlight == 0 }

  /// Ends the trace: plain requests take the fast path again.
  mutating func leaveTrace() {
    trace = nil
    looksAtOthers = context.zones != nil
    looksAtAnswers = meter != nil
    if meter == nil { arrival = .none }
    plainBytes = looksFirst ? 0 : rules.plainBytes
    plainFaults = log == nil && !looksAtOthers ? seenFaults : .max
    if meter == nil, !isWatched { account.answers.startPlain() }
  }

  /// A request was popped and parsed, and is about to be submitted, or to wait for a limit.
  @inline(never)
  mutating func noteTaken(_ index: Int, sector: UInt64 = 0, bytes: UInt64 = 0) {
    guard let trace, !trace.isResting else { return }
    self.trace?.inFlight += 1
    unsafe trace.requests[index] = TracedRequest(taken: trace.writer.now, sector: sector, bytes: bytes)
  }

  /// A request no longer waits for a limit.
  @inline(never)
  func noteStarted(_ index: Int) {
    guard let trace, unsafe trace.requests[index].taken != 0 else { return }
    unsafe trace.requests[index].started = trace.writer.now
  }

  /// The medium has completed or failed the last operation of a request.
  @inline(never)
  func noteCompleted(_ index: Int) {
    guard let trace, unsafe trace.requests[index].taken != 0 else { return }
    unsafe trace.requests[index].completed = trace.writer.now
  }

  /// A request is about to be answered.
  @inline(never)
  mutating func noteAnswered(_ slot: UnsafeMutablePointer<RequestSlot>) {
    guard let trace else { return }
    let index = unsafe slot - slab.slot(0)
    let request = unsafe trace.requests[index]
    guard request.taken != 0 else { return }
    unsafe trace.requests[index].taken = 0
    self.trace?.inFlight -= 1
    // If answers are not in order, the answer follows at once.
    let answered = isOrdered || request.completed == 0 ? trace.writer.now : request.completed
    trace.writer.append(record(request, index, unsafe slot.pointee, answered: answered))
  }

  /// - Parameter kind: `nil`: the one recorded at its arrival.
  private func record(
    _ request: TracedRequest, _ index: Int, _ slot: RequestSlot, answered: UInt64, kind: RequestKind? = nil
  ) -> TraceRecord {
    let completed = request.completed == 0 ? answered : request.completed
    return TraceRecord(
      .request, queue: queue, request: kind ?? RequestKind(rawValue: slot.arrival.kind) ?? .other, status: slot.status.rawValue,
      head: slab.head(at: index), first: request.sector, second: request.bytes,
      times: (request.taken, request.started, completed, answered))
  }

  /// Answers have been published.
  ///
  /// - Parameters:
  ///   - count: chains.
  ///   - begin: the time before that.
  ///   - calls: how many calls had been sent by then.
  @inline(never)
  func notePublished(_ count: Int, from begin: UInt64, calls: UInt64) {
    guard let trace else { return }
    let hasCalled = counters.value(.calls) != calls
    guard count > 0 || hasCalled else { return }
    trace.writer.append(
      TraceRecord(
        .publication, queue: queue, first: UInt64(truncatingIfNeeded: count),
        times: (begin, hasCalled ? trace.writer.now : 0, 0, 0)))
  }
}
