/// What comes back: identities, places, order, and the laps of a ring (virtio 2.6.8, 2.6.9, 2.7.1 to 2.7.13).
internal import GuestDriver
internal import VirtioCore

extension Check {
  static let order: [Check] = [
    Check(
      "ids-come-back", "", split: "i.split.usedid.1 i.split.freeorder.1",
      packed: "packed.order.2 i.packed.used.1 i.packed.used.2",
      "Each chain comes back once, under its own name, at the next place; chains of all lengths."
    ) { bench in
      try bench.start(Plan(queues: 1, size: 32))
      let hand = bench.hands[0]
      for round in 0..<40 {
        var batch: [Posted] = []
        while batch.count < 1 + round % 6 {
          let pieces = 1 + Int(bench.random.next() % 4)
          var into = Array(repeating: bench.block / pieces, count: pieces)
          into[0] += bench.block - bench.block / pieces * pieces
          var posted = try bench.make(bench.read(UInt64(round + batch.count) * bench.step), into: into + [1])
          guard hand.room >= posted.chain.count else { break }
          posted.id = hand.offer(posted.chain, isHeld: true)
          batch.append(posted)
        }
        hand.publish()
        hand.kick()
        for posted in batch {
          let answer = try bench.answer(posted)
          try expect(answer.isOK, "\(posted.request) was answered with \(answer.words)")
        }
      }
      try expect(hand.outstanding.isEmpty, "\(hand.outstanding.count) chains did not come back")
      return .kept("\(hand.usedCount) chains")
    },
    Check(
      "more-than-65536", "", split: "i.split.idx.1", packed: "i.packed.wrap.1 i.packed.avail.1",
      "More than 65536 chains through one ring: indices and wrap counters continue."
    ) { bench in
      try bench.start(Plan(queues: 1, size: 128))
      let hand = bench.hands[0]
      var posted = try bench.make(.identify)
      let atOnce = Int(hand.size) / posted.chain.count
      let wanted = bench.format == .split ? 65_536 + 300 : 3000
      while hand.usedCount < wanted {
        var ids: [UInt16] = []
        for _ in 0..<atOnce { ids.append(hand.offer(posted.chain, isHeld: true)) }
        hand.publish()
        hand.kick()
        for id in ids { _ = try bench.awaitUsed(id, "chain \(hand.usedCount)") }
      }
      posted = try bench.make(bench.harmless)
      bench.post(&posted)
      try expect(try bench.answer(posted).isOK, "the ring does not continue after \(hand.usedCount) chains")
      return .kept("\(hand.usedCount) chains")
    },
    Check(
      "ring-sizes", "", split: "i.split.size.1", packed: "i.packed.size.1 i.packed.wrap.1",
      "Rings of every size: powers of two, and any number of a packed one."
    ) { bench in
      guard try !bench.transport().hasFixedQueueSize else {
        throw Trouble.notApplicable("the device alone says how large a ring is")
      }
      let largest = Int(min(bench.facts.maximumQueueSize, 256))
      let sizes = (bench.format == .split ? [4, 8, 16, 64, 128, 256] : [3, 5, 7, 16, 100, 129]).filter { $0 <= largest }
      for size in sizes {
        try bench.start(Plan(queues: 1, size: UInt16(size)))
        for round in 0..<3 + 300 / size { try bench.good(bench.read(UInt64(round % 8) * bench.step)) }
      }
      return .kept("\(sizes)")
    },
    Check(
      "smallest-ring", "", split: "i.split.size.1", packed: "i.packed.size.1 i.packed.wrap.1",
      "A ring of one entry, with requests in tables.", needs: [.offered(.indirectDescriptors), .modern]
    ) { bench in
      guard try !bench.transport().hasFixedQueueSize else {
        throw Trouble.notApplicable("the device alone says how large a ring is")
      }
      do { try bench.start(Plan(queues: 1, size: 1)) } catch DriverError.refused(let words) {
        return .kept("refused: \(words)")
      } catch Trouble.broken(let words) where words.contains("DRIVER_OK") { return .kept("refused: \(words)") }
      for _ in 0..<5 { try expect(try bench.perform(bench.harmless, indirect: true).isOK, "a request failed") }
      return .kept()
    },
    Check(
      "opaque-ids", "i.packed.id.1 i.packed.chain.1",
      "Buffer IDs are the driver's: any 16 bits, taken from the last descriptor.",
      rings: .packed
    ) { bench in
      try bench.start(Plan(queues: 1))
      let hand = bench.hands[0]
      for id: UInt16 in [0, 15, 7, 3, 12] {
        var posted = try bench.make(bench.harmless)
        for place in posted.chain.indices { posted.chain[place].next = id ^ 5 }
        posted.id = hand.offer(posted.chain, id: id)
        hand.kick()
        try expect(try bench.answer(posted).isOK, "ID \(id): the request failed")
      }
      return .kept()
    },
    Check(
      "chain-over-the-end", "packed.sg.1 i.packed.chain.2", "A list that continues at the ring's first slot is read in order.",
      rings: .packed
    ) { bench in
      try bench.start(Plan(queues: 1, size: 7))
      let data = try bench.good(bench.read(0)).data
      let half = bench.block / 2
      for lap in 0..<20 {
        let answer = try bench.perform(bench.read(0), out: lap % 2 == 0 ? [16] : [8, 8], into: [half, bench.block - half, 1])
        try expect(
          answer.isOK && answer.data == data, "lap \(lap): \(answer.words), \(answer.data == data ? "" : "other data")")
      }
      return .kept()
    },
    Check(
      "stale-laps", "packed.desc.3 i.packed.avail.1", "A descriptor that is not available in this lap is not taken.",
      rings: .packed
    ) { bench in
      try bench.start(Plan(queues: 1, size: 8))
      let hand = bench.hands[0]
      let ring = hand.packed
      // In the first lap AVAIL is 1 and USED is 0; all other marks mean that the device does not own the descriptor.
      for marks: UInt16 in [0x0000, 0x8080, 0x8000] {
        let posted = try bench.make(bench.harmless)
        for (place, descriptor) in posted.chain.enumerated() {
          var copy = descriptor
          copy.flags = RawDescriptor.Flags(rawValue: copy.flags.rawValue | marks | (place < 2 ? 1 : 0))
          ring.setDescriptor(UInt16(place), copy)
        }
        hand.kick()
        bench.settle()
        try expect(
          posted.status == Posted.poison, "a descriptor with the marks 0x\(String(marks, radix: 16)) was taken in the first lap"
        )
      }
      for _ in 0..<6 { try bench.good(bench.harmless) }
      // Nor is what earlier laps left the device's.
      let used = hand.usedCount
      hand.kick()
      bench.settle()
      try hand.look()
      try expect(hand.usedCount == used, "a descriptor of an earlier lap was taken again")
      return .kept()
    },
    Check(
      "used-is-left-alone", "packed.desc.4", "A used descriptor is not touched again.", rings: .packed
    ) { bench in
      try bench.start(Plan(queues: 1, size: 16))
      let hand = bench.hands[0]
      try bench.good(bench.harmless)
      let place = hand.lastUsed?.slot ?? 0
      let ring = hand.packed
      var mine = ring.descriptor(place)
      mine.address = 0x1234_5678
      mine.length = 0x77
      ring.setDescriptor(place, mine)
      for _ in 0..<3 { try bench.good(bench.harmless) }
      bench.settle()
      try expect(ring.descriptor(place) == mine, "the used descriptor in slot \(place) was written to again")
      return .kept()
    },
    Check(
      "length-before-index", "", split: "split.used.1", packed: "i.packed.used.4",
      "A driver that sees that a chain is used sees its length and data."
    ) { bench in
      try bench.start(Plan(queues: 1))
      let hand = bench.hands[0]
      let expected = try bench.good(bench.read(0)).data
      for round in 0..<200 {
        var posted = try bench.make(bench.read(0))
        if bench.format == .split {
          // A known value, so that a late length shows.
          hand.split.usedLength(hand.split.usedIndex.loadRelaxed()).storeRelaxed(0xdead)
        }
        bench.post(&posted)
        let used = try bench.awaitUsed(posted.id)
        try expect(
          used.length != 0xdead && used.length <= posted.writable.count, "round \(round): the length came after the index")
        try expect(posted.status == 0 && posted.data == expected, "round \(round): data or status came after the index")
        if round % 16 == 15 { try bench.memory().release(posted.readable) }
      }
      return .kept("200 rounds")
    },
    Check(
      "in-order", "rfb.5", split: "i.split.inorder.1", packed: "i.packed.inorder.1",
      "With IN_ORDER chains are used in the order in which they were made available.", needs: [.offered(.inOrder)]
    ) { bench in
      try bench.start(Plan(adding: .inOrder, queues: 1, size: 64))
      let hand = bench.hands[0]
      for round in 0..<10 {
        var batch: [Posted] = []
        for number in 0..<8 {
          // Fast ones after slow ones.
          let request = number % 2 == 0 ? bench.read(UInt64(round) * bench.step, blocks: 16) : BlockRequest.identify
          var posted = try bench.make(request)
          posted.id = hand.offer(posted.chain, isHeld: true)
          batch.append(posted)
        }
        hand.publish()
        hand.kick()
        var place = 0
        let came = try bench.eventually {
          let before = hand.finished.count
          try hand.look()
          guard hand.finished.count != before || place < batch.count else { return true }
          while place < batch.count, hand.finished[batch[place].id] != nil { place += 1 }
          let early = batch[min(place, batch.count)...].first { hand.finished[$0.id] != nil }
          try expect(
            early == nil, "\(early.map { "\($0.request)" } ?? "") was used before \(batch[min(place, batch.count - 1)].request)"
          )
          return place == batch.count
        }
        try expect(came, "the batch did not come back")
        for posted in batch {
          _ = hand.take(posted.id)
          try expect(posted.status == 0, "\(posted.request): status \(posted.status)")
        }
      }
      return .kept()
    },
    Check(
      "notification-data", "i.notifdata.1", "With NOTIFICATION_DATA a kick may say anything of where the ring stands.",
      needs: [.offered(.notificationData), .registers]
    ) { bench in
      try bench.start(Plan(adding: .notificationData, queues: 1))
      guard let register = try bench.transport().notifyRegister else {
        throw Trouble.notApplicable("there is no register for it")
      }
      for word: UInt16 in [0, 1, 0x7fff, 0xffff] {
        var posted = try bench.make(bench.harmless)
        // A device that is still polling the ring would find the request without any kick.
        bench.settle()
        bench.post(&posted, kicks: false)
        register.write(queue: 0, next: word)
        try expect(try bench.answer(posted).isOK, "with the word 0x\(String(word, radix: 16)) the request failed")
      }
      return .kept()
    },
  ]

