/// The block device: features, configuration, and the workers that serve its queues. Control plane only; nothing here is
/// touched by a request.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage
public import VirtioCore

/// What a queue does when its medium fails a request, after all retries and fallbacks.
public enum ErrorPolicy: String, CaseIterable, Sendable {
  /// It answers the request with IOERR.
  case report
  /// It does not answer the request, and pops no more until the operator has repaired the medium.
  case stop
}

/// The options of a device.
public struct BlockDeviceOptions: Sendable {
  /// Bytes of one segment that a driver may use (SIZE_MAX).
  public static let maximumSegmentSize: UInt32 = 4 << 20
  /// Data segments of one request (SEG_MAX) at most: with header and status it fits a ring of 128 without indirect
  /// descriptors, which is the smallest that front-ends use by default.
  public static let maximumSegments = 126
  /// Bytes of a serial number (virtio 5.2.6, GET_ID).
  public static let serialSize = 20

  /// 1 … 256.
  public var queueCount = 1
  /// A power of two, 4 … 32768: the largest ring size that is offered, if the transport can offer one. A ring of 4 has room for
  /// the three descriptors of the smallest request; each ring has to be as large as the driver's largest request without
  /// indirect descriptors.
  public var maximumQueueSize: UInt16 = 1024
  /// Fields of the configuration space that differ from their defaults. By default a request has as many data segments
  /// (SEG_MAX) as fit the largest ring without indirect descriptors, at most `maximumSegments`.
  public var configuration = ConfigurationChoice()
  /// At most 20 bytes reach the driver; `nil`: the image's own, `ImageDescription.serial`.
  public var serial: String?
  /// What moves the bytes; `auto`: the best engine for the image.
  public var engine = EngineKind.auto
  /// The number of threads among which the queues are divided; `nil`: one for each queue.
  public var threads: Int?
  /// CPUs that the threads are pinned to in turn; empty: not pinned.
  public var processors: [Int] = []
  /// How the io_uring engine sets up its ring.
  public var uring = UringSetup()
  /// How an idle worker waits. By default it polls for a moment before it sleeps, for as long as that pays off: waking up costs
  /// more than most requests do. A queue without requests sleeps.
  public var waiting = Waiting.adaptive(maximumMicroseconds: 50)
  /// How often the driver is notified.
  public var notification = Notification.batch
  /// What a queue does when the medium fails a request.
  public var onError = ErrorPolicy.report
  /// Features of `BlockDevice.featuresOnRequest(of:)` to offer in addition.
  public var requestedFeatures = FeatureSet()
  /// Threads that it may share with other disks; `nil`: it has its own threads.
  public var shared: SharedWorkers?
  /// Whether it shares them whatever its medium is, for tests.
  package var sharesAnyMedium = false
  /// Feature bits that are not offered although the device has them. Required features cannot be withheld.
  public var withheldFeatures = FeatureSet()
  /// Whether to record how long requests take and how many are in flight, for `BlockDevice.metrics`.
  public var metrics = true
  /// The disk's limits per second; `BlockDevice.setLimits` changes them.
  public var limits = RateLimits()
  /// Faults to inject at the medium, to test how a guest handles them. Not with the null engine, which has no medium.
  public var faults: [FaultRule] = []
  /// Observes the operations on the medium.
  package var witness: (any MediumWitness)?
  /// A deliberate mistake that a test has to find; only with the `sync` engine.
  package var plant: PlantedMistake?

  /// The defaults: one queue, the engine that suits the image, and no limits.
  public init() {}
}

/// A disk. Its methods are called from one thread, and none of them waits; only the last release waits for queues that were
/// neither stopped nor left.
public final class BlockDevice: VirtioDevice, @unchecked Sendable {
  /// The image that is served.
  public let image: ImageFile
  public let features: FeatureSet
  public let queueCount: Int
  public let maximumQueueSize: UInt16
  /// Which engine serves the image, and why: one line.
  public let engineReason: String
  /// What the user should know about that choice, if anything.
  public let engineWarning: String?
  /// The engine that was chosen; never `auto`.
  public let engine: EngineKind
  /// The answer to GET_ID, of which at most 20 bytes reach the driver.
  public let serial: String
  public internal(set) var configurationGeneration: UInt32 = 0

