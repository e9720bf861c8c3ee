/// Kicks and calls (virtio 2.3, 2.6.7, 2.6.10, 2.7.10): when they have to come, when they must not, and that no request gets
/// stuck.
internal import GuestDriver
internal import VirtioCore

extension Bench {
  /// Makes requests one after the other without taking calls, and returns how many calls came in the meantime.
  fileprivate func calls(during count: Int) throws -> Int {
    _ = hands[0].takeCalls()
    for number in 0..<count { try good(read(UInt64(number % 8) * step)) }
    settle()
    return hands[0].takeCalls()
  }

  /// Whether a call comes for one request.
  fileprivate func isCalled() throws -> Bool {
    let hand = hands[0]
    _ = hand.takeCalls()
    try good(harmless)
    return try eventually { hand.takeCalls() > 0 }
  }

  /// Tells the device when to call.
  fileprivate func want(_ flags: UInt16, at position: UInt16 = 0) {
    switch hands[0].raw {
    case .split(let ring):
      ring.availableFlags.storeRelaxed(flags)
      ring.usedEvent.storeRelaxed(position)
    case .packed(let ring):
      ring.driverEventPosition.storeRelaxed(position)
      ring.driverEventFlags.storeRelease(flags)
    }
    fullFence()
  }
}

extension Check {
  static let split: [Check] = [
    Check(
      "flags-0-calls", "split.usednotif.3", "Without EVENT_IDX and with flags 0 a call comes for each batch.", rings: .split
    ) { bench in
      try bench.start(Plan(queues: 1))
      for number in 0..<8 { try expect(try bench.isCalled(), "no call came for request \(number)") }
      return .kept()
    },
    Check("flags-1-silences", "split.usednotif.2", "Without EVENT_IDX and with flags 1 no call comes.", rings: .split) {
      bench in
      try bench.start(Plan(queues: 1))
      bench.want(1)
      try bench.good(bench.harmless)
      bench.settle()
      let calls = try bench.calls(during: 8)
      try expect(calls == 0, "\(calls) calls came for 8 requests")
      bench.want(0)
      try expect(try bench.isCalled(), "no call came after flags were 0 again")
      return .kept()
    },
    Check("used-event-without-feature", "split.usednotif.1", "Without EVENT_IDX used_event means nothing.", rings: .split) {
      bench in
      try bench.start(Plan(queues: 1))
      for event: UInt16 in [0x7fff, 0xffff, 0] {
        bench.want(0, at: event)
        try expect(try bench.isCalled(), "no call came with used_event \(event)")
      }
      return .kept()
    },
    Check(
      "flags-with-event-index", "split.usednotif.4", "With EVENT_IDX the flags mean nothing.", rings: .split,
      needs: [.offered(.eventIndex)]
    ) { bench in
      try bench.start(Plan(adding: .eventIndex, queues: 1))
      for _ in 0..<4 {
        bench.want(1, at: bench.hands[0].usedMark)
        try expect(try bench.isCalled(), "no call came with flags 1 and used_event at the next element")
      }
      return .kept()
    },
    Check(
      "event-is-called", "split.usednotif.5 i.split.event.1 i.split.event.2",
      "With EVENT_IDX a call comes for the element at used_event.",
      rings: .split, needs: [.offered(.eventIndex)]
    ) { bench in
      try bench.start(Plan(adding: .eventIndex, queues: 1))
      let hand = bench.hands[0]
      for distance: UInt16 in [0, 1, 3, 7] {
        bench.want(0, at: hand.usedMark &+ distance)
        _ = hand.takeCalls()
        for _ in 0...distance { try bench.good(bench.harmless) }
        try expect(try bench.eventually { hand.takeCalls() > 0 }, "no call came when the used index went past used_event")
      }
      return .kept()
    },
    Check(
      "event-in-a-batch", "split.usednotif.5", "The call comes as well for an element in the middle of a batch.", rings: .split,
      needs: [.offered(.eventIndex)]
    ) { bench in
      try bench.start(Plan(adding: .eventIndex, queues: 1, size: 64))
      let hand = bench.hands[0]
      for middle: UInt16 in [0, 3, 7] {
        bench.want(0, at: hand.usedMark &+ middle)
        _ = hand.takeCalls()
        let posted = try bench.make(bench.harmless)
        var ids: [UInt16] = []
        for _ in 0..<8 { ids.append(hand.offer(posted.chain, isHeld: true)) }
        hand.publish()
        hand.kick()
        for id in ids { _ = try bench.awaitUsed(id) }
        try expect(try bench.eventually { hand.takeCalls() > 0 }, "no call came for element \(middle) of a batch of 8")
      }
      return .kept()
    },
    Check(
      "elsewhere-is-silent", "split.usednotif.6", "With EVENT_IDX no call comes for other elements.", rings: .split,
      needs: [.offered(.eventIndex)]
    ) { bench in
      try bench.start(Plan(adding: .eventIndex, queues: 1))
      bench.want(0, at: bench.hands[0].usedMark &+ 100)
      try bench.good(bench.harmless)
      bench.settle()
      let calls = try bench.calls(during: 8)
      try expect(calls == 0, "\(calls) calls came for 8 requests before used_event")
      return .kept()
    },
    Check("used-flags", "split.availnotif.1", "Without EVENT_IDX used.flags is 0 or 1.", rings: .split) { bench in
      try bench.start(Plan(queues: 1))
      let ring = bench.hands[0].split
      for _ in 0..<40 {
        var posted = try bench.make(bench.harmless)
        bench.post(&posted)
        let early = ring.usedFlags.loadAcquire()
        _ = try bench.answer(posted)
        let late = ring.usedFlags.loadAcquire()
        try expect(early <= 1 && late <= 1, "used.flags is \(max(early, late))")
      }
      return .kept()
    },
    Check(
      "used-flags-with-event-index", "split.availnotif.3", "With EVENT_IDX used.flags stays 0.", rings: .split,
      needs: [.offered(.eventIndex)]
    ) { bench in
      try bench.start(Plan(adding: .eventIndex, queues: 1))
      let ring = bench.hands[0].split
      for _ in 0..<40 {
        var posted = try bench.make(bench.harmless)
        bench.post(&posted)
        let early = ring.usedFlags.loadAcquire()
        _ = try bench.answer(posted)
        let late = ring.usedFlags.loadAcquire()
        try expect(early == 0 && late == 0, "used.flags is \(max(early, late))")
      }
      return .kept()
    },
  ]

