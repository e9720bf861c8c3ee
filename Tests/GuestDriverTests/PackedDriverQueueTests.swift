/// What is specific to the driver's side of a packed ring, against a device that the test simulates by hand.
import Testing
import VirtioCore

@testable import GuestDriver

struct PackedDriverQueueTests {
  typealias Table = DriverQueueTests.Table

  @Test("positions wrap around, and the wrap counter flips at the end", arguments: [1, 2, 3, 5, 32768] as [UInt16])
  func positions(_ size: UInt16) {
    // In steps of one, as the specification describes it.
    func step(_ position: RingPosition) -> RingPosition {
      let next = position.slot + 1
      return next == size
        ? RingPosition(word: position.wrap ? 0 : 0x8000) : RingPosition(word: next | (position.wrap ? 0x8000 : 0))
    }
    var position = RingPosition.start
    for count in 1...2 * Int(size) {
      position = step(position)
      if count <= Int(size) { #expect(RingPosition.start.advanced(by: UInt16(count), size: size) == position) }
    }
    #expect(position == .start)
  }

  @Test(
    "a notification for each event that was passed, and for no other: every triple of small rings",
    arguments: 1...6 as ClosedRange<UInt16>)
  func events(_ size: UInt16) {
    let all = (0..<size).flatMap { [RingPosition(word: $0), RingPosition(word: $0 | 0x8000)] }
    for old in all {
      for count in 1...size {
        let new = old.advanced(by: count, size: size)
        let passed = (0..<count).map { old.advanced(by: $0, size: size) }
        for event in all {
          #expect(
            RingPosition.needsEvent(event, from: old, to: new, size: size) == passed.contains(event),
            "\(old) to \(new), event \(event)")
        }
      }
    }
  }