  private let options: BlockDeviceOptions
  let threadCount: Int
  var configuration: BlockConfigSpace
  private var negotiatedFeatures: FeatureSet?
  let events: DeviceNews
  let shared: SharedBlock
  private let context: LaneContext
  let mapped: MappedImage?
  private let layers: EngineLayers?
  /// Made with the first worker of each place; most places never have one.
  private let counterBlocks: Mutex<[Int: CounterBlock]>
  private let metricsArea: MetricsArea?
  private let throttle: DiskThrottle
  /// The disk's limits per second.
  public private(set) var limits: RateLimits
  /// One for each thread that there can be.
  var places: [WorkerPlace]
  /// Queues that were abandoned and whose workers still run.
  public private(set) var leftQueues: Set<Int> = []

  /// Where a worker runs, or can run. It ends by itself when its last queue has stopped; then the next one can come.
  struct WorkerPlace {
    var worker: Worker?
    /// Orders for the next worker: they came while this one was about to end, or need a worker of the other kind.
    var waiting = WorkerOrders()
    /// The kind of queues that the next worker is prepared for.
    var preparesKind = QueueKind(isPacked: false, isRecorded: false)
  }

  /// Workers whose answer to `prepare` is still to come.
  var unpreparedWorkers: Set<Int> = []
  /// The number of the last call of `prepare`.
  var preparationNumber: UInt64 = 0

  struct Worker {
    let run: WorkerRun
    let mailbox: WorkerMailbox
    /// Of all its queues.
    let kind: QueueKind
    /// It has been given a queue, so it ends by itself.
    var hasBegun: Bool
  }

  /// The body of a worker thread.
  typealias WorkerBody = @Sendable (WorkerConfiguration, EnginePlan) -> Void
  private let workerBody: WorkerBody
  /// Threads that its queues may share with those of other disks; `nil`: it needs its own threads.
  private let sharedWorkers: SharedWorkers?

  /// A disk on this image. No thread runs before a queue is started. - Throws: if the options do not fit each other, the image
  /// or this machine.
  public convenience init(image: ImageFile, options: BlockDeviceOptions = .init()) throws(EngineError) {
    try self.init(image: image, options: options, mayShare: true, workerBody: { serve($0, $1) })
  }

  /// With another engine under the same worker, for tests.
  init(
    image: ImageFile, options: BlockDeviceOptions, mayShare: Bool = false, workerBody: @escaping WorkerBody
  ) throws(EngineError) {
    guard (1...256).contains(options.queueCount) else { throw .badQueueCount(options.queueCount) }
    let size = Int(options.maximumQueueSize)
    guard (4...32768).contains(size), size & (size - 1) == 0 else { throw .badQueueSize(size) }
    let threads = options.threads ?? (image.description.takesSeveralWorkers ? options.queueCount : 1)
    guard (1...options.queueCount).contains(threads) else { throw .badThreadCount(threads) }
    guard threads == 1 || image.description.takesSeveralWorkers else { throw .oneConnection(uri: image.path, threads: threads) }
    let online = sysconf(Int32(_SC_NPROCESSORS_CONF))
    for cpu in options.processors {
      guard (0..<max(online, 1)).contains(cpu) else { throw .badProcessor(cpu, online: online) }
    }
    let blockLimits = try options.configuration.limits(
      of: image, queueSize: options.maximumQueueSize, isTranslated: options.requestedFeatures.contains(.accessPlatform))
    let choice = try EngineChoice.resolve(options.engine, options.uring, image: image)
    guard choice.kind != .null || options.faults.isEmpty else { throw .nothingToFail }
    guard image.zones == nil || options.onError == .report else { throw .zonesCannotStall }
    do throws(Errno) {
      events = try DeviceNews()
      serial = options.serial ?? image.description.serial
      shared = try SharedBlock(serial: serial, capacity: image.size / 512)
      metricsArea = options.metrics ? try MetricsArea(queueCount: options.queueCount, workers: threads) : nil
    } catch { throw .noResources(error) }

    limits = options.limits
    throttle = DiskThrottle(options.limits, now: Clock.now)
    self.workerBody = workerBody
    sharedWorkers = mayShare && choice.canShare(image, options) ? options.shared : nil
    sharedWorkers?.add()
    self.image = image
    self.options = options
    self.queueCount = options.queueCount
    self.maximumQueueSize = options.maximumQueueSize
    self.threadCount = threads
    self.engine = choice.kind
    self.mapped = choice.mapped
    self.layers = EngineLayers(options)
    self.engineReason = choice.reason
    let warnings = [choice.warning, options.faults.isEmpty ? nil : "faults are injected into \(image.path) (--inject)"]
    self.engineWarning = warnings.contains { $0 != nil } ? warnings.compactMap(\.self).joined(separator: "; ") : nil
    features = Self.features(of: image).union(options.requestedFeatures.intersection(Self.featuresOnRequest(of: image)))
      .subtracting(options.withheldFeatures.subtracting(Self.requiredFeatures(of: image)))
    configuration = BlockConfigSpace(image: image, features: features, limits: blockLimits, queueCount: options.queueCount)
    shared.writeback.storeRelaxed(1)
    context = unsafe LaneContext(
      limits: blockLimits, capacity: shared.capacity,
      medium: MediumFacts(image: image, zeroes: shared.zeroes), writeback: shared.writeback,
      stalls: options.onError == .stop ? events : nil, serial: shared.serial,
      lifetime: image.lifetime, zones: image.zones)
    counterBlocks = Mutex([:])
    places = Array(repeating: WorkerPlace(), count: threads)
    image.rbd?.whenResized { [events] in events.resized(to: $0) }
  }

