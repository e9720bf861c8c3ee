/// What requests do (virtio 5.2.6).
internal import GuestDriver
internal import VirtioCore

extension Check {
  static let block: [Check] = [
    Check(
      "read-and-write", "i.blk.rw.1", "What OUT writes, IN reads, at the first, a middle and the last block.",
      needs: [.writable]
    ) { bench in
      try bench.start()
      let places = [0, bench.capacity / 2 / bench.step * bench.step, bench.capacity - bench.step]
      let data = places.map { _ in bench.pattern(bench.block) }
      for (sector, bytes) in zip(places, data) { try bench.good(bench.write(sector, bytes)) }
      for (number, sector) in places.enumerated() {
        let found = try bench.good(bench.read(sector), on: number % bench.hands.count).data
        try expect(found == data[number], "sector \(sector) does not hold what was written to it")
      }
      return .kept()
    },
    Check("many-blocks", "i.blk.rw.1", "Requests of many blocks, whole and in pieces, over each other.", needs: [.writable]) {
      bench in
      try bench.start()
      let count = 32
      var model = bench.pattern(count * bench.block)
      try bench.good(bench.write(0, model))
      for _ in 0..<24 {
        let at = Int(bench.random.next() % UInt64(count))
        let blocks = 1 + Int(bench.random.next() % UInt64(count - at))
        let bytes = bench.pattern(blocks * bench.block)
        model.replaceSubrange(at * bench.block..<(at + blocks) * bench.block, with: bytes)
        try bench.good(bench.write(UInt64(at) * bench.step, bytes), on: at % bench.hands.count)
      }
      try expect(try bench.good(bench.read(0, blocks: count)).data == model, "the disk is not what was written to it")
      return .kept()
    },
    Check("units", "i.blk.units.1", "Sectors are 512 bytes, whatever a logical block is.", rings: .once, needs: [.writable]) {
      bench in
      try bench.start(Plan(queues: 1))
      let data = bench.pattern(2 * bench.block)
      try bench.good(bench.write(0, data))
      let second = try bench.good(bench.read(bench.step)).data
      try expect(second == Array(data[bench.block...]), "sector \(bench.step) is not \(bench.block) bytes from the beginning")
      return .kept("blocks of \(bench.block)")
    },
    Check(
      "status-is-always-written", "i.blk.status.1", "Every request ends with a status from 0 to 2, or 6 where there are zones."
    ) { bench in
      try bench.start(Plan(queues: 1))
      for type: UInt32 in [0, 1, 4, 8, 11, 13, 14, 2, 3, 5, 6, 7, 9, 10, 12, 15, 99, 0x8000_0000, .max]
      where !(bench.facts.isReadOnly && type == 99) {
        let request =
          switch type {
          case 0: bench.read(bench.capacity)
          case 1: bench.write(bench.capacity, bench.pattern(bench.block))
          case 11, 13, 14:
            BlockRequest(type: BlockRequestType(rawValue: type), payload: BlockRange(sector: bench.capacity, sectors: 8).bytes)
          case 8: BlockRequest.identify
          default: BlockRequest(type: BlockRequestType(rawValue: type), answerBytes: 32)
          }
        let answer = try bench.perform(request)
        try expect(
          answer.status <= (bench.facts.isHostManaged ? 6 : 2), "type \(type) was answered with \(answer.words)")
      }
      return .kept()
    },
    Check("unknown-types", "i.blk.unsupp.1 bad.25", "Unknown types are UNSUPP.") { bench in
      try bench.start(Plan(queues: 1))
      for type: UInt32 in [6, 7, 9, 12, 99, 0x7fff_ffff] {
        let answer = try bench.perform(BlockRequest(type: BlockRequestType(rawValue: type), answerBytes: 16))
        try expect(answer.status == 2, "type \(type) was answered with \(answer.words)")
      }
      return .kept()
    },
    Check(
      "no-zone-requests", "zoned.op.1", "Without ZONED every zone request is UNSUPP.", needs: [.notHostManaged]
    ) { bench in
      try bench.start(Plan(queues: 1))
      for type: UInt32 in [15, 16, 18, 20, 22, 24, 26] {
        let answer = try bench.perform(BlockRequest(type: BlockRequestType(rawValue: type), answerBytes: 64))
        try expect(answer.status == 2, "type \(type) was answered with \(answer.words)")
      }
      return .kept()
    },
    Check(
      "no-lifetime", "i.blk.lifetime.1", "Without LIFETIME its request is UNSUPP.", rings: .once
    ) { bench in
      guard !bench.facts.offered.contains(FeatureSet(bit: 15)) else { throw Trouble.notApplicable("LIFETIME is offered") }
      try bench.start(Plan(queues: 1))
      let answer = try bench.perform(BlockRequest(type: .getLifetime, answerBytes: 6))
      try expect(answer.status == 2, "GET_LIFETIME was answered with \(answer.words)")
      return .kept()
    },
    Check("identity", "i.blk.getid.1", "GET_ID gives 20 bytes of ASCII, padded with NUL, the same each time.", rings: .both) {
      bench in
      try bench.start(Plan(queues: 1))
      let first = try bench.good(.identify).data
      let second = try bench.perform(.identify, into: [7, 13, 1])
      try expect(second.data == first, "the identity is \(second.data) in pieces and \(first) in one")
      let text = first.prefix { $0 != 0 }
      try expect(text.allSatisfy { (0x20...0x7e).contains($0) }, "the identity is not ASCII: \(first)")
      let rest = first.dropFirst(text.count)
      try expect(rest.allSatisfy { $0 == 0 }, "the identity is not padded with NULs: \(first)")
      return .kept(String(decoding: text, as: UTF8.self))
    },
    Check("flush", "bad.30", "FLUSH is answered, whatever its sector says, also with nothing to flush.") { bench in
      try bench.start(Plan(queues: 1))
      // No device owes an OK to a driver that was not offered FLUSH.
      let isOffered = bench.facts.offered.contains(BlockFeature.flush)
      for _ in 0..<2 {
        let plain = try bench.perform(.flush)
        try expect(isOffered ? plain.isOK : plain.status <= 2, "FLUSH was answered with \(plain.words)")
      }
      let odd = try bench.perform(BlockRequest(type: .flush, sector: 77))
      try expect(odd.status <= 2, "FLUSH with a sector was answered with \(odd.words)")
      return .kept("with a sector: \(odd.words)")
    },
    Check("read-only-is-refused", "blk.op.3", "On a read-only disk a write is IOERR.", needs: [.readOnly]) { bench in
      for declines in [false, true] {
        try bench.start(Plan(without: declines ? BlockFeature.readOnly : [], queues: 1))
        let answer = try bench.perform(bench.write(0, bench.pattern(bench.block)))
        try expect(
          answer.status == 1, "OUT was answered with \(answer.words)\(declines ? " to a driver that declined RO" : "")")
      }
      return .kept()
    },
    Check("read-only-stays", "blk.op.4 bad.24", "On a read-only disk no request changes data.", needs: [.readOnly]) { bench in
      try bench.start(Plan(queues: 1))
      let before = try bench.good(bench.read(0, blocks: 8)).data
      let range = BlockRange(sector: 0, sectors: UInt32(8 * bench.step))
      for request in [
        bench.write(0, bench.pattern(bench.block)), .discard([range]), .writeZeroes([range]),
        BlockRequest(type: .secureErase, payload: range.bytes),
      ] {
        _ = try bench.perform(request)
      }
      try expect(try bench.good(bench.read(0, blocks: 8)).data == before, "the disk was changed")
      if bench.facts.offered.contains(BlockFeature.flush) { try bench.good(.flush) }
      return .kept()
    },
    Check(
      "read-only-ranges", "i.blk.ro.1", "On a read-only disk discard, write-zeroes and secure-erase fail.", needs: [.readOnly]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let range = BlockRange(sector: 0, sectors: 8)
      for request in [
        BlockRequest.discard([range]), .writeZeroes([range]), BlockRequest(type: .secureErase, payload: range.bytes),
      ] {
        let answer = try bench.perform(request)
        try expect(answer.status == 1 || answer.status == 2, "\(request.type) was answered with \(answer.words)")
      }
      return .kept()
    },
    Check(
      "two-queues-one-place", "i.blk.mq.1", "What one queue has written, another reads; both write the same place.",
      needs: [.queues(2), .writable]
    ) { bench in
      try bench.start()
      for round in 0..<20 {
        let data = bench.pattern(bench.block)
        try bench.good(bench.write(0, data), on: round % 2)
        try expect(
          try bench.good(bench.read(0), on: 1 - round % 2).data == data, "round \(round): the other queue reads something else")
      }
      var first = try bench.make(bench.write(0, [UInt8](repeating: 0xaa, count: bench.block)))
      var second = try bench.make(bench.write(0, [UInt8](repeating: 0xbb, count: bench.block)))
      bench.post(&first, on: 0)
      bench.post(&second, on: 1)
      _ = try bench.answer(first, on: 0)
      _ = try bench.answer(second, on: 1)
      let now = try bench.good(bench.read(0)).data
      try expect(now.allSatisfy { $0 == 0xaa } || now.allSatisfy { $0 == 0xbb }, "two writes of a block left a mixture")
      return .kept()
    },
  ]

