/// Features and their negotiation (virtio 2.2, 6), and the configuration space (virtio 2.5, 5.2.4).
internal import GuestDriver
internal import VirtioCore

extension Check {
  /// The features that a block device can have: its own bits, those of transports and rings, and those of legacy devices.
  private static let known = FeatureSet(rawValue: 0x0003_fef7 | 1 << 24 | 1 << 27 | 3 << 28 | 0x0bdf << 32)

  /// A device may refuse such a choice, or accept it and not work (virtio 6.2). But it has to serve the next driver.
  private static func declined(_ feature: FeatureSet, _ bench: Bench) throws -> Seen {
    let name = bench.names(feature)
    let seen = try Self.service(of: bench.choice(Plan(without: feature)), bench)
    bench.drop()
    if feature == .accessPlatform { try bench.needTranslation() }
    try bench.start(Plan(adding: feature, queues: 1))
    try bench.good(bench.harmless)
    return .kept("without \(name): \(seen); the next driver accepts it and is served")
  }

  /// What a driver gets that accepted some features: service, or a refusal.
  private static func service(of features: FeatureSet, _ bench: Bench) throws -> String {
    do {
      guard try bench.negotiate(features) else { return "refused" }
      try bench.makeQueues(1)
      try bench.transport().setStatus(bench.status.union(.driverOK))
      guard try bench.transport().status().contains(.driverOK) else { return "refused at DRIVER_OK" }
      let answer = try bench.perform(bench.harmless)
      return answer.isOK ? "served" : "requests are answered with \(answer.words)"
    } catch Trouble.wedged(let words) {
      return "does not work (\(words))"
    } catch let error as DriverError {
      return "does not work (\(error))"
    }
  }

