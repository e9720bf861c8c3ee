/// Rings over vhost-user: their states, their bases, and what may happen to them while they run.
internal import Glibc
internal import GuestDriver
internal import VhostUser
internal import VirtioCore

extension Bench {
  /// The transport with its front-end.
  fileprivate func vhostUser() throws -> VhostUserTransport {
    guard let transport = try transport() as? VhostUserTransport else { throw Trouble.notApplicable("only over vhost-user") }
    return transport
  }

  fileprivate func fresh() -> UInt32 { format == .packed ? 0x8000_8000 : 0 }
}

extension Check {
  static let vhostUser: [Check] = [
    Check("looks-at-start", "vu.ring.1", "What was available before a ring was started is served.", needs: [.vhostUser]) {
      bench in
      try bench.start(Plan(queues: 1, waits: true))
      var posted = try bench.make(bench.harmless)
      bench.post(&posted, kicks: false)
      try bench.go()
      bench.hands[0].kick()
      try expect(try bench.answer(posted).isOK, "the request failed")
      return .kept()
    },
    Check("disabled-ring", "vu.ring.2", "A ring that is disabled executes nothing.", needs: [.vhostUser]) { bench in
      try bench.start(Plan(queues: 1))
      let frontend = try bench.vhostUser().frontend
      guard frontend.enablesRings else { throw Trouble.notApplicable("rings need not be enabled here") }
      try bench.good(bench.harmless)
      try frontend.setEnabled(queue: 0, false)
      // A reply shows that the message before it was processed.
      _ = try frontend.features()
      bench.settle()
      var posted = try bench.make(bench.harmless)
      bench.post(&posted)
      bench.settle()
      try expect(posted.status == Posted.poison, "a request was executed on a ring that is disabled")
      return .kept()
    },
    Check(
      "enabled-again", "vu.ring.12", "A ring continues when it is enabled again, with the requests that came in the meantime.",
      needs: [.vhostUser]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let frontend = try bench.vhostUser().frontend
      guard frontend.enablesRings else { throw Trouble.notApplicable("rings need not be enabled here") }
      for _ in 0..<5 {
        try bench.good(bench.harmless)
        try frontend.setEnabled(queue: 0, false)
        var posted = try bench.make(bench.harmless)
        bench.post(&posted)
        try frontend.setEnabled(queue: 0, true)
        bench.hands[0].kick()
        try expect(try bench.answer(posted).isOK, "the request failed")
      }
      return .kept()
    },
    Check(
      "without-bit-30", "vu.ring.3", "Without bit 30 in SET_FEATURES rings are served without being enabled.",
      needs: [.vhostUser]
    ) { bench in
      try bench.start(Plan(queues: 1, waits: true))
      try bench.vhostUser().frontend.setFeatures(bench.features, enablesRings: false)
      try bench.go()
      try bench.good(bench.harmless)
      return .kept()
    },
    Check("enabled-early", "vu.ring.4", "A ring may be enabled before it is set up.", needs: [.vhostUser]) { bench in
      try bench.start(Plan(queues: 1, waits: true))
      let frontend = try bench.vhostUser().frontend
      guard frontend.enablesRings else { throw Trouble.notApplicable("rings need not be enabled here") }
      try frontend.setEnabled(queue: 0, true)
      try bench.go()
      try bench.good(bench.harmless)
      return .kept()
    },
    Check(
      "base-is-the-next", "vu.ring.5", "GET_VRING_BASE comes when all is finished, and says where the ring stands.",
      needs: [.vhostUser]
    ) { bench in
      try bench.start(Plan(queues: 1, size: 32))
      let transport = try bench.vhostUser()
      let hand = bench.hands[0]
      var all: [Posted] = []
      for number in 0..<5 {
        var posted = try bench.make(bench.read(UInt64(number) * bench.step, blocks: 8))
        bench.post(&posted)
        all.append(posted)
      }
      // The back-end need not have popped what it has not seen yet.
      for posted in all { _ = try bench.awaitUsed(posted.id) }
      for posted in all { try expect(posted.status == 0, "a request is not finished") }
      let base = try transport.stopQueue(0)
      let wanted = bench.format == .split ? hand.split.availableIndex.loadRelaxed() : hand.next.word
      try expect(
        UInt16(truncatingIfNeeded: base) == wanted,
        "the base is 0x\(String(base, radix: 16)), and the ring stands at 0x\(String(wanted, radix: 16))")
      return .kept()
    },
    Check(
      "base-drains", "vu.ring.5 bad.36", "Nothing is in flight any more when GET_VRING_BASE is answered.", needs: [.vhostUser]
    ) { bench in
      for round in 0..<10 {
        try bench.start(Plan(queues: 1, size: 32))
        let transport = try bench.vhostUser()
        let hand = bench.hands[0]
        var all: [Posted] = []
        for number in 0..<6 {
          var posted = try bench.make(bench.read(UInt64(number) * bench.step, blocks: 8))
          posted.id = hand.offer(posted.chain)
          all.append(posted)
        }
        hand.kick()
        if round % 2 == 1 { try hand.look() }
        let base = UInt16(truncatingIfNeeded: try transport.stopQueue(0))
        try hand.look()
        let answered = hand.usedCount
        let taken: Int
        if bench.format == .split {
          taken = Int(base)
        } else {
          let slots = Int(base & 0x7fff) + (base & 0x8000 == 0 ? Int(hand.size) : 0)
          taken = slots / 3
        }
        try expect(answered == taken, "round \(round): \(taken) chains were taken, \(answered) returned")
        for posted in all { posted.writable.fill(0x44) }
        bench.settle()
        try expect(
          all.allSatisfy { $0.writable.bytes.allSatisfy { $0 == 0x44 } },
          "round \(round): a buffer was written to after the stop")
      }
      return .kept()
    },
    Check(
      "goes-on-at-the-base", "vu.ring.6", "A ring that is stopped and restarted at its base continues.", needs: [.vhostUser]
    ) {
      bench in
      try bench.start(Plan(queues: 1))
      let transport = try bench.vhostUser()
      for _ in 0..<8 {
        for _ in 0..<3 { try bench.good(bench.harmless) }
        let base = try transport.stopQueue(0)
        try transport.startQueue(0, base: base)
      }
      try bench.good(bench.harmless)
      return .kept()
    },
    Check(
      "any-base", "vu.ring.13", split: "i.split.idx.1 i.split.event.1",
      "A ring begins at 65530 and continues past the end of 16 bits.", rings: .split,
      needs: [.vhostUser, .offered(.eventIndex)]
    ) { bench in
      try bench.start(Plan(adding: .eventIndex, queues: 1, waits: true))
      let transport = try bench.vhostUser()
      let hand = bench.hands[0]
      try bench.go()
      _ = try transport.stopQueue(0)
      hand.rebase(65_530)
      try transport.startQueue(0, base: 65_530)
      for _ in 0..<12 {
        hand.split.usedEvent.storeRelaxed(hand.usedMark)
        fullFence()
        _ = hand.takeCalls()
        try bench.good(bench.harmless)
        try expect(try bench.eventually { hand.takeCalls() > 0 }, "no call came for the element at \(hand.usedMark &- 1)")
      }
      return .kept()
    },
    Check("stopped-is-left-alone", "vu.ring.7", "A ring that was stopped is not touched.", needs: [.vhostUser]) { bench in
      try bench.start(Plan(queues: 1))
      try bench.good(bench.harmless)
      _ = try bench.vhostUser().stopQueue(0)
      let hand = bench.hands[0]
      var posted = try bench.make(bench.harmless)
      posted.id = hand.offer(posted.chain)
      let ring = bench.ringBytes(hand)
      hand.kick()
      bench.settle()
      try expect(posted.status == Posted.poison && bench.ringBytes(hand) == ring, "a ring that was stopped is served")
      return .kept()
    },
    Check("features-again", "vu.ring.8", "SET_FEATURES on a ring that runs does not stop it.", needs: [.vhostUser]) { bench in
      try bench.start(Plan(queues: 1))
      for _ in 0..<5 {
        try bench.good(bench.harmless)
        try bench.vhostUser().frontend.setFeatures(bench.features)
      }
      try bench.good(bench.harmless)
      return .kept()
    },
    Check("another-call", "vu.ring.9", "From SET_VRING_CALL on, the new descriptor is called.", needs: [.vhostUser]) { bench in
      try bench.start(Plan(queues: 1))
      try bench.good(bench.harmless)
      let call = try OwnedDescriptor.eventCounter()
      try bench.vhostUser().frontend.setCall(queue: 0, call)
      _ = try bench.vhostUser().frontend.features()
      EventCounter.drain(call.rawValue)
      try bench.good(bench.harmless)
      try expect(try bench.eventually { EventCounter.drain(call.rawValue) > 0 }, "the new descriptor was not called")
      return .kept()
    },
    Check("no-call", "vu.ring.10", "A ring without a call descriptor is served.", needs: [.vhostUser]) { bench in
      try bench.start(Plan(queues: 1))
      try bench.vhostUser().frontend.setCall(queue: 0, nil)
      for _ in 0..<5 { try bench.good(bench.harmless) }
      return .kept()
    },
    Check("error-descriptor", "vu.error.1", "A ring that breaks signals its error descriptor.", needs: [.vhostUser]) { bench in
      try bench.start(Plan(queues: 1))
      try bench.breakRing()
      try expect(
        try bench.hasFailed(0, milliseconds: bench.patience / 4), "the ring broke, and its error descriptor was not signalled")
      return .kept()
    },
    Check(
      "regions-one-by-one", "vu.memory.3", "Regions come and go one by one.", rings: .once,
      needs: [.protocolFeature(.memorySlots)]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let frontend = try bench.vhostUser().frontend
      let extra = try DriverMemory(anonymous: [(GuestAddress(1 << 33), 1 << 20)])
      guard let descriptor = extra.regions[0].descriptor else { throw Trouble.notApplicable("no memory to give") }
      let region = MemoryRegion(guestAddress: extra.regions[0].start, size: 1 << 20, userAddress: 0x7000_0000_0000)
      let data = try bench.good(bench.read(0)).data
      for _ in 0..<3 {
        try frontend.addMemory(FrontendRegion(region, descriptor: descriptor))
        var posted = try bench.make(bench.read(0))
        posted.chain[1].address = region.guestAddress.rawValue
        bench.post(&posted)
        _ = try bench.awaitUsed(posted.id, "a read into a region that was added")
        try expect(
          posted.status == 0 && extra.bytes(at: region.guestAddress, count: bench.block) == data,
          "a read into a region that was added: status \(posted.status)")
        try frontend.removeMemory(region)
      }
      try bench.good(bench.harmless)
      return .kept()
    },
    Check(
      "inflight-region", "vu.inflight.2", "Rings run with an in-flight region.",
      needs: [.protocolFeature(.inflight)]
    ) { bench in
      try bench.start(Plan(queues: 1, waits: true))
      let frontend = try bench.vhostUser().frontend
      guard let region = try frontend.getInflight(queues: 1, size: 16) else { return .kept("the back-end has none to give") }
      try frontend.setInflight(region)
      try bench.go()
      for _ in 0..<20 { try bench.good(bench.harmless) }
      return .kept()
    },
    Check(
      "inflight-garbage", "vu.inflight.3 bad.39", "An in-flight region that is full of garbage, or too small.",
      needs: [.protocolFeature(.inflight)]
    ) { bench in
      var words: [String] = []
      for isSmall in [false, true] {
        try bench.dropAfter {
          try bench.start(Plan(queues: 1, waits: true))
          let frontend = try bench.vhostUser().frontend
          guard var region = try frontend.getInflight(queues: 1, size: 16) else {
            throw Trouble.notApplicable("the back-end has none to give")
          }
          if isSmall {
            region.description.queueCount = 4000
            region.description.queueSize = 32768
          } else {
            let bytes = bench.pattern(Int(min(region.description.byteCount, 4096)))
            _ = unsafe bytes.withUnsafeBytes {
              unsafe pwrite(region.descriptor.rawValue, $0.baseAddress, $0.count, off_t(region.description.offset))
            }
          }
          do {
            try frontend.setInflight(region)
            try bench.go()
            bench.hands[0].kick()
            bench.settle()
          } catch is FrontendError {} catch is DriverError {}
        }
        words.append(try bench.alive(after: "a wrong in-flight region"))
      }
      return .rejected(words.joined(separator: "; "))
    },
    Check(
      "reset-device", "vu.reset.1", "RESET_DEVICE stops the rings, and they can be set up again.",
      needs: [.protocolFeature(.resetDevice)]
    ) { bench in
      try bench.start(Plan(queues: 1))
      try bench.good(bench.harmless)
      try bench.vhostUser().frontend.resetDevice()
      _ = try bench.vhostUser().frontend.features()
      var posted = try bench.make(bench.harmless)
      bench.post(&posted)
      bench.settle()
      try expect(posted.status == Posted.poison, "a ring is served after RESET_DEVICE")
      bench.drop()
      try bench.start(Plan(queues: 1))
      try bench.good(bench.harmless)
      return .kept()
    },
    Check(
      "written-pages", "vu.log.1", "The pages of what a device writes are marked in the log.",
      needs: [.protocolFeature(.sharedLog)]
    ) { bench in
      try bench.start(Plan(queues: 1, waits: true))
      let frontend = try bench.vhostUser().frontend
      guard try frontend.features().contains(.logAll) else {
        throw Trouble.notApplicable("the back-end does not offer VHOST_F_LOG_ALL")
      }
      let size = UInt64(1 << 20)
      let log = try DriverMemory(anonymous: [(GuestAddress(0), Int(size))])
      guard let descriptor = log.regions[0].descriptor else { throw Trouble.notApplicable("no memory to give") }
      do { try frontend.setLog(SharedArea(size: size, offset: 0), descriptor) } catch FrontendError.unexpectedReply {
        // The specification does not say what is in that reply, and back-ends differ.
      }
      try frontend.setFeatures(bench.features.union(.logAll))
      try bench.go()
      var posted = try bench.make(bench.read(0))
      bench.post(&posted)
      _ = try bench.answer(posted)
      for place in [posted.writable.address.rawValue, posted.writable.address.rawValue + UInt64(bench.block)] {
        let page = place / 4096
        let byte = log.bytes(at: GuestAddress(page / 8), count: 1)[0]
        try expect(byte >> (page % 8) & 1 == 1, "page \(page) was written to and is not marked")
      }
      return .kept()
    },
    Check(
      "status-reads-back", "vu.status.1", "The status reads back as it was set.", rings: .once,
      needs: [.protocolFeature(.status)]
    ) { bench in
      let frontend = try bench.vhostUser().frontend
      try bench.start(Plan(queues: 1))
      let status = try frontend.status()
      try expect(status == bench.status.union(.driverOK), "the status is 0x\(String(status.rawValue, radix: 16))")
      return .kept()
    },
    Check(
      "next-front-end", "vu.life.1", "When a front-end has disconnected, the next one is served.", rings: .once,
      needs: [.vhostUser]
    ) { bench in
      for round in 0..<6 {
        try bench.start(Plan(queues: 1))
        try bench.good(bench.harmless)
        if round % 2 == 0 { bench.drop() } else { bench.close() }
      }
      return .kept()
    },
    Check(
      "a-channel", "vu.channel.1", "A back-end channel is accepted, and the device continues.", rings: .once,
      needs: [.protocolFeature(.backendRequests)]
    ) { bench in
      try bench.start(Plan(queues: 1))
      _ = try bench.vhostUser().frontend.openBackendChannel()
      try bench.good(bench.harmless)
      return .kept()
    },
  ]
}