  @Test("nothing of a batch is available before its first descriptor is, and then all")
  func publication() throws {
    let table = try Table(.packed, size: 5)
    for round in 0..<7 {
      let start = RingPosition(word: table.standing.available)
      let names = try [1, 2, 2].map { try #require(table.add($0)) }
      func marks(_ step: UInt16) -> UInt16 {
        let position = start.advanced(by: step, size: 5)
        return table.packed.flags(position.slot).loadAcquire() & RingPosition.marks ^ position.availableMarks
      }
      // A device checks the first descriptor and stops there.
      #expect(marks(0) != 0, "round \(round)")
      _ = table.publish()
      for step in 0..<5 as Range<UInt16> { #expect(marks(step) == 0, "round \(round), descriptor \(step)") }
      for name in names.reversed() { table.use(UInt32(name)) }
      for name in names.reversed() { #expect(try table.reap()?.head == name) }
    }
  }

  @Test("the last descriptor names the buffer, the others do not")
  func identifiers() throws {
    let table = try Table(.packed)
    let id = try #require(table.add(3))
    #expect(table.packed.descriptor(2).next == id)
    #expect(table.packed.descriptor(0).next != id && table.packed.descriptor(1).next != id)
    #expect(table.packed.descriptor(0).flags.contains(.next) && !table.packed.descriptor(2).flags.contains(.next))
  }

  @Test("an indirect chain is one descriptor, and its table has no flag except WRITE")
  func indirect() throws {
    let table = try Table(.packed, features: [.version1, .indirectDescriptors])
    let name = try #require(table.add(5, placement: .indirect(direct: 2, write: true)))
    #expect(table.free == (7, 3))
    let descriptor = table.packed.descriptor(0)
    #expect(descriptor.flags.isSuperset(of: [.indirect, .write]) && !descriptor.flags.contains(.next))
    #expect(descriptor.length == 80 && descriptor.next == name)
    for entry in 0..<5 as Range<UInt64> {
      let flags = table.memory.load(UInt16.self, at: GuestAddress(descriptor.address + 16 * entry + 14))
      #expect(flags == (entry > 0 ? 2 : 0))
    }
    _ = table.publish()
    table.use(UInt32(name), 400)
    #expect(try table.reap()?.writable == 400)
    #expect(table.free == (8, 4))
  }

  @Test("a length without WRITE means nothing")
  func length() throws {
    let table = try Table(.packed)
    let name = try #require(table.add())
    _ = table.publish()
    table.use(UInt32(name), 100)
    var element = table.packed.descriptor(0)
    element.flags.subtract(.write)
    table.packed.setDescriptor(0, element)
    #expect(try table.reap()?.length == 0)
  }

  /// Two chains, of two and of three descriptors; then the device does something, and up to two answers are reaped.
  private func fault(
    _ features: FeatureSet = [.version1, .indirectDescriptors], _ body: (Table) -> Void
  ) throws -> DriverFault? {
    let table = try Table(.packed, features: features)
    _ = table.add(2)
    _ = table.add(3)
    _ = table.publish()
    body(table)
    do {
      while try table.reap() != nil {}
      return nil
    } catch { return error }
  }

  @Test("what a device may do is accepted")
  func right() throws {
    #expect(
      try fault {
        $0.use(0, 100)
        $0.use(1, 200)
      } == nil)
    // The answer to the second chain overwrites the first one's descriptors, and the other way round.
    #expect(
      try fault {
        $0.use(1, 200)
        $0.use(0, 100)
      } == nil)
    #expect(try fault { _ in } == nil)
    #expect(try fault([.eventIndex]) { $0.packed.deviceEventFlags.storeRelaxed(2) } == nil)
  }

  @Test("what a device may not do is detected")
  func faults() throws {
    #expect(try fault { $0.use(2) } == .usedIDNotOutstanding(queue: 0, id: 2, slot: 0))
    #expect(try fault { $0.use(8) } == .usedIDNotOutstanding(queue: 0, id: 8, slot: 0))
    #expect(try fault { $0.use(0xffff) } == .usedIDNotOutstanding(queue: 0, id: 0xffff, slot: 0))
    #expect(try fault { $0.use(0, 101) } == .usedLengthTooLong(queue: 0, head: 0, length: 101, writable: 100))
    // Both marks of the previous lap.
    #expect(
      try fault { $0.packed.flags(0).storeRelease(0) } == .badDescriptorMarks(queue: 0, slot: 0, flags: 0, wrap: true))
    #expect(
      try fault { $0.packed.flags(0).storeRelease(0x8000) }
        == .badDescriptorMarks(queue: 0, slot: 0, flags: 0x8000, wrap: true))
    // The driver's own structure is changed, and the device's has a meaningless value.
    #expect(
      try fault {
        $0.packed.driverEventFlags.storeRelaxed(2)
        $0.use(0)
      }
        == .driverEventModified(
          queue: 0, wrote: EventSuppression(), found: EventSuppression(flags: EventSuppression.descriptor)))
    for (flags, position, eventIndex) in [(3, 0, true), (2, 0, false), (4, 0, true), (2, 8, true), (2, 0xffff, true)]
      as [(UInt16, UInt16, Bool)]
    {
      #expect(
        try fault(eventIndex ? [.eventIndex] : []) {
          $0.packed.deviceEventPosition.storeRelaxed(position)
          $0.packed.deviceEventFlags.storeRelaxed(flags)
          $0.use(0)
        } == .badDeviceEvent(queue: 0, EventSuppression(position: position, flags: flags), eventIndex: eventIndex))
    }
  }

  @Test("a changed descriptor that the device passes over is detected on either side", arguments: [0, 1] as [UInt32])
  func modified(_ first: UInt32) throws {
    let found = try fault {
      var descriptor = $0.packed.descriptor(1)
      descriptor.length = 99
      $0.packed.setDescriptor(1, descriptor)
      $0.use(first)
      $0.use(1 - first)
    }
    guard case .descriptorModified(0, 1, _, _) = found else {
      Issue.record("\(String(describing: found))")
      return
    }
  }

  @Test("a ring's position has both halves, and includes answers that were not reaped")
  func standing() throws {
    let table = try Table(.packed, size: 7)
    let start = RingPosition.start
    let (first, second) = (try #require(table.add(2)), try #require(table.add(3)))
    #expect(table.standing == QueueStanding(available: start.word, used: start.word))
    _ = table.publish()
    table.use(UInt32(second))
    #expect(
      table.standing
        == QueueStanding(available: start.advanced(by: 5, size: 7).word, used: start.advanced(by: 3, size: 7).word))
    table.use(UInt32(first))
    _ = try table.reap()
    let behind = start.advanced(by: 5, size: 7).word
    #expect(table.standing == QueueStanding(available: behind, used: behind))
  }

  @Test("a kick when the requested descriptor is published, across the wrap", arguments: 0..<10 as Range<UInt16>)
  func kickEvents(_ place: UInt16) throws {
    for event in 0..<6 as Range<UInt16> {
      let table = try Table(.packed, size: 5, features: [.eventIndex])
      table.wantKicks(false)
      for _ in 0..<place {
        let name = try #require(table.add(1))
        _ = table.publish()
        table.use(UInt32(name))
        _ = try table.reap()
      }
      EventCounter.drain(table.kick.rawValue)
      let next = RingPosition(word: table.standing.available)
      // The sixth descriptor is the first one of the next lap.
      let wanted = next.advanced(by: min(event, 5), size: 5)
      table.packed.deviceEventPosition.storeRelaxed(wanted.word)
      table.packed.deviceEventFlags.storeRelease(EventSuppression.descriptor)
      for _ in 0..<4 { _ = table.add(1) }
      let kicked = table.publish()
      #expect(kicked == (event < 4), "event \(event) after \(place)")
      #expect(EventCounter.drain(table.kick.rawValue) == (event < 4 ? 1 : 0))
    }
  }
}
