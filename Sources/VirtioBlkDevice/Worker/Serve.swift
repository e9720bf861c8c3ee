/// The only place where ring format and engine are chosen: below it everything is statically typed.
internal import SystemPackage
internal import VirtioCore

/// What an engine is made from.
struct EnginePlan: Sendable {
  var kind: EngineKind
  var setup: UringSetup
  var image: ImageFile
  /// The mapping, for engines that copy.
  var mapped: MappedImage?
  /// How many operations can be in flight at once.
  var depth: Int
  /// The layers around the engine; `nil`: none.
  var layers: EngineLayers?
  /// The worker's number among those of the device.
  var worker = 0
  /// Shows the user a message.
  var tell: @Sendable (String) -> Void = { _ in }

  /// The rights that a thread with this engine keeps, if the process gives up rights.
  var role: ThreadRole {
    guard kind == .nbd else { return .queue }
    return image.export?.options.location.security == nil ? .connectedQueue : .securedQueue
  }
}

/// The body of a worker thread. An engine that cannot be made here (because of the limit of locked memory, for example) is
/// replaced by the plain one.
func serve(_ configuration: WorkerConfiguration, _ plan: EnginePlan) {
  let mailbox = configuration.mailbox.descriptor
  // The page cache is as fast as memory.
  let isSlow = plan.image.isDirect && !plan.image.isInMemory
  do throws(Errno) {
    if plan.layers != nil || configuration.kind.isWatched {
      let engine = try plan.makeObject(isSlow: isSlow, mailbox: mailbox)
      return try work(configuration, top: plan.layers?.around(engine) ?? engine, role: plan.role)
    }
    #if FUZZED
    // One copy of the worker for all engines: libFuzzer clears and reads the counters of all copies for each input.
    try work(configuration, top: try plan.makeObject(isSlow: isSlow, mailbox: mailbox), role: plan.role)
    #else
    if let chain = plan.image.chain, plan.kind != .null {
      return try work(configuration, try Qcow2Engine(chain, plan.kind, mailbox: mailbox))
    }
    let descriptor = plan.image.descriptor
    switch plan.kind {
    case .uring:
      let engine = try UringEngine(
        descriptor: descriptor, isSlow: isSlow, mailbox: mailbox, depth: plan.depth, setup: plan.setup)
      try work(configuration, engine)
    case .aio:
      let engine = try AioEngine(descriptor: descriptor, isSlow: isSlow, mailbox: mailbox, depth: plan.depth)
      try work(configuration, engine)
    case .threads:
      let engine = try ThreadPoolEngine(descriptor: descriptor, mailbox: mailbox)
      try work(configuration, engine)
    case .mapped:
      guard let mapped = plan.mapped else { throw .noMemory }
      let engine = try MappedEngine(mapped, descriptor: descriptor, mailbox: mailbox)
      try work(configuration, engine)
    case .cached:
      guard let mapped = plan.mapped else { throw .noMemory }
      let engine = try CachedEngine(
        mapped, descriptor: descriptor, mailbox: mailbox, depth: plan.depth, setup: plan.setup)
      try work(configuration, engine)
    case .null:
      try work(configuration, try NullEngine(mailbox: mailbox))
    case .nbd:
      guard let export = plan.image.export else { throw .noMemory }
      try work(configuration, try NBDEngine(export, plan, mailbox: mailbox), role: plan.role)
    case .rbd:
      guard let rbd = plan.image.rbd else { throw .noMemory }
      try work(configuration, try RBDEngine(rbd, plan, mailbox: mailbox))
    case .sync, .auto:
      let engine = try SyncEngine(descriptor: descriptor, mailbox: mailbox)
      try work(configuration, engine)
    }
    #endif
  } catch {
    guard ![.sync, .null, .nbd, .rbd].contains(plan.kind) else { return refuse(configuration) }
    configuration.events.post(
      .notice(
        "the \(plan.kind.rawValue) engine cannot be made for a queue of \(plan.image.path) (\(error)), so plain system calls "
          + "serve it: raise the limits of locked memory (ulimit -l) or of asynchronous I/O (fs.aio-max-nr)"))
    var plain = plan
    plain.kind = .sync
    serve(configuration, plain)
  }
}

/// Runs with an engine that is an object.
func work(_ configuration: WorkerConfiguration, top engine: any EngineObject, role: ThreadRole = .queue) throws(Errno) {
  guard !configuration.kind.isWatched else { return try workWatched(configuration, LayeredEngine(engine), role: role) }
  try work(configuration, LayeredEngine(engine), role: role)
}

/// The same as `work` below, on queues that are watched. Only with an engine that is an object: it need not be fast, and other
/// workers pay nothing for it.
private func workWatched(
  _ configuration: WorkerConfiguration, _ engine: consuming LayeredEngine, role: ThreadRole
) throws(Errno) {
  role.begin()
  switch (configuration.kind.isPacked, configuration.kind.isRecorded) {
  case (false, false):
    var worker = try QueueWorker<WatchedQueue<SplitQueue>, LayeredEngine>(configuration, engine: engine)
    worker.run()
  case (false, true):
    var worker = try QueueWorker<WatchedQueue<RecordedSplitQueue>, LayeredEngine>(configuration, engine: engine)
    worker.run()
  case (true, false):
    var worker = try QueueWorker<WatchedQueue<PackedQueue>, LayeredEngine>(configuration, engine: engine)
    worker.run()
  case (true, true):
    var worker = try QueueWorker<WatchedQueue<RecordedPackedQueue>, LayeredEngine>(configuration, engine: engine)
    worker.run()
  }
}

/// Serves queues of one kind with one engine.
func work<Engine: BlockEngine & ~Copyable>(
  _ configuration: WorkerConfiguration, _ engine: consuming Engine, role: ThreadRole = .queue
) throws(Errno) {
  // Everything that needs more rights has been allocated by now.
  role.begin()
  switch (configuration.kind.isPacked, configuration.kind.isRecorded) {
  case (false, false):
    var worker = try QueueWorker<SplitQueue, Engine>(configuration, engine: engine)
    worker.run()
  case (false, true):
    var worker = try QueueWorker<RecordedSplitQueue, Engine>(configuration, engine: engine)
    worker.run()
  case (true, false):
    var worker = try QueueWorker<PackedQueue, Engine>(configuration, engine: engine)
    worker.run()
  case (true, true):
    var worker = try QueueWorker<RecordedPackedQueue, Engine>(configuration, engine: engine)
    worker.run()
  }
}

/// No engine could be made, not even for lack of an epoll descriptor: every start is answered with an error.
func refuse(_ configuration: WorkerConfiguration) {
  repeat {
    EventWait.untilReadable(configuration.mailbox.descriptor)
    let orders = configuration.mailbox.take()
    if let order = orders.prepare {
      configuration.events.post(Preparation(worker: configuration.index, number: order.number, error: .outOfDescriptors))
    }
    for (queue, order) in orders.queues where order.start != nil {
      configuration.events.post(.notStarted(queue: queue, .outOfDescriptors))
    }
  } while !configuration.mailbox.close()
}
