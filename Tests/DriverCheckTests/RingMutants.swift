import Testing
import VirtioCore

/// Drivers with one deliberate fault each, in a ring.
@testable import DriverCheck
@testable import GuestDriver

/// - Parameter rule: the rule that the fault breaks.
struct RingMutant: Sendable, CustomTestStringConvertible {
  var rule: String
  var format: RingFormat
  var more: FeatureSet = []
  var less: FeatureSet = []
  var drive: @Sendable (RingRig) throws -> Void

  var testDescription: String { "\(rule), \(format)" }

  init(
    _ rule: String, _ format: RingFormat, more: FeatureSet = [], less: FeatureSet = [],
    _ drive: @escaping @Sendable (RingRig) throws -> Void
  ) {
    (self.rule, self.format, self.more, self.less, self.drive) = (rule, format, more, less, drive)
  }

  /// A chain that is served at once. - Parameter chain: makes the driver's chain.
  private static func chain(
    _ rule: String, _ format: RingFormat = .split, more: FeatureSet = [], less: FeatureSet = [],
    _ chain: @escaping @Sendable (RingRig) throws -> [RawDescriptor]
  ) -> RingMutant {
    RingMutant(rule, format, more: more, less: less) { rig in
      rig.offer(try chain(rig))
      try rig.serve()
    }
  }

  /// The same for a driver that knows zones.
  private static func zoned(
    _ rule: String, _ format: RingFormat, _ chain: @escaping @Sendable (RingRig) throws -> [RawDescriptor]
  ) -> RingMutant {
    Self.chain(rule, format, more: FeatureSet(bit: 17), less: FeatureSet(bit: 13), chain)
  }

  static let all = split + packed + requests

  private static let split: [RingMutant] = [
    chain("d.split.frame.1") { rig in try rig.request(0, into: 512).reversed() },
    RingMutant("d.split.desc.1", .split) { rig in
      var loop = try rig.good()
      for index in loop.indices {
        loop[index].flags.insert(.next)
        loop[index].next = UInt16((index + 1) % loop.count)
      }
      rig.offer(loop, isLinked: false)
      try rig.serve()
    },
    RingMutant("d.split.desc.2", .split, more: .inOrder) { rig in
      let chain = try rig.request(4)
      rig.split.setDescriptor(3, RawDescriptor(address: chain[0].address, length: 16, flags: .next, next: 1))
      rig.split.setDescriptor(1, chain[1])
      rig.split.offer(3)
      try rig.serve()
    },
    chain("d.split.indirect.1", less: .indirectDescriptors) { rig in [try rig.indirect(rig.good())] },
    chain("d.split.indirect.2") { rig in [try rig.indirect([rig.indirect(rig.good())])] },
    chain("d.split.indirect.3") { rig in
      let chain = try rig.good()
      return [try rig.indirect([chain[0]] + [RawDescriptor](repeating: chain[1], count: 16) + [chain[2]])]
    },
    RingMutant("d.split.indirect.4", .split) { rig in
      var table = try rig.indirect(rig.good())
      table.flags.insert(.next)
      rig.offer([table, try rig.writable(1)], isLinked: false)
      try rig.serve()
    },
    chain("d.split.indirect.5", more: .inOrder) { rig in
      let chain = try rig.good()
      return [try rig.indirect([chain[0], chain[2], chain[1]], link: { $0 == 0 ? 2 : nil })]
    },
    RingMutant("d.split.avail.1", .split) { rig in
      rig.offer(try rig.good())
      try rig.serve()
      rig.split.availableIndex.storeRelease(0)
      try rig.serve()
    },
    RingMutant("d.split.usednotif.1", .split) { rig in
      rig.split.availableFlags.storeRelaxed(2)
      rig.offer(try rig.good())
      try rig.serve()
    },
    RingMutant("d.split.usednotif.3", .split, more: .eventIndex) { rig in
      rig.split.availableFlags.storeRelaxed(1)
      rig.offer(try rig.good())
      try rig.serve()
    },
    RingMutant("d.split.availnotif.1", .split) { rig in
      rig.split.usedFlags.storeRelaxed(1)
      try rig.begin()
    },
    RingMutant("d.cleanup.1", .split) { rig in
      rig.offer(try rig.good())
      try rig.serve { rig.split.setDescriptor(1, RawDescriptor(address: 0, length: 1)) }
    },
    RingMutant("i.driver.used", .split) { rig in
      rig.offer(try rig.good())
      rig.offer(try rig.good())
      try rig.serve { rig.split.usedIndex.storeRelaxed(7) }
    },
    RingMutant("i.driver.used", .split, more: .eventIndex) { rig in
      try rig.sleep()
      rig.split.availableEvent.storeRelaxed(9)
      try rig.serve()
    },
    RingMutant("i.driver.head", .split) { rig in
      rig.split.offer(16)
      try rig.serve()
    },
    RingMutant("i.driver.head", .split) { rig in
      let chain = try rig.good()
      rig.offer(chain)
      rig.split.offer(0)
      try rig.hold {}
    },
    RingMutant("i.driver.next", .split) { rig in
      var chain = try rig.good()
      chain[0].flags.insert(.next)
      chain[0].next = 16
      rig.offer(chain, isLinked: false)
      try rig.serve()
    },
    chain("i.driver.table") { rig in
      var table = try rig.indirect(rig.good())
      table.length -= 8
      return [table]
    },
  ]