  deinit {
    sharedWorkers?.remove()
    for place in places { _ = place.worker?.mailbox.post { $0.stopsAll = true } }
    for index in places.indices {
      guard let worker = places[index].worker else { continue }
      // Memory that an abandoned worker reads and writes is not freed; this is rare, and happens once.
      guard !leftQueues.contains(where: { $0 % threadCount == index }) else { continue }
      worker.run.join()
      places[index].worker = nil
    }
    counterBlocks.withLock { blocks in
      for (index, block) in blocks where places[index].worker == nil { block.deallocate() }
    }
    // A server that starts after the machine was switched off finds the zones as they are now.
    if let zones = image.zones, leftQueues.isEmpty, image.flush() == nil { zones.close() }
  }

  // MARK: VirtioDevice

  public var deviceID: UInt32 { 2 }
  public var configurationSize: Int { BlockConfigSpace.size }

  public func negotiated(_ features: FeatureSet) {
    // The same choice again is no new negotiation: vhost-user front-ends repeat it on a live device.
    guard features != negotiatedFeatures else { return }
    negotiatedFeatures = features
    // CONFIG_WCE without FLUSH starts with writeback 0 (virtio 5.2.5.2); legacy drivers change nothing by their choice of
    // features (virtio 5.2.5.3).
    guard features.contains(.version1) else { return }
    setWriteback(features.contains(.blockConfigWCE) && !features.contains(.blockFlush) ? 0 : 1)
  }

  private func setWriteback(_ value: UInt8) {
    // Without CONFIG_WCE there is no such field, and nobody looks at it.
    guard features.contains(.blockConfigWCE), configuration.writeback != value else { return }
    configuration.writeback = value
    shared.writeback.storeRelaxed(UInt32(value))
    configurationGeneration &+= 1
  }

  public func readConfiguration(at offset: Int, count: Int) -> [UInt8] { configuration.read(at: offset, count: count) }

  public var writableByte: UInt8? {
    features.contains(.blockConfigWCE) ? UInt8(BlockConfigSpace.writebackOffset) : nil
  }

  public func writeConfiguration(at offset: Int, _ bytes: [UInt8]) -> Bool {
    guard features.contains(.blockConfigWCE),
      let value = configuration.writeback(writing: bytes, at: offset)
    else { return false }
    setWriteback(value)
    return true
  }

  public func start(_ activation: Activation) {
    let queue = activation.queue
    precondition((0..<queueCount).contains(queue), "no such queue")
    guard !leftQueues.contains(queue) else { return events.post(.notStarted(queue: queue, .leftBehind)) }
    if let warning = SmallRing.warning(activation, segments: context.limits.segments) { events.post(.notice(warning)) }
    let index = queue % threadCount
    let kind = activation.kind
    guard let worker = places[index].worker else {
      var orders = WorkerOrders()
      orders.add(queue) { $0.begin(activation) }
      return launch(index, orders, kind: kind)
    }
    if worker.kind != kind {
      // It ends with its last queue, and the next one is of the other kind. Only an abandoned worker may never end.
      guard !leftQueues.contains(where: { $0 % threadCount == index }) else {
        return events.post(.notStarted(queue: queue, .leftBehind))
      }
      // A worker that was only prepared has no last queue.
      _ = worker.mailbox.post { $0.unprepares = true }
      return places[index].waiting.add(queue) { $0.begin(activation) }
    }
    places[index].worker?.hasBegun = true
    if !worker.mailbox.post({ $0.add(queue) { $0.begin(activation) } }) {
      places[index].waiting.add(queue) { $0.begin(activation) }
    }
  }

