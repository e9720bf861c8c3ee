/// Rings and chains that no driver may make. The specification does not say what a device does with them, but it has to
/// survive.
internal import GuestDriver
internal import VirtioCore

extension Bench {
  /// Offers an invalid chain, and checks that the device is alive afterwards and wrote nothing where it must not.
  func feed(_ chain: [RawDescriptor], after what: String) throws -> Seen {
    let memory = try memory()
    memory.poisonFreeMemory()
    let hand = hands[0]
    hand.offer(chain)
    hand.kick()
    return try verdict(what, memory)
  }

  /// The same for a chain that is in the first ring already.
  func verdict(_ what: String, _ memory: DriverMemory) throws -> Seen {
    let hand = hands[0]
    settle()
    let failed = (try? hasFailed(0, milliseconds: 0)) ?? true
    if let place = memory.damageOutside() {
      throw Trouble.broken("\(what): the device wrote to \(place), which was not allocated")
    }
    let usedBefore = hand.usedCount
    // An invalid answer to an invalid chain does not matter.
    try? hand.look()
    let answered = hand.usedCount - usedBefore
    let life = try alive(after: what)
    return .rejected("\(failed ? "the queue stopped" : answered > 0 ? "it was given back" : "no answer"); \(life)")
  }

  fileprivate var nowhere: UInt64 { 1 << 40 }
}

