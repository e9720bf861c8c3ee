/// Workers that are made before their queues are started: threads, engines, rings, registered memory.
public import VirtioCore

extension BlockDevice {
  public func prepare(_ queues: [Int], memory: GuestMemory, kind: QueueKind) {
    precondition(queues.allSatisfy((0..<queueCount).contains), "no such queue")
    preparationNumber &+= 1
    unpreparedWorkers = []
    let order = PrepareOrder(number: preparationNumber, memory: memory)
    for index in Set(queues.map { $0 % threadCount }).sorted() {
      // A worker that was abandoned may never answer.
      guard !leftQueues.contains(where: { $0 % threadCount == index }) else {
        unprepare()
        return events.post(.notPrepared(.leftBehind))
      }
      if prepareWorker(index, order, kind: kind) { unpreparedWorkers.insert(index) }
    }
    if unpreparedWorkers.isEmpty { events.post(.prepared) }
  }

  /// - Returns: whether there will be an answer.
  private func prepareWorker(_ index: Int, _ order: PrepareOrder, kind: QueueKind) -> Bool {
    guard let worker = places[index].worker else {
      var orders = WorkerOrders()
      orders.prepare = order
      launch(index, orders, kind: kind)
      return true
    }
    let isOfThisKind = worker.kind == kind
    // A worker of the other kind that has queues ends with the last of them, and nobody can say when.
    guard isOfThisKind || !worker.hasBegun else { return false }
    let isTaken = worker.mailbox.post { orders in
      if isOfThisKind { orders.prepare = order }
      orders.unprepares = !isOfThisKind
    }
    if isOfThisKind && isTaken { return true }
    // The worker ends at once, and the next one is prepared.
    places[index].waiting.prepare = order
    places[index].preparesKind = kind
    return true
  }

  public func unprepare() {
    // Answers that are still on their way now belong to an earlier call.
    preparationNumber &+= 1
    unpreparedWorkers = []
    events.dropPreparations()
    for index in places.indices {
      places[index].waiting.prepare = nil
      _ = places[index].worker?.mailbox.post { orders in
        orders.prepare = nil
        orders.unprepares = true
      }
    }
  }

  /// The event for the transport that follows from a worker's answer to `prepare`; `nil`: none yet.
  func answer(_ preparation: Preparation) -> DeviceEvent? {
    guard preparation.number == preparationNumber, unpreparedWorkers.remove(preparation.worker) != nil else { return nil }
    if let error = preparation.error {
      unprepare()
      return .notPrepared(error)
    }
    return unpreparedWorkers.isEmpty ? .prepared : nil
  }
}