  private static let packed: [RingMutant] = [
    RingMutant("d.packed.desc.1", .packed) { rig in
      rig.offer(try rig.good())
      try rig.serve { rig.packed.flags(1).storeRelaxed(0x8000) }
    },
    RingMutant("d.packed.desc.2", .packed) { rig in
      rig.offer(try rig.good())
      try rig.serve { rig.packed.length(1).storeRelaxed(1) }
    },
    RingMutant("d.cleanup.1", .packed) { rig in
      rig.offer(try rig.good())
      try rig.serve { rig.packed.address(1).storeRelaxed(0) }
    },
    chain("d.packed.sg.1", .packed) { rig in
      let chain = try rig.good()
      return [chain[0]] + [RawDescriptor](repeating: chain[1], count: 5) + [chain[2]]
    },
    RingMutant("d.packed.sg.2", .packed) { rig in
      let part = try rig.writable(16)
      let ring = [RawDescriptor](
        repeating: RawDescriptor(address: part.address, length: 16, flags: [.write, .next]), count: 16)
      rig.offer(ring, isLinked: false)
      try rig.serve()
    },
    chain("d.packed.sg.3", .packed) { rig in try rig.request(0, into: 512).reversed() },
    RingMutant("d.packed.sg.5", .packed) { rig in
      // Two chains of ten slots in a ring of sixteen, the second one while the device holds the first.
      let part = try rig.writable(16)
      let ten = [RawDescriptor](repeating: part, count: 10)
      rig.offer(ten)
      try rig.hold { rig.offer(ten) }
    },
    RingMutant("d.packed.sg.6", .packed) { rig in
      rig.offer(try rig.good())
      rig.packed.flags(1).storeRelaxed(0x8003)
      try rig.serve()
    },
    chain("d.packed.indirect.1", .packed, less: .indirectDescriptors) { rig in [try rig.indirect(rig.good())] },
    chain("d.packed.indirect.2", .packed) { rig in
      var chain = try rig.good()
      chain[0].flags.insert(.next)
      return [try rig.indirect(chain)]
    },
    chain("d.packed.indirect.3", .packed) { rig in
      let chain = try rig.good()
      return [try rig.indirect([chain[0]] + [RawDescriptor](repeating: chain[1], count: 5) + [chain[2]])]
    },
    chain("d.packed.indirect.4", .packed) { rig in [try rig.indirect(rig.good()), try rig.writable(1)] },
    RingMutant("i.driver.head", .packed) { rig in
      rig.offer(try rig.good(), named: 3)
      try rig.hold { rig.offer((try? rig.good()) ?? [], named: 3) }
    },
    chain("i.driver.table", .packed) { rig in
      var table = try rig.indirect(rig.good())
      table.length -= 8
      return [table]
    },
    RingMutant("i.driver.used", .packed) { rig in
      try rig.sleep()
      rig.packed.deviceEventFlags.storeRelaxed(1)
      try rig.serve()
    },
    RingMutant("i.driver.event", .packed) { rig in
      rig.packed.driverEventFlags.storeRelaxed(2)
      rig.offer(try rig.good())
      try rig.serve()
    },
  ]

