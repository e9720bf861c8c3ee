/// A driver that suspends the device and resumes it (virtio 3.4, since 1.4).
internal import GuestDriver
internal import VirtioCore

extension Check {
  static let suspension: [Check] = [
    Check(
      "suspended-early", "suspend.1", "SUSPEND before DRIVER_OK has no effect.", rings: .once,
      needs: [.offered(.suspend), .modern, .registers]
    ) { bench in
      try bench.start(Plan(adding: .suspend, queues: 1, waits: true))
      let transport = try bench.transport()
      try transport.setStatus(bench.status.union(.suspend))
      let status = try transport.status()
      try expect(!status.contains(.suspend), "the status is \(status.rawValue) after SUSPEND was written before DRIVER_OK")
      try bench.go()
      try bench.good(bench.harmless)
      return .kept()
    },
    Check(
      "suspend-and-resume", "suspend.8 suspend.9", "The device becomes suspended, and continues when it is resumed.",
      needs: [.offered(.suspend), .modern, .registers]
    ) { bench in
      try bench.start(Plan(adding: .suspend))
      for round in 0..<4 {
        for queue in bench.hands.indices {
          for number in 0..<5 { try bench.good(bench.read(UInt64(number) * bench.step), on: queue) }
        }
        try bench.suspend()
        // Asking again has no effect.
        if round % 2 == 1 { try bench.transport().setStatus(bench.status.union(.suspend)) }
        try bench.resume()
      }
      for queue in bench.hands.indices { try bench.good(bench.harmless, on: queue) }
      // A reset ends the suspension, too.
      try bench.suspend()
      try bench.start(Plan(queues: 1))
      try bench.good(bench.harmless)
      return .kept()
    },
    Check(
      "suspended-is-silent", "suspend.3 suspend.4", "A suspended device leaves the rings alone and notifies nobody.",
      needs: [.offered(.suspend), .modern, .registers]
    ) { bench in
      try bench.start(Plan(adding: .suspend))
      for hand in bench.hands {
        try bench.good(bench.harmless, on: hand.index)
        try bench.suspend()
        _ = hand.takeCalls()
        var posted = try bench.make(bench.harmless)
        bench.post(&posted, on: hand.index)
        bench.settle()
        try hand.look()
        try expect(posted.status == Posted.poison, "a request was executed on queue \(hand.index) of a suspended device")
        try expect(hand.finished[posted.id] == nil, "a request was used on queue \(hand.index) of a suspended device")
        try expect(hand.takeCalls() == 0, "a suspended device called for queue \(hand.index)")
        try bench.resume()
        hand.kick()
        try expect(try bench.answer(posted, on: hand.index).isOK, "the request failed after the device was resumed")
      }
      return .kept()
    },
    Check(
      "suspension-drains", "suspend.10 suspend.11",
      "When the device says that it is suspended, everything that it began is used, and it begins nothing more.",
      needs: [.offered(.suspend), .modern, .registers]
    ) { bench in
      try bench.start(Plan(adding: .suspend, size: 64))
      var drained = 0
      for round in 0..<8 {
        let given = try bench.suspendWithRequests()
        for (hand, batch) in zip(bench.hands, given) {
          let used = hand.finished.count
          for posted in batch where hand.finished[posted.id] == nil { try bench.expectUntouched(posted, "round \(round)") }
          bench.settle()
          try hand.look()
          try expect(
            hand.finished.count == used,
            "round \(round): a request of queue \(hand.index) was used while the device was suspended")
          for posted in batch where hand.finished[posted.id] == nil { try bench.expectUntouched(posted, "round \(round)") }
          drained += used
        }
        try bench.resumeWith(given)
      }
      guard drained > 0 else { throw Trouble.notApplicable("nothing was used before the device was suspended") }
      return .kept("\(drained) of \(8 * 6 * bench.hands.count) requests were used before the device was suspended")
    },
    Check(
      "suspension-calls", "suspend.12",
      "When the device says that it is suspended, the driver has been called for everything that is used.",
      needs: [.offered(.suspend), .modern, .registers]
    ) { bench in
      var called = 0
      for features: FeatureSet in [[], .eventIndex] where bench.facts.offered.isSuperset(of: features) {
        try bench.start(Plan(adding: features.union(.suspend), size: 64))
        let slots = UInt16(try bench.make(bench.read(0)).chain.count)
        for round in 0..<8 {
          // With EVENT_IDX a call has to come for one of the requests only, which need not be the first that is used.
          let event = features.isEmpty ? 0 : round % 6
          for hand in bench.hands { hand.wantCall(features.isEmpty ? 0 : hand.eventFlags, atUsed: UInt16(event), of: slots) }
          let given = try bench.suspendWithRequests()
          for hand in bench.hands where hand.finished.count > event {
            try expect(
              hand.takeCalls() > 0,
              "round \(round): \(hand.finished.count) requests were used on queue \(hand.index), and no call came for "
                + "\(features.isEmpty ? "them" : "number \(event), at which the driver wants one")")
            called += 1
          }
          try bench.resumeWith(given)
        }
      }
      guard called > 0 else { throw Trouble.notApplicable("nothing was used before the device was suspended") }
      return .kept("\(called) times requests were used and called for before the device was suspended")
    },
    Check(
      "suspended-writeback", "suspend.2", "Writes to the configuration of a suspended device have no effect.", rings: .once,
      needs: [.offered(.suspend), .offered(BlockFeature.configWCE), .modern, .registers, .writable]
    ) { bench in
      try bench.start(Plan(adding: [BlockFeature.configWCE, .suspend], queues: 1))
      let before = try bench.cacheMode()
      try bench.suspend()
      try bench.transport().writeConfiguration(at: 32, [before == 0 ? 1 : 0])
      try bench.resume()
      let after = try bench.cacheMode()
      try expect(after == before, "writeback went from \(before) to \(after) by a write while the device was suspended")
      return .kept()
    },
    Check(
      "suspended-resize", "suspend.5 suspend.6 suspend.7",
      "What changes while the device is suspended shows, and is told, when it is resumed.", rings: .once,
      needs: [.offered(.suspend), .resize, .modern, .registers, .writable]
    ) { bench in
      guard let resize = bench.subject.resize else { throw Trouble.notApplicable("the size cannot be changed here") }
      try bench.start(Plan(adding: .suspend, queues: 1))
      let transport = try bench.transport()
      _ = try transport.waitForConfigurationChange(milliseconds: 0)
      try bench.suspend()
      let before = try transport.readConfiguration(at: 0, count: 60)
      let old = bench.capacity * 512
      defer { try? resize(old) }
      try resize(old * 2)
      bench.settle()
      let during = try transport.readConfiguration(at: 0, count: 60)
      let early = try transport.waitForConfigurationChange(milliseconds: 0)
      try bench.resume()
      let told = try transport.waitForConfigurationChange(milliseconds: bench.patience)
      let now = BlockConfig(try transport.readConfiguration(at: 0, count: 8), offered: []).capacity
      try expect(during == before, "the configuration changed while the device was suspended")
      try expect(!early, "a configuration change notification came while the device was suspended")
      try expect(told, "no configuration change notification came when the device was resumed")
      try expect(now == bench.capacity * 2, "the capacity is \(now) after the disk became \(bench.capacity * 2) sectors")
      return .kept()
    },
  ]
}

