/// What drivers seldom do and devices seldom see: legal oddities, and combinations of mistakes.
internal import GuestDriver
internal import VirtioCore

extension Check {
  static let rare: [Check] = [
    Check(
      "odd-status-steps", "status.1 reset.1", "Status bits in any order, twice, alone, and such as do not exist; then a reset.",
      rings: .once, needs: [.status, .registers]
    ) { bench in
      for round in 0..<24 {
        let transport = try bench.transport()
        try transport.reset()
        var steps: [UInt8] = []
        for _ in 0..<6 {
          let bits = UInt8(bench.random.next() % 255) + 1
          steps.append(bits)
          do { try transport.setStatus(DeviceStatus(rawValue: bits)) } catch DriverError.refused {}
        }
        try transport.reset()
        let status = try transport.status()
        try expect(status.isEmpty, "round \(round): the status is \(status.rawValue) after \(steps) and a reset")
        if round % 4 == 3 {
          try bench.start(Plan(queues: 1))
          try bench.good(bench.harmless)
        }
      }
      return .kept()
    },
    Check(
      "reset-queue-in-flight", "vqreset.1 vqreset.2",
      "A queue is reset with requests in flight while another is busy: nothing of it is executed, called for or written afterwards.",
      needs: [.offered(.ringReset), .queues(2), .modern, .registers]
    ) { bench in
      try bench.start(Plan(adding: .ringReset))
      let transport = try bench.transport()
      for round in 0..<10 {
        var lost: [Posted] = []
        var busy: [Posted] = []
        for number in 0..<4 {
          var posted = try bench.make(bench.read(UInt64(number) * bench.step, blocks: 2))
          bench.post(&posted)
          lost.append(posted)
          posted = try bench.make(bench.read(UInt64(number) * bench.step))
          bench.post(&posted, on: 1)
          busy.append(posted)
        }
        try transport.resetQueue(0)
        _ = bench.hands[0].takeCalls()
        for posted in lost { posted.writable.fill(0x3c) }
        bench.settle()
        try expect(
          lost.allSatisfy { $0.writable.bytes.allSatisfy { $0 == 0x3c } },
          "round \(round): a buffer of the queue that was reset was written to")
        try expect(bench.hands[0].takeCalls() == 0, "round \(round): a call came for the queue that was reset")
        for posted in busy {
          try expect(try bench.answer(posted, on: 1).isOK, "round \(round): a request on the other queue failed")
        }
        let ring = try RingMemory(
          size: [32, 64, 16, 128][round % 4], format: bench.format, shape: .separate, in: transport.memory)
        try bench.replace(0, ring)
        try transport.enableQueue(0, ring.layout.configuration)
        try bench.good(bench.harmless)
      }
      return .kept()
    },
    Check(
      "rings-share-a-place", "bad.14", "Two queues whose rings are at the same place.", needs: [.queues(2), .modern]
    ) { bench in
      try bench.dropAfter {
        try bench.start(Plan(queues: 2, waits: true))
        let transport = try bench.transport()
        var one: QueueConfiguration?
        let posted = try bench.make(bench.harmless)
        try transport.reset()
        guard try bench.negotiate(bench.features) else { throw Trouble.broken("the device refuses what it accepted before") }
        do {
          try bench.makeQueues(2) { ring in
            let first = one ?? ring.layout.configuration
            one = first
            return first
          }
          try transport.setStatus(bench.status.union(.driverOK))
          bench.hands[0].offer(posted.chain)
          for hand in bench.hands { hand.kick() }
          bench.settle()
        } catch is DriverError {
          // Refused: as good as not served.
        }
      }
      return .rejected(try bench.alive(after: "two rings at one place"))
    },
    Check(
      "table-anywhere", "bad.10", "An indirect table that is not aligned is read right, or refused.",
      needs: [.offered(.indirectDescriptors)]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let expected = try bench.good(bench.read(0)).data
      var words: [String] = []
      for shift in [1, 2, 4, 8, 15] {
        bench.drop()
        try bench.start()
        let posted = try bench.make(bench.read(0))
        let what = "a table \(shift) bytes after a multiple of 16"
        let seen = try bench.feed([try bench.indirect(posted.chain, shift: shift)], after: what).words
        try expect(posted.status != 0 || posted.data == expected, "\(what): different data was read")
        words.append("\(shift): \(seen)")
      }
      return .rejected(words.joined(separator: "; "))
    },
    Check(
      "marks-inside-a-list", "i.packed.chain.1",
      "Of a list only the head says whether it is available; whatever the others say, the device lives.", rings: .packed
    ) { bench in
      var words: [String] = []
      for marks: UInt16 in [0x0000, 0x8080, 0x8000] {
        try bench.start(Plan(size: 16))
        let memory = try bench.memory()
        let hand = bench.hands[0]
        let posted = try bench.make(bench.read(0))
        memory.poisonFreeMemory()
        for (place, descriptor) in posted.chain.enumerated().reversed() {
          var copy = descriptor
          let own = place == 0 ? 0x0080 : marks
          copy.flags = RawDescriptor.Flags(rawValue: copy.flags.rawValue | own | (place + 1 < posted.chain.count ? 1 : 0))
          hand.packed.setDescriptor(UInt16(place), copy)
        }
        hand.kick()
        words.append("0x\(String(marks, radix: 16)): \(try bench.verdict("marks inside a list", memory).words)")
      }
      return .rejected(words.joined(separator: "; "))
    },
    Check("same-id-twice", "bad.6", "Two lists in flight have the same buffer ID.", rings: .packed) { bench in
      try bench.start()
      let memory = try bench.memory()
      let hand = bench.hands[0]
      let chains = try [0, 1].map { try bench.make(bench.read(UInt64($0) * bench.step, blocks: 4)).chain }
      memory.poisonFreeMemory()
      for chain in chains { hand.offer(chain, id: 3, isHeld: true) }
      hand.publish()
      hand.kick()
      return try bench.verdict("one ID for two lists", memory)
    },
    Check(
      "overlapping-segments", "i.blk.discard.1", "Segments of WRITE_ZEROES that overlap, and one twice.",
      needs: [.offered(BlockFeature.writeZeroes), .writable]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let most = bench.facts.config.writeZeroes?.maximumSegments ?? 1
      guard most > 1 else { throw Trouble.notApplicable("a request has one segment at most") }
      let data = bench.pattern(8 * bench.block)
      for ranges in [[1..<4, 3..<6], [2..<3, 2..<3]] {
        try bench.good(bench.write(0, data))
        try bench.good(
          .writeZeroes(
            ranges.map {
              BlockRange(sector: UInt64($0.lowerBound) * bench.step, sectors: UInt32($0.count) * UInt32(bench.step))
            }))
        let now = try bench.good(bench.read(0, blocks: 8)).data
        for number in 0..<8 {
          let piece = number * bench.block..<(number + 1) * bench.block
          let isZero = ranges.contains { $0.contains(number) }
          try expect(
            isZero ? now[piece].allSatisfy { $0 == 0 } : now[piece] == data[piece],
            "block \(number) is not as the segments \(ranges) leave it")
        }
      }
      return .kept()
    },
    Check("flush-with-data", "bad.30", "FLUSH with data changes nothing on the disk.", needs: [.writable]) {
      bench in
      try bench.start()
      let data = bench.pattern(bench.block)
      try bench.good(bench.write(0, data))
      var flush = BlockRequest(type: .flush, sector: 0)
      flush.payload = bench.pattern(bench.block)
      let out = try bench.feed(try bench.make(flush).chain, after: "FLUSH with data").words
      bench.drop()
      try bench.start()
      var wide = BlockRequest(type: .flush, sector: 0)
      wide.answerBytes = bench.block
      let into = try bench.feed(try bench.make(wide).chain, after: "FLUSH with room for data").words
      bench.drop()
      try bench.start(Plan(queues: 1))
      try expect(try bench.good(bench.read(0)).data == data, "FLUSH wrote to the disk")
      return .rejected("with data: \(out); with room for data: \(into)")
    },
  ]
}
