/// A worker: some queues of one device, one engine, one thread. Every turn goes the same way: pop, parse, submit, complete,
/// publish, call; then it sleeps in its engine.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// What the control plane asks of a worker.
enum WorkerMessage: Sendable {
  case start(Activation, Reply<QueueError?>)
  /// Drain, and say where the queue stands; `nil` if it is not here.
  case stop(queue: Int, Reply<QueuePosition?>)
  case replaceCall(queue: Int, CallSink)
  case replaceFailure(queue: Int, CallSink)
  /// End the thread; all queues were stopped before.
  case end
}

/// What every worker of a device is made with.
struct WorkerConfiguration: Sendable {
  var context: LaneContext
  /// Requests that one queue can have under way.
  var slots: Int
  /// Lanes: as many as the worker has queues.
  var lanes: Int
  /// How long to look for work before sleeping, nanoseconds; 0: not at all.
  var pollNanoseconds: UInt64
  var counters: CounterBlock
  var mailbox: Mailbox<WorkerMessage>
  var events: Mailbox<DeviceEvent>
}

@safe
struct QueueWorker<Ring: Virtqueue & ~Copyable, Engine: BlockEngine & ~Copyable>: ~Copyable {
  /// Looking at a queue whose driver does not kick: how long to sleep between looks.
  private static var unkickedSleep: Int64 { 100_000 }

  private let configuration: WorkerConfiguration
  private var engine: Engine
  /// `nil` where no queue runs.
  private let lanes: UnsafeMutablePointer<Lane<Ring>?>
  private var stops: [(lane: Int, reply: Reply<QueuePosition?>)] = []
  /// Lanes without a kick source.
  private var unkicked = 0
  private var hasEnded = false

  init(_ configuration: WorkerConfiguration, engine: consuming Engine) {
    self.configuration = configuration
    self.engine = engine
    unsafe lanes = .allocate(capacity: configuration.lanes)
    for index in 0..<configuration.lanes { unsafe (lanes + index).initialize(to: nil) }
  }

  deinit {
    unsafe lanes.deinitialize(count: configuration.lanes)
    unsafe lanes.deallocate()
  }

  /// Works until it is told to end.
  mutating func run() {
    while !hasEnded {
      while let event = engine.nextEvent() { handle(event) }
      turn()
    }
    configuration.counters.set(.systemCalls, engine.systemCalls)
  }

  private mutating func turn() {
    configuration.counters.add(.turns)
    var hasMore = false
    for index in 0..<configuration.lanes {
      guard unsafe lanes[index] != nil else { continue }
      // Requests that are finished in place are published with the next batch or here.
      if unsafe lanes[index]!.refill(&engine) { hasMore = unsafe hasMore || lanes[index]!.hasAvailable() }
      unsafe lanes[index]!.publish()
      unsafe reportError(&lanes[index]!)
    }
    finishStops()
    if hasMore { return engine.submit() }
    if configuration.pollNanoseconds > 0, poll() { return }
    for index in 0..<configuration.lanes {
      guard unsafe lanes[index] != nil else { continue }
      if unsafe lanes[index]!.prepareToSleep() { hasMore = true }
    }
    guard !hasEnded else { return }
    configuration.counters.set(.systemCalls, engine.systemCalls)
    engine.wait(nanoseconds: hasMore ? 0 : unkicked > 0 ? Self.unkickedSleep : nil)
  }

  private mutating func handle(_ event: EngineEvent) {
    switch event {
    case .completion(let tag, let result):
      unsafe lanes[Int(tag >> 16)]?.complete(Int(tag & 0xffff), result, &engine)
    case .kick: configuration.counters.add(.kicks)  // the turn that follows looks at every ring
    case .mailbox:
      for message in configuration.mailbox.take() { handle(message) }
    }
  }

  /// Looks for available chains and completions for a while instead of sleeping. - Returns: whether there were any.
  private mutating func poll() -> Bool {
    engine.submit()
    let end = Self.now &+ configuration.pollNanoseconds
    repeat {
      for index in 0..<configuration.lanes where unsafe lanes[index]?.hasAvailable() ?? false { return true }
      if let event = engine.nextEvent() {
        handle(event)
        return true
      }
    } while Self.now < end
    return false
  }

  private static var now: UInt64 {
    var time = timespec()
    unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
  }

  // MARK: Control

  private mutating func handle(_ message: WorkerMessage) {
    switch message {
    case .start(let activation, let reply): reply.give(start(activation))
    case .stop(let queue, let reply):
      guard let lane = lane(of: queue) else { return reply.give(nil) }
      unsafe lanes[lane]!.drain()
      stops.append((lane, reply))
    case .replaceCall(let queue, let call):
      if let lane = lane(of: queue) { unsafe lanes[lane]!.replaceCall(call) }
    case .replaceFailure(let queue, let failure):
      if let lane = lane(of: queue) { unsafe lanes[lane]!.replaceFailure(failure) }
    case .end: hasEnded = true
    }
  }

  private func lane(of queue: Int) -> Int? {
    (0..<configuration.lanes).first { unsafe lanes[$0]?.queue == queue }
  }

  private mutating func start(_ activation: Activation) -> QueueError? {
    guard let index = (0..<configuration.lanes).first(where: { unsafe lanes[$0] == nil }) else { return .outOfMemory }
    do throws(QueueError) {
      unsafe lanes[index] = try Lane(
        activation, lane: index, slots: configuration.slots, context: configuration.context,
        counters: configuration.counters)
    } catch { return error }
    // The turn that follows looks at the ring without waiting for a kick.
    if case .none = activation.kick { unkicked += 1 }
    kicks[index] = activation.kick
    engine.watch(activation.kick, lane: index)
    return nil
  }

  private var kicks: [Int: KickSource] = [:]

  /// Lets go of the lanes that were to be stopped and have nothing under way any more.
  private mutating func finishStops() {
    guard !stops.isEmpty else { return }
    stops.removeAll { stop in
      guard unsafe lanes[stop.lane]?.isIdle ?? true else { return false }
      unsafe lanes[stop.lane]?.publish()
      let position = unsafe lanes[stop.lane]?.position
      engine.unwatch(lane: stop.lane)
      if case .some(.none) = kicks.removeValue(forKey: stop.lane) { unkicked -= 1 }
      unsafe lanes[stop.lane] = nil
      stop.reply.give(position)
      return true
    }
  }

  private func reportError(_ lane: inout Lane<Ring>) {
    guard let error = lane.takeError() else { return }
    configuration.events.post(.queueFailed(queue: lane.queue, error))
  }
}
