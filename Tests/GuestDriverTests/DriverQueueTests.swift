/// The driver's ring against a device that the test simulates by hand.
import Testing
import VirtioCore

@testable import GuestDriver

struct DriverQueueTests {
  /// A ring, its memory, and the device's operations on both.
  final class Table {
    let memory: DriverMemory
    var queue: DriverQueue
    let kick: OwnedDescriptor
    let call: OwnedDescriptor
    var used: UInt16
    /// Number of descriptors of each chain that the device holds, by the chain's name.
    var lengths: [UInt16: UInt16] = [:]

    init(
      _ format: RingFormat = .split, size: UInt16 = 8, features: FeatureSet = [.version1], shape: RingShape = .separate
    ) throws {
      memory = try DriverMemory(size: 4 << 20)
      kick = try .eventCounter()
      call = try .eventCounter()
      queue = DriverQueue(
        try QueueSetup(
          index: 0, ring: RingMemory(size: size, format: format, shape: shape, in: memory),
          lines: .eventCounters(kick: kick, call: call), memory: memory, features: features, indirectTables: 4,
          indirectEntries: 8))
      used = format == .split ? 0 : RingPosition.start.word
    }

    func add(_ pieces: Int = 2, placement: ChainPlacement = .direct, token: UInt32 = 0) -> UInt16? {
      let list = (0..<pieces).map { ChainPiece(GuestAddress(0x1000), length: 100, deviceWrites: $0 > 0) }
      let before = queue.freeDescriptors
      guard let head = queue.add(list.span, placement: placement, token: token) else { return nil }
      lengths[head] = UInt16(before - queue.freeDescriptors)
      return head
    }

    // Macros cannot take a noncopyable value apart.
    var ring: RawRing { queue.ring }
    var packed: RawPackedRing { queue.packedRing }
    var outstanding: Int { queue.outstanding }
    var free: (descriptors: Int, tables: Int) { (queue.freeDescriptors, queue.freeTables) }
    var calls: Int { queue.notifications.calls }
    var standing: QueueStanding { queue.standing }
    func publish() -> Bool { queue.publish() }
    func reap() throws(DriverFault) -> UsedChain? { try queue.reap() }
    func enableCalls() -> Bool { queue.enableCalls() }
    func noteCalls() throws(DriverFault) { try queue.noteCalls() }
    func waitForUsed() throws(DriverFault) -> Bool { try queue.waitForUsed(milliseconds: patientMilliseconds) }

    /// Whether the device wants kicks.
    func wantKicks(_ wants: Bool) {
      switch queue.raw {
      case .split(let ring): ring.usedFlags.storeRelaxed(wants ? 0 : 1)
      case .packed(let ring): ring.deviceEventFlags.storeRelaxed(wants ? EventSuppression.enable : EventSuppression.disable)
      }
    }

    func use(_ id: UInt32, _ length: UInt32 = 0) {
      switch queue.raw {
      case .split(let ring):
        ring.usedID(used).storeRelaxed(id)
        ring.usedLength(used).storeRelaxed(length)
        used &+= 1
        ring.usedIndex.storeRelease(used)
      case .packed(let ring):
        let position = RingPosition(word: used)
        let name = UInt16(truncatingIfNeeded: id)
        var flags = RawDescriptor.Flags(rawValue: position.usedMarks)
        if length > 0 { flags.insert(.write) }
        ring.setDescriptor(position.slot, RawDescriptor(address: 0, length: length, flags: flags, next: name))
        used = position.advanced(by: lengths[name] ?? 1, size: queue.size).word
      }
    }
  }

