/// A worker: some queues of one device, one engine, one thread. Every turn goes the same way: pop, parse, submit, complete,
/// publish, call; then it sleeps in its engine.
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// What every worker of a device is made with.
struct WorkerConfiguration: Sendable {
  /// Among the device's workers.
  var index: Int
  var context: LaneContext
  /// Requests that one queue can have under way.
  var slots: Int
  /// Lanes: as many as the worker has queues.
  var lanes: Int
  /// Of all its queues.
  var kind: QueueKind
  var waiting: Waiting
  var notification: Notification
  var counters: CounterBlock
  var throttle: DiskThrottle
  /// `nil`: nobody wants to know how long requests take.
  var meter: LaneMeter?
  var mailbox: WorkerMailbox
  var events: DeviceNews
  /// Of a worker that shares its thread with others; `nil`: the thread is its own.
  var seat: WorkerSeat?
}

@safe
struct QueueWorker<Ring: Virtqueue & ~Copyable, Engine: BlockEngine & ~Copyable>: ~Copyable {
  /// Looking at a queue whose driver does not kick: how long to sleep between looks.
  private static var unkickedSleep: Int64 { 100_000 }

  /// Turns of a queue that never runs dry between two looks at the mailbox: a system call among thousands of requests, or of
  /// a driver that gives one at a time, among so many.
  private static var turnsBetweenPolls: Int { 32 }

  /// Looks at a ring in memory between two looks that need a system call.
  private static var looksBetweenPolls: Int { 128 }
  /// The first looks at the rings, before the clock is asked when to stop.
  private static var looksWithoutClock: Int { 8 }

  private let configuration: WorkerConfiguration
  private var medium: Medium<Engine>
  private var lanes: LaneTable<Ring>
  /// Lanes that are being stopped.
  private var stops: [Int] = []
  /// A queue has stopped or was not started, so there may be none.
  private var mayEnd = false
  /// Prepared, and not started yet: it does not end for want of a queue.
  private var isPrepared = false
  /// Where queues were told to stand that are held: a stop before their release says no more than that.
  private var heldPositions: [Int: QueuePosition] = [:]
  /// Lanes without a kick source.
  private var unkicked = 0
  private var hasEnded = false
  /// The operator lets its queues take nothing.
  private var isPaused = false
  /// The number of a pause whose operator waits for what is in flight.
  private var owesRest: UInt64?
  private var turnsWithoutPoll = 0
  private var window: PollWindow
  /// When the look ends that was left for a turn in which nothing may have come; `Clock` nanoseconds.
  private var lookEnds: UInt64?
  private let coalesces: Bool
  /// Rounds over all rings between two looks that need a system call.
  private let roundsBetweenPolls: Int
  /// Lost pages of the whole process, when this worker looked last.
  private var seenFaults = FaultGuard.count
  /// Some queue had its turn with more to do, or the backlog did: the mailbox is looked at before the next turn.
  private var isBusy = false
  /// Where and with which clock it is written down how long requests take.
  private let meter: LaneMeter?
  /// Requests may have to wait for a limit, or did when there was one.
  private var isThrottled: Bool
  /// That, or a trace is to be written: one look for both.
  private var hasSideWork: Bool
  /// Moments are written down, for figures or for a trace.
  private var isMetered: Bool
  private var trace: WorkerTrace?
  /// It shares its thread usually, and has it for itself at present.
  private var isAlone = false
  /// The moment that the clock was looked at last.
  private var moment = ArrivalWord.none
  /// Writes that all lanes had taken then.
  private var seenWrites: UInt64

  /// Those of the workers that had these counters before.
  private let earlierSystemCalls: UInt64