  private static let requests: [RingMutant] =
    RingFormat.allCases.flatMap { format in
      [
        chain("d.rfb.5", format) { rig in
          var chain = try rig.good()
          chain[1].address = 1 << 40
          return chain
        },
        chain("d.blk.op.2", format) { rig in try rig.request(0, sector: 2048, into: 512) },
        chain("d.blk.op.2", format) { rig in try rig.request(1, sector: .max, out: [UInt8](repeating: 1, count: 512)) },
        chain("d.blk.op.2", format) { rig in try rig.request(11, out: rig.range(2040, 9)) },
        chain("d.blk.op.4", format) { rig in try rig.request(4, sector: 1) },
        chain("d.blk.op.5", format) { rig in try rig.request(4, out: [1]) },
        chain("d.blk.op.6", format) { rig in try rig.request(0, into: 511) },
        chain("d.blk.op.6", format) { rig in try rig.request(1, out: [UInt8](repeating: 0, count: 513)) },
        chain("d.blk.op.7", format) { rig in try rig.request(13, out: rig.range() + [0]) },
        chain("d.blk.op.8", format) { rig in try rig.request(8, into: 21) },
        chain("d.blk.op.9", format) { rig in try rig.request(11, out: rig.range() + rig.range() + rig.range()) },
        chain("d.blk.op.10", format) { rig in try rig.request(14, out: rig.range() + rig.range() + rig.range()) },
        chain("d.blk.op.11", format) { rig in try rig.request(13, out: rig.range() + rig.range() + rig.range()) },
        chain("d.blk.op.14", format) { rig in try rig.request(11, out: rig.range(flags: 1)) },
        chain("d.zoned.init.2", format, more: FeatureSet(bit: 17)) { rig in try rig.request(0, into: 512) },
        zoned("d.zoned.op.4", format) { rig in try rig.request(18, sector: 8) },
        zoned("d.zoned.op.4", format) { rig in try rig.request(24, sector: 255) },
        zoned("d.zoned.op.5", format) { rig in try rig.request(26, sector: 256) },
        zoned("d.zoned.op.6", format) { rig in
          try rig.request(15, sector: 8, out: [UInt8](repeating: 0, count: 4096), into: 8)
        },
        zoned("d.zoned.op.7", format) { rig in
          try rig.request(15, sector: 256, out: [UInt8](repeating: 0, count: 512), into: 8)
        },
        zoned("d.zoned.op.8", format) { rig in
          try rig.request(15, sector: 256, out: [UInt8](repeating: 0, count: 12288), into: 8)
        },
        chain("i.driver.type", format) { rig in try rig.request(16, into: 64) },
        chain("i.driver.header", format) { rig in [try rig.readable([0, 0, 0]), try rig.writable(1)] },
        chain("i.driver.status", format) { rig in try rig.request(4).dropLast() },
        chain("i.driver.type", format) { rig in try rig.request(99) },
        chain("i.driver.type", format, less: FeatureSet(bit: 9)) { rig in try rig.request(4) },
        RingMutant("i.driver.buffer", format) { rig in
          let chain = try rig.good()
          rig.offer(chain)
          try rig.serve { rig.memory.store([1] as [UInt8], at: GuestAddress(chain[0].address)) }
        },
      ]
    } + [
      RingMutant("legacy.d.blk.9", .split, less: .version1) { rig in
        rig.findings.noteAnyLayout(false)
        let chain = try rig.request(1, out: [UInt8](repeating: 1, count: 512))
        let header = rig.memory.bytes(at: GuestAddress(chain[0].address), count: 16)
        rig.offer([try rig.readable(header + [UInt8](repeating: 1, count: 512)), chain[2]])
        try rig.serve()
      }
    ]
}
