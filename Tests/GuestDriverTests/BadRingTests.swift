/// Rings that no driver may build: the queue stops and reports it, the device and its other queues continue, and good chains
/// before the bad one are answered. The numbers are the rows of the project's bad-input list.
import Testing
import VirtioCore

@testable import GuestDriver

struct BadRingTests {
  /// Puts a good read before a bad chain: the good one has to be answered, the bad one has to stop the queue.
  func goodThenBad(
    _ bench: Bench, _ place: SourceLocation = #_sourceLocation, bad: (Bench) throws -> UInt16
  ) throws {
    let good = try bench.frame(.read(sector: 0, bytes: 512))
    bench.link(bench.descriptors(good), from: 0)
    bench.victim.offer(0, try bad(bench))
    bench.kickVictim()
    #expect(try bench.victimFailed, "no failure was signalled", sourceLocation: place)
    #expect(try bench.waitForUsed(1) == 1, "the good chain was not answered", sourceLocation: place)
    let used = bench.victim.usedElements(since: 0)
    #expect(used.map(\.id) == [0] && used.map(\.length) == [513], sourceLocation: place)
    #expect(good.status == .ok, sourceLocation: place)
    try good.check(queue: 0, head: 0, length: 513, in: bench.memory)
    try bench.expectQueueFailure(place)
  }

  /// A complete valid chain, from descriptor 8 on.
  func goodChain(_ bench: Bench, _ request: BlockRequest = .read(sector: 1, bytes: 512)) throws -> [RawDescriptor] {
    bench.descriptors(try bench.frame(request))
  }

  @Test("1: avail.idx jumps past the queue size", arguments: Setup.split, [17, 1000, 0x8000] as [UInt16])
  func availableIndexJumps(_ setup: Setup, by jump: UInt16) throws {
    let bench = try Bench(setup)
    bench.victim.split.availableIndex.storeRelease(jump)
    bench.kickVictim()
    try bench.expectQueueFailure(usedBefore: 0)
  }

  @Test("2: avail.idx goes backwards", arguments: Setup.split)
  func availableIndexGoesBack(_ setup: Setup) throws {
    let bench = try Bench(setup)
    let good = try bench.frame(.read(sector: 0, bytes: 512))
    bench.link(bench.descriptors(good))
    bench.victim.offer(0)
    bench.kickVictim()
    #expect(try bench.waitForUsed(1) == 1)
    bench.victim.split.availableIndex.storeRelease(0)
    bench.kickVictim()
    try bench.expectQueueFailure()
  }

  @Test("3: a head outside the table", arguments: Setup.split, [16, 17, 0x8000, 0xffff] as [UInt16])
  func headOutside(_ setup: Setup, head: UInt16) throws {
    try goodThenBad(try Bench(setup)) { _ in head }
  }

  @Test("4: next outside the table", arguments: Setup.split, [16, 0xffff] as [UInt16])
  func nextOutside(_ setup: Setup, next: UInt16) throws {
    try goodThenBad(try Bench(setup)) { bench in
      var descriptor = try goodChain(bench)[0]
      descriptor.flags.insert(.next)
      descriptor.next = next
      bench.victim.setDescriptor(8, descriptor)
      return 8
    }
  }

  @Test("4: next outside an indirect table", arguments: Setup.split)
  func nextOutsideIndirectTable(_ setup: Setup) throws {
    try goodThenBad(try Bench(setup)) { bench in
      let table = try bench.table(try goodChain(bench))
      table.store((3 as UInt16).littleEndianBytes, at: 16 + 14)
      bench.victim.setDescriptor(
        8, RawDescriptor(address: table.address.rawValue, length: UInt32(table.count), flags: .indirect))
      return 8
    }
  }

  @Test("5: a chain that loops", arguments: Setup.split, [1, 2, 5] as [UInt16])
  func loop(_ setup: Setup, length: UInt16) throws {
    try goodThenBad(try Bench(setup)) { bench in
      let header = try goodChain(bench)[0]
      for place in 0..<length {
        bench.victim.setDescriptor(
          8 + place,
          RawDescriptor(address: header.address, length: 16, flags: .next, next: 8 + (place + 1) % length))
      }
      return 8
    }
  }