extension Hand {
  /// The flags with which a driver requests a call at one position; a split ring has only the position.
  fileprivate var eventFlags: UInt16 { format == .split ? 0 : EventSuppression.descriptor }

  /// Tells the device when to call.
  ///
  /// - Parameter chain: how many chains from now on are used without a call, if each has `slots` descriptors.
  fileprivate func wantCall(_ flags: UInt16, atUsed chain: UInt16, of slots: UInt16) {
    switch raw {
    case .split(let ring):
      ring.availableFlags.storeRelaxed(flags)
      ring.usedEvent.storeRelaxed(usedMark &+ chain)
    case .packed(let ring):
      ring.driverEventPosition.storeRelaxed(nextUsed.advanced(by: chain * slots, size: size).word)
      ring.driverEventFlags.storeRelease(flags)
    }
    fullFence()
  }
}

extension Bench {
  /// Submits six reads of a block to each queue and suspends the device at once: it may have begun none of them, some, or all.
  /// Afterwards, used chains have been taken, and calls have not.
  fileprivate func suspendWithRequests() throws -> [[Posted]] {
    var given: [[Posted]] = []
    for hand in hands {
      _ = hand.takeCalls()
      var batch: [Posted] = []
      for number in 0..<6 {
        var posted = try make(read(UInt64(number) * step))
        posted.id = hand.offer(posted.chain, isHeld: true)
        batch.append(posted)
      }
      given.append(batch)
    }
    for hand in hands { hand.publish() }
    for hand in hands { hand.kick() }
    try suspend()
    for hand in hands { try hand.look() }
    return given
  }

  /// Checks that neither data nor status of an unused request have been written.
  fileprivate func expectUntouched(_ posted: Posted, _ time: String) throws {
    try expect(
      posted.status == Posted.poison && posted.data.allSatisfy { $0 == Posted.poison },
      "\(time): a request was executed at least in part, and was not used before the device was suspended")
  }

  /// Resumes the device, which has to answer the rest.
  fileprivate func resumeWith(_ given: [[Posted]]) throws {
    try resume()
    for (hand, batch) in zip(hands, given) {
      hand.kick()
      for posted in batch {
        try expect(try answer(posted, on: hand.index).isOK, "a request failed after the device was resumed")
      }
    }
  }

  /// Requests suspension, and waits for it.
  func suspend() throws {
    let transport = try transport()
    try transport.setStatus(status.union([.driverOK, .suspend]))
    var now = DeviceStatus()
    let came = try eventually {
      now = try transport.status()
      return now.contains(.suspend) && !now.contains(.driverOK) || now.contains(.needsReset)
    }
    guard !now.contains(.needsReset) else { throw Trouble.notApplicable("the device answers SUSPEND with DEVICE_NEEDS_RESET") }
    try expect(came, "the status is still \(now.rawValue) after SUSPEND was written")
  }

  /// Resumes the device by writing DRIVER_OK, and waits for it.
  func resume() throws {
    let transport = try transport()
    try transport.setStatus(status.union(.driverOK))
    var now = DeviceStatus()
    let came = try eventually {
      now = try transport.status()
      return !now.contains(.suspend) && now.contains(.driverOK) || now.contains(.needsReset)
    }
    guard !now.contains(.needsReset) else {
      throw Trouble.notApplicable("the device answers the end of SUSPEND with DEVICE_NEEDS_RESET")
    }
    try expect(came, "the status is still \(now.rawValue) after the device was resumed")
  }
}
