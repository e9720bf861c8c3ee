/// How a lane starts: with the ring as the driver has set it up, and nothing in flight.
internal import SystemPackage
internal import VirtioCore

extension Lane where Ring: ~Copyable {
  /// - Parameter lane: its number in tags.
  // Inlined into the only function that makes lanes: with a separate frame, each thread's stack would touch another page.
  @inline(__always)
  init(
    _ activation: Activation, lane: Int, slots: Int, context: LaneContext, notification: Notification,
    counters: CounterBlock, meter: LaneMeter?
  ) throws(QueueError) {
    let features = activation.features
    var ring = try Ring(
      activation.configuration, memory: activation.memory, features: features, position: activation.position,
      record: activation.inflight.map { InflightRecord($0, queue: activation.queue) })
    if let watch = activation.watch { ring.attach(watch) }
    let slab: RequestSlab
    do throws(Errno) { slab = try RequestSlab(capacity: min(slots, Int(ring.size))) } catch { throw .outOfMemory }
    self.queue = activation.queue
    isInOrder = features.contains(.inOrder)
    let isOrdered = isInOrder || activation.publishesInOrder
    self.isOrdered = isOrdered
    let isWatched = isInOrder || activation.log != nil
    self.isWatched = isWatched
    order = AnswerOrder(capacity: isOrdered ? slab.capacity : 0, isWatched: isWatched)
    transferStage = isWatched ? .watchedTransfer : .transfer
    isPlain = !isOrdered && !isWatched
    log = activation.log.map {
      LaneLog($0, memory: activation.memory, configuration: activation.configuration)
    }
    state = activation.isHeld ? .held : ring.interrupted > 0 ? .recovering : .running
    self.ring = ring
    self.slab = slab
    self.context = context
    self.counters = counters
    self.meter = meter
    looksAtAnswers = meter != nil
    depth = meter?.block.depth(ofQueue: activation.queue)
    let isCounted = meter != nil || isWatched
    account = LaneAccount(answers: AnswerRuns(plain: isCounted ? .never : ArrivalWord.none.with(.read)))
    arrival = meter.map { ArrivalWord(time: $0.clock.now) } ?? .none
    self.firstTag = LaneContext.firstTag(ofLane: lane)
    self.memory = activation.memory
    seenLosses = activation.memory.lookup?.translations.losses ?? 0
    self.inflight = activation.inflight
    publishesAtPush = Ring.canPublishAtPush && activation.publishesInOrder && activation.inflight == nil
    self.publishEvery = notification == .each ? 1 : 16
    self.coalescing = Coalescing(notification)
    self.call = activation.call
    self.failure = activation.failure
    let regions = activation.memory.lookup == nil ? activation.memory.regions.count : nil
    self.rules = LaneRules(features, context.limits, regions: regions)
    plainBytes = context.zones == nil ? rules.plainBytes : 0
    looksFirst = context.zones != nil
    looksAtOthers = context.zones != nil
    account.settledPushes = self.ring.pushes
    if publishesAtPush { self.ring.publishAtPush() }
  }
}