  static let ranges: [Check] = [
    Check(
      "discard-flags", "blk.op.5", "DISCARD with a flag that is unknown is UNSUPP, and changes nothing.",
      needs: [.offered(BlockFeature.discard), .writable]
    ) { bench in try bench.badFlags(.discard, [2, 0x8000_0000, 3]) },
    Check(
      "discard-unmap", "blk.op.7 bad.28", "DISCARD with the unmap flag is UNSUPP.",
      needs: [.offered(BlockFeature.discard), .writable]
    ) { bench in try bench.badFlags(.discard, [1]) },
    Check(
      "write-zeroes-flags", "blk.op.5", "WRITE_ZEROES with a flag that is unknown is UNSUPP, and changes nothing.",
      needs: [.offered(BlockFeature.writeZeroes), .writable]
    ) { bench in try bench.badFlags(.writeZeroes, [2, 0x8000_0000, 3]) },
    Check(
      "secure-erase-flags", "blk.op.6", "SECURE_ERASE with a flag that is unknown is UNSUPP.",
      needs: [.offered(BlockFeature.secureErase), .writable]
    ) { bench in try bench.badFlags(.secureErase, [2, 0x8000_0000]) },
    Check(
      "write-zeroes", "blk.op.10 i.blk.wz.1",
      "After WRITE_ZEROES reads give zeroes, with unmap or without, and next to it nothing changed.",
      needs: [.offered(BlockFeature.writeZeroes), .writable]
    ) { bench in
      try bench.start(Plan(queues: 1))
      for flags: UInt32 in [0, 1] {
        let data = bench.pattern(8 * bench.block)
        try bench.good(bench.write(0, data))
        try bench.good(.writeZeroes([BlockRange(sector: 2 * bench.step, sectors: UInt32(3 * bench.step), flags: flags)]))
        let now = try bench.good(bench.read(0, blocks: 8)).data
        let hole = 2 * bench.block..<5 * bench.block
        try expect(now[hole].allSatisfy { $0 == 0 }, "the range is not zero after WRITE_ZEROES with flags \(flags)")
        try expect(
          now[..<hole.lowerBound] == data[..<hole.lowerBound] && now[hole.upperBound...] == data[hole.upperBound...],
          "WRITE_ZEROES changed more than its range")
      }
      return .kept()
    },
    Check(
      "many-segments", "i.blk.discard.1", "A request of as many segments as are allowed; its sector means nothing.",
      needs: [.offered(BlockFeature.writeZeroes), .writable]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let most = Int(min(bench.facts.config.writeZeroes?.maximumSegments ?? 1, 16))
      let data = bench.pattern(2 * most * bench.block)
      try bench.good(bench.write(0, data))
      var request = BlockRequest.writeZeroes(
        (0..<most).map { BlockRange(sector: UInt64(2 * $0) * bench.step, sectors: UInt32(bench.step)) })
      request.sector = 0x7777_7777
      try bench.good(request)
      let now = try bench.good(bench.read(0, blocks: 2 * most)).data
      for number in 0..<2 * most {
        let piece = number * bench.block..<(number + 1) * bench.block
        let isRight = number % 2 == 0 ? now[piece].allSatisfy { $0 == 0 } : now[piece] == data[piece]
        try expect(isRight, "block \(number) is not as \(most) segments leave it")
      }
      return .kept("\(most) segments")
    },
    Check(
      "discard", "blk.op.8 i.blk.discard.1", "DISCARD is answered and leaves its neighbours alone.",
      needs: [.offered(BlockFeature.discard), .writable]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let unit = UInt64(max(1, bench.facts.config.discard?.alignment ?? 1))
      let blocks = Int((unit + bench.step - 1) / bench.step)
      let data = bench.pattern(3 * blocks * bench.block)
      try bench.good(bench.write(0, data))
      try bench.good(.discard([BlockRange(sector: UInt64(blocks) * bench.step, sectors: UInt32(UInt64(blocks) * bench.step))]))
      let now = try bench.good(bench.read(0, blocks: 3 * blocks)).data
      let hole = blocks * bench.block..<2 * blocks * bench.block
      try expect(
        now[..<hole.lowerBound] == data[..<hole.lowerBound] && now[hole.upperBound...] == data[hole.upperBound...],
        "DISCARD changed more than its range")
      return .kept(now[hole].allSatisfy { $0 == 0 } ? "reads as zero afterwards" : "")
    },
    Check(
      "range-payload", "bad.27", "No segment, a part of one, or too many are not OK.",
      needs: [.offered(BlockFeature.writeZeroes), .writable]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let data = bench.pattern(bench.block)
      try bench.good(bench.write(0, data))
      let one = BlockRange(sector: 0, sectors: UInt32(bench.step)).bytes
      let most = Int(bench.facts.config.writeZeroes?.maximumSegments ?? 1)
      for payload in [[], Array(one.prefix(8)), one + [1, 2, 3]] {
        let answer = try bench.perform(BlockRequest(type: .writeZeroes, payload: payload))
        try expect(
          answer.status == 1 || answer.status == 2 || payload.isEmpty && answer.isOK,
          "\(payload.count) bytes of segments were answered with \(answer.words)")
      }
      if most < 64 {
        let many = Array(repeating: BlockRange(sector: 8 * bench.step, sectors: UInt32(bench.step)), count: most + 1)
        let answer = try bench.perform(.writeZeroes(many))
        try expect(
          answer.status == 1 || answer.status == 2,
          "\(most + 1) segments were answered with \(answer.words), and \(most) are allowed")
      }
      return .rejected("IOERR or UNSUPP each time")
    },
    Check(
      "range-ends", "bad.29", "Ranges that are too long, or end beyond the disk or beyond 2^64, are IOERR.",
      needs: [.offered(BlockFeature.writeZeroes), .writable]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let most = bench.facts.config.writeZeroes?.maximumSectors ?? .max
      var bad = [
        BlockRange(sector: bench.capacity, sectors: UInt32(bench.step)),
        BlockRange(sector: bench.capacity - bench.step, sectors: UInt32(2 * bench.step)),
        BlockRange(sector: .max, sectors: 1), BlockRange(sector: .max - 7, sectors: .max), BlockRange(sector: 0, sectors: .max),
        BlockRange(sector: 1 << 55, sectors: 8),
      ]
      if UInt64(most) < bench.capacity { bad.append(BlockRange(sector: 0, sectors: most + UInt32(bench.step))) }
      for range in bad {
        let answer = try bench.perform(.writeZeroes([range]))
        try expect(answer.status == 1, "sector \(range.sector), \(range.sectors) sectors: \(answer.words)")
      }
      return .rejected("IOERR each time")
    },
  ]

