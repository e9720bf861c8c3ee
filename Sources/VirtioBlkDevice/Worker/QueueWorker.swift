/// A worker: some queues of one device, one engine, one thread. Every turn has the same steps: pop, parse, submit, complete,
/// publish, call; then it sleeps in its engine.
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// The configuration of a worker.
struct WorkerConfiguration: Sendable {
  /// The worker's number among those of the device.
  var index: Int
  var context: LaneContext
  /// How many requests one queue can have in flight.
  var slots: Int
  /// Lanes: as many as the worker has queues.
  var lanes: Int
  /// The kind of all its queues.
  var kind: QueueKind
  var waiting: Waiting
  var notification: Notification
  var counters: CounterBlock
  var throttle: DiskThrottle
  /// `nil`: requests are not timed.
  var meter: LaneMeter?
  var mailbox: WorkerMailbox
  var events: DeviceNews
  /// The seat of a worker that may share its thread with others; `nil`: the thread is its own.
  var seat: WorkerSeat?
}

@safe
struct QueueWorker<Ring: Virtqueue & ~Copyable, Engine: BlockEngine & ~Copyable>: ~Copyable {
  /// How long to sleep between two polls of a queue whose driver does not kick.
  private static var unkickedSleep: Int64 { 100_000 }

  /// Turns of a queue that never runs dry between two polls of the mailbox: one system call in thousands of requests, or in
  /// this many if the driver submits one at a time.
  private static var turnsBetweenPolls: Int { 32 }

  let configuration: WorkerConfiguration
  var medium: Medium<Engine>
  var lanes: LaneTable<Ring>
  /// Lanes that are being stopped.
  var stops: [Int] = []
  /// Lanes that still use withdrawn translations; `finishStops` checks them in each turn.
  var withdrawals: [Int] = []
  /// A queue has stopped or could not be started, so there may be none left.
  var mayEnd = false
  /// It is prepared and no queue has started yet: it does not end although it has no queue.
  var isPrepared = false
  /// The positions that held queues were started at: a stop before the release reports exactly these.
  var heldPositions: [Int: QueuePosition] = [:]
  /// Lanes without a kick source.
  var unkicked = 0
  /// What each lane's driver kicks with.
  var kicks: [Int: KickSource] = [:]
  var hasEnded = false
  /// The operator has paused its queues.
  var isPaused = false
  /// The number of a pause for which the operator waits until nothing is in flight.
  var owesRest: UInt64?
  private var turnsWithoutPoll = 0
  var window: PollWindow
  /// When polling ends that was interrupted for a turn which may have found nothing; `Clock` nanoseconds.
  var lookEnds: UInt64?
  /// When the present polling yields.
  var yields = YieldPace()
  let coalesces: Bool
  /// Rounds over all rings between two polls that need a system call.
  let roundsBetweenPolls: Int
  /// Lost pages of the whole process, when this worker last checked.
  private var seenFaults = FaultGuard.count
  /// Some queue, or the backlog, used up its turn with more to do: the mailbox is polled before the next turn.
  private var isBusy = false
  /// Records how long requests take, and has the clock for it.
  let meter: LaneMeter?
  /// Requests may have to wait for a limit, or may still wait for a removed one.
  var isThrottled: Bool
  /// That, or there is a trace: one test for both.
  var hasSideWork: Bool
  /// Times are recorded, for metrics or for a trace.
  var isMetered: Bool
  var trace: WorkerTrace?
  /// It usually shares its thread, but has its own at present.
  private var isAlone = false
  /// When the clock was last read.
  var moment = ArrivalWord.none
  /// Writes that all lanes had popped by then.
  var seenWrites: UInt64

  /// System calls of the workers that had these counters before.
  let earlierSystemCalls: UInt64