  @Test("5: an indirect table that loops", arguments: Setup.split)
  func indirectLoop(_ setup: Setup) throws {
    try goodThenBad(try Bench(setup)) { bench in
      let table = try bench.table(try goodChain(bench))
      table.store(
        RawDescriptor.Flags([.next, .write]).rawValue.littleEndianBytes + (1 as UInt16).littleEndianBytes, at: 32 + 12)
      bench.victim.setDescriptor(
        8, RawDescriptor(address: table.address.rawValue, length: UInt32(table.count), flags: .indirect))
      return 8
    }
  }

  /// Whether the device still holds the first chain when it meets the second is up to the device, but it may never answer more
  /// often than it was asked.
  @Test("6: a head that is in flight already", arguments: Setup.allCases)
  func duplicateHead(_ setup: Setup) throws {
    let bench = try Bench(setup)
    let request = try bench.frame(.read(sector: 0, bytes: 64 << 10), .pieces(4, .read(sector: 0, bytes: 64 << 10)))
    bench.link(bench.descriptors(request))
    bench.victim.offer(0, 0)
    bench.kickVictim()
    var failed = false
    try waitUntil("the second is answered or refused") {
      failed = try failed || bench.transport.waitForFailure(queue: 0, milliseconds: 0)
      return bench.victim.usedCount >= (failed ? 1 : 2)
    }
    let used = bench.victim.usedCount
    #expect(failed ? used == 1 : used == 2, "failed: \(failed), used: \(used)")
    #expect(bench.victim.usedElements(since: 0).allSatisfy { $0.id == 0 })
    try bench.expectWitnessWell()
    try bench.restart()
    try bench.expectWitnessWell()
  }

  @Test("7: more in flight than the queue has entries", arguments: Setup.split)
  func tooManyInFlight(_ setup: Setup) throws {
    let bench = try Bench(setup)
    // A chain without a header needs only one descriptor: an answer with IOERR, and 16 of them fill the ring.
    let buffer = try bench.memory.allocate(512)
    for index in 0..<16 {
      bench.victim.setDescriptor(UInt16(index), RawDescriptor(address: buffer.address.rawValue, length: 512, flags: .write))
      bench.victim.split.availableEntry(UInt16(index)).storeRelaxed(UInt16(index))
    }
    bench.victim.split.availableIndex.storeRelease(16)
    bench.victim.split.availableIndex.storeRelease(33)
    bench.kickVictim()
    try bench.expectQueueFailure()
  }

  @Test("8: descriptors of 0 bytes are skipped", arguments: Setup.allCases)
  func emptyDescriptors(_ setup: Setup) throws {
    let bench = try Bench(setup)
    let request = try bench.frame(.read(sector: 3, bytes: 512))
    let parts = bench.descriptors(request)
    let emptyReadable = RawDescriptor(address: bench.unmapped.rawValue, length: 0)
    let emptyWritable = RawDescriptor(address: 0, length: 0, flags: .write)
    bench.link([emptyReadable, parts[0], emptyReadable, emptyWritable, parts[1], emptyWritable, parts[2], emptyWritable])
    bench.victim.offer(0)
    bench.kickVictim()
    #expect(try bench.waitForUsed(1) == 1)
    #expect(bench.victim.usedElements(since: 0).map(\.length) == [513])
    #expect(request.status == .ok)
    try request.check(queue: 0, head: 0, length: 513, in: bench.memory)
    try bench.expectWitnessWell()
  }

  @Test("8: a chain of nothing but empty descriptors", arguments: Setup.allCases)
  func onlyEmptyDescriptors(_ setup: Setup) throws {
    try goodThenBad(try Bench(setup)) { bench in
      bench.link(Array(repeating: RawDescriptor(address: 0, length: 0, flags: .write), count: 4), from: 8)
      return 8
    }
  }