  static let features: [Check] = [
    Check("dependencies-are-offered", "feat.1", "No feature is offered whose condition is not.", rings: .once) { bench in
      let offered = bench.facts.offered
      let pairs: [(FeatureSet, FeatureSet)] = [
        (BlockFeature.configWCE, BlockFeature.flush), (.packedRing, .version1), (.ringReset, .version1),
        (.inOrder, .version1), (.accessPlatform, .version1), (.notificationData, .version1),
        (FeatureSet(bit: 39), .version1), (FeatureSet(bit: 41), .version1), (FeatureSet(bit: 43), .version1),
      ]
      for (feature, needed) in pairs where offered.contains(feature) {
        try expect(offered.contains(needed), "\(bench.names(feature)) is offered without \(bench.names(needed))")
      }
      return .kept(bench.names(offered))
    },
    Check("any-subset", "feat.2", "Twelve random choices among the offered features are all accepted.", needs: [.modern]) {
      bench in
      let optional = bench.facts.offered.subtracting([
        .version1, .accessPlatform, FeatureSet(bit: 17), BlockFeature.readOnly, BlockFeature.blockSize,
      ])
      for _ in 0..<12 {
        var choice = FeatureSet(rawValue: optional.rawValue & bench.random.next()).union(
          bench.facts.offered.intersection([
            .version1, .accessPlatform, BlockFeature.readOnly, BlockFeature.blockSize, BlockFeature.zoned,
          ]))
        if bench.format == .packed { choice.insert(.packedRing) } else { choice.remove(.packedRing) }
        if choice.contains(BlockFeature.configWCE) { choice.insert(BlockFeature.flush) }
        let taken = try bench.negotiate(choice)
        try expect(taken, "the device refused \(bench.names(choice))")
      }
      return .kept()
    },
    Check(
      "unoffered-is-refused", "feat.3", "A feature that was not offered keeps FEATURES_OK from staying set.", rings: .once,
      needs: [.modern, .status]
    ) { bench in
      // Including bits that a driver knows well.
      for bit in [61, 3, 16, 33] where !bench.facts.offered.contains(FeatureSet(bit: bit)) {
        let taken = try bench.negotiate(bench.choice(Plan()).union(FeatureSet(bit: bit)))
        try expect(!taken, "FEATURES_OK stayed set with bit \(bit), which was not offered")
      }
      try bench.start(Plan(queues: 1))
      try bench.good(bench.harmless)
      return .kept()
    },
    Check("nothing-unknown", "feat.4", "No bit is offered that a block device on this transport cannot have.", rings: .once) {
      bench in
      var known = known
      if !bench.facts.bus.isPCI { known.subtract([FeatureSet(bit: 37), FeatureSet(bit: 39), FeatureSet(bit: 41)]) }
      let strange = bench.facts.offered.subtracting(known)
      try expect(strange.isEmpty, "offered: \(bench.names(strange))")
      return .kept()
    },
    Check("accepted-again", "feat.5", "A choice that was accepted once is accepted after a reset, too.", needs: [.modern]) {
      bench in
      for round in 0..<4 {
        let taken = try bench.negotiate(bench.choice(Plan(adding: [.eventIndex])))
        try expect(taken, "the choice was accepted, and refused after \(round) resets")
        try bench.makeQueues(1)
        try bench.go()
        try bench.good(bench.harmless)
      }
      return .kept()
    },
    Check(
      "choice-is-final", "feat.3", "After FEATURES_OK the choice cannot be changed any more.", needs: [.modern, .registers]
    ) { bench in
      try bench.start(Plan(without: [.indirectDescriptors], queues: 1, waits: true))
      try bench.transport().acceptFeatures(FeatureSet(bit: 61))
      try bench.go()
      try bench.good(bench.harmless)
      return .kept()
    },
    Check("version-1", "rfb.1", "VERSION_1 is offered.", rings: .once) { bench in
      switch bench.facts.bus {
      case .mmioLegacy, .pciLegacy: throw Trouble.notApplicable("this is the legacy interface, which has 32 bits")
      default: break
      }
      try expect(bench.facts.isModern, "offered: \(bench.names(bench.facts.offered))")
      return .kept()
    },
    Check(
      "without-version-1", "rfb.2", "A driver without VERSION_1 is either refused or served.", rings: .once,
      needs: [.modern, .notHostManaged]
    ) { bench in
      let choice = bench.choice(Plan()).intersection([BlockFeature.flush, BlockFeature.segMax, BlockFeature.readOnly])
      do {
        _ = try bench.negotiate(choice)
        try bench.makeQueues(1)
        try bench.go()
        try bench.good(bench.harmless)
        return .kept("served")
      } catch Trouble.broken(let words) where words.contains("DRIVER_OK") {
        return .kept("refused: \(words)")
      } catch DriverError.refused(let words) {
        return .kept("refused: \(words)")
      } catch DriverError.noDevice(let words) where bench.subject.bus == .vhostUser {
        bench.drop()
        return .kept("refused: \(words); \(try bench.alive(after: "a driver without VERSION_1"))")
      }
    },
    Check("no-virtual-functions", "rfb.10", "SR_IOV is not offered without that capability.", rings: .once) { bench in
      try expect(!bench.facts.offered.contains(.singleRootIO), "SR_IOV is offered")
      return .kept()
    },
    Check(
      "access-platform-declined", "rfb.4",
      "A driver that declines ACCESS_PLATFORM may get no service; the next one, which accepts it, does.", rings: .once,
      needs: [.offered(.accessPlatform)]
    ) { bench in try declined(.accessPlatform, bench) },
    Check(
      "order-platform-declined", "rfb.6 rfb.7",
      "A driver that declines ORDER_PLATFORM may get no service; the next one, which accepts it, does.", rings: .once,
      needs: [.offered(.orderPlatform)]
    ) { bench in try declined(.orderPlatform, bench) },
    Check("flush-is-offered", "blk.init.1", "FLUSH is offered.", rings: .once) { bench in
      try expect(bench.facts.offered.contains(BlockFeature.flush), "FLUSH is not offered")
      return .kept()
    },
    Check(
      "flush-with-config-wce", "blk.init.2", "With CONFIG_WCE comes FLUSH.", rings: .once,
      needs: [.offered(BlockFeature.configWCE)]
    ) { bench in
      try expect(bench.facts.offered.contains(BlockFeature.flush), "CONFIG_WCE is offered without FLUSH")
      return .kept()
    },
    Check("not-zoned", "zoned.init.1", "A disk without zones does not offer ZONED.", rings: .once) { bench in
      guard bench.facts.offered.contains(FeatureSet(bit: 17)) else { return .kept() }
      let model = bench.facts.configuration[92]
      try expect(model == 1 || model == 2, "ZONED is offered, and the model is \(model)")
      return .kept("a zoned disk")
    },
    Check("no-zones-for-legacy", "zoned.init.2", "A legacy device does not offer ZONED.", rings: .once) { bench in
      guard !bench.facts.isModern else { throw Trouble.notApplicable("this is the modern interface") }
      try expect(!bench.facts.offered.contains(FeatureSet(bit: 17)), "ZONED is offered")
      return .kept()
    },
    Check("no-lifetime-of-files", "blk.op.19", "LIFETIME is offered only with metrics that can be read.", rings: .once) {
      bench in
      guard bench.facts.offered.contains(FeatureSet(bit: 15)) else { return .kept("not offered") }
      try bench.start(Plan(queues: 1))
      try bench.good(BlockRequest(type: .getLifetime, answerBytes: 6))
      return .kept("offered, and answered")
    },
    Check(
      "lifetime-values", "blk.op.20 i.blk.lifetime.1", "No reserved value is among the lifetime metrics.", rings: .once,
      needs: [.offered(FeatureSet(bit: 15))]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let data = try bench.good(BlockRequest(type: .getLifetime, answerBytes: 6)).data
      let words = stride(from: 0, to: 6, by: 2).map { Int(data[$0]) | Int(data[$0 + 1]) << 8 }
      try expect(words[0] <= 3 && words[1] <= 11 && words[2] <= 11, "the metrics are \(words)")
      return .kept("\(words)")
    },
  ]