  /// - Throws: there is no memory for the requests under way.
  init(_ configuration: WorkerConfiguration, engine: consuming Engine) throws(Errno) {
    let mailbox = configuration.mailbox
    medium = try Medium(
      configuration.context.medium, engine: engine, worker: configuration.index, lanes: configuration.lanes,
      counters: configuration.counters,
      wake: { EventCounter.signal(mailbox.descriptor) })
    self.configuration = configuration
    // Beside others nobody checks for work: they want the thread in the meantime.
    window = PollWindow(configuration.seat == nil ? configuration.waiting : .sleep)
    coalesces = if case .coalesce = configuration.notification { true } else { false }
    earlierSystemCalls = configuration.counters.value(.systemCalls)
    lanes = LaneTable(capacity: configuration.lanes)
    meter = configuration.meter
    seenWrites = configuration.counters.value(.writes)
    isMetered = configuration.meter != nil
    isThrottled = configuration.throttle.isLimited
    hasSideWork = isThrottled
    roundsBetweenPolls = max(1, Self.looksBetweenPolls / max(1, configuration.lanes))
  }

  /// Works until its last queue has stopped.
  mutating func run() {
    while !hasEnded { turn() }
    configuration.counters.set(.systemCalls, earlierSystemCalls &+ medium.systemCalls)
  }

  /// One turn on a thread that has others to turn, too. It sleeps nowhere; what it would wait for is in its seat.
  /// - Returns: false when it was the last.
  mutating func step() -> Bool {
    medium.engine.poll()
    // It slept elsewhere.
    if isMetered { noteWake() }
    if let seat = configuration.seat { unsafe seat.state.pointee.rest = 0 }
    turn()
    if hasEnded { configuration.counters.set(.systemCalls, earlierSystemCalls &+ medium.systemCalls) }
    return !hasEnded
  }

  /// Works on a thread of its own, until its last queue has stopped or it sleeps so much that it can share a thread again.
  /// - Returns: false when its last queue has stopped.
  mutating func runAlone(_ seat: WorkerSeat) -> Bool {
    window = PollWindow(configuration.waiting)
    isAlone = true
    while !hasEnded, unsafe !seat.state.pointee.wantsCompany { turn() }
    window = PollWindow(.sleep)
    isAlone = false
    configuration.counters.set(.systemCalls, earlierSystemCalls &+ medium.systemCalls)
    return !hasEnded
  }

  /// - Throws: its engine cannot, and waits where it did.
  mutating func move(alone: Bool) throws(Errno) { try medium.engine.move(alone: alone) }

  /// A function of its own in the machine code, too, so that its cost can be counted.
  @inline(never)
  private mutating func turn() {
    configuration.counters.add(.turns)
    medium.beginTurn()
    while let event = medium.nextEvent() {
      if case .done(let tag) = event { complete(tag) } else { handle(event) }
    }
    if configuration.context.faults.loadRelaxed() != seenFaults { checkMemory() }
    if hasSideWork { doSideWork() }
    isBusy = medium.backlog.hasReady
    var hasMore = false
    for index in 0..<lanes.capacity where lanes.contains(index) {
      if isMetered { unsafe lanes[index].pointee.arrival = moment }
      // Requests that are finished in place are published with the next batch or here.
      let hasTaken = unsafe lanes[index].pointee.refill(&medium)
      if hasTaken {
        lookEnds = nil
        hasMore = unsafe hasMore || lanes[index].pointee.hasAvailable()
        isBusy = unsafe isBusy || lanes[index].pointee.hadItsTurn
      }
      if isMetered { measure(index, hasTaken: hasTaken) }
      unsafe lanes[index].pointee.publish()
      unsafe reportError(&lanes[index].pointee)
    }
    finishStops()
    if let pause = owesRest { tellRest(pause) }
    if hasMore || medium.hasReady { return goOn() }
    if window.current > 0, !hasSideWork || mayLook(), look() { return }
    sleep()
  }

  /// On to the next turn without a sleep. A driver that always has more must not keep the worker from its mailbox.
  private mutating func goOn() {
    medium.engine.submit()
    turnsWithoutPoll &+= 1
    guard isBusy || turnsWithoutPoll >= Self.turnsBetweenPolls else { return }
    turnsWithoutPoll = 0
    medium.engine.poll()
    if medium.engine.isLost { abandonAll() }
  }