  static let packed: [Check] = [
    Check("enable-and-disable", "i.packed.event.1", "Calls come with ENABLE, and none with DISABLE.", rings: .packed) { bench in
      try bench.start(Plan(queues: 1))
      for _ in 0..<3 {
        bench.want(EventSuppression.enable)
        try expect(try bench.isCalled(), "no call came with ENABLE")
        bench.want(EventSuppression.disable)
        try bench.good(bench.harmless)
        bench.settle()
        let calls = try bench.calls(during: 6)
        try expect(calls == 0, "\(calls) calls came with DISABLE")
      }
      return .kept()
    },
    Check(
      "call-at-a-descriptor", "i.packed.event.1 i.packed.event.2",
      "With DESC a call comes when the descriptor is passed, and not before.",
      rings: .packed, needs: [.offered(.eventIndex)]
    ) { bench in
      try bench.start(Plan(adding: .eventIndex, queues: 1, size: 7))
      let hand = bench.hands[0]
      for round in 0..<8 {
        // The chains have three descriptors each: the third from here is two chains away.
        let event = hand.nextUsed.advanced(by: 6, size: hand.size)
        bench.want(EventSuppression.descriptor, at: event.word)
        try bench.good(bench.harmless)
        bench.settle()
        _ = hand.takeCalls()
        try bench.good(bench.harmless)
        bench.settle()
        try expect(hand.takeCalls() == 0, "round \(round): a call came before \(event) was passed")
        try bench.good(bench.harmless)
        try expect(try bench.eventually { hand.takeCalls() > 0 }, "round \(round): no call came when \(event) was passed")
      }
      return .kept()
    },
    Check("device-event-flags", "packed.availnotif.1", "The device says only what a driver can be told.", rings: .packed) {
      bench in
      try bench.start(Plan(queues: 1))
      let ring = bench.hands[0].packed
      for _ in 0..<20 {
        try bench.good(bench.harmless)
        let event = ring.deviceEvent
        try expect(event.flags <= 1, "without EVENT_IDX the device's event flags are \(event.flags)")
      }
      return .kept()
    },
  ]