  static let queueReset: [Check] = [
    Check(
      "reset-queue-is-dead", "vqreset.1 vqreset.2", "A queue that was reset is not served and not called for, the others are.",
      needs: [.offered(.ringReset), .modern, .registers]
    ) { bench in
      try bench.start(Plan(adding: .ringReset))
      var posted = try bench.make(bench.harmless)
      try bench.transport().resetQueue(0)
      _ = bench.hands[0].takeCalls()
      bench.post(&posted)
      bench.settle()
      try expect(posted.status == Posted.poison, "a request was executed on a queue that was reset")
      try expect(bench.hands[0].takeCalls() == 0, "a call came for a queue that was reset")
      if bench.hands.count > 1 { try bench.good(bench.harmless, on: 1) }
      return .kept()
    },
    Check(
      "reset-queue-starts-over", "vqreset.3 vqreset.4",
      "After its reset a queue begins at its beginning, with another size and place.",
      needs: [.offered(.ringReset), .modern, .registers]
    ) { bench in
      try bench.start(Plan(adding: .ringReset))
      for size: UInt16 in [8, 32, 4] {
        for _ in 0..<5 { try bench.good(bench.harmless) }
        let transport = try bench.transport()
        try transport.resetQueue(0)
        let ring = try RingMemory(size: size, format: bench.format, shape: .separate, in: transport.memory)
        try bench.replace(0, ring)
        try transport.enableQueue(0, ring.layout.configuration)
        for number in 0..<12 { try bench.good(bench.read(UInt64(number) * bench.step)) }
      }
      return .kept()
    },
  ]
}
