/// A packed queue with rings that obey the specification.
import Testing
import VirtioCore

@Suite struct PackedQueueTests {
  private typealias Ring = PackedFixture
  private typealias Buffer = PackedFixture.Buffer

  @Test func takesAnswersAndPublishes() throws {
    let ring = try PackedFixture(size: 8)
    var queue = try ring.queue()
    #expect(try ring.popAndPush(&queue) == nil, "a ring of zeroes has nothing available")  // packed.desc.3
    ring.makeAvailable(
      0xfffe,
      [
        Buffer(address: ring.buffers, length: 16), Buffer(address: ring.buffers + 512, length: 512, flags: Ring.write),
        Buffer(address: ring.buffers + 64, length: 1, flags: Ring.write),
      ])
    let popped = try #require(try ring.popAndPush(&queue, written: 513))
    #expect(
      popped
        == Popped(
          head: 0xfffe, readable: 1, writable: 2, readableBytes: 16, writableBytes: 513, defect: nil,
          pieces: [
            .init(address: ring.buffers, count: 16), .init(address: ring.buffers + 512, count: 512),
            .init(address: ring.buffers + 64, count: 1),
          ]))
    #expect(try ring.reap() == nil, "nothing is visible before it is published")
    #expect(queue.unpublished == 1 && queue.position == QueuePosition(available: 0x8003, used: 0x8000))
    queue.publish()
    #expect(try ring.reap() == .init(id: 0xfffe, length: 513, isWritten: true))
    #expect(queue.unpublished == 0 && queue.position == QueuePosition(available: 0x8003, used: 0x8003))
    #expect(try ring.reap() == nil)
  }

  /// The first descriptor of a batch is written last, which publishes the whole batch.
  @Test func showsABatchAtOnce() throws {
    let ring = try PackedFixture(size: 8)
    var queue = try ring.queue()
    let held = PackedFixture.Held()
    for id: UInt16 in 0..<4 {
      ring.makeAvailable(id, [Buffer(address: ring.buffers, length: 1, flags: Ring.write)])
      #expect(try ring.take(&queue, held)?.head == id)
    }
    for id: UInt16 in [2, 0, 3] { ring.answer(&queue, held, id, written: UInt32(id)) }
    #expect(ring.flags(0) & 0x8080 == 0x80, "the first one is as the driver wrote it")
    #expect(try ring.reap() == nil)
    queue.publish()
    var seen: [PackedFixture.Used] = []
    while let used = try ring.reap() { seen.append(used) }
    #expect(
      seen == [
        .init(id: 2, length: 2, isWritten: true), .init(id: 0, length: 0, isWritten: false),
        .init(id: 3, length: 3, isWritten: true),
      ])  // packed.order.2, i.packed.used.3
    ring.answer(&queue, held, 1)
    queue.publish()
    #expect(try ring.reap()?.id == 1)
  }

  /// With IN_ORDER one descriptor stands for those before it, and an outside observer counts them all.
  @Test func countsBatchesFromOutside() throws {
    let ring = try PackedFixture(size: 8)
    var queue = try ring.queue([.inOrder])
    let held = PackedFixture.Held()
    for (id, count) in [(9, 2), (3, 1), (5, 3)] as [(UInt16, Int)] {
      ring.makeAvailable(
        id, (0..<count).map { _ in Buffer(address: ring.buffers, length: 1, flags: Ring.write) })
    }
    let look = try #require(PackedLook(ring.configuration, in: ring.memory, from: .start))
    #expect(look.heads.map(\.slot) == [0, 2, 3] && look.usedCount(in: ring.memory) == 0)
    for _ in 0..<3 { #expect(try ring.take(&queue, held) != nil) }
    ring.answerInOrder(&queue, held, 9, isWhole: true)
    ring.answerInOrder(&queue, held, 3, isWhole: false)
    queue.publish()
    #expect(look.usedCount(in: ring.memory) == 2)
    #expect(ring.flags(0) & 0x8080 == 0x8080 && ring.flags(2) & 0x8080 == 0x80, "one stands for both")
    ring.answerInOrder(&queue, held, 5, isWhole: true)
    queue.publish()
    #expect(look.usedCount(in: ring.memory) == 3)
    #expect(queue.position == QueuePosition(available: 0x8006, used: 0x8006))
  }

  /// Every mixture of list lengths around every end of small rings, with both orders of the two answers.
  @Test(arguments: 1...7) func goesRoundTheRing(size: Int) throws {
    for start in 0..<size {
      for wrap in [true, false] {
        for first in 1...size {
          for second in 0...(size - first) {
            for swaps in [false, true] {
              let ring = try PackedFixture(size: size, at: (start, wrap))
              var queue = try ring.queue()
              for round in 0..<3 {
                try twoChains(ring, &queue, [first, second].filter { $0 > 0 }, swaps: swaps, round: round)
              }
            }
          }
        }
      }
    }
  }

  private func twoChains(
    _ ring: PackedFixture, _ queue: inout PackedQueue, _ lengths: [Int], swaps: Bool, round: Int
  ) throws {
    let held = PackedFixture.Held()
    var ids: [UInt16] = []
    for (number, length) in lengths.enumerated() {
      let id = UInt16(number * 1000 + round)
      ids.append(id)
      let list = (0..<length).map {
        Buffer(
          address: ring.buffers + UInt64(number * 512 + $0 * 16), length: UInt32(1 + $0),
          flags: $0 == length - 1 ? Ring.write : 0)
      }
      ring.makeAvailable(id, list)
      let popped = try #require(try ring.take(&queue, held))
      #expect(popped.head == id)
      #expect(popped.pieces == list.map { .init(address: $0.address, count: Int($0.length)) })
    }
    #expect(try ring.take(&queue, held) == nil)
    if swaps { ids.reverse() }
    for id in ids { ring.answer(&queue, held, id, written: 7) }
    queue.publish()
    for id in ids { #expect(try ring.reap() == .init(id: id, length: 7, isWritten: true)) }
    #expect(try ring.reap() == nil)
    #expect(queue.position == ring.position)
  }

  @Test(arguments: [1, 2, 3, 100, 1000, 32767, 32768]) func anySizeWorks(size: Int) throws {
    let ring = try PackedFixture(size: size, at: (size - 1, true))
    var queue = try ring.queue()
    for number in 0..<5 {
      ring.makeAvailable(UInt16(number), [Buffer(address: ring.buffers, length: 1, flags: Ring.write)])
      #expect(try ring.popAndPush(&queue, written: 1)?.head == UInt16(number))
      queue.publish()
      #expect(try ring.reap()?.id == UInt16(number))
    }
    #expect(queue.position == ring.position)
  }

  /// In each round, only one of the four patterns means available (i.packed.avail.1).
  @Test(arguments: [true, false]) func onlyTheFlagsOfTheRoundAreAvailable(wrap: Bool) throws {
    for flags: UInt16 in [0, 0x80, 0x8000, 0x8080] {
      let ring = try PackedFixture(size: 4, at: (1, wrap))
      var queue = try ring.queue()
      ring.makeAvailable(3, [Buffer(address: ring.buffers, length: 1, flags: Ring.write)])
      ring.setFlags(1, flags | Ring.write)
      let isAvailable = flags == (wrap ? 0x80 : 0x8000)
      #expect(ring.hasAvailable(&queue) == isAvailable)
      #expect(try ring.popAndPush(&queue)?.head == (isAvailable ? 3 : nil))
    }
  }

  // MARK: Indirect tables

  /// In a table, ids and every flag except WRITE mean nothing, and neither does WRITE in the table's own descriptor.
  @Test(arguments: [Ring.indirect, Ring.indirect | Ring.write]) func tablesAreGoneThroughInOrder(flags: UInt16) throws {
    for offset: UInt64 in [0, 4] {  // aligned, and gathered
      let ring = try PackedFixture(size: 3, at: (2, false))
      var queue = try ring.queue()
      let table = ring.buffers + 4096 + offset
      let entries = [
        Buffer(address: ring.buffers, length: 16, flags: 0xfffd), Buffer(address: ring.buffers + 16, length: 8, flags: 1),
        Buffer(address: ring.buffers + 600, length: 1, flags: 0x8086),
      ]
      for (index, entry) in entries.enumerated() { ring.describe(inTable: table, index, entry, id: 0xabcd) }
      ring.makeAvailable(77, [Buffer(address: table, length: 48, flags: flags)])
      let popped = try #require(try ring.popAndPush(&queue, written: 1))
      #expect(popped.head == 77 && popped.readable == 2 && popped.writable == 1)
      #expect(popped.pieces == entries.map { .init(address: $0.address, count: Int($0.length)) })
      queue.publish()
      #expect(try ring.reap()?.id == 77)
      #expect(queue.position == QueuePosition(available: 0x8000, used: 0x8000))
    }
  }

  // MARK: Calls

  @Test func callsAsTheDriverWishes() throws {
    for (wish, features, expected) in [
      (0, FeatureSet(), true), (1 << 16, [], false), (2 << 16, [], true), (3 << 16, [], true),
      (1 << 16 | 0x8000, .eventIndex, false), (3 << 16, .eventIndex, true), (2 << 16 | 0x8000, .eventIndex, true),
      (2 << 16 | 0x8001, .eventIndex, false), (2 << 16, .eventIndex, false),
    ] as [(UInt32, FeatureSet, Bool)] {
      let ring = try PackedFixture(size: 4)
      var queue = try ring.queue(features)
      ring.wish(wish)
      #expect(ring.needsCall(&queue) == false, "nothing was published")
      ring.makeAvailable(0, [Buffer(address: ring.buffers, length: 1, flags: Ring.write)])
      _ = try ring.popAndPush(&queue)
      #expect(ring.needsCall(&queue) == false, "nothing was published")
      queue.publish()
      #expect(ring.needsCall(&queue) == expected, "wish \(wish), \(features)")
      #expect(ring.needsCall(&queue) == false, "the call was decided already")
    }
  }

  /// Every size, position, batch and event of small rings against the definition: whether one of the slots passed is
  /// the requested one, in its round.
  @Test(arguments: 1...6) func callsExactlyWhenTheEventIsPassed(size: Int) throws {
    for start in 0..<size {
      for wrap in [true, false] {
        for batch in 1...size {
          for event in 0..<size {
            for eventWrap in [true, false] {
              let ring = try PackedFixture(size: size, at: (start, wrap))
              var queue = try ring.queue([.eventIndex])
              ring.wish(UInt32(PackedFixture.word((event, eventWrap))) | 2 << 16)
              var isPassed = false
              for number in 0..<batch {
                let slot = start + number
                let round = slot < size ? wrap : !wrap
                if slot % size == event, round == eventWrap { isPassed = true }
                ring.makeAvailable(UInt16(number), [Buffer(address: ring.buffers, length: 1, flags: Ring.write)])
                _ = try ring.popAndPush(&queue)
              }
              queue.publish()
              try #require(
                ring.needsCall(&queue) == isPassed, "\(size) slots from \(start) \(wrap), \(batch), \(event) \(eventWrap)")
            }
          }
        }
      }
    }
  }

  /// One call for several publications without a query in between; more than a round always means a call.
  @Test func callsForAllThatWasPassedSince() throws {
    let ring = try PackedFixture(size: 2)
    var queue = try ring.queue([.eventIndex])
    ring.wish(0x8000 | 2 << 16)
    for number: UInt16 in 0..<3 {
      ring.makeAvailable(number, [Buffer(address: ring.buffers, length: 1, flags: Ring.write)])
      _ = try ring.popAndPush(&queue)
      queue.publish()
      #expect(try ring.reap()?.id == number)
    }
    #expect(ring.needsCall(&queue) == true)
  }

  @Test func oddEventsOfTheDriverChangeNothing() throws {
    for size in [1, 5, 32768] {
      let ring = try PackedFixture(size: size, at: (size - 1, false))
      var queue = try ring.queue([.eventIndex])
      for wish: UInt32 in [0xffff_ffff, 2 << 16 | 0x7fff, 2 << 16 | 0xffff, 0xfffe_7fff] {
        ring.wish(wish)
        ring.makeAvailable(9, [Buffer(address: ring.buffers, length: 1, flags: Ring.write)])
        _ = try ring.popAndPush(&queue)
        queue.publish()
        _ = ring.needsCall(&queue)
        #expect(try ring.reap()?.id == 9)
      }
    }
  }

  // MARK: Kicks

  @Test func suppressesKicksWhileItLooks() throws {
    let ring = try PackedFixture(size: 4)
    var queue = try ring.queue([])
    #expect(try ring.popAndPush(&queue) == nil)
    #expect(ring.deviceWish == 0)
    ring.makeAvailable(0, [Buffer(address: ring.buffers, length: 1, flags: Ring.write)])
    _ = try ring.popAndPush(&queue)
    #expect(ring.deviceWish == 1 << 16)
    #expect(ring.enableKicks(&queue) == false)
    #expect(ring.deviceWish == 0)
  }

  @Test func asksForTheNextChainByItsSlot() throws {
    let ring = try PackedFixture(size: 2, at: (1, true))
    var queue = try ring.queue([.eventIndex])
    #expect(ring.enableKicks(&queue) == false)
    #expect(ring.deviceWish == 2 << 16 | 0x8001)
    ring.makeAvailable(0, [Buffer(address: ring.buffers, length: 1, flags: Ring.write)])
    _ = try ring.popAndPush(&queue)
    #expect(ring.deviceWish == 1 << 16)
    #expect(ring.enableKicks(&queue) == false)
    #expect(ring.deviceWish == 2 << 16 | 0x0000)
  }

  @Test(arguments: [FeatureSet(), .eventIndex]) func looksAgainAfterEnablingKicks(features: FeatureSet) throws {
    let ring = try PackedFixture(size: 4)
    var queue = try ring.queue(features)
    #expect(try ring.popAndPush(&queue) == nil)
    ring.makeAvailable(0, [Buffer(address: ring.buffers, length: 1, flags: Ring.write)])  // in between, without a kick
    #expect(ring.enableKicks(&queue) == true)
  }

  // MARK: Positions

  @Test func standsWhereWhatWasShownEnds() throws {
    let ring = try PackedFixture(size: 4, at: (3, true))
    var queue = try ring.queue()
    let held = PackedFixture.Held()
    for id: UInt16 in 0..<3 {
      ring.makeAvailable(id, [Buffer(address: ring.buffers, length: 1, flags: Ring.write)])
      #expect(try ring.take(&queue, held)?.head == id)
    }
    ring.answer(&queue, held, 1)
    #expect(queue.position == QueuePosition(available: 0x0002, used: 0x8003))
    queue.publish()
    #expect(queue.position == QueuePosition(available: 0x0002, used: 0x0000))
    let (all, none) = (queue.position(handingBack: 2), queue.position(handingBack: 0))
    #expect(all == QueuePosition(available: 0x0000, used: 0x0000) && none == queue.position)
  }

  @Test func positionsCountSlotsAndRounds() throws {
    for size in 1...9 {
      var position = PackedPosition.start
      for step in 1...40 {
        let next = position.advanced(by: step % (size + 1), size: size)
        #expect(next.distance(from: position, size: size) == step % (size + 1))
        position = next
      }
    }
    #expect(PackedPosition.start.rawValue == 0x8000)
    #expect(PackedPosition(slot: 1, wrap: true).distance(from: PackedPosition(slot: 2, wrap: true), size: 4) == nil)
    #expect(PackedPosition(slot: 3, wrap: false).distance(from: PackedPosition(slot: 2, wrap: true), size: 4) == nil)
    #expect(QueuePosition.start(.packedRing) == QueuePosition(available: 0x8000, used: 0x8000))
    #expect(QueuePosition.start(.version1) == QueuePosition(available: 0, used: 0))
  }

  // MARK: What was written

  /// Every byte of the ring that changed is among those that it reports as written.
  @Test(arguments: 1...5) func saysWhatItHasWritten(size: Int) throws {
    for start in 0..<size {
      let ring = try PackedFixture(size: size, at: (start, true))
      var queue = try ring.queue()
      for number: UInt16 in 0..<7 {
        ring.makeAvailable(number, [Buffer(address: ring.buffers, length: 1, flags: Ring.write)])
        let before = contents(ring)
        _ = try ring.popAndPush(&queue, written: 0x0101_0101)
        var said = number % 2 == 0 ? ring.written(&queue) : []
        queue.publish()
        said.formUnion(ring.written(&queue))
        let after = contents(ring)
        let changed = before.indices.filter { before[$0] != after[$0] }
        #expect(!changed.isEmpty && said.isSuperset(of: changed))
        #expect(said.allSatisfy { before.indices.contains($0) })
        #expect(try ring.reap()?.id == number)
      }
    }
  }

  /// A front-end that knows only split rings sends 0 for a new ring, which is also the beginning of every second round: the
  /// first slot tells which.
  @Test(arguments: [true, false], [UInt16(0), nil]) func aNewRingThatIsSaidToBeAtZeroBegins(isNew: Bool, used: UInt16?) throws {
    let fixture = try PackedFixture(size: 8, at: (0, isNew))
    let queue = try PackedQueue(
      fixture.configuration, memory: fixture.memory, features: [.packedRing, .indirectDescriptors],
      position: QueuePosition(available: 0, used: used))
    let position = queue.position
    #expect(position.available == (isNew ? 0x8000 : 0))
    #expect(position.used == (isNew ? 0x8000 : 0))
  }

  private func contents(_ ring: PackedFixture) -> [UInt8] {
    (0..<UInt64(16 * ring.size + 8)).map { ring.load(UInt8.self, at: ring.ring + $0) }
  }
}

extension PackedFixture {
  /// Offsets from the beginning of the ring.
  func written(_ queue: inout PackedQueue) -> Set<Int> {
    var said: Set<Int> = []
    queue.takeWritten { area, offset, count in
      let base = area == .descriptors ? 0 : 16 * size + 4
      said.formUnion((base + offset)..<(base + offset + count))
    }
    return said
  }
}