  @Test("9: a chain of more than 2^32 bytes", arguments: Setup.allCases, [false, true])
  func tooLarge(_ setup: Setup, mapped: Bool) throws {
    try goodThenBad(try Bench(setup)) { bench in
      let chain = try goodChain(bench)
      let address = mapped ? chain[1].address : bench.unmapped.rawValue
      let huge = RawDescriptor(address: address, length: .max, flags: .write)
      bench.link([chain[0], huge, huge, chain[2]], from: 8)
      return 8
    }
  }

  @Test(
    "10: an indirect table of a wrong length", arguments: Setup.allCases,
    [0, 1, 8, 15, 17, 40, 16 * 32769, 0xffff_fff0] as [UInt32])
  func indirectLength(_ setup: Setup, length: UInt32) throws {
    try goodThenBad(try Bench(setup)) { bench in
      let table = try bench.table(try goodChain(bench))
      bench.victim.setDescriptor(8, RawDescriptor(address: table.address.rawValue, length: length, flags: .indirect))
      return 8
    }
  }

  @Test("10: an indirect table outside memory", arguments: Setup.allCases, [0 as UInt64, 16, UInt64.max - 15])
  func indirectUnmapped(_ setup: Setup, offset: UInt64) throws {
    try goodThenBad(try Bench(setup)) { bench in
      // The second table begins in memory and ends outside.
      let address = offset == 16 ? bench.end.rawValue - 16 : offset == 0 ? bench.unmapped.rawValue : offset
      bench.victim.setDescriptor(8, RawDescriptor(address: address, length: 48, flags: .indirect))
      if offset == 16 {
        let first = try goodChain(bench)[0]
        var copy = first
        if setup.ring == .split { copy.flags.insert(.next) }
        copy.next = 1
        bench.memory.store(copy.bytes(setup.ring), at: GuestAddress(address))
        // The test itself wrote there.
        defer { bench.memory.poisonFreeMemory() }
        return 8
      }
      return 8
    }
  }

  @Test("10: an indirect table with more entries than any queue", arguments: Setup.allCases)
  func indirectTooLong(_ setup: Setup) throws {
    let bench = try Bench(setup)
    let buffer = try bench.memory.allocate(64)
    let piece = RawDescriptor(address: buffer.address.rawValue, length: 1)
    let status = RawDescriptor(address: buffer.address.rawValue + 63, length: 1, flags: .write)
    let table = try bench.table(Array(repeating: piece, count: 2000) + [status])
    bench.victim.setDescriptor(0, RawDescriptor(address: table.address.rawValue, length: UInt32(table.count), flags: .indirect))
    bench.victim.offer(0)
    bench.kickVictim()
    // A limit on the table's length stops the queue, one on the chain's pieces fails the request: both are clean.
    var failed = false
    try waitUntil("it is refused, one way or the other") {
      failed = try failed || bench.transport.waitForFailure(queue: 0, milliseconds: 0)
      return failed || bench.victim.usedCount == 1
    }
    #expect(failed || buffer[63] == BlockStatusCode.ioError.rawValue)
    try bench.expectWitnessWell()
    try bench.restart()
    try bench.expectWitnessWell()
  }

  @Test("11: a nested indirect table", arguments: Setup.split)
  func nestedIndirect(_ setup: Setup) throws {
    try goodThenBad(try Bench(setup)) { bench in
      let inner = try bench.table(try goodChain(bench))
      let outer = try bench.table([
        RawDescriptor(address: inner.address.rawValue, length: UInt32(inner.count), flags: .indirect)
      ])
      bench.victim.setDescriptor(
        8, RawDescriptor(address: outer.address.rawValue, length: UInt32(outer.count), flags: .indirect))
      return 8
    }
  }