  static let configuration: [Check] = [
    Check(
      "early-configuration", "cfg.1 cfg.2", "Every field can be read before FEATURES_OK, and is the same afterwards.",
      rings: .once
    ) { bench in
      let transport = try bench.transport()
      try transport.reset()
      try transport.setStatus([.acknowledge])
      try transport.setStatus([.acknowledge, .driver])
      var early = try transport.readConfiguration(at: 0, count: 60)
      let config = BlockConfig(early, offered: bench.facts.offered)
      try expect(config.capacity > 0, "the capacity is 0 before FEATURES_OK")
      if let queues = config.queues { try expect(queues > 0, "num_queues is 0 before FEATURES_OK") }
      if let discard = config.discard { try expect(discard.maximumSectors > 0, "max_discard_sectors is 0 before FEATURES_OK") }
      if let zeroes = config.writeZeroes {
        try expect(zeroes.maximumSectors > 0, "max_write_zeroes_sectors is 0 before FEATURES_OK")
      }
      try bench.start(Plan(queues: 1))
      var late = try transport.readConfiguration(at: 0, count: 60)
      // The cache mode depends on the negotiation.
      (early[32], late[32]) = (0, 0)
      try expect(early == late, "a field differs after DRIVER_OK: \(early) and \(late)")
      return .kept()
    },
    Check(
      "configuration-by-pieces", "i.cfg.le.1",
      "The fields are the same read byte by byte, and the capacity is that of the disk.",
      rings: .once
    ) { bench in
      let transport = try bench.transport()
      let whole = try transport.readConfiguration(at: 0, count: 60)
      // Over vhost-user, the front-end cuts what a driver reads out of the whole; vu.config.1 covers the messages.
      for place in stride(from: 0, to: bench.subject.bus == .vhostUser ? 0 : 60, by: 3) {
        let byte = try transport.readConfiguration(at: place, count: 1)
        try expect(byte == [whole[place]], "byte \(place) is \(whole[place]), and \(byte) when it is read alone")
      }
      try bench.start(Plan(queues: 1))
      // If the field were big-endian, the last block would be elsewhere.
      try bench.good(bench.read(bench.capacity - bench.step))
      let beyond = try bench.perform(bench.read(bench.capacity))
      try expect(beyond.status == 1, "the sector after the last was answered with \(beyond.words)")
      return .kept("\(bench.capacity) sectors")
    },
    Check(
      "unused-is-zero", "blk.init.4", "Padding in the configuration space is 0.", rings: .once
    ) { bench in
      let bytes = bench.facts.configuration
      try expect(bytes[33] == 0, "unused0 is \(bytes[33])")
      try expect(bytes[57...59].allSatisfy { $0 == 0 }, "unused1 is \(Array(bytes[57...59]))")
      return .kept()
    },
    Check(
      "number-of-queues", "i.blk.mq.1", "Every queue that num_queues speaks of works.",
      needs: [.offered(BlockFeature.multiQueue)]
    ) { bench in
      let count = min(bench.facts.queueCount, 16)
      let told = Int(bench.facts.config.queues ?? 0)
      try expect(told > 0, "num_queues is 0")
      try bench.start(Plan(queues: count))
      for queue in 0..<count { try bench.good(bench.read(UInt64(queue) * bench.step), on: queue) }
      return .kept("\(count) of \(told)")
    },
    Check(
      "generation-stands-still", "i.cfg.gen.1", "The generation changes only with the configuration.", rings: .once,
      needs: [.registers, .modern]
    ) { bench in
      let transport = try bench.transport()
      let first = try transport.configurationGeneration()
      for _ in 0..<16 {
        _ = try transport.readConfiguration(at: 0, count: 8)
        let now = try transport.configurationGeneration()
        try expect(now == first, "the generation went from \(first) to \(now) although nothing had changed")
      }
      return .kept()
    },
    Check(
      "resize", "blk.op.1 blk.op.2", "A new size shows in the capacity, and the driver is notified.", rings: .once,
      needs: [.resize, .writable]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let transport = try bench.transport()
      _ = try transport.waitForConfigurationChange(milliseconds: 0)
      let old = bench.capacity * 512
      guard let resize = bench.subject.resize else { throw Trouble.notApplicable("the size cannot be changed here") }
      try resize(old * 2)
      let told = try transport.waitForConfigurationChange(milliseconds: bench.patience)
      let now = BlockConfig(try transport.readConfiguration(at: 0, count: 8), offered: []).capacity
      let beyond = try bench.perform(bench.read(now - bench.step))
      try resize(old)
      try expect(now == bench.capacity * 2, "the capacity is \(now) after the disk became \(bench.capacity * 2) sectors")
      try expect(beyond.isOK, "the new last block was answered with \(beyond.words)")
      try expect(told, "the disk has another size, and no configuration change notification came")
      return .kept()
    },
    Check(
      "generation-after-resize", "i.cfg.gen.1", split: "", "The generation differs after a change.", rings: .once,
      needs: [.resize, .registers, .modern]
    ) { bench in
      let transport = try bench.transport()
      _ = try transport.readConfiguration(at: 0, count: 8)
      let before = try transport.configurationGeneration()
      guard let resize = bench.subject.resize else { throw Trouble.notApplicable("the size cannot be changed here") }
      let old = bench.capacity * 512
      try resize(old * 2)
      let after = try transport.configurationGeneration()
      try resize(old)
      try expect(after != before, "the generation stayed \(before) when the size changed")
      return .kept()
    },
    Check(
      "writeback-without-flush", "blk.init.3", "With CONFIG_WCE and without FLUSH the cache begins in writethrough mode.",
      rings: .once, needs: [.offered(BlockFeature.configWCE), .modern]
    ) { bench in
      try bench.start(Plan(adding: BlockFeature.configWCE, without: BlockFeature.flush, queues: 1))
      let mode = try bench.cacheMode()
      try expect(mode == 0, "writeback is \(mode)")
      return .kept()
    },
    Check(
      "writeback-toggles", "i.blk.wce.1", "The driver can change the cache mode, and reads back what it wrote.", rings: .once,
      needs: [.offered(BlockFeature.configWCE), .writable]
    ) { bench in
      try bench.start(Plan(adding: BlockFeature.configWCE, queues: 1))
      let transport = try bench.transport()
      for mode: UInt8 in [0, 1, 0, 1] {
        try transport.writeConfiguration(at: 32, [mode])
        let found = try bench.cacheMode()
        try expect(found == mode, "writeback is \(found) after \(mode) was written")
        try bench.good(bench.write(0, bench.pattern(bench.block)))
      }
      return .kept()
    },
    Check(
      "configuration-is-read-only", "bad.34", "Writes to fields that are not the driver's change nothing.", rings: .once
    ) { bench in
      for place in [0, 7, 20] {
        try bench.dropAfter {
          try bench.start(Plan(queues: 1))
          do { try bench.transport().writeConfiguration(at: place, [0xff]) } catch DriverError.refused {
          } catch DriverError.noDevice where bench.subject.bus == .vhostUser {
            // A back-end can refuse a message by ending the connection.
          }
        }
        try bench.start(Plan(queues: 1))
        let now = try bench.transport().readConfiguration(at: 0, count: 32)
        try expect(
          now == Array(bench.facts.configuration.prefix(32)), "the driver could change byte \(place), which is read-only")
        try bench.good(bench.harmless)
      }
      return .rejected("nothing changed")
    },
    Check(
      "configuration-beyond-the-end", "bad.34", "Reads beyond the end give nothing, and break nothing.", rings: .once
    ) { bench in
      try bench.start(Plan(queues: 1))
      do { _ = try bench.transport().readConfiguration(at: 250, count: 6) } catch DriverError.refused {}
      return .rejected(try bench.alive(on: 0, after: "a read beyond the configuration space"))
    },
  ]
}

extension Bench {
  /// The writeback field, from a read of the whole configuration.
  func cacheMode() throws -> UInt8 { try transport().readConfiguration(at: 0, count: 60)[32] }
}
