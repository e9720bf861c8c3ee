/// Status, reset, and what may happen before DRIVER_OK (virtio 2.1, 2.4, 3.1).
internal import GuestDriver
internal import VirtioCore

extension Check {
  static let life: [Check] = [
    Check(
      "status-after-reset", "status.1 reset.1", "From every state of its life a reset brings the status back to 0.",
      rings: .once, needs: [.status]
    ) { bench in
      let transport = try bench.transport()
      let wanted = bench.choice(Plan())
      for depth in 0..<5 {
        try transport.reset()
        if depth > 0 { try transport.setStatus(.acknowledge) }
        if depth > 1 { try transport.setStatus([.acknowledge, .driver]) }
        if depth > 2 { _ = try bench.negotiate(wanted) }
        if depth > 3 {
          try bench.makeQueues(1)
          try bench.go()
          try bench.good(bench.harmless)
        }
        try transport.reset()
        let status = try transport.status()
        try expect(status.isEmpty, "the status is 0x\(String(status.rawValue, radix: 16)) after a reset from step \(depth)")
      }
      return .kept("5 states")
    },
    Check(
      "status-is-kept", "i.status.persist.1", "Status bits read back as they were written until a reset.", rings: .once,
      needs: [.status]
    ) { bench in
      let transport = try bench.transport()
      try transport.reset()
      var steps: [DeviceStatus] = [.acknowledge, [.acknowledge, .driver]]
      for status in steps {
        try transport.setStatus(status)
        let found = try transport.status()
        try expect(
          found == status, "0x\(String(status.rawValue, radix: 16)) was written, 0x\(String(found.rawValue, radix: 16)) read")
      }
      try bench.start(Plan(queues: 1))
      steps = [bench.status.union(.driverOK)]
      let found = try transport.status()
      try expect(
        found == steps[0], "0x\(String(steps[0].rawValue, radix: 16)) was written, 0x\(String(found.rawValue, radix: 16)) read")
      return .kept()
    },
    Check(
      "nothing-before-driver-ok", "status.2 bad.32",
      "A request that is made available before DRIVER_OK waits for it, and is not lost."
    ) { bench in
      try bench.start(Plan(queues: 1, waits: true))
      var posted = try bench.make(bench.harmless)
      let before = bench.hands[0].usedMark
      bench.post(&posted)
      bench.settle()
      try bench.hands[0].look()
      try expect(bench.hands[0].usedCount == 0 && bench.hands[0].usedMark == before, "the request was used before DRIVER_OK")
      try expect(posted.status == Posted.poison, "the request was executed before DRIVER_OK")
      try bench.go()
      bench.hands[0].kick()
      let answer = try bench.answer(posted)
      try expect(answer.isOK, "the request was answered with \(answer.words) after DRIVER_OK")
      return .kept()
    },
    Check("no-call-before-driver-ok", "status.3", "No used buffer notification comes before DRIVER_OK.") { bench in
      try bench.start(Plan(queues: 1, waits: true))
      _ = bench.hands[0].takeCalls()
      var posted = try bench.make(bench.harmless)
      // Back-ends may call during setup, but not for a request.
      bench.settle()
      _ = bench.hands[0].takeCalls()
      bench.post(&posted)
      bench.settle()
      let calls = bench.hands[0].takeCalls()
      try expect(calls == 0, "\(calls) calls came before DRIVER_OK")
      return .kept()
    },
    Check(
      "needs-reset", "status.4", "A ring that cannot be continued makes the device ask for a reset.", needs: [.status]
    ) { bench in
      try bench.start(Plan(queues: 1))
      try bench.breakRing()
      _ = try bench.hasFailed(0, milliseconds: bench.patience)
      let transport = try bench.transport()
      let came = try bench.eventually { try transport.status().contains(.needsReset) }
      try expect(came, "the available index went ahead by more than the ring, and DEVICE_NEEDS_RESET is not set")
      return .kept()
    },
    Check(
      "needs-reset-is-told", "status.5", "With DEVICE_NEEDS_RESET comes a configuration change notification.",
      needs: [.registers]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let transport = try bench.transport()
      _ = try transport.waitForConfigurationChange(milliseconds: 0)
      try bench.breakRing()
      let came = try bench.eventually { try transport.status().contains(.needsReset) }
      guard came else { throw Trouble.notApplicable("DEVICE_NEEDS_RESET was not set") }
      let told = try transport.waitForConfigurationChange(milliseconds: bench.patience)
      try expect(told, "DEVICE_NEEDS_RESET is set, and no configuration change notification came")
      return .kept()
    },
    Check(
      "reset-after-failure", "reset.1", "A device that needed a reset works again after one.", needs: []
    ) { bench in
      try bench.start(Plan(queues: 1))
      try bench.breakRing()
      bench.settle()
      return .kept(try bench.alive(after: "a broken ring"))
    },
    Check(
      "silence-after-reset", "reset.2", split: "", packed: "", "After a reset no call comes, not even for what was in flight."
    ) { bench in
      try bench.start(Plan(queues: 1))
      for number in 0..<4 {
        var posted = try bench.make(bench.read(UInt64(number) * bench.step))
        bench.post(&posted)
      }
      let hand = bench.hands[0]
      try bench.transport().reset()
      _ = hand.takeCalls()
      bench.settle()
      try expect(hand.takeCalls() == 0, "a call came after the reset")
      return .kept()
    },
    Check(
      "rings-after-reset", "reset.3", "After a reset the device leaves rings and buffers alone, whatever is in them."
    ) { bench in
      try bench.start(Plan(queues: 1))
      var posted = try bench.make(bench.read(0, blocks: 4))
      bench.post(&posted)
      let hand = bench.hands[0]
      try bench.transport().reset()
      // What is published now is ignored.
      posted.writable.fill(0x5a)
      let used = hand.usedMark
      if hand.room >= posted.chain.count { hand.offer(posted.chain) }
      let ring = bench.ringBytes(hand)
      hand.kick()
      bench.settle()
      try expect(posted.writable.bytes.allSatisfy { $0 == 0x5a }, "a buffer was written to after the reset")
      try expect(bench.ringBytes(hand) == ring && hand.usedMark == used, "the ring was written to after the reset")
      return .kept()
    },
    Check(
      "many-lives", "i.notif.1",
      "Brought up and reset twenty times, with another choice of features and ring size each time, and a "
        + "request each time."
    ) { bench in
      for life in 0..<20 {
        var plan = Plan(queues: 1 + life % 2)
        plan.size = [4, 16, 64, 8][life % 4]
        if life % 3 == 1 { plan.without = [.indirectDescriptors, BlockFeature.flush] }
        if life % 3 == 2 { plan.adding = [.eventIndex, BlockFeature.configWCE] }
        try bench.start(plan)
        try bench.good(bench.read(UInt64(life) * bench.step))
      }
      return .kept()
    },
    Check(
      "resets-back-to-back", "status.1", "Twenty resets, one after the other, at every step of coming up.", rings: .once
    ) { bench in
      let transport = try bench.transport()
      for step in 0..<20 {
        try transport.reset()
        if step % 3 == 1 { try transport.setStatus(.acknowledge) }
        if step % 3 == 2 { try bench.start(Plan(queues: 1, waits: step % 2 == 0)) }
      }
      try bench.start(Plan(queues: 1))
      try bench.good(bench.harmless)
      return .kept()
    },
    Check(
      "driver-writes-needs-reset", "i.status.persist.1", "A driver that writes DEVICE_NEEDS_RESET breaks nothing.",
      rings: .once,
      needs: [.status]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let transport = try bench.transport()
      try transport.setStatus(bench.status.union([.driverOK, .needsReset]))
      return .kept(try bench.alive(on: 0, after: "DEVICE_NEEDS_RESET written by the driver"))
    },
    Check(
      "failed-status", "i.status.persist.1", "A driver that gives up with FAILED can try again after a reset.", rings: .once
    ) { bench in
      try bench.start(Plan(queues: 1))
      try bench.transport().setStatus(bench.status.union([.driverOK, .failed]))
      try bench.start(Plan(queues: 1))
      try bench.good(bench.harmless)
      return .kept()
    },
  ]
}