  static let odd: [Check] = [
    Check("odd-lengths", "bad.20", "IN and OUT of partial sectors are not OK, and write nothing.", needs: [.modern]) { bench in
      try bench.start(Plan(queues: 1))
      for length in [1, 511, 513, bench.block + 1] {
        let answer = try bench.perform(.read(sector: 0, bytes: length))
        try expect(answer.status == 1 || answer.status == 2, "IN of \(length) bytes was answered with \(answer.words)")
      }
      guard !bench.facts.isReadOnly else { return .rejected("IN only") }
      let before = try bench.good(bench.read(0, blocks: 2)).data
      for length in [1, 513] {
        let answer = try bench.perform(.write(sector: 0, bench.pattern(length)))
        try expect(answer.status == 1 || answer.status == 2, "OUT of \(length) bytes was answered with \(answer.words)")
      }
      try expect(try bench.good(bench.read(0, blocks: 2)).data == before, "an OUT that failed wrote data")
      return .rejected("IOERR or UNSUPP each time")
    },
    Check("nothing-to-read", "bad.22", "IN and OUT without data are answered, one way or the other.") { bench in
      try bench.start(Plan(queues: 1))
      let read = try bench.perform(.read(sector: 0, bytes: 0))
      let write = try bench.perform(.write(sector: 0, []))
      try expect(read.status <= 2 && write.status <= 2, "IN: \(read.words), OUT: \(write.words)")
      return .rejected("IN: \(read.words), OUT: \(write.words)")
    },
    Check("beyond-the-end", "bad.21", "Requests that end beyond the disk, or beyond 2^64, are IOERR and transfer nothing.") {
      bench in
      try bench.start(Plan(queues: 1))
      let places = [bench.capacity, bench.capacity + 1 << 40, .max, .max / 512, 1 << 55, bench.capacity - bench.step]
      for sector in places {
        let blocks = sector == bench.capacity - bench.step ? 2 : 1
        let answer = try bench.perform(bench.read(sector, blocks: blocks))
        try expect(answer.status == 1, "IN of \(blocks) blocks at sector \(sector) was answered with \(answer.words)")
        if !bench.facts.isReadOnly {
          let answer = try bench.perform(bench.write(sector, bench.pattern(blocks * bench.block)))
          try expect(answer.status == 1, "OUT of \(blocks) blocks at sector \(sector) was answered with \(answer.words)")
        }
      }
      return .rejected("IOERR each time")
    },
    Check(
      "wrong-direction", "bad.23", "Data of OUT that is writable and data of IN that is readable are not executed.",
      needs: [.writable]
    ) { bench in
      try bench.start()
      let before = try bench.good(bench.read(0)).data
      var out = try bench.make(BlockRequest(type: .write, sector: 0, answerBytes: bench.block))
      bench.post(&out)
      let outcome = try bench.outcome(of: out)
      let life = try bench.alive(after: "OUT with writable data")
      try bench.start()
      try expect(try bench.good(bench.read(0)).data == before, "OUT with writable data wrote data")
      var into = try bench.make(BlockRequest(type: .read, sector: 0, payload: bench.pattern(bench.block)))
      bench.post(&into)
      let second = try bench.outcome(of: into)
      return .rejected("OUT: \(outcome), IN: \(second); \(life)")
    },
    Check("identity-of-other-sizes", "bad.26", "GET_ID into less or more than 20 bytes never writes past them.") { bench in
      try bench.start(Plan(queues: 1))
      var words: [String] = []
      for size in [1, 19, 21, 64] {
        let answer = try bench.perform(BlockRequest(type: .getID, answerBytes: size))
        try expect(answer.status <= 2, "GET_ID into \(size) bytes was answered with \(answer.words)")
        try expect(answer.used.length <= size + 1, "GET_ID into \(size) bytes: used length \(answer.used.length)")
        words.append("\(size): \(answer.words)")
      }
      return .rejected(words.joined(separator: ", "))
    },
    Check("old-types", "bad.25", "SCSI commands, FLUSH_OUT and a barrier bit do no harm.") { bench in
      try bench.start(Plan(queues: 1))
      let before = try bench.good(bench.read(0)).data
      for type: UInt32 in [2, 3, 5, 0x8000_0001, 0x8000_0000] where type & 1 == 0 || type == 5 || type == 3 {
        let answer = try bench.perform(BlockRequest(type: BlockRequestType(rawValue: type), answerBytes: bench.block))
        try expect(answer.status <= 2, "type \(type) was answered with \(answer.words)")
      }
      try expect(try bench.good(bench.read(0)).data == before, "the disk was changed")
      return .rejected("answered")
    },
  ]
}