  @Test("11: INDIRECT together with NEXT", arguments: Setup.allCases)
  func indirectWithNext(_ setup: Setup) throws {
    try goodThenBad(try Bench(setup)) { bench in
      let chain = try goodChain(bench)
      let table = try bench.table(chain)
      bench.link(
        [RawDescriptor(address: table.address.rawValue, length: UInt32(table.count), flags: .indirect), chain[2]], from: 8)
      return 8
    }
  }

  @Test("11: INDIRECT that was not negotiated", arguments: Setup.allCases)
  func indirectNotNegotiated(_ setup: Setup) throws {
    var options = BenchOptions()
    options.features.remove(.indirectDescriptors)
    try goodThenBad(try Bench(setup, options)) { bench in
      let table = try bench.table(try goodChain(bench))
      bench.victim.setDescriptor(
        8, RawDescriptor(address: table.address.rawValue, length: UInt32(table.count), flags: .indirect))
      return 8
    }
  }

  @Test("11: direct descriptors, then one indirect table, with and without WRITE", arguments: Setup.allCases, [0, 1, 2])
  func directThenIndirect(_ setup: Setup, direct: Int) throws {
    let bench = try Bench(setup)
    let request = BlockRequest.read(sector: 0, bytes: 1024)
    for write in [false, true] {
      let outcome = try bench.client.queues[0].perform(
        request, framing: .pieces(3, request), placement: .indirect(direct: direct, write: write))
      #expect(outcome.status == .ok)
      #expect(outcome.length == 1025)
    }
    try bench.expectWitnessWell()
  }

  @Test("11: an indirect table with links in any order", arguments: Setup.split)
  func shuffledIndirect(_ setup: Setup) throws {
    let bench = try Bench(setup)
    let request = try bench.frame(.read(sector: 0, bytes: 512))
    let parts = bench.descriptors(request)
    let table = try bench.memory.allocate(16 * 5, alignment: 16)
    for (place, (part, next)) in [0: (parts[0], 4), 4: (parts[1], 2), 2: (parts[2], 0)] as [Int: (RawDescriptor, UInt16)] {
      var copy = part
      copy.next = next
      if next != 0 { copy.flags.insert(.next) }
      table.store(copy.bytes(.split), at: 16 * place)
    }
    bench.victim.setDescriptor(5, RawDescriptor(address: table.address.rawValue, length: 80, flags: .indirect))
    bench.victim.offer(5)
    bench.kickVictim()
    #expect(try bench.waitForUsed(1) == 1)
    #expect(request.status == .ok)
    try bench.expectWitnessWell()
  }

  @Test("12: a readable descriptor after a writable one", arguments: Setup.allCases, [false, true])
  func readableAfterWritable(_ setup: Setup, indirect: Bool) throws {
    try goodThenBad(try Bench(setup)) { bench in
      let chain = try goodChain(bench)
      let wrong = [chain[0], chain[1], chain[0], chain[2]]
      if indirect {
        let table = try bench.table(wrong)
        bench.victim.setDescriptor(
          8, RawDescriptor(address: table.address.rawValue, length: UInt32(table.count), flags: .indirect))
      } else {
        bench.link(wrong, from: 8)
      }
      return 8
    }
  }

  enum Hole: String, CaseIterable, Sendable {
    case header, data, payload, endOverflows, leavesMemory
  }

  @Test("13: a buffer outside memory, with the status in reach", arguments: Setup.allCases, Hole.allCases)
  func unmappedBuffer(_ setup: Setup, hole: Hole) throws {
    let bench = try Bench(setup)
    let before = try bench.disk
    let request = try bench.frame(
      hole == .payload ? .write(sector: 0, Array(repeating: 0xee, count: 512)) : .read(sector: 0, bytes: 512))
    var parts = bench.descriptors(request)
    switch hole {
    case .header: parts[0].address = bench.unmapped.rawValue
    case .data, .payload: parts[1].address = bench.unmapped.rawValue
    case .endOverflows: parts[1].address = UInt64.max - 255
    case .leavesMemory: parts[1].address = bench.end.rawValue - 256
    }
    bench.link(parts)
    bench.victim.offer(0)
    bench.kickVictim()
    #expect(try bench.waitForUsed(1) == 1)
    #expect(request.status == .ioError)
    #expect(bench.victim.usedElements(since: 0).map(\.length) == [hole == .payload ? 1 : 0])
    #expect(try bench.disk == before)
    try bench.expectWitnessWell()
  }