  static let notification: [Check] = [
    Check(
      "kicks-only-when-asked", "", split: "split.availnotif.2 split.availnotif.6", packed: "packed.availnotif.1",
      "A driver that kicks only when the device asks for it loses no request."
    ) { bench in
      try bench.start(Plan(queues: 1))
      return .kept(try bench.kickWhenAsked(eventIndex: false))
    },
    Check(
      "kicks-only-at-events", "", split: "split.availnotif.4 i.split.event.3", packed: "packed.availnotif.1 i.packed.event.2",
      "The same by EVENT_IDX.", needs: [.offered(.eventIndex)]
    ) { bench in
      try bench.start(Plan(adding: .eventIndex, queues: 1))
      return .kept(try bench.kickWhenAsked(eventIndex: true))
    },
    Check(
      "no-kick-at-all", "", split: "split.avail.1", packed: "packed.avail.1", "The outcome of a request without a kick."
    ) { bench in
      try bench.start(Plan(queues: 1))
      var posted = try bench.make(bench.harmless)
      bench.post(&posted, kicks: false)
      bench.settle()
      let early = posted.status != Posted.poison
      bench.hands[0].kick()
      try expect(try bench.answer(posted).isOK, "the request failed")
      return .kept(early ? "it was found without a kick" : "it waited for a kick")
    },
    Check(
      "kicks-for-nothing", "split.availnotif.5 bad.33", "Kicks without a new request are harmless."
    ) { bench in
      try bench.start()
      for hand in bench.hands { for _ in 0..<50 { hand.kick() } }
      bench.settle()
      for number in 0..<8 {
        try bench.good(bench.harmless, on: number % bench.hands.count)
        bench.hands[0].kick()
      }
      try expect(bench.hands[0].outstanding.isEmpty, "something is missing")
      return .kept()
    },
    Check(
      "one-call-is-enough", "i.notif.1", "A driver that sleeps until it is called misses nothing."
    ) { bench in
      try bench.start(Plan(queues: 1))
      let hand = bench.hands[0]
      for round in 0..<50 {
        _ = hand.takeCalls()
        var posted = try bench.make(bench.read(UInt64(round % 8) * bench.step))
        bench.post(&posted)
        var isDone = false
        let came = try bench.eventually {
          if hand.takeCalls() > 0 { try hand.look() }
          if hand.finished[posted.id] != nil { isDone = true }
          return isDone
        }
        try expect(came, "round \(round): the request is used, and no call came")
        _ = hand.take(posted.id)
      }
      return .kept()
    },
    Check("scribbled-events", "bad.33", "Whatever the driver's side of the event words says, requests are answered.") { bench in
      try bench.start(Plan(adding: .eventIndex, queues: 1))
      for _ in 0..<20 {
        let word = UInt16(truncatingIfNeeded: bench.random.next())
        if bench.format == .split { bench.want(word & 1, at: word) } else { bench.want(word & 1, at: word & 0x8007) }
        try bench.good(bench.harmless)
      }
      return .kept()
    },
  ]
}

extension Bench {
  fileprivate func kickWhenAsked(eventIndex: Bool) throws -> String {
    let hand = hands[0]
    var kicks = 0
    let rounds = attachedIsStepped ? 60 : 1000
    let chain = try make(.identify).chain
    for round in 0..<rounds {
      let old = hand.mark
      let id = hand.offer(chain)
      // The kick is decided on after the index is published (virtio 2.6.13.4.1).
      fullFence()
      if hand.wantsKick(from: old, eventIndex: eventIndex) {
        hand.kick()
        kicks += 1
      }
      let came = try eventually {
        try hand.look()
        return hand.take(id) != nil
      }
      try expect(came, "round \(round): a request was made available, no kick was asked for, and it is not answered")
    }
    return "\(kicks) kicks for \(rounds) requests"
  }
}
