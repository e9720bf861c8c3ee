/// Invalid requests in valid rings: a status reports them, the queue continues, and the disk is not changed.
/// The numbers are the rows of the project's bad-input list.
import CLinux
import Foundation
import Testing
import VirtioCore

@testable import GuestDriver

struct BadRequestTests {
  /// Performs a request that must not change the disk.
  func refuse(
    _ bench: Bench, _ request: BlockRequest, _ status: BlockStatusCode = .ioError, _ place: SourceLocation = #_sourceLocation
  ) throws {
    let before = try bench.disk
    let outcome = try bench.client.queues[0].perform(request)
    #expect(outcome.status == status, "\(request)", sourceLocation: place)
    #expect(try bench.disk == before, "\(request) changed the disk", sourceLocation: place)
    #expect(outcome.unwrittenByte == nil, sourceLocation: place)
    try bench.expectWitnessWell(place)
  }

  func filled(_ bench: Bench) throws -> [UInt8] {
    let bytes = (0..<8192).map { UInt8(truncatingIfNeeded: $0 % 251 &+ 1) }
    #expect(try bench.client.queues[1].perform(.write(sector: 0, bytes)).status == .ok)
    return bytes
  }

  @Test("16: a header of less than 16 bytes", arguments: Setup.allCases)
  func shortHeader(_ setup: Setup) throws {
    let bench = try Bench(setup)
    for bytes in 0..<16 as Range<UInt16> {
      let request = try bench.frame(.read(sector: 0, bytes: 512))
      var parts = bench.descriptors(request)
      parts[0].length = UInt32(bytes)
      bench.link(parts)
      bench.victim.offer(0)
      bench.kickVictim()
      #expect(try bench.waitForUsed(bytes + 1) == bytes + 1)
      #expect(request.status == .ioError, "a header of \(bytes) bytes")
      #expect(bench.victim.usedElements(since: bytes).map(\.length) == [0])
      try request.check(queue: 0, head: 0, length: 0, in: bench.memory)
    }
    try bench.expectWitnessWell()
  }

  @Test("16, 18: any framing is the same request", arguments: Setup.allCases)
  func framings(_ setup: Setup) throws {
    let bench = try Bench(setup)
    let pattern = try filled(bench)
    let queue = bench.client.queues[0]
    var random = SeededRandom(seed: 16)
    for step in 0..<60 {
      let bytes = 512 * (1 + step % 8)
      let read = BlockRequest.read(sector: UInt64(step % 8), bytes: bytes)
      let framing: Framing =
        switch step {
        case 0: .merged
        case 1: .splitHeader(read)
        case 2: .pieces(7, read)
        case 3: Framing(readableCuts: [8], writableCuts: [bytes - 1])
        case 4: Framing(readableCuts: [], writableCuts: Array(1...10))
        default: .random(read, limit: 16, using: &random)
        }
      let placement: ChainPlacement = step % 2 == 0 || step == 1 ? .indirect(direct: step % 3) : .direct
      let outcome = try queue.perform(read, framing: framing, placement: placement)
      #expect(outcome.status == .ok && outcome.length == UInt32(bytes + 1))
      let start = step % 8 * 512
      #expect(outcome.answer == Array(pattern[start..<start + bytes]))
    }
    try bench.expectWitnessWell()
  }

  /// The driver keeps changing header and descriptors. Each request is one or the other, never a mix: the sector is
  /// checked and used from the same copy.
  @Test("19: the header changes after it was read", arguments: Setup.allCases)
  func changingHeader(_ setup: Setup) throws {
    let bench = try Bench(setup)
    let before = try filled(bench)
    let request = try bench.frame(.write(sector: 0, Array(before.prefix(512))))
    bench.link(bench.descriptors(request))
    let header = request.readable[0]
    let stop = try OwnedCounter()
    let done = DispatchSemaphore(value: 0)
    Thread.detachNewThread {
      // Alternates between sector 0, which has these bytes, and one far beyond the end; between OUT and an unknown type.
      var odd = false
      var round = 0
      while !stop.isSet {
        header.store((odd ? UInt64.max / 512 : 0).littleEndianBytes, at: 8)
        header.store((odd ? 99 as UInt32 : 1).littleEndianBytes, at: 0)
        odd.toggle()
        round &+= 1
        // Two such threads keep two CPUs so busy that the kernel's own threads, which complete a direct write, may never run.
        if round % 64 == 0 { usleep(100) }
      }
      done.signal()
    }
    // Also if a wait fails: the thread spins until it is told to stop.
    defer {
      stop.set()
      done.wait()
    }
    for round in 1...300 {
      bench.victim.offer(0)
      bench.kickVictim()
      #expect(try bench.waitForUsed(UInt16(round)) == UInt16(round))
      #expect([.ok, .ioError, .unsupported].contains(request.status))
    }
    #expect(Array(try bench.disk.prefix(8192)) == before)
    try bench.expectWitnessWell()
  }

