/// Additional work in a turn, only if it is needed: limits and traces.
internal import VirtioCore

extension QueueWorker where Ring: ~Copyable, Engine: ~Copyable {
  @inline(never)
  mutating func doSideWork() {
    if trace != nil { traceTurn() }
    guard isThrottled else { return }
    for index in 0..<lanes.capacity where lanes.contains(index) { unsafe lanes[index].pointee.startThrottled(&medium) }
  }

  /// When a request that waits for a limit may start; `nil`: none waits.
  var throttledUntil: UInt64? {
    var first: UInt64?
    for index in 0..<lanes.capacity where lanes.contains(index) {
      if let due = unsafe lanes[index].pointee.throttledUntil { first = min(first ?? .max, due) }
    }
    return first
  }

  var isDue: Bool { throttledUntil.map { Clock.now >= $0 } ?? false }

  mutating func changeLimits() {
    let isLimited = configuration.throttle.isLimited
    // It stays set, because requests that wait for a removed limit still have to be started.
    isThrottled = isThrottled || isLimited
    hasSideWork = isThrottled || trace != nil
    for index in 0..<lanes.capacity where lanes.contains(index) {
      unsafe lanes[index].pointee.limit(by: isLimited ? configuration.throttle : nil)
    }
  }

  mutating func carryOut(_ order: TraceOrder) {
    switch order {
    case .start(let buffer):
      for lane in 0..<lanes.capacity where lanes.contains(lane) { unsafe lanes[lane].pointee.leaveTrace() }
      trace = WorkerTrace(buffer)
      for lane in 0..<lanes.capacity where lanes.contains(lane) { unsafe lanes[lane].pointee.startTrace(buffer, lane: lane) }
    case .stop(let number):
      trace?.end()
      for lane in 0..<lanes.capacity where lanes.contains(lane) { unsafe lanes[lane].pointee.stopTrace() }
      trace = nil
      configuration.events.stoppedTrace(worker: configuration.index, number: number)
    }
    isMetered = meter != nil || trace != nil
    if meter == nil { moment = trace == nil ? .none : .untimed }
    hasSideWork = isThrottled || trace != nil
  }

  /// While nothing is recorded, lanes run as they do without a trace.
  @inline(never)
  private mutating func traceTurn() {
    trace?.wakes()
    let change = trace?.nextChange()
    guard let trace, change != nil || trace.isResting else { return }
    for lane in 0..<lanes.capacity where lanes.contains(lane) {
      switch change {
      case .record: unsafe lanes[lane].pointee.startTrace(trace.buffer, lane: lane)
      case .rest: unsafe lanes[lane].pointee.restTrace()
      case nil: if unsafe lanes[lane].pointee.hasFinishedTrace { unsafe lanes[lane].pointee.leaveTrace() }
      }
    }
  }
}
