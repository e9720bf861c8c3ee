/// Single messages of vhost-user: their headers, their acknowledgements, and invalid ones.
internal import Glibc
internal import GuestDriver
internal import VhostUser
internal import VirtioCore

extension Bench {
  /// Checks that the next front-end is served.
  fileprivate func aliveOnTheWire(_ what: String) throws -> String {
    do {
      try start(Plan(queues: 1))
      try good(harmless)
    } catch { throw Trouble.wedged("\(what): the next front-end is not served (\(describe(error)))") }
    return "the next front-end is served"
  }

  /// Runs the body with a connection, which is closed before the check whether the device is alive.
  fileprivate func abuse(_ what: String, _ body: (Link) throws -> String) throws -> Seen {
    var words = ""
    do {
      let link = try subject.link(settings)
      do { words = try body(link) } catch is Link.Gone { words = "the connection was ended" }
    }
    return .rejected("\(words.isEmpty ? "" : words + "; ")\(try aliveOnTheWire(what))")
  }
}

extension Check {
  static let wire: [Check] = [
    Check(
      "reply-header", "vu.header.1 vu.header.2", "Replies have the number of their request and the flags 5.", rings: .once,
      needs: [.vhostUser]
    ) { bench in
      let link = try bench.subject.link(bench.settings)
      try link.greet()
      for request in [FrontendRequest.getFeatures, .getProtocolFeatures, .getQueueCount] {
        let reply = try link.ask(request)
        try expect(reply.request == request.rawValue, "\(request.name) was answered with request \(reply.request)")
        try expect(reply.flags.rawValue == 5, "\(request.name) was answered with the flags \(reply.flags.rawValue)")
      }
      return .kept()
    },
    Check(
      "one-acknowledgement", "vu.ack.1", "A request that asks for it gets one acknowledgement, of 0.", rings: .once,
      needs: [.protocolFeature(.replyAck)]
    ) { bench in
      let link = try bench.subject.link(bench.settings)
      try link.greet()
      for _ in 0..<3 {
        let code = try link.acknowledged(.setOwner)
        try expect(code == 0, "SET_OWNER was acknowledged with \(code.map { "\($0)" } ?? "the end of the connection")")
        try expect(try link.isSilent(), "a second message came after the acknowledgement")
      }
      return .kept()
    },
    Check(
      "no-acknowledgement", "vu.ack.2", "A request that does not ask for it gets no acknowledgement.", rings: .once,
      needs: [.vhostUser]
    ) { bench in
      let link = try bench.subject.link(bench.settings)
      try link.greet()
      try link.send(.setOwner)
      try expect(try link.isSilent(), "SET_OWNER was answered, although no answer was requested")
      return .kept()
    },
    Check(
      "own-reply-alone", "vu.ack.3", "A request with its own reply gets no additional acknowledgement.", rings: .once,
      needs: [.protocolFeature(.replyAck)]
    ) { bench in
      let link = try bench.subject.link(bench.settings)
      try link.greet()
      for request in [FrontendRequest.getFeatures, .getQueueCount] {
        let reply = try link.ask(request, needsReply: true)
        try expect(
          reply.request == request.rawValue && reply.payload.count == 8,
          "\(request.name) was answered with request \(reply.request)")
        try expect(reply.flags.rawValue & ~8 == 5, "\(request.name) was answered with the flags \(reply.flags.rawValue)")
        try expect(try link.isSilent(), "\(request.name) was answered twice")
      }
      return .kept()
    },
    Check(
      "failure-is-told", "vu.ack.4", "A request that cannot be done is not acknowledged with 0.", rings: .once,
      needs: [.protocolFeature(.replyAck)]
    ) { bench in
      let link = try bench.subject.link(bench.settings)
      try link.greet()
      let code = try link.acknowledged(.setVringSize, link.state(250, 16))
      try expect(code != 0, "SET_VRING_NUM of queue 250 was acknowledged with 0")
      return .kept(code == nil ? "the connection was ended" : "acknowledged with \(code ?? 0)")
    },
    Check(
      "greets-again", "vu.feature.1 vu.feature.4", "Features can be asked for again, and are the same.", rings: .once,
      needs: [.vhostUser]
    ) { bench in
      let link = try bench.subject.link(bench.settings)
      let (features, offered) = try link.greet()
      guard features >> 30 & 1 == 1 else {
        throw Trouble.broken("bit 30 is not offered, and without it a disk has no configuration")
      }
      for _ in 0..<3 {
        try expect(try link.number(.getFeatures) == features, "GET_FEATURES has a different answer the second time")
        try expect(
          try link.number(.getProtocolFeatures) == offered.rawValue,
          "GET_PROTOCOL_FEATURES has a different answer the second time")
      }
      return .kept(offered.nameList.joined(separator: " "))
    },
    Check(
      "protocol-features", "vu.feature.2 vu.feature.3", "No protocol feature is offered that cannot be.", rings: .once,
      needs: [.vhostUser]
    ) { bench in
      let link = try bench.subject.link(bench.settings)
      let offered = try link.greet().protocolFeatures
      func has(_ bit: Int) -> Bool { offered.contains(ProtocolFeatures(bit: bit)) }
      try expect(!has(14) || has(5) && has(3), "INBAND_NOTIFICATIONS is offered without BACKEND_REQ and REPLY_ACK")
      let strange = [2, 4, 7].filter(has)
      try expect(strange.isEmpty, "offered are the bits \(strange)")
      return .kept()
    },
    Check(
      "queue-number", "vu.queue.1", "With MQ there is at least one queue.", rings: .once, needs: [.protocolFeature(.multiqueue)]
    ) { bench in
      let link = try bench.subject.link(bench.settings)
      try link.greet()
      let count = try link.number(.getQueueCount)
      try expect(count >= 1 && count <= 65536, "there are \(count) queues")
      return .kept("\(count)")
    },
    Check(
      "configuration-reply", "vu.config.1", "GET_CONFIG is answered with as many bytes as it asks for, each time.",
      rings: .once, needs: [.protocolFeature(.configuration)]
    ) { bench in
      let link = try bench.subject.link(bench.settings)
      try link.greet()
      for (offset, size) in [(0, 8), (0, 60), (8, 4), (32, 1), (20, 40)] {
        let payload = ConfigurationPayload(offset: UInt32(offset), contents: [UInt8](repeating: 0, count: size)).bytes
        let reply = try link.ask(.getConfiguration, payload)
        try expect(
          reply.payload.count == payload.count,
          "\(size) bytes at \(offset): the reply has \(reply.payload.count) bytes, the request \(payload.count)")
        try expect(
          Array(reply.payload.prefix(8)) == Array(payload.prefix(8)),
          "\(size) bytes at \(offset): the reply has another offset or size")
        try expect(
          Array(reply.payload.dropFirst(12)) == Array(bench.facts.configuration[offset..<offset + size]),
          "\(size) bytes at \(offset) differ from those of the whole space")
      }
      return .kept()
    },
    Check(
      "configuration-256", "vu.config.2", "256 bytes of configuration can be asked for.", rings: .once,
      needs: [.protocolFeature(.configuration)]
    ) { bench in
      let link = try bench.subject.link(bench.settings)
      try link.greet()
      let payload = ConfigurationPayload(offset: 0, contents: [UInt8](repeating: 0, count: 256)).bytes
      let reply = try link.ask(.getConfiguration, payload)
      try expect(
        reply.payload.count == payload.count, "the reply has \(reply.payload.count) bytes, the request \(payload.count)")
      return .kept()
    },
    Check(
      "configuration-too-much", "vu.config.3 bad.38", "More configuration than there can be.", rings: .once,
      needs: [.protocolFeature(.configuration)]
    ) { bench in
      try bench.abuse("GET_CONFIG of 4 GiB") { link in
        try link.greet()
        try link.send(.getConfiguration, [0xff, 0xff, 0, 0] + [0xff, 0xff, 0xff, 0xff] + [0, 0, 0, 0])
        return try link.isSilent() ? "no answer" : "answered"
      }
    },
    Check(
      "long-payload", "vu.size.1", "A payload with more bytes than its request needs is taken.", rings: .once,
      needs: [.protocolFeature(.replyAck)]
    ) { bench in
      let link = try bench.subject.link(bench.settings)
      try link.greet()
      let code = try link.acknowledged(.setVringBase, link.state(0, 0) + [1, 2, 3, 4, 5, 6, 7, 8])
      try expect(
        code == 0, "SET_VRING_BASE with 16 bytes: \(code.map { "acknowledged with \($0)" } ?? "the connection was ended")")
      return .kept()
    },
    Check(
      "short-payload", "vu.size.2 bad.38", "A payload with fewer bytes than its request needs.", rings: .once,
      needs: [.vhostUser]
    ) { bench in
      for request in [
        FrontendRequest.setFeatures, .setVringSize, .setVringAddress, .setMemoryTable, .getConfiguration, .setVringKick,
      ] {
        _ = try bench.abuse("\(request.name) of 3 bytes") { link in
          try link.greet()
          try link.send(request, [1, 0, 0])
          _ = try link.isSilent()
          return ""
        }
        bench.close()
      }
      return .rejected("6 requests; the next front-end is served each time")
    },
    Check("another-version", "vu.header.3", "A message of version 2 is not served.", rings: .once, needs: [.vhostUser]) {
      bench in
      var wasAnswered = false
      let seen = try bench.abuse("a message of version 2") { link in
        try link.send(FrontendRequest.getFeatures.rawValue, [], flags: 2)
        wasAnswered = try !link.isSilent()
        return wasAnswered ? "answered" : "no answer"
      }
      try expect(!wasAnswered, "GET_FEATURES of version 2 was answered as if it were version 1")
      return .kept(seen.words)
    },
    Check("unknown-request", "vu.unknown.1", "An unknown request.", rings: .once, needs: [.vhostUser]) { bench in
      try bench.abuse("request 200") { link in
        try link.greet()
        try link.send(200, [1, 2, 3, 4], flags: 9)
        return try link.isSilent() ? "no answer" : "answered"
      }
    },
    Check(
      "no-such-queue", "vu.queue.2 bad.35 bad.38", "Queues that do not exist, in every request that names one.", rings: .once,
      needs: [.vhostUser]
    ) { bench in
      for (request, payload) in [
        (FrontendRequest.setVringSize, VringState(index: 9999, number: 16).bytes),
        (.setVringBase, VringState(index: 9999, number: 0).bytes),
        (.setVringEnable, VringState(index: .max, number: 1).bytes),
        (.setVringKick, VringDescriptorWord(index: 255, hasDescriptor: false).bytes),
        (.setVringAddress, VringAddress(index: 9999, descriptorTable: 0, usedRing: 0, availableRing: 0).bytes),
        (.getVringBase, VringState(index: 9999, number: 0).bytes),
      ] {
        _ = try bench.abuse("\(request.name) of a queue that does not exist") { link in
          try link.greet()
          try link.send(request, payload, needsReply: true)
          _ = try link.isSilent()
          return ""
        }
        bench.close()
      }
      return .rejected("6 requests; the next front-end is served each time")
    },
    Check(
      "wrong-regions", "vu.memory.1 bad.38", "Memory tables with overlapping regions, none, too many, or without descriptors.",
      rings: .once, needs: [.vhostUser]
    ) { bench in
      let memory = try SocketSubject.makeMemory()
      guard let descriptor = memory.regions[0].descriptor else { throw Trouble.notApplicable("no memory to give") }
      func region(_ start: UInt64, size: UInt64 = 1 << 20, offset: UInt64 = 0) -> MemoryRegion {
        MemoryRegion(guestAddress: GuestAddress(start), size: size, userAddress: 0x10_0000_0000 &+ start, offset: offset)
      }
      let tables: [(String, [MemoryRegion], Int)] = [
        ("overlapping regions", [region(0), region(4096)], 2), ("a region without descriptor", [region(0)], 0),
        ("no region", [], 0),
        ("a region of no bytes", [region(0, size: 0)], 1), ("a region over 2^64", [region(.max - 4095, size: 8192)], 1),
        ("an offset over 2^64", [region(0, offset: .max - 100)], 1), ("a descriptor too many", [region(0)], 3),
      ]
      for (what, table, descriptors) in tables {
        _ = try bench.abuse(what) { link in
          try link.greet()
          try link.send(
            .setMemoryTable, MemoryRegion.encode(table: table), needsReply: true, (0..<descriptors).map { _ in descriptor })
          _ = try link.isSilent()
          return ""
        }
        bench.close()
      }
      _ = try bench.abuse("a table of 60000 regions") { link in
        try link.greet()
        try link.send(.setMemoryTable, [0x60, 0xea, 0, 0, 0, 0, 0, 0])
        _ = try link.isSilent()
        return ""
      }
      return .rejected("\(tables.count + 1) tables; the next front-end is served each time")
    },
    Check("wrong-addresses", "vu.ring.11 bad.14", "Ring addresses that are in no region.", rings: .once, needs: [.vhostUser]) {
      bench in
      try bench.abuse("ring addresses outside memory") { link in
        let memory = try SocketSubject.makeMemory()
        guard let descriptor = memory.regions[0].descriptor else { return "no memory to give" }
        try link.greet()
        try link.send(.setFeatures, link.littleEndian(1 << 32))
        let region = MemoryRegion(guestAddress: GuestAddress(0), size: 1 << 20, userAddress: 0x10_0000)
        try link.send(.setMemoryTable, MemoryRegion.encode(table: [region]), [descriptor])
        try link.send(.setVringSize, link.state(0, 16))
        try link.send(
          .setVringAddress,
          VringAddress(index: 0, descriptorTable: 0xdead_0000, usedRing: 0xdead_2000, availableRing: 0xdead_1000).bytes)
        let kick = try OwnedDescriptor.eventCounter()
        try link.send(.setVringKick, VringDescriptorWord(index: 0, hasDescriptor: true).bytes, [kick])
        EventCounter.signal(kick.rawValue)
        _ = try link.isSilent()
        return ""
      }
    },
    Check(
      "descriptors-nobody-wants", "bad.38", "Requests with unwanted descriptors, and without required ones.",
      rings: .once, needs: [.vhostUser]
    ) { bench in
      try bench.abuse("unwanted descriptors") { link in
        let extra = try OwnedDescriptor.eventCounter()
        try link.greet()
        for _ in 0..<20 { try link.send(.setOwner, [], [extra, extra, extra]) }
        try link.send(.setBackendRequestDescriptor, [])
        try link.send(.setLogBase, SharedArea(size: 4096, offset: 0).bytes)
        _ = try link.isSilent()
        return ""
      }
    },
    Check("slots", "vu.memory.2", "At least 8 regions can be added.", rings: .once, needs: [.protocolFeature(.memorySlots)]) {
      bench in
      let link = try bench.subject.link(bench.settings)
      try link.greet()
      let slots = try link.number(.getMaximumMemorySlots)
      try expect(slots >= 8, "there are \(slots) slots")
      return .kept("\(slots)")
    },
    Check("table-again", "vu.memory.4", "The memory table can be given again.", rings: .once, needs: [.vhostUser]) { bench in
      let link = try bench.subject.link(bench.settings)
      let offered = try link.greet(ProtocolFeatures.served.subtracting(.memorySlots)).protocolFeatures
      let memory = try SocketSubject.makeMemory()
      guard let descriptor = memory.regions[0].descriptor else { throw Trouble.notApplicable("no memory to give") }
      for size: UInt64 in [1 << 20, 2 << 20, 1 << 20] {
        let region = MemoryRegion(guestAddress: GuestAddress(0), size: size, userAddress: 0x10_0000)
        let payload = MemoryRegion.encode(table: [region])
        if offered.contains(.replyAck) {
          let code = try link.acknowledged(.setMemoryTable, payload, [descriptor])
          try expect(code == 0, "SET_MEM_TABLE: \(code.map { "acknowledged with \($0)" } ?? "the connection was ended")")
        } else {
          try link.send(.setMemoryTable, payload, [descriptor])
          try expect(try link.isOpen(), "SET_MEM_TABLE: the connection was ended")
        }
      }
      return .kept()
    },
    Check(
      "inflight-reply", "vu.inflight.1", "GET_INFLIGHT_FD gives a region with room for what it says.", rings: .once,
      needs: [.protocolFeature(.inflight)]
    ) { bench in
      let link = try bench.subject.link(bench.settings)
      try link.greet()
      let reply = try link.ask(.getInflight, InflightDescription(queueCount: 2, queueSize: 64).bytes)
      guard let found = InflightDescription(decoding: reply.payload) else {
        throw Trouble.broken("the reply has \(reply.payload.count) bytes, not 24")
      }
      guard found.byteCount > 0 else { return .kept("the back-end has none to give") }
      guard let descriptor = reply.descriptors.first else {
        throw Trouble.broken("\(found.byteCount) bytes, and no descriptor came")
      }
      var status = stat()
      _ = unsafe fstat(descriptor.rawValue, &status)
      try expect(
        UInt64(status.st_size) >= found.byteCount + found.offset,
        "\(found.byteCount) bytes at \(found.offset) of a file of \(status.st_size)")
      return .kept("\(found.byteCount) bytes")
    },
    Check("no-message-at-all", "vu.life.2", "Random bytes, half a header, half a payload.", rings: .once, needs: [.vhostUser]) {
      bench in
      let bytes = bench.pattern(200)
      for count in [0, 1, 5, 11, 12, 200] {
        _ = try bench.abuse("\(count) random bytes") { link in
          link.sendRaw(Array(bytes.prefix(count)))
          return ""
        }
        bench.close()
      }
      _ = try bench.abuse("half a payload") { link in
        link.sendRaw([2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1, 2])
        return ""
      }
      return .rejected("7 times; the next front-end is served each time")
    },
  ]
}