  @Test("20: data that is not a whole number of sectors", arguments: Setup.allCases)
  func oddLength(_ setup: Setup) throws {
    let bench = try Bench(setup)
    for bytes in [1, 511, 513, 1023, 4095] {
      try refuse(bench, .read(sector: 0, bytes: bytes))
      try refuse(bench, .write(sector: 0, Array(repeating: 0xee, count: bytes)))
    }
  }

  @Test("20: data that is not a whole number of logical blocks", arguments: Setup.allCases, [512, 2048, 4608])
  func oddBlocks(_ setup: Setup, bytes: Int) throws {
    var options = BenchOptions()
    options.logicalBlock = 4096
    let bench = try Bench(setup, options)
    try refuse(bench, .read(sector: 0, bytes: bytes))
    try refuse(bench, .write(sector: 0, Array(repeating: 0xee, count: bytes)))
  }

  @Test("21: past the end of the disk", arguments: Setup.allCases)
  func pastTheEnd(_ setup: Setup) throws {
    let bench = try Bench(setup)
    for (sector, sectors) in [
      (2048, 1), (2047, 2), (.max, 1), (.max, 8), (1 << 55, 1), (1 << 63, 1), (.max / 512, 2), (.max / 512 + 1, 1),
    ] as [(UInt64, Int)] {
      try refuse(bench, .read(sector: sector, bytes: 512 * sectors))
      try refuse(bench, .write(sector: sector, Array(repeating: 0xee, count: 512 * sectors)))
    }
  }

  @Test("22: reads and writes of 0 bytes", arguments: Setup.allCases)
  func nothing(_ setup: Setup) throws {
    let bench = try Bench(setup)
    for sector in [0, 7, 2047] as [UInt64] {
      try refuse(bench, .read(sector: sector, bytes: 0), .ok)
      try refuse(bench, .write(sector: sector, []), .ok)
    }
  }

  @Test("23: data in the wrong direction", arguments: Setup.allCases)
  func wrongDirection(_ setup: Setup) throws {
    let bench = try Bench(setup)
    var write = BlockRequest.write(sector: 0, Array(repeating: 0xee, count: 512))
    write.answerBytes = 512
    try refuse(bench, write)
    var read = BlockRequest.read(sector: 0, bytes: 512)
    read.payload = Array(repeating: 0xee, count: 512)
    try refuse(bench, read)
    try refuse(bench, BlockRequest(type: .write, sector: 0, answerBytes: 512))
    try refuse(bench, BlockRequest(type: .read, sector: 0, payload: Array(repeating: 0xee, count: 512)))
  }

  @Test("24: everything that writes, on a read-only disk", arguments: Setup.allCases)
  func readOnly(_ setup: Setup) throws {
    var options = BenchOptions()
    options.readOnly = true
    let bench = try Bench(setup, options)
    #expect(bench.client.isReadOnly)
    try refuse(bench, .write(sector: 0, Array(repeating: 0xee, count: 512)))
    try refuse(bench, .discard([BlockRange(sector: 0, sectors: 8)]))
    try refuse(bench, .writeZeroes([BlockRange(sector: 0, sectors: 8)]))
    try refuse(bench, .writeZeroes([BlockRange(sector: 0, sectors: 8, flags: 1)]))
    try refuse(bench, .flush, .ok)
    try refuse(bench, .read(sector: 0, bytes: 512), .ok)
    try refuse(bench, BlockRequest(type: BlockRequestType(rawValue: 99)), .unsupported)
  }

  @Test("24: RO is enforced although the driver did not accept it", arguments: Setup.allCases)
  func readOnlyNotAccepted(_ setup: Setup) throws {
    var options = BenchOptions()
    options.readOnly = true
    options.features.remove(BlockFeature.readOnly)
    let bench = try Bench(setup, options)
    try refuse(bench, .write(sector: 0, Array(repeating: 0xee, count: 512)))
  }