  public func release(queue: Int) { order(queue) { $0.releases = true } }

  public func stop(queue: Int) { order(queue) { $0.stops = true } }

  public func leave(queue: Int) {
    order(queue) { $0.stops = true }
    if places[queue % threadCount].worker != nil { leftQueues.insert(queue) }
  }

  /// The operator has paused the disk: no queue pops anything.
  public internal(set) var isPaused = false
  /// Workers that have not said that nothing is in flight since it was paused.
  var restlessWorkers: Set<Int> = []
  /// The number of the last call of `pause`.
  var pauseNumber: UInt64 = 0
  /// The current or latest trace.
  package internal(set) var trace: DeviceTrace?
  var traceNumber: UInt64 = 0

  /// Replaces the disk's limits per second: at once, and also for requests that already wait. Debts are cancelled, and saved
  /// tokens are dropped.
  public func setLimits(_ limits: RateLimits) {
    self.limits = limits
    throttle.set(limits, now: Clock.now)
    // A worker that is about to end has no waiting requests, and the next one reads the new limits itself.
    for place in places { _ = place.worker?.mailbox.post { $0.changesLimits = true } }
  }

  public func translate(queue: Int, by translations: Translations, refused: TranslationMiss?) {
    order(queue) { $0.add(translations, refused: refused) }
  }

  public func withdraw(queue: Int, _ withdrawal: Withdrawal) { order(queue) { $0.withdrawal = withdrawal } }

  public func replaceCall(queue: Int, _ call: CallSink) { order(queue) { $0.call = call } }
  public func replaceFailure(queue: Int, _ failure: CallSink) { order(queue) { $0.failure = failure } }

  public func reset() {
    negotiatedFeatures = nil
    setWriteback(1)
  }

  public func forgetDriver() { image.zones?.dropNotes() }

  /// Another process may have served the image since the queues were stopped, and is gone. To be called before a queue is
  /// started again; does not wait.
  public func servedElsewhere() { image.zones?.reload() }

  public var eventDescriptor: Int32 { events.descriptor }

  public func takeEvents() -> [DeviceEvent] {
    let news = events.take()
    let told = news.events.filter { !swallow($0) } + news.preparations.compactMap(answer)
    for (worker, pause) in news.rests { rests(worker, pause) }
    for (worker, number) in news.traceStops { traceStopped(worker: worker, number: number) }
    for index in news.endedWorkers { workerEnded(index) }
    if let size = news.imageSize { follow(size) }
    return told
  }

  /// Drops the events of queues that were left, and forgets such a queue with its last event. - Returns: whether the event
  /// belongs to such a queue.
  private func swallow(_ event: DeviceEvent) -> Bool {
    switch event {
    // Answers to the present caller, not news of a queue that was left.
    case .notStarted(_, .leftBehind), .prepared, .notPrepared, .configurationChanged, .notice: false
    case .notStarted(let queue, _), .stopped(let queue, _): leftQueues.remove(queue) != nil
    case .started(let queue), .queueFailed(let queue, _), .translationMissed(let queue, _), .withdrawn(let queue):
      leftQueues.contains(queue)
    }
  }

  /// What all workers have done so far.
  public var counters: BlockCounters {
    var total = BlockCounters()
    counterBlocks.withLock { blocks in for block in blocks.values { block.addTo(&total) } }
    return total
  }

  /// The counters and latencies of all workers so far. May be called from any thread at any time, and blocks nobody.
  public func metrics() -> BlockMetrics {
    var metrics = BlockMetrics()
    metrics.counters = counters
    metricsArea?.read(into: &metrics)
    return metrics
  }

  // MARK: Workers

  private func counters(ofPlace index: Int) -> CounterBlock {
    counterBlocks.withLock { blocks in
      if let block = blocks[index] { return block }
      let block = CounterBlock()
      blocks[index] = block
      return block
    }
  }

