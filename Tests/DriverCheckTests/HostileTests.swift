/// Drivers that write anything anywhere: the watch continues.
import GuestDriver
import Testing
import VirtioCore
import VirtioRegisters

@testable import DriverCheck
@testable import GuestDriver

@Suite struct HostileTests {
  @Test("rings of random words end in a report", arguments: RingFormat.allCases)
  func rings(_ format: RingFormat) throws {
    var random = SeededRandom(seed: 0x6869)
    var broken: UInt64 = 0
    for _ in 0..<300 {
      let rig = try RingRig(format, more: random.next() & 1 == 0 ? .eventIndex : .inOrder)
      try rig.begin()
      let data = try rig.buffer([UInt8](repeating: 0, count: 4096)).address.rawValue
      let table = rig.ring.layout.descriptorTable.rawValue
      for _ in 0..<8 {
        let addresses: [UInt64] = [data, data &+ random.next() % 4096, table, .max - random.next() % 32, random.next()]
        for slot in 0..<16 as Range<UInt16> where random.next() & 3 != 0 {
          let lengths: [UInt32] = [0, 1, 16, 32, 512, .max, UInt32(truncatingIfNeeded: random.next())]
          let descriptor = RawDescriptor(
            address: addresses[Int(random.next() % 5)], length: lengths[Int(random.next() % 7)],
            flags: RawDescriptor.Flags(rawValue: UInt16(truncatingIfNeeded: random.next())),
            next: UInt16(truncatingIfNeeded: random.next() % 18))
          switch format {
          case .split: rig.split.setDescriptor(slot, descriptor)
          case .packed: rig.packed.setDescriptor(slot, descriptor)
          }
        }
        if format == .split {
          for _ in 0..<random.next() % 5 { rig.split.offer(UInt16(truncatingIfNeeded: random.next() % 17)) }
        }
        try rig.hold { rig.memory.store(random.next(), at: GuestAddress(table + random.next() % 32 * 8)) }
        try rig.serve()
        try rig.sleep()
      }
      broken += rig.findings.all.reduce(0) { $0 + $1.broken }
    }
    #expect(broken > 300)
  }

  @Test(
    "1024 heads on one long table: one chain is checked, as far as the device would take it",
    arguments: RingFormat.allCases)
  func manyHeads(_ format: RingFormat) throws {
    let rig = try RingRig(format, size: 1024)
    let table = try rig.memory.allocate(16 * 32768, alignment: 16)
    let piece = try rig.writable(1)
    for index in 0..<32768 {
      let flags: RawDescriptor.Flags = format == .split ? [.write, .next] : .write
      let entry = RawDescriptor(address: piece.address, length: 1, flags: flags, next: UInt16(index) &+ 1)
      table.store(entry.bytes(format), at: 16 * index)
    }
    let head = RawDescriptor(address: table.address.rawValue, length: 16 * 32768, flags: .indirect)
    for _ in 0..<1024 { rig.offer([head]) }
    try rig.begin()
    let watch = try #require(rig.watch)
    for _ in 0..<3 { watch.looks() }
    #expect(watch.chains.count == 1)
    #expect(watch.chains.values.reduce(0) { $0 + $1.entries.count } <= 1025)
    let rule = format == .split ? "d.split.indirect.3" : "d.packed.indirect.3"
    #expect(rig.findings.account(rule).broken == 1, "\(rig.broken)")
  }

  @Test("many segments in as many pieces are checked in one pass")
  func manyPieces() throws {
    let rig = try RingRig(.split, size: 1024)
    let header = try rig.request(11)
    let piece = try rig.readable([UInt8](repeating: 0, count: 64))
    rig.offer([try rig.indirect([header[0]] + [RawDescriptor](repeating: piece, count: 1000) + [header[1]])])
    try rig.serve()
    #expect(rig.findings.account("d.blk.op.9").broken == 1)
    #expect(rig.findings.account("d.blk.op.14").kept == 4000)
  }

  @Test("a loop through a table longer than any ring")
  func longTable() throws {
    let rig = try RingRig(.split)
    let table = try rig.memory.allocate(16 * 32768, alignment: 16)
    let piece = try rig.writable(1)
    for index in 0..<32768 {
      let entry = RawDescriptor(
        address: piece.address, length: 1, flags: [.write, .next], next: UInt16((index + 1) % 32768))
      table.store(entry.bytes(.split), at: 16 * index)
    }
    rig.offer([RawDescriptor(address: table.address.rawValue, length: 16 * 32768, flags: .indirect)])
    try rig.serve()
    #expect(rig.findings.account("d.split.indirect.3").broken == 1)
  }

  @Test("random accesses to registers end in a report", arguments: RegisterInterface.allCases)
  func registers(_ interface: RegisterInterface) {
    var random = SeededRandom(seed: 0x7265)
    let rig = RegisterRig(interface)
    for step in 0..<20_000 {
      if step % 500 == 0 { rig.drive() }
      let spaces: [UInt32] = interface.isPCI ? [0, 1 << 28, 2 << 28, 5 << 28, 6 << 28, 9 << 28] : [0]
      let ends: [UInt64] = [0x40, 0x100, 0x200, 0x5000, 0x1000_0000]
      let offset =
        spaces[Int(random.next() % UInt64(spaces.count))]
        | UInt32(truncatingIfNeeded: random.next() % ends[Int(random.next() % 5)])
      let width = [1, 2, 4, 8][Int(random.next() % 4)]
      if random.next() & 1 == 0 {
        rig.read(offset, width)
      } else {
        let values: [UInt64] = [0, 1, 4, 0x8000, random.next() % 64, random.next()]
        rig.write(offset, width, values[Int(random.next() % 6)])
      }
    }
    #expect(!rig.broken.isEmpty)
  }
}