  @Test("IN_ORDER: descriptors are used in the order of the table, with links to the next (2.6.9)")
  func sequentialDescriptors() throws {
    let table = try Table(features: [.version1, .inOrder])
    for round: UInt16 in 0..<6 {
      let heads = (0..<2).map { _ in table.add(3) }
      #expect(heads == [(round * 6) % 8, (round * 6 + 3) % 8])
      for index: UInt16 in 0..<8 {
        let descriptor = table.ring.descriptor(index)
        if descriptor.flags.contains(.next) { #expect(descriptor.next == (index + 1) % 8) }
      }
      _ = table.publish()
      // One element for both chains.
      table.ring.usedID(table.used).storeRelaxed(UInt32(heads[1] ?? 0))
      table.ring.usedLength(table.used).storeRelaxed(9)
      table.used &+= 2
      table.ring.usedIndex.storeRelease(table.used)
      let lengths = [try table.reap()?.length, try table.reap()?.length]
      #expect(lengths == [200, 9], "a chain without its own element was written whole")
      #expect(table.outstanding == 0 && table.free.descriptors == 8)
    }
  }

  @Test("IN_ORDER: an answer that stands for more chains than used.idx says, or for a chain twice, is detected")
  func wrongBatches() throws {
    let ahead = try Table(features: [.version1, .inOrder])
    let heads = (0..<3).map { _ in ahead.add() ?? 0 }
    _ = ahead.publish()
    ahead.use(UInt32(heads[2]))
    #expect(throws: DriverFault.batchTooLong(queue: 0, id: heads[2], count: 3, moved: 1)) { try ahead.reap() }
    for format in [RingFormat.split, .packed] {
      let twice = try Table(format, features: format == .split ? [.version1, .inOrder] : [.version1, .inOrder, .packedRing])
      let heads = (0..<2).map { _ in twice.add(1) ?? 0 }
      _ = twice.publish()
      twice.use(UInt32(heads[0]))
      #expect(try twice.reap()?.head == heads[0])
      twice.use(UInt32(heads[0]))
      #expect(throws: DriverFault.self) { try twice.reap() }
    }
  }

  @Test(
    "layouts by the numbers of the specification",
    arguments: [(1, 4096), (2, 64), (256, 4096), (32768, 4096)] as [(UInt16, Int)])
  func legacyLayout(_ size: UInt16, alignment: Int) throws {
    let table = try Table(size: size, shape: .legacy(alignment: alignment))
    let layout = table.ring.layout
    #expect(
      layout.configuration
        == QueueConfiguration.legacy(
          size: size, base: layout.descriptorTable, alignment: UInt64(alignment)))
    if size == 256 {
      #expect(layout.usedRing.rawValue - layout.descriptorTable.rawValue == 0x2000)
      #expect(RingLayout.legacyOffsets(256, alignment: 4096).total == 12288)
    }
  }