  /// - Throws: if there is no memory for the slots of requests.
  init(_ configuration: WorkerConfiguration, engine: consuming Engine) throws(Errno) {
    let mailbox = configuration.mailbox
    medium = try Medium(
      configuration.context.medium, engine: engine, worker: configuration.index, lanes: configuration.lanes,
      counters: configuration.counters,
      wake: { EventCounter.signal(mailbox.descriptor) })
    self.configuration = configuration
    // A worker on a shared thread does not poll: others need the thread.
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

  /// Runs until its last queue has stopped.
  mutating func run() {
    while !hasEnded { turn() }
    configuration.counters.set(.systemCalls, earlierSystemCalls &+ medium.systemCalls)
  }

  /// One turn on a thread that it shares with other workers. It does not sleep; its seat says what it would wait for.
  /// - Returns: false if it was the last turn.
  mutating func step() -> Bool {
    medium.engine.poll()
    // The shared thread did the sleeping.
    if isMetered { noteWake() }
    if let seat = configuration.seat { unsafe seat.state.pointee.rest = 0 }
    turn()
    if hasEnded { configuration.counters.set(.systemCalls, earlierSystemCalls &+ medium.systemCalls) }
    return !hasEnded
  }

  /// Runs on its own thread, until its last queue has stopped or it sleeps so much that it can share a thread again.
  /// - Returns: false if its last queue has stopped.
  mutating func runAlone(_ seat: WorkerSeat) -> Bool {
    window = PollWindow(configuration.waiting)
    isAlone = true
    while !hasEnded, unsafe !seat.state.pointee.wantsCompany { turn() }
    window = PollWindow(.sleep)
    isAlone = false
    configuration.counters.set(.systemCalls, earlierSystemCalls &+ medium.systemCalls)
    return !hasEnded
  }

  /// - Throws: if its engine cannot move; it keeps waiting as before.
  mutating func move(alone: Bool) throws(Errno) { try medium.engine.move(alone: alone) }

  /// Never inlined, so that its cost can be measured.
  @inline(never)
  mutating func turn() {
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
      // Requests that completed in place are published with the next batch or here.
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

  /// Continues with the next turn without sleeping. A driver that always has more requests must not keep the worker from its
  /// mailbox.
  private mutating func goOn() {
    medium.engine.submit()
    turnsWithoutPoll &+= 1
    guard isBusy || turnsWithoutPoll >= Self.turnsBetweenPolls else { return }
    turnsWithoutPoll = 0
    // A worker that has used up its turn yields to other threads of this CPU: otherwise the kernel would reschedule only at its
    // next tick. On a shared thread, the other workers are next anyway.
    if isBusy, configuration.seat == nil || isAlone { sched_yield() }
    medium.engine.poll()
    if medium.engine.isLost { abandonAll() }
  }

  /// Enables kicks, polls once more, and sleeps in the engine, which also submits the turn's operations.
  private mutating func sleep() {
    var hasMore = hasEnded
    if isMetered { settleAll() }
    for index in 0..<lanes.capacity where lanes.contains(index) {
      if unsafe lanes[index].pointee.prepareToSleep() { hasMore = true }
    }
    configuration.counters.set(.systemCalls, earlierSystemCalls &+ medium.systemCalls)
    // An engine may find out that it is lost while it submits, or polls in vain. Then nothing in flight would ever wake the
    // worker.
    if medium.engine.isLost, abandonAll() { hasMore = true }
    // Lost memory that this turn or polling ran into is handled before sleeping.
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

  /// How long the sleep may last, if something is due without an event.
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
  mutating func handle(_ event: MediumEvent) {
    switch event {
    case .done(let tag): complete(tag)
    case .failed(let tag):
      unsafe lanes[LaneContext.lane(of: tag)].pointee.complete(LaneContext.slot(of: tag), isDone: false, &medium)
    // The turn that follows polls every ring.
    case .kick:
      configuration.counters.add(.kicks)
      trace?.noticesKick()
    case .mailbox: takeOrders()
    }
  }

  /// A mapped file was truncated somewhere in the process: queues on such memory stop.
  @inline(never)
  private mutating func checkMemory() {
    seenFaults = configuration.context.faults.loadRelaxed()
    for index in 0..<lanes.capacity where lanes.contains(index) { unsafe _ = lanes[index].pointee.isMemoryThere() }
  }

  /// The engine is lost: nothing in flight will complete, and nothing more can be submitted.
  ///
  /// - Returns: whether another turn has to follow, to report it.
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
}