extension Bench {
  /// The time limit, for methods that take milliseconds.
  var patience: Int { attachedIsStepped ? 0 : Int(settings.limit / .milliseconds(1)) }

  /// Breaks queue 0 in a way that no device can continue from.
  func breakRing() throws {
    let hand = hands[0]
    switch hand.raw {
    case .split(let ring): ring.availableIndex.storeRelease(ring.availableIndex.loadRelaxed() &+ hand.size &+ 100)
    case .packed:
      // A table that refers to a table; without indirect tables, a buffer outside memory.
      let inner = try indirect([RawDescriptor(address: 1 << 45, length: 16)])
      hand.offer([try indirect([inner])])
    }
    hand.kick()
  }

  /// All bytes of a ring.
  func ringBytes(_ hand: Hand) -> [UInt8] {
    guard let memory = try? memory() else { return [] }
    let layout = hand.ring.layout
    let isSplit = layout.format == .split
    let counts =
      isSplit
      ? [
        RingLayout.descriptorTableBytes(layout.size), RingLayout.availableRingBytes(layout.size),
        RingLayout.usedRingBytes(layout.size),
      ]
      : [RingLayout.descriptorTableBytes(layout.size), RingLayout.eventBytes, RingLayout.eventBytes]
    return zip([layout.descriptorTable, layout.availableRing, layout.usedRing], counts).flatMap {
      memory.bytes(at: $0, count: $1)
    }
  }
}