  @Test(
    "chains fill the table and come back in any order, over many rounds",
    arguments: [
      (.split, 1), (.split, 2), (.split, 8), (.split, 64), (.packed, 1), (.packed, 2), (.packed, 3), (.packed, 7),
      (.packed, 64),
    ] as [(RingFormat, UInt16)])
  func manyRounds(_ format: RingFormat, size: UInt16) throws {
    let table = try Table(format, size: size)
    var random = SeededRandom(seed: 1)
    var held: [(head: UInt16, token: UInt32)] = []
    var token: UInt32 = 0
    // Beyond the wrap of the 16-bit indices.
    while token < 70_000 {
      while let head = table.add(1 + Int(random.next() % 3) % Int(size), token: token) {
        held.append((head, token))
        token += 1
      }
      #expect(table.outstanding == held.count)
      _ = table.publish()
      held.shuffle(using: &random)
      let count = 1 + Int(random.next() % UInt64(held.count))
      for chain in held.prefix(count) { table.use(UInt32(chain.head)) }
      for chain in held.prefix(count) {
        let back = try table.reap()
        #expect(back?.head == chain.head && back?.token == chain.token)
      }
      #expect(try table.reap() == nil)
      held.removeFirst(count)
      if held.isEmpty { #expect(table.standing.available == table.standing.used) }
    }
  }

  @Test("an indirect chain takes one descriptor and one table")
  func indirect() throws {
    let table = try Table(features: [.version1, .indirectDescriptors])
    let head = try #require(table.add(5, placement: .indirect()))
    #expect(table.free == (7, 3))
    let descriptor = table.ring.descriptor(head)
    #expect(descriptor.flags == .indirect && descriptor.length == 80)
    // Two descriptors in the ring and the rest in the table, with WRITE on the reference.
    let mixed = try #require(table.add(5, placement: .indirect(direct: 2, write: true)))
    #expect(table.free == (4, 2))
    let second = table.ring.descriptor(table.ring.descriptor(mixed).next)
    let third = table.ring.descriptor(second.next)
    #expect(third.flags == [.indirect, .write] && third.length == 48)
    // Too long for a table.
    let tooLong = table.add(9, placement: .indirect())
    #expect(tooLong == nil)
    _ = table.publish()
    table.use(UInt32(mixed), 400)
    #expect(try table.reap()?.writable == 400)
    #expect(table.free == (7, 3))
  }

  @Test("what a device may not do is detected")
  func faults() throws {
    /// One chain of two descriptors is outstanding, head 0; then the device does something.
    func fault(_ features: FeatureSet = [.version1, .indirectDescriptors], _ body: (Table) -> Void) throws -> DriverFault? {
      let table = try Table(features: features)
      _ = table.add()
      _ = table.publish()
      body(table)
      do {
        _ = try table.reap()
        return nil
      } catch { return error }
    }
    #expect(try fault { $0.use(0, 100) } == nil)
    #expect(try fault { $0.use(1) } == .usedIDNotOutstanding(queue: 0, id: 1, slot: 0))
    #expect(try fault { $0.use(8) } == .usedIDNotOutstanding(queue: 0, id: 8, slot: 0))
    #expect(try fault { $0.use(0x10000) } == .usedIDNotOutstanding(queue: 0, id: 0x10000, slot: 0))
    #expect(try fault { $0.use(0, 101) } == .usedLengthTooLong(queue: 0, head: 0, length: 101, writable: 100))
    #expect(
      try fault { $0.ring.usedIndex.storeRelease(2) } == .usedIndexJumped(queue: 0, from: 0, to: 2, outstanding: 1))
    #expect(
      try fault { $0.ring.usedIndex.storeRelease(0xffff) }
        == .usedIndexJumped(queue: 0, from: 0, to: 0xffff, outstanding: 1))
    #expect(
      try fault {
        $0.ring.availableIndex.storeRelaxed(2)
        $0.use(0)
      } == .availableIndexModified(queue: 0, wrote: 1, found: 2))
    #expect(
      try fault {
        $0.ring.usedFlags.storeRelaxed(2)
        $0.use(0)
      } == .badUsedFlags(queue: 0, 2, eventIndex: false))
    #expect(
      try fault([.eventIndex]) {
        $0.ring.usedFlags.storeRelaxed(1)
        $0.use(0)
      } == .badUsedFlags(queue: 0, 1, eventIndex: true))
    let modified = try fault {
      var descriptor = $0.ring.descriptor(1)
      descriptor.length = 99
      $0.ring.setDescriptor(1, descriptor)
      $0.use(0)
    }
    guard case .descriptorModified(0, 1, _, _) = modified else {
      Issue.record("\(String(describing: modified))")
      return
    }
  }

  @Test("a chain that is used twice is not outstanding the second time", arguments: RingFormat.allCases)
  func usedTwice(_ format: RingFormat) throws {
    let table = try Table(format)
    _ = table.add()
    let second = try #require(table.add())
    _ = table.publish()
    table.use(0)
    table.use(0)
    _ = try table.reap()
    do {
      _ = try table.reap()
      Issue.record("the second one was taken")
    } catch { #expect(error == .usedIDNotOutstanding(queue: 0, id: 0, slot: format == .split ? 1 : 2)) }
    #expect(second == (format == .split ? 2 : 1))
  }

  @Test("nothing that was not published can be used", arguments: RingFormat.allCases)
  func unpublished(_ format: RingFormat) throws {
    let table = try Table(format)
    _ = table.add()
    table.use(0)
    do {
      _ = try table.reap()
      Issue.record("it was taken")
    } catch {
      #expect(
        error
          == (format == .split
            ? .usedIndexJumped(queue: 0, from: 0, to: 1, outstanding: 0) : .usedIDNotOutstanding(queue: 0, id: 0, slot: 0)))
    }
  }

  @Test("one kick for a batch, and only if the device wants it", arguments: RingFormat.allCases, [false, true])
  func kickFlags(_ format: RingFormat, wants: Bool) throws {
    let table = try Table(format)
    table.wantKicks(wants)
    for _ in 0..<3 { _ = table.add() }
    // The event word means nothing without the feature.
    switch format {
    case .split: table.ring.availableEvent.storeRelaxed(1)
    case .packed: table.packed.deviceEventPosition.storeRelaxed(1)
    }
    let kicked = table.publish()
    let again = table.publish()
    #expect(kicked == wants && !again)
    #expect(EventCounter.drain(table.kick.rawValue) == (wants ? 1 : 0))
  }

  @Test("with an event index, a kick when the requested entry is published, across a wrap", arguments: [0, 0xfffd] as [UInt16])
  func kickEvents(_ start: UInt16) throws {
    for event in 0..<6 as Range<UInt16> {
      let table = try Table(features: [.eventIndex])
      // Advance the indices to where the test begins.
      var index: UInt16 = 0
      table.ring.availableEvent.storeRelaxed(0x8000)
      while index != start {
        let head = try #require(table.add())
        _ = table.publish()
        table.use(UInt32(head))
        _ = try table.reap()
        index &+= 1
      }
      EventCounter.drain(table.kick.rawValue)
      table.ring.availableEvent.storeRelaxed(start &+ event)
      for _ in 0..<4 { _ = table.add() }
      let kicked = table.publish()
      #expect(kicked == (event < 4), "event \(event) after \(start)")
      #expect(EventCounter.drain(table.kick.rawValue) == (event < 4 ? 1 : 0))
      if start != 0 { break }
    }
  }

  @Test("a call that is due and does not come is reported as missing", arguments: RingFormat.allCases, [false, true])
  func missingCall(_ format: RingFormat, eventIndex: Bool) throws {
    let table = try Table(format, features: eventIndex ? [.eventIndex] : [])
    table.queue.callPatience = .milliseconds(20)
    let head = try #require(table.add())
    _ = table.publish()
    #expect(table.enableCalls())
    table.use(UInt32(head))
    try table.noteCalls()
    _ = try table.reap()
    var found: DriverFault? = nil
    try waitUntil("the call is reported as missing") {
      do throws(DriverFault) { try table.noteCalls() } catch { found = error }
      return found != nil
    }
    #expect(found == .missingCall(queue: 0, usedEvent: 0, usedIndex: format == .split ? 1 : 2))
  }

  @Test("a prompt call, and a late one within the limit, are fine", arguments: RingFormat.allCases)
  func callInTime(_ format: RingFormat) throws {
    let table = try Table(format, features: [.eventIndex])
    for isLate in [false, true] {
      let head = try #require(table.add())
      _ = table.publish()
      #expect(table.enableCalls())
      table.use(UInt32(head))
      if isLate { try table.noteCalls() }
      EventCounter.signal(table.call.rawValue)
      try table.noteCalls()
      _ = try table.reap()
      try table.noteCalls()
    }
    #expect(table.calls == 2)
  }

  @Test("a driver that wants no calls counts those that arrive", arguments: RingFormat.allCases)
  func unwantedCalls(_ format: RingFormat) throws {
    let table = try Table(format)
    table.queue.disableCalls()
    // One call may test the line, and one may report that the device has started.
    for _ in 0..<2 {
      EventCounter.signal(table.call.rawValue)
      try table.noteCalls()
    }
    EventCounter.signal(table.call.rawValue)
    do {
      try table.noteCalls()
      Issue.record("three were fine")
    } catch { #expect(error == .unwantedCalls(queue: 0, count: 3, wanted: 2)) }
  }

  @Test("used before armed: the driver does not wait for a call that will not come", arguments: RingFormat.allCases)
  func usedBeforeArmed(_ format: RingFormat) throws {
    let table = try Table(format, features: [.eventIndex])
    let head = try #require(table.add())
    _ = table.publish()
    table.use(UInt32(head))
    #expect(!table.enableCalls())
    #expect(try table.waitForUsed())
  }
}