  @Test("13: a status byte outside memory", arguments: Setup.allCases)
  func unmappedStatus(_ setup: Setup) throws {
    try goodThenBad(try Bench(setup)) { bench in
      var chain = try goodChain(bench)
      chain[2].address = bench.unmapped.rawValue
      bench.link(chain, from: 8)
      return 8
    }
  }

  @Test("13: buffers that go on in the next region", arguments: Setup.allCases.filter { $0.device != .memoryFile })
  func acrossRegions(_ setup: Setup) throws {
    let bench = try Bench(setup)
    let pattern = (0..<8192).map { UInt8(truncatingIfNeeded: $0 &* 31) }
    #expect(try bench.client.queues[1].perform(.write(sector: 16, pattern)).status == .ok)
    // The header, the data and the indirect table each cross the border at 1 MiB, one after the other.
    let border = Bench.border
    let request = try bench.frame(.read(sector: 16, bytes: 8192))
    let parts = bench.descriptors(request)
    func run(_ chain: [RawDescriptor], table: GuestAddress?) throws {
      let start = bench.victim.usedCount
      if let table {
        for (place, descriptor) in chain.enumerated() {
          var copy = descriptor
          if setup.ring == .split, place < 2 { copy.flags.insert(.next) }
          copy.next = UInt16(place + 1)
          bench.memory.store(copy.bytes(setup.ring), at: GuestAddress(table.rawValue + UInt64(16 * place)))
        }
        bench.victim.setDescriptor(0, RawDescriptor(address: table.rawValue, length: 48, flags: .indirect))
      } else {
        bench.link(chain)
      }
      bench.victim.offer(0)
      bench.kickVictim()
      #expect(try bench.waitForUsed(start + 1) == start + 1)
      #expect(request.status == .ok)
      #expect(bench.victim.usedElements(since: start).map(\.length) == [8193])
    }
    var header = parts[0]
    header.address = border - 5
    bench.memory.store(request.request.header, at: GuestAddress(header.address))
    try run([header, parts[1], parts[2]], table: nil)
    #expect(request.answer == pattern)
    var data = parts[1]
    data.address = border - 1000
    try run([parts[0], data, parts[2]], table: nil)
    #expect(bench.memory.bytes(at: GuestAddress(data.address), count: 8192) == pattern)
    try run(parts, table: GuestAddress(border - 24))
    try bench.expectWitnessWell()
  }

  @Test("17: no writable byte at all", arguments: Setup.allCases, [1, 2])
  func nothingWritable(_ setup: Setup, descriptors: Int) throws {
    try goodThenBad(try Bench(setup)) { bench in
      let chain = try goodChain(bench, .write(sector: 0, Array(repeating: 1, count: 512)))
      bench.link(Array(chain.prefix(descriptors)), from: 8)
      return 8
    }
  }

  @Test("a chain of more than 1024 pieces fails its request", arguments: Setup.allCases)
  func tooManyPieces(_ setup: Setup) throws {
    var options = BenchOptions()
    options.queueSize = 2048
    options.maximumQueueSize = 2048
    let bench = try Bench(setup, options)
    let request = try bench.frame(.read(sector: 0, bytes: 512))
    let parts = bench.descriptors(request)
    let piece = RawDescriptor(address: parts[1].address, length: 1, flags: .write)
    bench.link([parts[0]] + Array(repeating: piece, count: 1500) + [parts[2]])
    bench.victim.offer(0)
    bench.kickVictim()
    #expect(try bench.waitForUsed(1) == 1)
    #expect(request.status == .ioError)
    try bench.expectWitnessWell()
  }
}