  @Test("25: unknown types", arguments: Setup.allCases)
  func unknownType(_ setup: Setup) throws {
    let bench = try Bench(setup)
    for number in [2, 3, 6, 7, 9, 10, 12, 14, 15, 16, 18, 20, 22, 24, 26, 99, 0x8000_0000, 0x8000_0001, .max] as [UInt32] {
      let type = BlockRequestType(rawValue: number)
      try refuse(bench, BlockRequest(type: type), .unsupported)
      try refuse(bench, BlockRequest(type: type, sector: .max, payload: Array(repeating: 0xee, count: 512)), .unsupported)
      let outcome = try bench.client.queues[0].perform(BlockRequest(type: type, answerBytes: 512))
      #expect(outcome.status == .unsupported && outcome.length == 0)
    }
  }

  @Test("26: GET_ID into buffers of any size", arguments: Setup.allCases, [0, 1, 5, 19, 20, 21, 512, 4096])
  func identifier(_ setup: Setup, bytes: Int) throws {
    let bench = try Bench(setup)
    let request = try bench.frame(BlockRequest(type: .getID, answerBytes: bytes), .pieces(3, .read(sector: 0, bytes: bytes)))
    bench.link(bench.descriptors(request))
    let untouched = request.answer
    bench.victim.offer(0)
    bench.kickVictim()
    #expect(try bench.waitForUsed(1) == 1)
    #expect(request.status == .ok)
    let written = min(bytes, 20)
    let id = Array(ReferenceDevice.serial.utf8) + Array(repeating: 0, count: 20)
    #expect(Array(request.answer.prefix(written)) == Array(id.prefix(written)))
    #expect(Array(request.answer.dropFirst(written)) == Array(untouched.dropFirst(written)), "written past 20 bytes")
    #expect(bench.victim.usedElements(since: 0).map(\.length) == [UInt32(bytes <= 20 ? bytes + 1 : 20)])
    try request.check(queue: 0, head: 0, length: 0, in: bench.memory)
    try bench.expectWitnessWell()
  }

  static let rangeTypes: [BlockRequestType] = [.discard, .writeZeroes]

  @Test("27: a payload that is not a list of ranges", arguments: Setup.allCases, rangeTypes)
  func oddRanges(_ setup: Setup, type: BlockRequestType) throws {
    let bench = try Bench(setup)
    _ = try filled(bench)
    let range = BlockRange(sector: 0, sectors: 1).bytes
    for count in [0, 1, 8, 15, 17, 31, 33] {
      try refuse(bench, BlockRequest(type: type, payload: Array((range + range + range).prefix(count))))
    }
  }

  @Test("27: more ranges than the device accepts", arguments: Setup.allCases, rangeTypes)
  func tooManyRanges(_ setup: Setup, type: BlockRequestType) throws {
    let bench = try Bench(setup)
    _ = try filled(bench)
    let limits = try #require(type == .discard ? bench.client.config.discard : bench.client.config.writeZeroes)
    let most = Int(limits.maximumSegments)
    #expect(most > 0)
    for count in [most + 1, most + 100] {
      let ranges = (0..<count).map { BlockRange(sector: UInt64($0 % 16), sectors: 1) }
      try refuse(bench, BlockRequest(type: type, payload: ranges.flatMap(\.bytes)))
    }
    // The largest number is accepted.
    let ranges = (0..<most).map { BlockRange(sector: UInt64($0 % 16), sectors: 1) }
    try bench.expect(BlockRequest(type: type, payload: ranges.flatMap(\.bytes)), .ok)
  }

  @Test("28: unknown flags, and unmap on a discard", arguments: Setup.allCases)
  func unknownFlags(_ setup: Setup) throws {
    let bench = try Bench(setup)
    _ = try filled(bench)
    for flags in [2, 3, 0x100, 0x8000_0000, .max] as [UInt32] {
      for type in Self.rangeTypes {
        // Flags are checked before the range: also with one beyond the end.
        for sector in [0, .max] as [UInt64] {
          try refuse(
            bench, BlockRequest(type: type, payload: BlockRange(sector: sector, sectors: 1, flags: flags).bytes), .unsupported)
        }
      }
    }
    try refuse(bench, .discard([BlockRange(sector: 0, sectors: 1, flags: 1)]), .unsupported)
    // One invalid range among valid ones fails the request before anything is done.
    try refuse(
      bench, .writeZeroes([BlockRange(sector: 0, sectors: 1), BlockRange(sector: 1, sectors: 1, flags: 4)]), .unsupported)
  }