  /// Asks for kicks, looks once more, and sleeps in the engine: this is also where a turn's operations are handed over.
  private mutating func sleep() {
    var hasMore = hasEnded
    if isMetered { settleAll() }
    for index in 0..<lanes.capacity where lanes.contains(index) {
      if unsafe lanes[index].pointee.prepareToSleep() { hasMore = true }
    }
    configuration.counters.set(.systemCalls, earlierSystemCalls &+ medium.systemCalls)
    // Handing over is where an engine may find out, or a look in vain. What is under way then would never wake anybody.
    if medium.engine.isLost, abandonAll() { hasMore = true }
    // What this turn or the last look ran into is dealt with before sleeping.
    if configuration.context.faults.loadRelaxed() != seenFaults { hasMore = true }
    let limit = hasMore ? 0 : sleepLimit()
    if window.learns {
      let start = Clock.now
      medium.engine.wait(nanoseconds: limit)
      window.learn(slept: Clock.now &- start)
    } else {
      medium.engine.wait(nanoseconds: limit)
    }
    if isMetered {
      if configuration.seat == nil || isAlone { noteWake() } else { noteMoment() }
    }
    if medium.engine.isLost { abandonAll() }
  }

  /// How long the sleep may last, if somebody has to be served without an event.
  private mutating func sleepLimit() -> Int64? {
    var limit: Int64? = unkicked > 0 ? Self.unkickedSleep : nil
    if let end = medium.restEnds { limit = min(limit ?? .max, max(Int64(clamping: end) - Int64(clamping: Clock.now), 1)) }
    if hasSideWork {
      trace?.fallsAsleep()
      if let left = trace?.restLeft { limit = min(limit ?? .max, left) }
      if let due = throttledUntil { limit = min(limit ?? .max, max(Int64(clamping: due) - Int64(clamping: Clock.now), 1)) }
    }
    guard coalesces else { return limit }
    for index in 0..<lanes.capacity where lanes.contains(index) {
      guard let deadline = unsafe lanes[index].pointee.callDeadline else { continue }
      let left = Int64(clamping: deadline) - Int64(clamping: Clock.now)
      limit = min(limit ?? .max, max(left, 1))
    }
    return limit
  }

  @inline(__always)
  private mutating func complete(_ tag: UInt32) {
    unsafe lanes[LaneContext.lane(of: tag)].pointee.complete(LaneContext.slot(of: tag), &medium)
  }

  @inline(never)
  private mutating func handle(_ event: MediumEvent) {
    switch event {
    case .done(let tag): complete(tag)
    case .failed(let tag):
      unsafe lanes[LaneContext.lane(of: tag)].pointee.complete(LaneContext.slot(of: tag), isDone: false, &medium)
    // The turn that follows looks at every ring.
    case .kick:
      configuration.counters.add(.kicks)
      trace?.noticesKick()
    case .mailbox: takeOrders()
    }
  }

  /// Looks for available chains and completions for a while instead of sleeping. - Returns: whether there were any.
  private mutating func look() -> Bool {
    medium.engine.submit()
    let isEndless = window.current == .max
    // A look that was left for a turn continues to its end.
    var end = lookEnds
    lookEnds = nil
    var round = 0
    while true {
      for index in 0..<lanes.capacity where unsafe lanes.contains(index) && lanes[index].pointee.hasAvailable() {
        if round >= roundsBetweenPolls { noteLook() }
        return true
      }
      if let event = medium.nextEvent() {
        handle(event)
        if round >= roundsBetweenPolls { noteLook() }
        return true
      }
      round &+= 1
      // The clock is read the first time when nothing came at once: that costs what a tenth of a request does.
      if round == Self.looksWithoutClock, !isEndless, end == nil { end = Clock.now &+ window.current }
      // Messages and completions that need a system call to be seen, and the clock, are looked at once a microsecond or so: a
      // driver with one request at a time answers sooner, and would wait for the call to return.
      if round % roundsBetweenPolls == 0 {
        // It was not at once that something came: what this takes belongs to no request.
        if round == roundsBetweenPolls, isMetered, Engine.movesData { settleAll() }
        medium.engine.poll()
        // Whoever does the work that is waited for (a kernel worker, say) may have to do it on this very CPU.
        sched_yield()
        if !isEndless {
          let now = Clock.now
          let ends = end ?? now &+ window.current
          if now >= ends { return false }
          end = ends
        }
        if coalesces || unkicked > 0 || hasEnded || medium.restEnds != nil || hasSideWork && isDue {
          noteLook()
          lookEnds = end
          return true
        }
      }
    }
  }