extension Bench {
  fileprivate func badFlags(_ type: BlockRequestType, _ flags: [UInt32]) throws -> Seen {
    try start(Plan(queues: 1))
    let data = pattern(block)
    try good(write(0, data))
    for flag in flags {
      let range = BlockRange(sector: 0, sectors: UInt32(step), flags: flag)
      let answer = try perform(BlockRequest(type: type, payload: range.bytes))
      try expect(answer.status == 2, "flags 0x\(String(flag, radix: 16)) were answered with \(answer.words)")
      try expect(try good(read(0)).data == data, "flags 0x\(String(flag, radix: 16)): UNSUPP, and the data changed")
    }
    return .kept()
  }

  /// What happens to a request that may also break its queue, or never be answered.
  func outcome(of posted: Posted, on queue: Int = 0) throws -> String {
    let hand = hands[queue]
    let end = ContinuousClock.now + settings.limit / 20
    var failed = false
    var looks = 0
    while true {
      looks += 1
      do { try hand.look() } catch { return "an invalid answer" }
      if hand.take(posted.id) != nil { break }
      failed = (try? hasFailed(queue, milliseconds: 0)) ?? true
      if failed || attachedIsStepped && looks > 3 || .now >= end { return failed ? "the queue stopped" : "no answer" }
      pause()
    }
    return Answer(status: posted.status, data: [], used: UsedElement(id: 0, length: 0, flags: 0, slot: 0)).words
  }
}
