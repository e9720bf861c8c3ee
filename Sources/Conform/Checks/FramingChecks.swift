/// How requests may be split into descriptors (virtio 2.6.4, 2.6.5.3, 2.7.6, 2.7.7), and what is written where.
internal import GuestDriver
internal import VirtioCore

extension Check {
  static let framing: [Check] = [
    Check(
      "any-framing", "split.frame.1 i.blk.req.1", "However a request is split into buffers, it is the same request.",
      needs: [.modern]
    ) { bench in
      try bench.start(Plan(queues: 1, size: 64))
      let bytes = bench.block
      let expected = try bench.good(bench.read(0)).data
      let outs: [[Int]] = [[16], [8, 8], [1, 15], [4, 4, 8], Array(repeating: 1, count: 16)]
      let ins: [[Int]] = [
        [bytes, 1], [bytes + 1], [1, bytes], [bytes - 1, 2], [3, bytes - 3, 1], [bytes / 2, bytes / 2 + 1],
      ]
      for out in outs {
        for into in ins {
          let answer = try bench.perform(bench.read(0), out: out, into: into)
          try expect(
            answer.isOK && answer.data == expected,
            "IN with the readable part as \(out) and the writable one as \(into): \(answer.words)\(answer.isOK ? ", other data" : "")"
          )
        }
      }
      guard !bench.facts.isReadOnly else { return .kept("\(outs.count * ins.count) framings of IN") }
      for cut in [[16 + bytes], [10, 6 + bytes], [17, bytes - 1], [16, 1, bytes - 1], [16, bytes / 2, bytes / 2]] {
        let data = bench.pattern(bytes)
        let answer = try bench.perform(bench.write(0, data), out: cut)
        try expect(answer.isOK, "OUT with the readable part as \(cut): \(answer.words)")
        try expect(try bench.good(bench.read(0)).data == data, "OUT with the readable part as \(cut) wrote something else")
      }
      return .kept("\(outs.count * ins.count + 5) framings")
    },
    Check(
      "longest-chain", "", split: "split.frame.2", packed: "packed.sg.2",
      "A chain of as many descriptors as the ring has is served, or fails cleanly."
    ) { bench in
      try bench.start(Plan(size: 32))
      let size = Int(bench.hands[0].size)
      let bytes = bench.block
      var into = Array(repeating: 1, count: size - 2)
      into.append(bytes + 1 - into.count)
      guard into.last ?? 0 > 0 else { throw Trouble.notApplicable("a ring of \(size) has more entries than a block has bytes") }
      var posted = try bench.make(bench.read(0), into: into)
      bench.post(&posted)
      let hand = bench.hands[0]
      let came = try bench.eventually {
        try hand.look()
        return try hand.usedCount > 0 || bench.hasFailed(0, milliseconds: 0)
      }
      if came, posted.status != Posted.poison {
        try bench.good(bench.harmless, on: bench.hands.count - 1)
        return .kept("served: status \(posted.status)")
      }
      return .kept("not served: \(try bench.alive(after: "a chain of \(size) descriptors"))")
    },
    Check(
      "readable-is-not-written", "", split: "split.desc.1", packed: "packed.desc.1",
      "What the device may only read is as it was, for each type of request, good or bad."
    ) { bench in
      try bench.start(Plan(queues: 1))
      let zero = [UInt8](repeating: 0, count: 16)
      var requests = [
        bench.read(0), bench.read(bench.capacity), .flush, .identify,
        BlockRequest(type: BlockRequestType(rawValue: 77), answerBytes: 4),
        .discard([BlockRange(sector: .max, sectors: 1)]), BlockRequest(type: .writeZeroes, payload: zero),
        BlockRequest(type: .write, sector: bench.capacity, payload: bench.pattern(bench.block)),
      ]
      if !bench.facts.isReadOnly { requests.append(bench.write(0, bench.pattern(bench.block))) }
      for request in requests {
        var posted = try bench.make(request)
        bench.post(&posted)
        _ = try bench.answer(posted)
        try expect(posted.readable.bytes == request.header + request.payload, "\(request): its readable bytes were changed")
      }
      return .kept("\(requests.count) requests")
    },
    Check(
      "descriptors-are-not-written", "", split: "split.desc.4", "The descriptor table is as the driver wrote it, tables too.",
      rings: .split
    ) { bench in
      try bench.start(Plan(queues: 1))
      let hand = bench.hands[0]
      let count = RingLayout.descriptorTableBytes(hand.size)
      for number in 0..<12 {
        var posted = try bench.make(bench.read(UInt64(number) * bench.step))
        bench.post(&posted, kicks: false)
        let before = try bench.memory().bytes(at: hand.ring.layout.descriptorTable, count: count)
        hand.kick()
        _ = try bench.answer(posted)
        let after = try bench.memory().bytes(at: hand.ring.layout.descriptorTable, count: count)
        try expect(before == after, "the device changed the descriptor table")
      }
      return .kept()
    },
    Check(
      "indirect", "", split: "i.split.indirect.1", packed: "i.packed.indirect.1",
      "A request in an indirect table is a request.",
      needs: [.offered(.indirectDescriptors)]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let expected = try bench.good(bench.read(0)).data
      var posted = try bench.make(bench.read(0), out: [8, 8], into: [bench.block / 2, bench.block / 2, 1])
      if bench.format == .split {
        // Only the links define the order: entries 0, 3, 1, 4, 2.
        let places = [0, 3, 1, 4, 2]
        var table = posted.chain
        for (number, place) in places.enumerated() {
          var entry = posted.chain[number]
          if number + 1 < places.count {
            entry.flags.insert(.next)
            entry.next = UInt16(places[number + 1])
          }
          table[place] = entry
        }
        posted.chain = [try bench.indirect(table, linked: false)]
      } else {
        // IDs and all flags but WRITE have no meaning there.
        var table = posted.chain
        for place in table.indices {
          table[place].next = 0xbeef &+ UInt16(place)
          table[place].flags.formUnion(place % 2 == 0 ? [.available] : [.used])
        }
        posted.chain = [try bench.indirect(table)]
      }
      bench.post(&posted)
      let answer = try bench.answer(posted)
      try expect(answer.isOK && answer.data == expected, "the request was answered with \(answer.words)")
      return .kept()
    },
    Check(
      "indirect-with-write", "", split: "split.indirect.1", packed: "i.packed.indirect.2",
      "WRITE on the descriptor that refers to a table means nothing.", needs: [.offered(.indirectDescriptors)]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let expected = try bench.good(bench.read(0)).data
      var posted = try bench.make(bench.read(0))
      var reference = try bench.indirect(posted.chain)
      reference.flags.insert(.write)
      posted.chain = [reference]
      bench.post(&posted)
      let answer = try bench.answer(posted)
      try expect(answer.isOK && answer.data == expected, "the request was answered with \(answer.words)")
      return .kept()
    },
    Check(
      "direct-then-indirect", "split.indirect.2", "A chain of direct descriptors that ends in a table is handled.",
      rings: .split,
      needs: [.offered(.indirectDescriptors)]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let expected = try bench.good(bench.read(0)).data
      for direct in 1...2 {
        var posted = try bench.make(bench.read(0), out: [8, 8])
        posted.chain = Array(posted.chain.prefix(direct)) + [try bench.indirect(Array(posted.chain.dropFirst(direct)))]
        bench.post(&posted)
        let answer = try bench.answer(posted)
        try expect(answer.isOK && answer.data == expected, "with \(direct) direct descriptors the answer was \(answer.words)")
      }
      return .kept()
    },
    Check(
      "big-table", "", split: "i.split.indirect.1", packed: "i.packed.indirect.1",
      "A table can have more entries than the ring.",
      needs: [.offered(.indirectDescriptors), .modern]
    ) { bench in
      try bench.start(Plan(queues: 1, size: 8))
      let pieces = min(24, Int(bench.facts.config.segMax ?? 24))
      let expected = try bench.good(bench.read(0)).data
      let into = Array(repeating: bench.block / 32, count: pieces - 1) + [bench.block - bench.block / 32 * (pieces - 1), 1]
      let answer = try bench.perform(bench.read(0), into: into, indirect: true)
      try expect(answer.isOK && answer.data == expected, "a table of \(pieces + 2) entries was answered with \(answer.words)")
      return .kept("\(pieces + 2) entries")
    },
    Check(
      "length-is-written", "bad.31", split: "split.used.2", packed: "i.packed.used.3",
      "As many bytes as the used length says have been written, from the first writable byte on."
    ) { bench in
      try bench.start(Plan(queues: 1))
      for request in [bench.read(0), bench.read(0, blocks: 3), .identify, .flush, bench.read(bench.capacity)] {
        // Twice over different bytes: what is equal in both was written.
        var seen: [[UInt8]] = []
        var length = 0
        for filler: UInt8 in [0x11, 0xee] {
          var posted = try bench.make(request)
          posted.writable.fill(filler)
          bench.post(&posted)
          let used = try bench.awaitUsed(posted.id, "\(request)")
          length = Int(used.length)
          if bench.format == .packed, used.flags & 2 == 0 { length = 0 }
          try expect(
            length <= posted.writable.count,
            "\(request): \(length) bytes used, and only \(posted.writable.count) can be written")
          seen.append(posted.writable.bytes)
        }
        let isWritten = (0..<length).allSatisfy { seen[0][$0] == seen[1][$0] }
        try expect(isWritten, "\(request): the used length is \(length), and not all of these bytes were written")
      }
      return .kept()
    },
    Check(
      "length-is-exact", "", split: "i.split.usedlen.1", packed: "i.packed.used.3",
      "The used length counts what was written: the data of an IN and the status."
    ) { bench in
      try bench.start(Plan(queues: 1))
      var cases = [(bench.read(0), bench.block + 1), (bench.read(0, blocks: 2), 2 * bench.block + 1)]
      if bench.facts.offered.contains(BlockFeature.flush) { cases.append((.flush, 1)) }
      for (request, wanted) in cases {
        let used = try bench.good(request).used
        try expect(used.length == wanted, "\(request): the used length is \(used.length), and \(wanted) bytes were written")
        if bench.format == .packed { try expect(used.flags & 2 != 0, "\(request): WRITE is not set in the used descriptor") }
      }
      return .kept()
    },
    Check(
      "across-regions", "bad.13", "A buffer across the border of two memory regions is one buffer.", needs: [.vhostUser]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let memory = try bench.memory()
      let expected = try bench.good(bench.read(0)).data
      let border = GuestAddress(SocketSubject.border - UInt64(bench.block) / 2)
      var posted = try bench.make(bench.read(0))
      posted.chain[1].address = border.rawValue
      bench.post(&posted)
      let used = try bench.awaitUsed(posted.id, "a read across the border of two regions")
      try expect(posted.status == 0, "the answer was status \(posted.status), used length \(used.length)")
      try expect(memory.bytes(at: border, count: bench.block) == expected, "the data differs from a read into one region")
      return .kept()
    },
  ]
}