  /// Somewhere in the process a mapped file was cut: queues on such memory stop.
  @inline(never)
  private mutating func checkMemory() {
    seenFaults = configuration.context.faults.loadRelaxed()
    for index in 0..<lanes.capacity where lanes.contains(index) { unsafe _ = lanes[index].pointee.isMemoryThere() }
  }

  /// The engine is lost: nothing that is under way will complete, and nothing can be requested any more.
  ///
  /// - Returns: whether a turn has to follow, which tells of it.
  @discardableResult
  @inline(never)
  private mutating func abandonAll() -> Bool {
    medium.abandonJobs()
    var hasChanged = false
    for index in 0..<lanes.capacity where lanes.contains(index) {
      if unsafe lanes[index].pointee.abandonRequests() { hasChanged = true }
    }
    return hasChanged
  }

  // MARK: Limits and traces

  @inline(never)
  private mutating func doSideWork() {
    if trace != nil { traceTurn() }
    guard isThrottled else { return }
    for index in 0..<lanes.capacity where lanes.contains(index) { unsafe lanes[index].pointee.startThrottled(&medium) }
  }

  /// When a request that waits for a limit may go; `nil` when none waits.
  private var throttledUntil: UInt64? {
    var first: UInt64?
    for index in 0..<lanes.capacity where lanes.contains(index) {
      if let due = unsafe lanes[index].pointee.throttledUntil { first = min(first ?? .max, due) }
    }
    return first
  }

  private var isDue: Bool { throttledUntil.map { Clock.now >= $0 } ?? false }

  /// Who is held back by a limit does not check for work: more would only wait, too. One that never sleeps looks all the same.
  private mutating func mayLook() -> Bool {
    guard window.current == .max || throttledUntil == nil else { return false }
    trace?.beginsToPoll()
    return true
  }

  private mutating func changeLimits() {
    let isLimited = configuration.throttle.isLimited
    // It stays so: what waits for a limit that is gone is still to be started.
    isThrottled = isThrottled || isLimited
    hasSideWork = isThrottled || trace != nil
    for index in 0..<lanes.capacity where lanes.contains(index) {
      unsafe lanes[index].pointee.limit(by: isLimited ? configuration.throttle : nil)
    }
  }