  /// Posts an order to the queue's worker. Without a worker the queue does not run, and there is nothing to do.
  private func order(_ queue: Int, _ change: (inout QueueOrder) -> Void) {
    let index = queue % threadCount
    // A queue that waits for the next worker does not belong to the present one.
    guard places[index].waiting.queues[queue] == nil else { return places[index].waiting.add(queue, change) }
    guard let worker = places[index].worker else { return }
    _ = worker.mailbox.post { $0.add(queue, change) }
  }

  /// Makes a worker that begins with these orders. If that fails, the error is the answer to them.
  func launch(_ index: Int, _ orders: WorkerOrders, kind: QueueKind) {
    do throws(QueueError) { places[index].worker = try makeWorker(index, orders, kind: kind) } catch {
      for (queue, order) in orders.queues where order.start != nil { events.post(.notStarted(queue: queue, error)) }
      if let order = orders.prepare { events.post(Preparation(worker: index, number: order.number, error: error)) }
    }
  }

  private func makeWorker(_ index: Int, _ orders: WorkerOrders, kind: QueueKind) throws(QueueError) -> Worker {
    let mailbox: WorkerMailbox
    do throws(Errno) { mailbox = try WorkerMailbox() } catch { throw .outOfDescriptors }
    let pause = isPaused ? pauseNumber : nil
    let trace = traceOrder(ofPlace: index)
    _ = mailbox.post {
      $0 = orders
      $0.pause = pause
      $0.trace = trace
    }
    let lanes = laneCount(ofPlace: index)
    let configuration = WorkerConfiguration(
      index: index, context: context, slots: LaneContext.slots, lanes: lanes, kind: kind,
      waiting: options.waiting, notification: options.notification, counters: counters(ofPlace: index),
      throttle: throttle, meter: metricsArea.map { LaneMeter(block: $0.blocks[index], clock: $0.clock) }, mailbox: mailbox,
      events: events)
    let processors = options.processors
    let cpu = processors.isEmpty ? nil : processors[index % processors.count]
    let plan = EnginePlan(
      kind: engine, setup: options.uring, image: image, mapped: mapped, depth: lanes * LaneContext.slots, layers: layers,
      worker: index, tell: { [events] in events.post(.notice($0)) })
    let (body, news, shared, metricsArea) = (workerBody, events, shared, metricsArea)
    let hasBegun = orders.queues.values.contains { $0.start != nil }
    let name = "queue \(index)"
    let end = SeatEnd()
    let order = HostOrder(configuration: configuration, plan: plan, name: name, body: body) {
      // Lanes point into it; the device may be gone by now if this worker was abandoned.
      withExtendedLifetime((shared, metricsArea)) {}
      end.come()
      news.workerEnded(index)
    }
    if !kind.isWatched, sharedWorkers?.take(order) == true {
      return Worker(run: .seat(end), mailbox: mailbox, kind: kind, hasBegun: hasBegun)
    }
    do throws(Errno) {
      let thread = try SystemThread(name: name, cpu: cpu) {
        body(configuration, plan)
        withExtendedLifetime((shared, metricsArea)) {}
        news.workerEnded(index)
      }
      return Worker(run: .thread(thread), mailbox: mailbox, kind: kind, hasBegun: hasBegun)
    } catch { throw .outOfThreads }
  }

  /// A worker has reported its end, so joining its thread does not block.
  private func workerEnded(_ index: Int) {
    guard let worker = places[index].worker else { return }
    worker.run.join()
    restlessWorkers.remove(index)
    traceEnded(worker: index)
    let (waiting, preparesKind) = (places[index].waiting, places[index].preparesKind)
    places[index] = WorkerPlace()
    guard !waiting.isEmpty else { return }
    let starts = waiting.queues.values.compactMap(\.start)
    guard !starts.isEmpty || waiting.prepare != nil else { return }
    // Queues that are not of this kind get the answer that they cannot be started.
    let kind = QueueKind(
      isPacked: starts.first?.kind.isPacked ?? preparesKind.isPacked,
      isRecorded: starts.isEmpty ? preparesKind.isRecorded : starts.contains(where: \.kind.isRecorded),
      isWatched: starts.isEmpty ? preparesKind.isWatched : starts.contains(where: \.kind.isWatched))
    launch(index, waiting, kind: kind)
  }
}
