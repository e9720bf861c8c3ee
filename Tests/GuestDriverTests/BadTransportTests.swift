/// What a driver can do wrong on the transport: invalid rings, kicks at the wrong time, meaningless registers and messages,
/// resets during requests. The numbers are the rows of the project's bad-input list.
import CLinux
import Foundation
import MemoryFile
import Testing
import VhostUser
import VirtioBlkDevice
import VirtioCore

@testable import GuestDriver

struct BadTransportTests {
  /// Starts the device with a changed configuration of queue 0. - Returns: whether the device refused it: over vhost-user
  /// with an error reply or the err descriptor, otherwise with NEEDS_RESET.
  ///
  /// - Parameter mayBeIgnored: the device may ignore the change, so there is nothing to wait for.
  func isRefused(_ bench: Bench, mayBeIgnored: Bool = false, _ change: (inout QueueConfiguration) -> Void) throws -> Bool {
    let transport = bench.transport
    try transport.reset()
    try transport.setStatus([.acknowledge, .driver])
    try transport.acceptFeatures(transport.offeredFeatures().intersection(bench.features))
    try transport.setStatus([.acknowledge, .driver, .featuresOK])
    let format = bench.setup.ring
    let rings = try (0..<2).map { _ in try RingMemory(size: 16, format: format, shape: .separate, in: bench.memory) }
    var configurations = rings.map(\.layout.configuration)
    change(&configurations[0])
    do {
      _ = try transport.findQueues(configurations)
      try transport.setStatus([.acknowledge, .driver, .featuresOK, .driverOK])
    } catch {
      guard case .refused = error else { throw error }
      return true
    }
    return try transport.waitForFailure(queue: 0, milliseconds: mayBeIgnored ? 0 : patientMilliseconds)
  }

  enum RingFault: String, CaseIterable, Sendable {
    case tableUnmapped, availableUnmapped, usedUnmapped, tableMisaligned, availableMisaligned, usedMisaligned
    case tableLeavesMemory, availableLeavesMemory, usedLeavesMemory, tableOverflows

    /// Four aligned bytes are either inside memory or outside.
    static let packed = allCases.filter { $0 != .availableLeavesMemory && $0 != .usedLeavesMemory }
  }

  @Test("14: ring parts outside memory or misaligned, packed", arguments: Setup.packed, RingFault.packed)
  func badPackedRingAddress(_ setup: Setup, fault: RingFault) throws { try badRingAddress(setup, fault: fault) }