  private mutating func carryOut(_ order: TraceOrder) {
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

  /// Lanes whose requests are not recorded at present are as without a trace.
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

  // MARK: Metrics

  /// Turns without a wait, and answers of these, between two looks at the clock: they are so short that one look for each
  /// would be seen, as a driver on another CPU gives a request or two at a time.
  private static var turnsBetweenMoments: Int { 8 }
  private static var answersBetweenMoments: UInt16 { 32 }

  private mutating func noteMoment() {
    guard let meter else { return }
    moment = ArrivalWord(time: meter.clock.now)
  }

  /// The worker has slept.
  private mutating func noteWake() {
    noteMoment()
    trace?.wakes()
  }

  /// Something came after the worker had looked for it for more than a moment.
  @inline(__always)
  private mutating func noteLook() { if isMetered, Engine.movesData { noteWake() } }

  /// A lane had its turn: what it answered is about to be shown.
  @inline(never)
  private mutating func measure(_ lane: Int, hasTaken: Bool) {
    unsafe lanes[lane].pointee.showDepth()
    guard unsafe hasTaken || lanes[lane].pointee.hasUnsettled else { return }
    if unsafe lanes[lane].pointee.account.turns == 0 {
      unsafe lanes[lane].pointee.account.began = lanes[lane].pointee.arrival.time
    }
    unsafe lanes[lane].pointee.account.turns &+= 1
    let writes = configuration.counters.value(.writes)
    unsafe lanes[lane].pointee.account.takenWrites &+= writes &- seenWrites
    seenWrites = writes
    if unsafe lanes[lane].pointee.account.turns >= Self.turnsBetweenMoments
      || Engine.movesData && lanes[lane].pointee.owesMoment(answers: Self.answersBetweenMoments, copies: Engine.copies)
    {
      settle(lane)
    }
  }

  private mutating func settle(_ lane: Int) {
    noteMoment()
    unsafe lanes[lane].pointee.settle(now: moment.time)
  }

  private mutating func settleAll() {
    for index in 0..<lanes.capacity where unsafe lanes.contains(index) && lanes[index].pointee.hasUnsettled { settle(index) }
  }

  // MARK: Control

  private mutating func takeOrders() {
    carryOut(configuration.mailbox.take())
    // Without a queue there is nothing else to wait for. The engine rests in the meantime, but where others have the thread,
    // too.
    while isPrepared, configuration.seat == nil {
      EventWait.untilReadable(configuration.mailbox.descriptor)
      carryOut(configuration.mailbox.take())
    }
  }

  private mutating func prepare(_ order: PrepareOrder) {
    // A worker that has queues has what it needs, and their memory.
    if lanes.isEmpty {
      isPrepared = true
      medium.engine.use(order.memory)
    }
    let error: QueueError? = medium.engine.isLost ? .mediumLost : nil
    configuration.events.post(Preparation(worker: configuration.index, number: order.number, error: error))
  }

  private mutating func carryOut(_ orders: WorkerOrders) {
    if let order = orders.prepare { prepare(order) }
    if let order = orders.trace { carryOut(order) }
    for (queue, order) in orders.queues.sorted(by: { $0.key < $1.key }) {
      if let activation = order.start { answer(activation) }
      guard let lane = lane(of: queue) else { continue }
      if let call = order.call { unsafe lanes[lane].pointee.replaceCall(call) }
      if let failure = order.failure { unsafe lanes[lane].pointee.replaceFailure(failure) }
      if order.releases { release(lane) }
      if order.stops { stop(lane) }
    }
    if let pause = orders.pause {
      (isPaused, owesRest) = (true, pause)
      for lane in 0..<lanes.capacity where lanes.contains(lane) { unsafe lanes[lane].pointee.pause() }
    }
    if orders.resumesAll {
      (isPaused, owesRest) = (false, nil)
      for lane in 0..<lanes.capacity where lanes.contains(lane) { unsafe lanes[lane].pointee.tryParked(&medium) }
    }
    if orders.changesLimits { changeLimits() }
    if orders.unprepares || orders.stopsAll {
      isPrepared = false
      mayEnd = true
    }
    guard orders.stopsAll else { return }
    for lane in 0..<lanes.capacity where lanes.contains(lane) { stop(lane) }
  }

  private mutating func tellRest(_ pause: UInt64) {
    for lane in 0..<lanes.capacity where lanes.contains(lane) {
      guard unsafe lanes[lane].pointee.isAtRest else { return }
    }
    owesRest = nil
    configuration.events.rests(worker: configuration.index, pause: pause)
  }

  private mutating func release(_ lane: Int) {
    heldPositions[lane] = nil
    unsafe lanes[lane].pointee.release()
  }

  /// Asked again, it is the same stop.
  private mutating func stop(_ lane: Int) {
    guard !stops.contains(lane) else { return }
    unsafe lanes[lane].pointee.drain()
    unsafe lanes[lane].pointee.startThrottledOnCredit(&medium)
    stops.append(lane)
  }

  private func lane(of queue: Int) -> Int? {
    for index in 0..<lanes.capacity where unsafe lanes.contains(index) && lanes[index].pointee.queue == queue { return index }
    return nil
  }

  private mutating func answer(_ activation: Activation) {
    isPrepared = false
    do throws(QueueError) {
      try start(activation)
      configuration.events.post(.started(queue: activation.queue))
    } catch {
      mayEnd = true
      configuration.events.post(.notStarted(queue: activation.queue, error))
    }
  }

  private mutating func start(_ activation: Activation) throws(QueueError) {
    guard !medium.engine.isLost else { throw .mediumLost }
    if case .eventCounter(let counter) = activation.kick { try EventWait.check(counter.rawValue) }
    guard let index = lanes.free else { throw .outOfMemory }
    lanes.insert(
      try Lane(
        activation, lane: index, slots: configuration.slots, context: configuration.context,
        notification: configuration.notification, counters: configuration.counters, meter: meter), at: index)
    if isThrottled, configuration.throttle.isLimited { unsafe lanes[index].pointee.limit(by: configuration.throttle) }
    if let trace, !trace.isResting { unsafe lanes[index].pointee.startTrace(trace.buffer, lane: index) }
    medium.use(activation.memory, lane: index)
    do throws(Errno) { try medium.engine.watch(activation.kick, lane: index) } catch {
      medium.engine.unwatch(lane: index)
      lanes.remove(index)
      medium.forgetMemory(ofLane: index)
      throw EventWait.reason(error)
    }
    // Whoever had the ring before may have ended between showing what it answered and saying so.
    if !activation.isHeld, activation.notifiesAtStart, activation.inflight != nil || activation.publishesInOrder {
      activation.call.signal()
    }
    // The turn that follows looks at the ring without waiting for a kick.
    if case .none = activation.kick { unkicked += 1 }
    kicks[index] = activation.kick
    if activation.isHeld { heldPositions[index] = activation.position }
    if isPaused { unsafe lanes[index].pointee.pause() }
  }

  private var kicks: [Int: KickSource] = [:]

  /// Releases the lanes that were to be stopped and have nothing under way any more; without a lane the worker ends.
  private mutating func finishStops() {
    guard mayEnd || !stops.isEmpty else { return }
    for lane in stops where unsafe lanes[lane].pointee.isIdle { remove(lane) }
    stops.removeAll { !lanes.contains($0) }
    guard mayEnd else { return }
    mayEnd = false
    hasEnded = lanes.isEmpty && configuration.mailbox.close()
  }

  private mutating func remove(_ lane: Int) {
    if isMetered { settle(lane) }
    unsafe lanes[lane].pointee.publishLast()
    // What of its trace is left: it had nothing under way.
    unsafe lanes[lane].pointee.stopTrace()
    unsafe lanes[lane].pointee.handBack()
    unsafe lanes[lane].pointee.showDepth()
    unsafe reportError(&lanes[lane].pointee)
    let queue = unsafe lanes[lane].pointee.queue
    let position = unsafe heldPositions.removeValue(forKey: lane) ?? lanes[lane].pointee.position
    medium.engine.unwatch(lane: lane)
    if case .some(.none) = kicks.removeValue(forKey: lane) { unkicked -= 1 }
    lanes.remove(lane)
    medium.forgetMemory(ofLane: lane)
    mayEnd = true
    // Whoever hears of the stop finds what was done up to it.
    configuration.counters.set(.systemCalls, earlierSystemCalls &+ medium.systemCalls)
    configuration.events.post(.stopped(queue: queue, position))
  }

  private func reportError(_ lane: inout Lane<Ring>) {
    guard let error = lane.takeError() else { return }
    configuration.events.post(.queueFailed(queue: lane.queue, error))
  }
}