extension Check {
  static let input: [Check] = [
    Check("index-far-ahead", "bad.1", "The available index is further ahead than the ring has entries.", rings: .split) {
      bench in
      try bench.start()
      let memory = try bench.memory()
      memory.poisonFreeMemory()
      let ring = bench.hands[0].split
      ring.availableIndex.storeRelease(ring.availableIndex.loadRelaxed() &+ bench.hands[0].size &+ 1)
      bench.hands[0].kick()
      return try bench.verdict("an available index too far ahead", memory)
    },
    Check("index-backwards", "bad.2", "The available index goes back by one.", rings: .split) { bench in
      try bench.start()
      for _ in 0..<3 { try bench.good(bench.harmless) }
      let memory = try bench.memory()
      memory.poisonFreeMemory()
      let ring = bench.hands[0].split
      ring.availableIndex.storeRelease(ring.availableIndex.loadRelaxed() &- 1)
      bench.hands[0].kick()
      return try bench.verdict("an available index that went back", memory)
    },
    Check("head-out-of-range", "bad.3", "The available ring names a head that the table does not have.", rings: .split) {
      bench in
      try bench.start()
      let memory = try bench.memory()
      memory.poisonFreeMemory()
      bench.hands[0].offerHead(bench.hands[0].size)
      bench.hands[0].kick()
      return try bench.verdict("a head out of range", memory)
    },
    Check("next-out-of-range", "bad.4", "A descriptor continues at one that the table does not have.", rings: .split) { bench in
      try bench.start()
      let memory = try bench.memory()
      let posted = try bench.make(bench.harmless)
      memory.poisonFreeMemory()
      let ring = bench.hands[0].split
      var head = posted.chain[0]
      head.flags.insert(.next)
      head.next = bench.hands[0].size &+ 3
      ring.setDescriptor(5, head)
      bench.hands[0].offerHead(5)
      bench.hands[0].kick()
      return try bench.verdict("next out of range", memory)
    },
    Check("loop", "bad.5", "A chain that never ends.") { bench in
      try bench.start()
      let memory = try bench.memory()
      let posted = try bench.make(bench.harmless)
      memory.poisonFreeMemory()
      switch bench.hands[0].raw {
      case .split(let ring):
        for slot: UInt16 in 0..<2 {
          var copy = posted.chain[0]
          copy.flags.insert(.next)
          copy.next = 1 - slot
          ring.setDescriptor(slot, copy)
        }
        bench.hands[0].offerHead(0)
      case .packed(let ring):
        // Every slot continues at the next one, and all are available.
        let hand = bench.hands[0]
        let start = hand.next
        for step in 1...hand.size {
          let place = start.advanced(by: hand.size - step, size: hand.size)
          var copy = posted.chain[0]
          copy.flags = RawDescriptor.Flags(rawValue: 1 | (place.wrap ? 0x0080 : 0x8000))
          ring.setDescriptor(place.slot, copy)
        }
      }
      bench.hands[0].kick()
      return try bench.verdict("a chain that loops", memory)
    },
    Check(
      "same-head-twice", "bad.6 bad.7", "One head is made available twice, and as often as the ring has entries.", rings: .split
    ) { bench in
      try bench.start()
      let memory = try bench.memory()
      let posted = try bench.make(bench.read(0, blocks: 4))
      memory.poisonFreeMemory()
      let ring = bench.hands[0].split
      for (place, descriptor) in posted.chain.enumerated() {
        var copy = descriptor
        if place + 1 < posted.chain.count {
          copy.flags.insert(.next)
          copy.next = UInt16(place) + 1
        }
        ring.setDescriptor(UInt16(place), copy)
      }
      let index = ring.availableIndex.loadRelaxed()
      for step in 0..<bench.hands[0].size { ring.availableEntry(index &+ step).storeRelaxed(0) }
      ring.availableIndex.storeRelease(index &+ bench.hands[0].size)
      bench.hands[0].kick()
      return try bench.verdict("one head as often as there are entries", memory)
    },
    Check("empty-descriptor", "bad.8", "Empty descriptors within a chain.") { bench in
      try bench.start()
      var posted = try bench.make(bench.harmless)
      posted.chain.insert(RawDescriptor(address: posted.chain[0].address, length: 0), at: 1)
      return try bench.feed(posted.chain, after: "a descriptor of no bytes")
    },
    Check("only-empty-descriptors", "bad.8", "A chain of empty descriptors only.") { bench in
      try bench.start()
      let empty = RawDescriptor(address: try bench.make(.flush).chain[0].address, length: 0)
      return try bench.feed(
        [empty, empty, RawDescriptor(address: empty.address, length: 0, flags: .write)], after: "a chain of no bytes")
    },
    Check("more-than-4-gib", "bad.9", "A chain whose lengths come to more than 2^32.") { bench in
      try bench.start()
      let posted = try bench.make(bench.harmless)
      let huge = RawDescriptor(address: posted.readable.address.rawValue, length: 0xffff_ff00)
      return try bench.feed(
        [posted.chain[0], huge, huge, posted.chain[posted.chain.count - 1]], after: "a chain of more than 2^32 bytes")
    },
    Check(
      "table-length", "bad.10", split: "i.split.indirect.2",
      "Tables that are empty, have a partial entry, or have too many entries.",
      needs: [.offered(.indirectDescriptors)]
    ) { bench in
      var words: [String] = []
      for length: UInt32 in [0, 8, 17, 0xffff_fff0] {
        try bench.start()
        let posted = try bench.make(bench.harmless)
        var reference = try bench.indirect(posted.chain)
        reference.length = length
        words.append("\(length) bytes: \(try bench.feed([reference], after: "a table of \(length) bytes").words)")
      }
      return .rejected(words.joined(separator: "; "))
    },
    Check("nested-table", "bad.11", "A table that refers to a table.", needs: [.offered(.indirectDescriptors)]) { bench in
      try bench.start()
      let inner = try bench.indirect(try bench.make(bench.harmless).chain)
      return try bench.feed([try bench.indirect([inner])], after: "a table in a table")
    },
    Check("table-with-next", "bad.11", "INDIRECT together with NEXT.", needs: [.offered(.indirectDescriptors)]) { bench in
      try bench.start()
      let posted = try bench.make(bench.harmless)
      return try bench.feed(
        [try bench.indirect(posted.chain), posted.chain[posted.chain.count - 1]], after: "INDIRECT with NEXT")
    },
    Check("table-not-negotiated", "bad.11", "A table, and INDIRECT_DESC was not negotiated.") { bench in
      try bench.start(Plan(without: .indirectDescriptors))
      return try bench.feed([try bench.indirect(try bench.make(bench.harmless).chain)], after: "INDIRECT without the feature")
    },
    Check(
      "table-nowhere", "bad.13", "A table that is not in memory, or only its beginning.",
      needs: [.offered(.indirectDescriptors)]
    ) { bench in
      try bench.start()
      let reference = RawDescriptor(address: bench.nowhere, length: 48, flags: .indirect)
      return try bench.feed([reference], after: "a table outside memory")
    },
    Check(
      "loop-in-a-table", "bad.5", "A chain that never ends inside a table.", rings: .split,
      needs: [.offered(.indirectDescriptors)]
    ) { bench in
      try bench.start()
      var entries = try bench.make(bench.harmless).chain
      for place in entries.indices {
        entries[place].flags = .next
        entries[place].next = UInt16((place + 1) % entries.count)
      }
      return try bench.feed([try bench.indirect(entries, linked: false)], after: "a loop in a table")
    },
    Check(
      "next-beyond-the-table", "bad.4", "An entry of a table continues beyond its end.", rings: .split,
      needs: [.offered(.indirectDescriptors)]
    ) { bench in
      try bench.start()
      var entries = try bench.make(bench.harmless).chain
      entries[0].flags = .next
      entries[0].next = 200
      return try bench.feed([try bench.indirect(entries, linked: false)], after: "next beyond the end of a table")
    },
    Check("readable-after-writable", "bad.12", "A readable descriptor after a writable one.") { bench in
      try bench.start()
      let posted = try bench.make(bench.read(0))
      return try bench.feed(
        [posted.chain[0], posted.chain[2], posted.chain[1]].enumerated().map { place, piece in
          var copy = piece
          if place == 2 { copy.flags.remove(.write) }
          return copy
        }, after: "a readable descriptor after a writable one")
    },
    Check("buffer-nowhere", "bad.13", "Buffers outside memory, over its end, and over the end of 64 bits.") { bench in
      var words: [String] = []
      let last = try bench.memory().regions.last.map { $0.start.rawValue + UInt64($0.size) } ?? 0
      for (address, what) in [
        (bench.nowhere, "outside memory"), (last - 16, "over the end of memory"), (UInt64.max - 15, "over 2^64"),
      ] {
        for place in 0..<3 {
          try bench.start()
          var posted = try bench.make(bench.read(0))
          posted.chain[place].address = address
          posted.chain[place].length = max(32, posted.chain[place].length)
          let part = ["header", "data", "status"][place]
          words.append("\(part) \(what): \(try bench.feed(posted.chain, after: "\(part) \(what)").words)")
        }
      }
      return .rejected(words.joined(separator: "; "))
    },
    Check("ring-nowhere", "bad.14", "Rings outside memory and unaligned ones are not served.", needs: [.modern]) { bench in
      var words: [String] = []
      for part in 0..<3 {
        for offset: UInt64 in [bench.nowhere, 1] {
          try bench.dropAfter {
            try bench.start(Plan(queues: 1, waits: true))
            let layout = bench.hands[0].ring.layout
            var addresses = [layout.descriptorTable, layout.availableRing, layout.usedRing].map(\.rawValue)
            addresses[part] &+= offset
            let transport = try bench.transport()
            let wrong = QueueConfiguration(
              size: layout.size, descriptorTable: GuestAddress(addresses[0]), availableRing: GuestAddress(addresses[1]),
              usedRing: GuestAddress(addresses[2]))
            do {
              try transport.reset()
              guard try bench.negotiate(bench.features) else {
                throw Trouble.broken("the device refuses what it accepted before")
              }
              _ = try transport.findQueues([wrong])
              try transport.setStatus(bench.status.union(.driverOK))
              bench.settle()
            } catch is DriverError {
              // Refused: as good as not served.
            }
          }
          words.append(
            "\(["table", "available ring", "used ring"][part]) \(offset == 1 ? "unaligned" : "outside"): "
              + (try bench.alive(after: "a ring at a wrong address")))
        }
      }
      return .rejected(words.joined(separator: "; "))
    },
    Check("ring-size", "bad.15", "Invalid ring sizes: 0, no power of two, too large.", needs: [.modern]) { bench in
      var words: [String] = []
      for size: UInt16 in bench.format == .split ? [0, 3, 65535] : [0, 65535] {
        var refused = false
        try bench.dropAfter {
          try bench.start(Plan(queues: 1, waits: true))
          let layout = bench.hands[0].ring.layout
          let transport = try bench.transport()
          do {
            try transport.reset()
            guard try bench.negotiate(bench.features) else {
              throw Trouble.broken("the device refuses what it accepted before")
            }
            _ = try transport.findQueues([
              QueueConfiguration(
                size: size, descriptorTable: layout.descriptorTable, availableRing: layout.availableRing,
                usedRing: layout.usedRing)
            ])
            try transport.setStatus(bench.status.union(.driverOK))
            bench.settle()
          } catch is DriverError { refused = true }
        }
        words.append("\(size): \(refused ? "refused, " : "")\(try bench.alive(after: "a ring of \(size) entries"))")
      }
      return .rejected(words.joined(separator: "; "))
    },
    Check("short-header", "bad.16", "A request of fewer than 16 readable bytes, and of none.") { bench in
      try bench.start()
      var posted = try bench.make(bench.read(0))
      posted.chain[0].length = 15
      let short = try bench.feed(posted.chain, after: "a header of 15 bytes").words
      try bench.start()
      let none = try bench.feed(Array(try bench.make(bench.read(0)).chain.dropFirst()), after: "no header").words
      return .rejected("15 bytes: \(short); none: \(none)")
    },
    Check("no-status", "bad.17", "A request without a writable byte: with data, and a header alone.") { bench in
      try bench.start()
      let posted = try bench.make(bench.harmless)
      let data = try bench.feed(Array(posted.chain.dropLast()), after: "a request without a status byte").words
      try bench.start()
      let alone = try bench.feed([try bench.make(.flush).chain[0]], after: "a header alone").words
      return .rejected("\(data); alone: \(alone)")
    },
    Check("shared-status", "bad.18", "The status is the last writable byte, also of a descriptor of data.", needs: [.modern]) {
      bench in
      try bench.start(Plan(queues: 1))
      let expected = try bench.good(bench.read(0)).data
      let answer = try bench.perform(bench.read(0), into: [bench.block + 1])
      try expect(answer.isOK && answer.data == expected, "the request was answered with \(answer.words)")
      return .kept()
    },
    Check("changing-header", "bad.19", "A header that changes while the device works on it is read once.", needs: [.writable]) {
      bench in
      try bench.start(Plan(queues: 1))
      let data = bench.pattern(bench.block)
      try bench.good(bench.write(0, data))
      for round in 0..<200 {
        var posted = try bench.make(bench.read(0))
        bench.post(&posted)
        // From an IN of the first block to one far beyond the end, and back.
        for flip in 0..<20 { posted.readable.store(bench.littleEndian(flip % 2 == 0 ? UInt64.max >> 9 : 0), at: 8) }
        posted.readable.store(bench.littleEndian(UInt64(0)), at: 8)
        let answer = try bench.answer(posted)
        try expect(
          answer.status == 1 || answer.isOK && answer.data == data,
          "round \(round): \(answer.words), with data of another place")
      }
      return .rejected("always one or the other")
    },
    Check("buffer-in-the-ring", "bad.13", "Data that goes into the ring itself, and into another queue's.") { bench in
      var words: [String] = []
      for (queue, what) in [(0, "its own ring"), (1, "another queue's")] where queue < bench.facts.queueCount {
        try bench.dropAfter {
          try bench.start()
          guard queue < bench.hands.count else { return }
          let layout = bench.hands[queue].ring.layout
          var posted = try bench.make(bench.read(0))
          posted.chain[1].address = layout.usedRing.rawValue
          posted.chain[1].length = UInt32(min(512, bench.block))
          let hand = bench.hands[0]
          hand.offer(posted.chain)
          hand.kick()
          bench.settle()
        }
        words.append("\(what): \(try bench.alive(after: "data into \(what)"))")
      }
      return .rejected(words.joined(separator: "; "))
    },
    Check("dies-in-flight", "bad.36", "A driver that disappears with requests in flight; the next one is served.") {
      bench in
      for _ in 0..<5 {
        try bench.start()
        for number in 0..<4 {
          var posted = try bench.make(bench.read(UInt64(number) * bench.step, blocks: 2))
          bench.post(&posted)
        }
        bench.drop()
      }
      try bench.start()
      try bench.good(bench.harmless)
      return .rejected("5 times")
    },
    Check("resets-in-flight", "bad.36", "Resets with requests in flight; nothing is written to memory that was given back.") {
      bench in
      for round in 0..<10 {
        try bench.start()
        let hands = bench.hands
        var all: [Posted] = []
        for number in 0..<4 {
          var posted = try bench.make(bench.read(UInt64(number) * bench.step, blocks: 2))
          bench.post(&posted, on: round % hands.count)
          all.append(posted)
        }
        try bench.transport().reset()
        for posted in all { posted.writable.fill(0x3c) }
        bench.settle()
        try expect(
          all.allSatisfy { $0.writable.bytes.allSatisfy { $0 == 0x3c } },
          "round \(round): a buffer was written to after the reset")
      }
      return .rejected("10 times")
    },
    Check("garbage-rings", "bad.33 bad.7", "Rings full of random bytes, twenty times.") { bench in
      for round in 0..<20 {
        try bench.dropAfter {
          try bench.start()
          let layout = bench.hands[0].ring.layout
          let memory = try bench.memory()
          let count = RingLayout.descriptorTableBytes(layout.size)
          memory.store(bench.pattern(count), at: layout.descriptorTable)
          if layout.format == .split {
            memory.store(bench.pattern(RingLayout.availableRingBytes(layout.size)), at: layout.availableRing)
          } else {
            memory.store(bench.pattern(RingLayout.eventBytes), at: layout.availableRing)
          }
          bench.hands[0].kick()
          bench.settle()
        }
        _ = try bench.alive(after: "round \(round): a ring of random bytes")
      }
      return .rejected("20 rounds")
    },
  ]
}
