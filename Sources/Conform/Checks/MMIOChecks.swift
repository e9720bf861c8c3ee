/// virtio-mmio, both versions (virtio 4.2), register by register.
internal import GuestDriver
internal import VirtioCore

extension Bench {
  fileprivate func expectRegister(_ port: any RegisterPort, _ offset: UInt32, _ wanted: UInt64, _ what: String) throws {
    let found = try port.read(offset, 4)
    try expect(
      found == wanted,
      "\(what): register 0x\(String(offset, radix: 16)) reads 0x\(String(found, radix: 16)), not 0x\(String(wanted, radix: 16))"
    )
  }

  /// Makes a request on queue 0 and leaves its interrupt pending.
  fileprivate func leaveInterrupt(_ port: any RegisterPort) throws {
    try start(Plan(queues: 1))
    try good(harmless)
    let came = try eventually { try port.read(0x060, 4) & 1 == 1 }
    try expect(came, "a request is used, and bit 0 of InterruptStatus is not set")
  }
}

extension Check {
  static let mmio: [Check] = [
    Check("magic", "mmio.1 mmio.2", "MagicValue is \"virt\", Version is 2.", rings: .once, needs: [.mmio]) { bench in
      let port = try bench.registers()
      try bench.expectRegister(port, 0x000, 0x7472_6976, "MagicValue")
      try bench.expectRegister(port, 0x004, 2, "Version")
      return .kept()
    },
    Check(
      "legacy-magic", "i.legacy.mmio.1", "MagicValue is \"virt\", Version is 1, and the device comes up by page numbers.",
      rings: .once, needs: [.mmioLegacy]
    ) { bench in
      let port = try bench.registers()
      try bench.expectRegister(port, 0x000, 0x7472_6976, "MagicValue")
      try bench.expectRegister(port, 0x004, 1, "Version")
      try bench.start()
      try bench.good(bench.harmless)
      return .kept()
    },
    Check("legacy-layout", "legacy.vq.1", "The parts of a ring are where the legacy layout has them.", rings: .once) { bench in
      guard !bench.facts.isModern else { throw Trouble.notApplicable("this is the modern interface") }
      try bench.start()
      let layout = bench.hands[0].ring.layout
      let offsets = RingLayout.legacyOffsets(layout.size, alignment: 4096)
      try expect(
        layout.usedRing.rawValue - layout.descriptorTable.rawValue == UInt64(offsets.used),
        "the driver did not lay the ring out like this: a mistake of this program")
      for number in 0..<20 { try bench.good(bench.read(UInt64(number) * bench.step)) }
      return .kept("\(layout.size) entries")
    },
    Check("legacy-recognised", "legacy.feat.1", "Without VERSION_1 a legacy driver is served.", rings: .once) { bench in
      guard !bench.facts.isModern else { throw Trouble.notApplicable("this is the modern interface") }
      try bench.start()
      try bench.good(bench.harmless)
      return .kept()
    },
    Check(
      "legacy-pages-after-reset", "i.legacy.mmio.2", "A reset makes the page number of every queue 0.", rings: .once,
      needs: [.mmioLegacy]
    ) { bench in
      try bench.start()
      let port = try bench.registers()
      try bench.transport().reset()
      for queue in 0..<UInt64(bench.facts.queueCount) {
        try port.write(0x030, 4, queue)
        try bench.expectRegister(port, 0x040, 0, "QueuePFN of queue \(queue) after a reset")
      }
      return .kept()
    },
    Check(
      "legacy-early-configuration", "legacy.init.1 legacy.blk.3 legacy.blk.4",
      "Before negotiation the configuration can be written, and neither status nor features change the cache mode.",
      rings: .once
    ) { bench in
      guard !bench.facts.isModern else { throw Trouble.notApplicable("this is the modern interface") }
      guard bench.facts.offered.contains(BlockFeature.configWCE) else {
        throw Trouble.notApplicable("the device does not offer CONFIG_WCE")
      }
      let transport = try bench.transport()
      for mode: UInt8 in [0, 1] {
        try transport.reset()
        try transport.writeConfiguration(at: 32, [mode])
        let first = try transport.readConfiguration(at: 32, count: 1)
        try expect(first == [mode], "writeback is \(first) after \(mode) was written before negotiation")
        try transport.setStatus([.acknowledge])
        try transport.setStatus([.acknowledge, .driver])
        try transport.acceptFeatures(bench.facts.offered.intersection([BlockFeature.configWCE, BlockFeature.flush]))
        let second = try transport.readConfiguration(at: 32, count: 1)
        try expect(second == [mode], "writeback went from \(mode) to \(second) with a write of status or features")
      }
      return .kept()
    },
    Check("legacy-any-layout", "legacy.rfb.3", "ANY_LAYOUT is offered.", rings: .once) { bench in
      guard !bench.facts.isModern else { throw Trouble.notApplicable("this is the modern interface") }
      try expect(bench.facts.offered.contains(.anyLayout), "ANY_LAYOUT is not offered")
      return .kept()
    },
    Check("legacy-bit-30", "legacy.rfb.4", "Bit 30 is not offered to a guest.", rings: .once) { bench in
      try expect(!bench.facts.offered.contains(FeatureSet(bit: 30)), "bit 30 is offered")
      return .kept()
    },
    Check("legacy-flush-out", "legacy.blk.6", "For a legacy driver type 5 is FLUSH.", rings: .once) { bench in
      guard !bench.facts.isModern else { throw Trouble.notApplicable("this is the modern interface") }
      try bench.start(Plan(queues: 1))
      let answer = try bench.perform(BlockRequest(type: BlockRequestType(rawValue: 5)))
      let flush = try bench.perform(BlockRequest(type: .flush))
      try expect(
        answer.status == flush.status, "type 5 was answered with \(answer.words), and type 4 with \(flush.words)")
      return .kept()
    },
    Check("interrupt-status", "mmio.3", "A pending interrupt stays until it is acknowledged.", rings: .once, needs: [.mmio]) {
      bench in
      let port = try bench.registers()
      try bench.leaveInterrupt(port)
      for _ in 0..<3 { try bench.expectRegister(port, 0x060, 1, "InterruptStatus before it is acknowledged") }
      try port.write(0x064, 4, 2)
      try bench.expectRegister(port, 0x060, 1, "InterruptStatus after another bit was acknowledged")
      try port.write(0x064, 4, 1)
      try bench.expectRegister(port, 0x060, 0, "InterruptStatus after it was acknowledged")
      return .kept()
    },
    Check("interrupt-status-idle", "mmio.4", "Bits of what did not happen are 0.", rings: .once, needs: [.mmio]) { bench in
      let port = try bench.registers()
      try bench.start(Plan(queues: 1))
      try bench.expectRegister(port, 0x060, 0, "InterruptStatus of a device that did nothing")
      try bench.good(bench.harmless)
      _ = try bench.eventually { try port.read(0x060, 4) != 0 }
      try bench.expectRegister(port, 0x060, 1, "InterruptStatus after a used buffer")
      return .kept()
    },
    Check("interrupt-status-after-reset", "mmio.5", "A reset clears InterruptStatus.", rings: .once, needs: [.mmio]) { bench in
      let port = try bench.registers()
      try bench.leaveInterrupt(port)
      try bench.transport().reset()
      try bench.expectRegister(port, 0x060, 0, "InterruptStatus after a reset")
      return .kept()
    },
    Check(
      "interrupt-line", "i.mmio.intr.1", "What is acknowledged bit by bit is pending bit by bit.", rings: .once,
      needs: [.mmio, .resize]
    ) { bench in
      let port = try bench.registers()
      try bench.leaveInterrupt(port)
      guard let resize = bench.subject.resize else { throw Trouble.notApplicable("the size cannot be changed here") }
      let old = bench.capacity * 512
      try resize(old * 2)
      let came = try bench.eventually { try port.read(0x060, 4) == 3 }
      try resize(old)
      let found = try port.read(0x060, 4)
      try expect(came, "after a used buffer and a change of configuration InterruptStatus is \(found)")
      try port.write(0x064, 4, 3)
      return .kept()
    },
    Check("queues-after-reset", "mmio.6", "A reset clears QueueReady of every queue.", rings: .once, needs: [.mmio]) { bench in
      try bench.start()
      let port = try bench.registers()
      try bench.transport().reset()
      for queue in 0..<UInt64(bench.facts.queueCount) {
        try port.write(0x030, 4, queue)
        try bench.expectRegister(port, 0x044, 0, "QueueReady of queue \(queue) after a reset")
      }
      return .kept()
    },
    Check(
      "generation-register", "mmio.7", "ConfigGeneration is another one after the size changed.", rings: .once,
      needs: [.mmio, .resize]
    ) { bench in
      let port = try bench.registers()
      let before = try port.read(0x0fc, 4)
      guard let resize = bench.subject.resize else { throw Trouble.notApplicable("the size cannot be changed here") }
      let old = bench.capacity * 512
      try resize(old * 2)
      let after = try port.read(0x0fc, 4)
      try resize(old)
      try expect(before != after, "ConfigGeneration stayed \(before)")
      return .kept()
    },
    Check("not-ready-is-dead", "mmio.8", "A queue whose QueueReady is 0 is not served, also when it was.", needs: [.mmio]) {
      bench in
      try bench.start(Plan(queues: 1))
      let port = try bench.registers()
      try bench.good(bench.harmless)
      try port.write(0x030, 4, 0)
      try port.write(0x044, 4, 0)
      _ = try bench.eventually { try port.read(0x044, 4) == 0 }
      var posted = try bench.make(bench.harmless)
      posted.id = bench.hands[0].offer(posted.chain)
      let ring = bench.ringBytes(bench.hands[0])
      bench.hands[0].kick()
      bench.settle()
      try expect(
        posted.status == Posted.poison && bench.ringBytes(bench.hands[0]) == ring,
        "a request was executed while QueueReady is 0")
      return .kept()
    },
    Check("ready-reads-back", "i.mmio.queue.2", "QueueReady reads back as it was written.", rings: .once, needs: [.mmio]) {
      bench in
      try bench.start(Plan(queues: 1))
      let port = try bench.registers()
      try port.write(0x030, 4, 0)
      try bench.expectRegister(port, 0x044, 1, "QueueReady of a queue that is ready")
      try port.write(0x044, 4, 0)
      try bench.expectRegister(port, 0x044, 0, "QueueReady after 0 was written")
      return .kept()
    },
    Check(
      "queue-reset-register", "mmio.9 mmio.10", "QueueReset is 0 after a reset and of a queue that is ready.", rings: .once,
      needs: [.mmio, .offered(.ringReset)]
    ) { bench in
      try bench.start(Plan(adding: .ringReset, queues: 1))
      let port = try bench.registers()
      try port.write(0x030, 4, 0)
      try bench.expectRegister(port, 0x0c0, 0, "QueueReset of a queue that is ready")
      try bench.transport().reset()
      try port.write(0x030, 4, 0)
      try bench.expectRegister(port, 0x0c0, 0, "QueueReset after a reset")
      return .kept()
    },
    Check(
      "queue-reset-finishes", "mmio.11 mmio.13", "QueueReset takes the queue down; then it and QueueReady are 0.", rings: .once,
      needs: [.mmio, .offered(.ringReset)]
    ) { bench in
      try bench.start(Plan(adding: .ringReset, queues: 1))
      try bench.good(bench.harmless)
      let port = try bench.registers()
      try port.write(0x030, 4, 0)
      try port.write(0x0c0, 4, 1)
      try expect(try bench.eventually { try port.read(0x0c0, 4) == 0 }, "QueueReset does not become 0")
      try bench.expectRegister(port, 0x044, 0, "QueueReady after a queue's reset")
      return .kept()
    },
    Check("feature-words", "i.mmio.feat.1 i.feat.len.1", "Feature words that do not exist are 0.", rings: .once, needs: [.mmio])
    { bench in
      let port = try bench.registers()
      for (select, wanted) in [
        (0, bench.facts.offered.rawValue & 0xffff_ffff), (1, bench.facts.offered.rawValue >> 32), (2, 0), (7, 0),
        (0xffff_ffff, 0),
      ] as [(UInt64, UInt64)] {
        try port.write(0x014, 4, select)
        try bench.expectRegister(port, 0x010, wanted, "DeviceFeatures of word \(select)")
      }
      return .kept()
    },
    Check(
      "no-such-queue-register", "i.mmio.queue.1 bad.35", "Queues that do not exist have room for 0 entries.", rings: .once,
      needs: [.mmio]
    ) { bench in
      let port = try bench.registers()
      for queue: UInt64 in [UInt64(try bench.transport().queueCount()), 0xffff, 0xffff_ffff] {
        try port.write(0x030, 4, queue)
        try bench.expectRegister(port, 0x034, 0, "QueueNumMax of queue \(queue)")
        for register: UInt32 in [0x038, 0x044, 0x080, 0x0c0] { try port.write(register, 4, 1) }
      }
      try bench.start(Plan(queues: 1))
      try bench.good(bench.harmless)
      return .kept()
    },
    Check("no-shared-memory", "shm.1 i.mmio.shm.1", "There is no shared memory region.", rings: .once, needs: [.mmio]) {
      bench in
      let port = try bench.registers()
      for region: UInt64 in [0, 1, 255] {
        try port.write(0x0ac, 4, region)
        for register: UInt32 in [0x0b0, 0x0b4, 0x0b8, 0x0bc] {
          try bench.expectRegister(port, register, 0xffff_ffff, "region \(region)")
        }
      }
      return .kept()
    },
    Check(
      "configuration-bytes", "i.mmio.cfg.1", "The configuration space can be read byte by byte, from 0x100 on.", rings: .once,
      needs: [.mmio]
    ) { bench in
      let port = try bench.registers()
      for place in 0..<60 {
        let byte = try port.read(0x100 + UInt32(place), 1)
        try expect(byte == UInt64(bench.facts.configuration[place]), "byte \(place) is \(byte)")
      }
      return .kept()
    },
    Check("reset-by-status", "i.mmio.reset.1", "Writing 0 to Status resets the device.", rings: .once, needs: [.mmio]) {
      bench in
      try bench.start(Plan(queues: 1))
      let port = try bench.registers()
      try port.write(0x070, 4, 0)
      try bench.expectRegister(port, 0x070, 0, "Status after 0 was written")
      try port.write(0x030, 4, 0)
      try bench.expectRegister(port, 0x044, 0, "QueueReady after Status was 0")
      return .kept()
    },
    Check("no-admin-queue", "i.mmio.adminvq.1", "ADMIN_VQ is not offered.", rings: .once, needs: [.mmio]) { bench in
      try expect(!bench.facts.offered.contains(FeatureSet(bit: 41)), "ADMIN_VQ is offered")
      return .kept()
    },
    Check(
      "odd-accesses", "bad.35", "Every register is read and written at every width; the device continues.", rings: .once,
      needs: [.registers]
    ) { bench in
      let port = try bench.registers()
      try bench.start(Plan(queues: 1))
      let isPCI = bench.facts.bus.isPCI
      for offset in stride(from: UInt32(0), to: 0x140, by: 1) {
        for width in [1, 2, 4, 8] {
          _ = try? port.read(offset, width)
          // Only some registers are written: this is not an attack on the driver itself.
          if isPCI ? offset >= 0x100 : offset != 0x070 && offset < 0x100 {
            try? port.write(offset, width, 0xffff_ffff_ffff_ffff)
          }
        }
      }
      return .rejected(try bench.alive(after: "accesses of every width everywhere"))
    },
  ]
}