  @Test("14: ring parts outside memory or misaligned", arguments: Setup.split, RingFault.allCases)
  func badRingAddress(_ setup: Setup, fault: RingFault) throws {
    let bench = try Bench(setup)
    #expect(
      try isRefused(bench) { queue in
        switch fault {
        case .tableUnmapped: queue.descriptorTable = bench.unmapped
        case .availableUnmapped: queue.availableRing = bench.unmapped
        case .usedUnmapped: queue.usedRing = bench.unmapped
        case .tableMisaligned: queue.descriptorTable.rawValue += 8
        case .availableMisaligned: queue.availableRing.rawValue += 1
        case .usedMisaligned: queue.usedRing.rawValue += 2
        case .tableLeavesMemory: queue.descriptorTable = GuestAddress(bench.end.rawValue - 128)
        case .availableLeavesMemory: queue.availableRing = GuestAddress(bench.end.rawValue - 36)
        case .usedLeavesMemory: queue.usedRing = GuestAddress(bench.end.rawValue - 132)
        case .tableOverflows: queue.descriptorTable = GuestAddress(UInt64.max - 15)
        }
      })
    try bench.reconnect()
    try bench.expectWitnessWell()
  }

  @Test("15: invalid queue sizes, packed", arguments: Setup.packed, [0, 32769, 0xffff] as [UInt16])
  func badPackedQueueSize(_ setup: Setup, size: UInt16) throws { try badQueueSize(setup, size: size) }

  @Test("15: invalid queue sizes", arguments: Setup.split, [0, 3, 15, 100, 0xffff] as [UInt16])
  func badQueueSize(_ setup: Setup, size: UInt16) throws {
    let bench = try Bench(setup)
    let refused = try isRefused(bench, mayBeIgnored: setup.device == .memoryFile) { $0.size = size }
    // Over registers an invalid size is ignored (the old one stays); all others refuse it.
    #expect(refused || setup.device == .memoryFile)
    try bench.reconnect()
    try bench.expectWitnessWell()
  }

  @Test("15: a queue size changed while the queue runs", arguments: Setup.with(.vhostUser, .memoryFile))
  func queueSizeChanges(_ setup: Setup) throws {
    let bench = try Bench(setup)
    switch bench.transport {
    case let transport as VhostUserTransport:
      for size in [32, 0, 65536] as [UInt32] { try? transport.frontend.setSize(queue: 0, size) }
    case let transport as MemoryFileTransport:
      for size in [32, 0, 65536] as [UInt64] {
        try transport.file.write(MemoryFileTransport.Register.queueSelect, 0)
        try transport.file.write(MemoryFileTransport.Register.queueSize, size)
        try transport.file.write(MemoryFileTransport.Register.queueTable, 0xffff_fff0)
      }
    default: break
    }
    // The running ring is the one that was set up: the index wraps at 16.
    var answered = 0
    for _ in 0..<40 {
      guard let outcome = try? bench.client.queues[0].perform(.read(sector: 0, bytes: 512)) else { break }
      #expect(outcome.status == .ok)
      answered += 1
    }
    // Over vhost-user a front-end that changes a running ring may be disconnected instead.
    #expect(answered == 40 || setup.device == .vhostUser)
    try bench.reconnect()
    try bench.expectWitnessWell()
  }

  @Test("32: a kick before DRIVER_OK is not lost, and nothing is taken before", arguments: Setup.allCases)
  func earlyKick(_ setup: Setup) throws {
    var options = BenchOptions()
    options.startsDriver = false
    let bench = try Bench(setup, options)
    let transport = bench.transport
    try transport.reset()
    try transport.setStatus([.acknowledge, .driver])
    let features = try transport.offeredFeatures().intersection(bench.features)
    try transport.acceptFeatures(features)
    try transport.setStatus([.acknowledge, .driver, .featuresOK])
    let format = bench.setup.ring
    let rings = try (0..<2).map { _ in try RingMemory(size: 16, format: format, shape: .separate, in: bench.memory) }
    let lines = try transport.findQueues(rings.map(\.layout.configuration))
    let queue = BlockQueue(
      try QueueSetup(index: 0, ring: rings[0], lines: lines[0], memory: bench.memory, features: features))
    let tag = try #require(try queue.submit(.read(sector: 0, bytes: 512)))
    queue.publish()
    lines[0].kick()
    usleep(50_000)
    let early = queue.ring.hasUsed
    #expect(!early, "a buffer was used before DRIVER_OK")
    try transport.setStatus([.acknowledge, .driver, .featuresOK, .driverOK])
    // There is no further kick.
    try waitUntil("the early kick is answered") { queue.ring.hasUsed }
    let outcome = try #require(try queue.reap())
    #expect(outcome.tag == tag && outcome.status == .ok)
  }

  @Test("33: many kicks without a request", arguments: Setup.allCases)
  func kickStorm(_ setup: Setup) throws {
    let bench = try Bench(setup)
    for round in 0..<5 {
      for _ in 0..<2000 {
        bench.kickVictim()
        bench.client.session.queues[1].lines.kick()
      }
      #expect(try bench.client.queues[0].perform(.read(sector: UInt64(round), bytes: 512)).status == .ok)
    }
    try bench.expectWitnessWell()
  }

  @Test("33: garbage in the event words", arguments: Setup.allCases)
  func garbageEvents(_ setup: Setup) throws {
    let bench = try Bench(setup)
    var random = SeededRandom(seed: 33)
    let request = try bench.frame(.read(sector: 3, bytes: 512))
    bench.link(bench.descriptors(request))
    for round in 1...200 as ClosedRange<UInt16> {
      bench.victim.scribbleEvents(&random)
      bench.victim.offer(0)
      bench.kickVictim()
      #expect(try bench.waitForUsed(round) == round)
      #expect(request.status == .ok)
    }
    try bench.expectWitnessWell()
  }

  @Test("34: configuration reads anywhere", arguments: Setup.allCases)
  func configurationReads(_ setup: Setup) throws {
    let bench = try Bench(setup)
    let whole = try bench.transport.readConfiguration(at: 0, count: 60)
    for offset in [0, 1, 7, 8, 31, 32, 33, 56, 59] {
      for count in [1, 2, 3, 4, 8, 20] {
        let bytes = try bench.transport.readConfiguration(at: offset, count: count)
        #expect(bytes.count == count)
        for (place, byte) in bytes.enumerated() where offset + place < 60 { #expect(byte == whole[offset + place]) }
      }
    }
    // These bytes do not exist; a back-end may also refuse to read them.
    for offset in [96, 200, 255] {
      if let bytes = try? bench.transport.readConfiguration(at: offset, count: 1) { #expect(bytes == [0]) }
    }
    try bench.expectWitnessWell()
  }

  @Test("34: configuration writes to what cannot be written", arguments: Setup.allCases)
  func configurationWrites(_ setup: Setup) throws {
    let bench = try Bench(setup)
    let whole = try bench.transport.readConfiguration(at: 0, count: 60)
    for (offset, bytes) in [
      (0, [1]), (0, Array(repeating: 0xff, count: 60)), (8, [0, 0, 0, 0]), (20, [0]), (31, [7, 1, 7]), (33, [1]),
      (34, [0xff, 0xff]),
      (56, [9]), (60, [1]), (200, [1, 2, 3, 4]), (32, [2]), (32, [0xff]),
    ] as [(Int, [UInt8])] {
      // Ignored or refused. Over a memory file writes are byte-wise, so 31…33 includes `writeback` in the middle.
      try? bench.transport.writeConfiguration(at: offset, bytes)
      var now = try bench.transport.readConfiguration(at: 0, count: 60)
      if setup.device == .memoryFile { now[32] = whole[32] }
      #expect(now == whole, "after writing \(bytes) at \(offset)")
    }
    try bench.expectWitnessWell()
  }

  @Test("34: writeback can be written, with 0 and 1", arguments: Setup.real)
  func writeback(_ setup: Setup) throws {
    let bench = try Bench(setup)
    for value in [0, 1, 0] as [UInt8] {
      try bench.transport.writeConfiguration(at: 32, [value])
      #expect(try bench.transport.readConfiguration(at: 32, count: 1) == [value])
      try bench.expect(.write(sector: 0, Array(repeating: 1, count: 512)), .ok)
    }
  }

  @Test("35: queues that do not exist", arguments: Setup.with(.vhostUser, .memoryFile))
  func noSuchQueue(_ setup: Setup) throws {
    let bench = try Bench(setup)
    switch bench.transport {
    case let transport as VhostUserTransport:
      for index in [2, 3, 200, 255] as [UInt8] {
        try? transport.frontend.setSize(queue: index, 16)
        try? transport.frontend.setKick(queue: index, try .eventCounter())
        try? transport.frontend.setEnabled(queue: index, true)
        _ = try? transport.frontend.stop(queue: index)
      }
    case let transport as MemoryFileTransport:
      for index in [2, 3, 0x1_0000, 0xffff_ffff] as [UInt64] {
        try transport.file.write(MemoryFileTransport.Register.queueSelect, index)
        #expect(try transport.file.read(MemoryFileTransport.Register.queueSizeMaximum) == 0)
        try transport.file.write(MemoryFileTransport.Register.queueSize, 16)
        try transport.file.write(MemoryFileTransport.Register.queueReady, 1)
        #expect(try transport.file.read(MemoryFileTransport.Register.queueReady) == 0)
        try transport.file.write(0x050, index)
      }
      try bench.expectWitnessWell()
    default: break
    }
    try bench.reconnect()
    try bench.expectWitnessWell()
  }

  @Test("36: a reset with requests in flight", arguments: Setup.allCases)
  func resetInFlight(_ setup: Setup) throws {
    let bench = try Bench(setup)
    for round in 0..<4 {
      let queue = bench.client.queues[0]
      for place in 0..<10 as Range<UInt64> { _ = try queue.submit(.read(sector: place * 8, bytes: 32 << 10)) }
      queue.publish()
      if round % 2 == 1 { usleep(500) }
      try bench.transport.reset()
      // Whatever the device held, it has released: from now on nothing changes.
      let lines = bench.client.session.queues.map(\.lines)
      var calls = CallLine(lines[0])
      _ = calls.take()
      let before = bench.memory.snapshot()
      usleep(5000)
      #expect(bench.memory.snapshot() == before, "memory changed after the reset")
      #expect(calls.take() == 0, "a call after the reset")
      try bench.restart()
      #expect(try bench.client.queues[0].perform(.read(sector: 0, bytes: 512)).status == .ok)
    }
    try bench.expectWitnessWell()
  }

  @Test("36: queues stopped one by one with requests in flight lose no head", arguments: Setup.allCases)
  func stopInFlight(_ setup: Setup) throws {
    let bench = try Bench(setup)
    let queue = bench.client.queues[0]
    var submitted: UInt16 = 0
    for place in 0..<12 as Range<UInt64> where try queue.submit(.read(sector: place * 8, bytes: 16 << 10)) != nil {
      submitted += 1
    }
    queue.publish()
    let standing: QueueStanding
    switch bench.transport {
    case let transport as InProcessTransport:
      let position = try #require(transport.stopQueue(0))
      standing = QueueStanding(available: position.available, used: try #require(position.used))
    case let transport as VhostUserTransport:
      let base = try transport.stopQueue(0)
      let available = UInt16(truncatingIfNeeded: base)
      standing = QueueStanding(available: available, used: setup.ring == .packed ? UInt16(base >> 16) : available)
    case let transport as MemoryFileTransport:
      try transport.file.write(MemoryFileTransport.Register.queueSelect, 0)
      try transport.file.write(MemoryFileTransport.Register.queueReady, 0)
      #expect(try transport.file.read(MemoryFileTransport.Register.queueReady) == 0)
      let used = queue.ring.standing.used
      standing = QueueStanding(available: used, used: used)
    default: return
    }
    // Taken requests were answered, and the others are untouched.
    let used = queue.ring.standing.used
    #expect(standing == QueueStanding(available: used, used: used))
    var answered: UInt16 = 0
    while let outcome = try queue.reap() {
      #expect(outcome.status == .ok)
      answered += 1
    }
    let reaped = queue.ring.reapedIndex
    #expect(reaped == used && answered <= submitted)
    try bench.expectWitnessWell()
  }

  @Test("36: the driver goes away with requests in flight", arguments: Setup.with(.vhostUser))
  func disconnectInFlight(_ setup: Setup) throws {
    let bench = try Bench(setup)
    let queue = bench.client.queues[0]
    for place in 0..<10 as Range<UInt64> { _ = try queue.submit(.read(sector: place * 8, bytes: 32 << 10)) }
    queue.publish()
    try bench.reconnect()
    try bench.expectWitnessWell()
  }

  @Test("38: invalid memory tables", arguments: 0..<5)
  func badMemoryTable(_ fault: Int) throws {
    var options = BenchOptions()
    options.startsDriver = false
    let bench = try Bench(Setup(device: .vhostUser), options)
    let descriptor = try #require(bench.memory.regions[0].descriptor)
    func region(_ start: UInt64, _ size: UInt64, user: UInt64, offset: UInt64 = 0) -> FrontendRegion {
      FrontendRegion(
        MemoryRegion(guestAddress: GuestAddress(start), size: size, userAddress: user, offset: offset),
        descriptor: descriptor)
    }
    let table: [FrontendRegion] =
      switch fault {
      case 0: [region(0, 1 << 20, user: 1 << 40), region(0x80000, 1 << 20, user: 1 << 41)]
      case 1: [region(0, 1 << 20, user: 1 << 40, offset: .max - 4095)]
      case 2: [region(0, 1 << 30, user: 1 << 40)]
      case 3: [region(.max - 4095, 1 << 20, user: 1 << 40)]
      default: [region(0, 0, user: 1 << 40)]
      }
    do {
      let transport = try #require(bench.transport as? VhostUserTransport)
      #expect(throws: FrontendError.self) { try transport.frontend.setMemory(table) }
    }
    try bench.reconnect()
    try bench.expectWitnessWell()
  }

  @Test("40: an image whose guest writes a qcow2 header stays raw", arguments: Setup.real)
  func qcowHeader(_ setup: Setup) throws {
    var options = BenchOptions()
    // With automatic detection the disk would be refused afterwards, and never served as the format that it imitates.
    options.format = .raw
    let bench = try Bench(setup, options)
    // Magic, version 3, a backing file name at 0x200 of 11 bytes, 64 KiB clusters, 1 GiB.
    var header: [UInt8] = [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 11, 0, 0, 0, 16]
    header += [0, 0, 0, 0, 0x40, 0, 0, 0]
    header += Array(repeating: 0, count: 512 - header.count) + Array("/etc/passwd".utf8)
    header += Array(repeating: 0, count: 1024 - header.count)
    try bench.expect(.write(sector: 0, header), .ok)
    try bench.reopen()
    #expect(bench.client.config.capacity == 2048)
    #expect(try bench.client.queues[0].perform(.read(sector: 0, bytes: 1024)).answer == header)
  }

  @Test("41: requests beyond the present end of a truncated file fail", arguments: Setup.real)
  func shortFile(_ setup: Setup) throws {
    let bench = try Bench(setup)
    try bench.expect(.write(sector: 0, Array(repeating: 0xab, count: 64 << 10)), .ok)
    let whole = try FileManager.default.attributesOfItem(atPath: bench.image)[.size] as? Int
    #expect(unsafe truncate(bench.image, 10_000) == 0)
    #expect(try bench.client.queues[0].perform(.read(sector: 0, bytes: 64 << 10)).status == .ioError)
    let left = try bench.client.queues[0].perform(.read(sector: 0, bytes: 8192))
    #expect(left.status == .ok && left.answer == Array(repeating: 0xab, count: 8192))
    // Once the file has its length back, everything works. A worker relies on the known length for a moment.
    let length = try off_t(#require(whole))
    #expect(unsafe truncate(bench.image, length) == 0)
    usleep(5000)
    try bench.expectWitnessWell()
  }
}
