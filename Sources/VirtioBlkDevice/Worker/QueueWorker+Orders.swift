/// A worker's orders: start, stop, pause, resume, limits, traces; and the start and end of its queues.
internal import SystemPackage
internal import VirtioCore

extension QueueWorker where Ring: ~Copyable, Engine: ~Copyable {
  mutating func takeOrders() {
    carryOut(configuration.mailbox.take())
    // A prepared worker has no queue, so it waits only for orders. The engine is idle in the meantime, unless the thread is
    // shared.
    while isPrepared, configuration.seat == nil {
      EventWait.untilReadable(configuration.mailbox.descriptor)
      carryOut(configuration.mailbox.take())
    }
  }

  private mutating func prepare(_ order: PrepareOrder) {
    // A worker with queues already has everything it needs, including their memory.
    if lanes.isEmpty {
      isPrepared = true
      medium.engine.use(order.memory)
    }
    let error: QueueError? = medium.engine.isLost ? .mediumLost : nil
    configuration.events.post(Preparation(worker: configuration.index, number: order.number, error: error))
  }

  mutating func carryOut(_ orders: WorkerOrders) {
    if let order = orders.prepare { prepare(order) }
    if let order = orders.trace { carryOut(order) }
    for (queue, order) in orders.queues.sorted(by: { $0.key < $1.key }) {
      if let activation = order.start { answer(activation) }
      guard let lane = lane(of: queue) else { continue }
      if let call = order.call { unsafe lanes[lane].pointee.replaceCall(call) }
      if let failure = order.failure { unsafe lanes[lane].pointee.replaceFailure(failure) }
      if let withdrawal = order.withdrawal { withdraw(lane, withdrawal) }
      if let (value, refused) = order.translations { unsafe lanes[lane].pointee.translate(by: value, refused: refused) }
      if order.releases { release(lane) }
      if order.stops { stop(lane) }
    }
    if let pause = orders.pause {
      (isPaused, owesRest) = (true, pause)
      for lane in 0..<lanes.capacity where lanes.contains(lane) { unsafe lanes[lane].pointee.pause() }
    }
    if orders.resumesAll {
      (isPaused, owesRest) = (false, nil)
      for lane in 0..<lanes.capacity where lanes.contains(lane) {
        unsafe lanes[lane].pointee.tryParked(&medium)
        unsafe lanes[lane].pointee.startForWithdrawal(&medium)
      }
    }
    if orders.changesLimits { changeLimits() }
    if orders.unprepares || orders.stopsAll {
      isPrepared = false
      mayEnd = true
    }
    guard orders.stopsAll else { return }
    for lane in 0..<lanes.capacity where lanes.contains(lane) { stop(lane) }
  }

  mutating func tellRest(_ pause: UInt64) {
    for lane in 0..<lanes.capacity where lanes.contains(lane) {
      guard unsafe lanes[lane].pointee.isAtRest else { return }
    }
    owesRest = nil
    configuration.events.rests(worker: configuration.index, pause: pause)
  }

  mutating func release(_ lane: Int) {
    heldPositions[lane] = nil
    unsafe lanes[lane].pointee.release()
  }

  /// A repeated order changes nothing.
  mutating func stop(_ lane: Int) {
    guard !stops.contains(lane) else { return }
    unsafe lanes[lane].pointee.drain()
    unsafe lanes[lane].pointee.startThrottledOnCredit(&medium)
    stops.append(lane)
  }

  func lane(of queue: Int) -> Int? {
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

  mutating func start(_ activation: Activation) throws(QueueError) {
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
    // A previous device may have died between publishing answers and notifying the driver.
    if !activation.isHeld, activation.notifiesAtStart, activation.inflight != nil || activation.publishesInOrder {
      activation.call.signal()
    }
    // The turn that follows polls the ring without waiting for a kick.
    if case .none = activation.kick { unkicked += 1 }
    kicks[index] = activation.kick
    if activation.isHeld { heldPositions[index] = activation.position }
    if isPaused { unsafe lanes[index].pointee.pause() }
  }

  /// Releases the lanes that are being stopped and have nothing left in flight; without a lane the worker ends.
  mutating func finishStops() {
    guard mayEnd || !stops.isEmpty else { return }
    if !withdrawals.isEmpty { finishWithdrawals() }
    for lane in stops where unsafe lanes[lane].pointee.isIdle { remove(lane) }
    stops.removeAll { !lanes.contains($0) }
    guard mayEnd else { return }
    mayEnd = false
    hasEnded = lanes.isEmpty && configuration.mailbox.close()
    // The next turn checks the withdrawals again.
    mayEnd = !withdrawals.isEmpty
  }

  private mutating func remove(_ lane: Int) {
    if isMetered { settle(lane) }
    unsafe lanes[lane].pointee.publishLast()
    // The rest of its trace; nothing is in flight.
    unsafe lanes[lane].pointee.stopTrace()
    unsafe lanes[lane].pointee.handBack()
    unsafe lanes[lane].pointee.showDepth()
    unsafe reportError(&lanes[lane].pointee)
    let queue = unsafe lanes[lane].pointee.queue
    if let notice = unsafe lanes[lane].pointee.interruptedNotice { configuration.events.post(.notice(notice)) }
    if withdrawals.contains(lane) { finishWithdrawal(lane) }
    let position = unsafe heldPositions.removeValue(forKey: lane) ?? lanes[lane].pointee.position
    medium.engine.unwatch(lane: lane)
    if case .some(.none) = kicks.removeValue(forKey: lane) { unkicked -= 1 }
    lanes.remove(lane)
    medium.forgetMemory(ofLane: lane)
    mayEnd = true
    // Stored before the stop is reported, so that the counters are complete by then.
    configuration.counters.set(.systemCalls, earlierSystemCalls &+ medium.systemCalls)
    configuration.events.post(.stopped(queue: queue, position))
  }

  func reportError(_ lane: inout Lane<Ring>) {
    guard let error = lane.takeError() else { return }
    if case .untranslated(let miss) = error {
      return configuration.events.post(.translationMissed(queue: lane.queue, miss))
    }
    configuration.events.post(.queueFailed(queue: lane.queue, error))
  }
}