  @Test("29: ranges past the end or too large", arguments: Setup.allCases, rangeTypes)
  func rangesPastTheEnd(_ setup: Setup, type: BlockRequestType) throws {
    let bench = try Bench(setup)
    _ = try filled(bench)
    for (sector, sectors) in [
      (0, .max), (0, 2049), (2048, 1), (2047, 2), (.max, 1), (.max, .max), (1 << 55, 1), (.max - 7, 8), (1, 0x80_0000),
    ] as [(UInt64, UInt32)] {
      try refuse(bench, BlockRequest(type: type, payload: BlockRange(sector: sector, sectors: sectors).bytes))
    }
    // The invalid range is last, and the first one must not have been done.
    try refuse(
      bench,
      BlockRequest(
        type: type, payload: BlockRange(sector: 0, sectors: 1).bytes + BlockRange(sector: 2048, sectors: 1).bytes))
  }

  @Test("29: write-zeroes zeroes what it names and nothing else", arguments: Setup.allCases, [0, 1] as [UInt32])
  func writeZeroes(_ setup: Setup, flags: UInt32) throws {
    let bench = try Bench(setup)
    var expected = try filled(bench)
    try bench.expect(
      .writeZeroes([BlockRange(sector: 1, sectors: 2, flags: flags), BlockRange(sector: 8, sectors: 1, flags: flags)]), .ok)
    expected.replaceSubrange(512..<1536, with: repeatElement(0, count: 1024))
    expected.replaceSubrange(4096..<4608, with: repeatElement(0, count: 512))
    #expect(try bench.client.queues[0].perform(.read(sector: 0, bytes: 8192)).answer == expected)
  }

  @Test("30: FLUSH with a sector or data is a flush", arguments: Setup.allCases)
  func flushWithMore(_ setup: Setup) throws {
    let bench = try Bench(setup)
    try refuse(bench, BlockRequest(type: .flush, sector: 5), .ok)
    try refuse(bench, BlockRequest(type: .flush, sector: .max), .ok)
    try refuse(bench, BlockRequest(type: .flush, payload: Array(repeating: 0xee, count: 512)), .ok)
    let outcome = try bench.client.queues[0].perform(BlockRequest(type: .flush, answerBytes: 512))
    #expect(outcome.status == .ok && outcome.length == 0)
    try bench.expectWitnessWell()
  }

  @Test("31: used.len counts what was written and no more", arguments: Setup.allCases)
  func usedLength(_ setup: Setup) throws {
    let bench = try Bench(setup)
    let sector = Array(repeating: 0xee as UInt8, count: 512)
    for (request, length) in [
      (.read(sector: 0, bytes: 512), 513), (.read(sector: 0, bytes: 8192), 8193), (.read(sector: 0, bytes: 0), 1),
      (.read(sector: 2048, bytes: 512), 0), (.read(sector: 0, bytes: 100), 0), (.write(sector: 0, sector), 1),
      (.write(sector: 2048, sector), 1), (.flush, 1), (.identify, 21),
      (BlockRequest(type: BlockRequestType(rawValue: 77), answerBytes: 64), 0),
      (.writeZeroes([BlockRange(sector: 0, sectors: 1)]), 1),
    ] as [(BlockRequest, UInt32)] {
      let outcome = try bench.client.queues[0].perform(request)
      #expect(outcome.length == length, "\(request)")
      #expect(outcome.unwrittenByte == nil, "\(request)")
    }
    try bench.expectWitnessWell()
  }
}

/// A flag that one thread sets and another one polls.
final class OwnedCounter: Sendable {
  private let descriptor: OwnedDescriptor
  init() throws { descriptor = try .eventCounter() }
  func set() { EventCounter.signal(descriptor.rawValue) }
  var isSet: Bool {
    var one = pollfd(fd: descriptor.rawValue, events: Int16(POLLIN), revents: 0)
    return unsafe poll(&one, 1, 0) > 0
  }
}
