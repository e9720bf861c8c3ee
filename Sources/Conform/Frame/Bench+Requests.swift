/// Requests: assembled from bytes, split into descriptors, answered.
internal import GuestDriver
internal import VirtioCore

/// A request in guest memory.
struct Posted {
  var id: UInt16 = 0
  let request: BlockRequest
  /// The readable bytes, header first, and the writable ones, status last.
  let readable: GuestBuffer
  let writable: GuestBuffer
  var chain: [RawDescriptor]

  static let poison: UInt8 = 0xf1

  var status: UInt8 { writable[writable.count - 1] }
  var data: [UInt8] { writable.bytes(0..<writable.count - 1) }
}

struct Answer {
  var status: UInt8
  var data: [UInt8]
  var used: UsedElement

  var isOK: Bool { status == 0 }
  var words: String {
    switch status {
    case 0: "OK"
    case 1: "IOERR"
    case 2: "UNSUPP"
    case Posted.poison: "no status byte"
    default: "status \(status)"
    }
  }
}

extension Bench {
  /// Puts a request into memory and splits it into descriptors.
  ///
  /// - Parameters:
  ///   - out: lengths of the readable descriptors; `nil`: the header, then the data in segments that the device allows.
  ///   - into: lengths of the writable ones; `nil`: the data, then the status.
  /// - Throws: `Trouble.notApplicable` if the device allows no request of this size (`size_max`, `seg_max`).
  func make(_ request: BlockRequest, out: [Int]? = nil, into: [Int]? = nil) throws -> Posted {
    let memory = try memory()
    let bytes = request.header + request.payload
    let readable = try memory.allocate(bytes.count, alignment: 16)
    readable.store(bytes)
    let writable = try memory.allocate(request.answerBytes + 1, alignment: 16)
    writable.fill(Posted.poison)
    let outCuts = try out ?? [16] + segments(request.payload.count)
    let inCuts = try into ?? segments(request.answerBytes) + [1]
    return Posted(
      request: request, readable: readable, writable: writable,
      chain: Self.cut(readable, outCuts, []) + Self.cut(writable, inCuts, .write))
  }

  /// The lengths of data segments of a driver that keeps to the limits (virtio 5.2.6.1).
  private func segments(_ bytes: Int) throws -> [Int] {
    // Some back-ends offer SIZE_MAX and leave the field 0.
    let longest = facts.config.sizeMax.map { $0 < 512 ? Int.max : Int($0) / 512 * 512 } ?? Int.max
    let lengths = stride(from: 0, to: bytes, by: longest).map { min(longest, bytes - $0) }
    if let most = facts.config.segMax, most > 0, lengths.count > most {
      throw Trouble.notApplicable("\(bytes) bytes are more than a request can have: seg_max is \(most), size_max \(longest)")
    }
    // The rings of most checks have sixteen entries, and several requests have to fit.
    guard lengths.count <= 4 else {
      throw Trouble.notApplicable(
        "\(bytes) bytes in segments of \(longest) are more than the rings of these checks have room for")
    }
    return lengths
  }

  private static func cut(_ buffer: GuestBuffer, _ lengths: [Int], _ flags: RawDescriptor.Flags) -> [RawDescriptor] {
    var offset = 0
    return lengths.map { length in
      defer { offset += length }
      return RawDescriptor(address: buffer.address.rawValue + UInt64(offset), length: UInt32(length), flags: flags)
    }
  }

  /// An indirect table of a chain, and the descriptor that refers to it.
  ///
  /// - Parameter shift: how many bytes after a multiple of 16 the table begins.
  func indirect(_ chain: [RawDescriptor], linked: Bool = true, shift: Int = 0) throws -> RawDescriptor {
    let table = try memory().allocate(16 * max(1, chain.count) + shift, alignment: 16)
    for (place, descriptor) in chain.enumerated() {
      var copy = descriptor
      if linked, format == .split, place + 1 < chain.count {
        copy.flags.insert(.next)
        copy.next = UInt16(place + 1)
      }
      table.store(bytes(of: copy), at: 16 * place + shift)
    }
    return RawDescriptor(
      address: table.address.rawValue + UInt64(shift), length: UInt32(16 * chain.count), flags: .indirect)
  }

  /// The 16 bytes of a descriptor as the ring's format has them.
  func bytes(of descriptor: RawDescriptor) -> [UInt8] {
    let tail = format == .split ? [descriptor.flags.rawValue, descriptor.next] : [descriptor.next, descriptor.flags.rawValue]
    return littleEndian(descriptor.address) + littleEndian(descriptor.length) + tail.flatMap(littleEndian)
  }

  func littleEndian<Value: FixedWidthInteger>(_ value: Value) -> [UInt8] {
    (0..<Value.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> Value($0 * 8)) }
  }

  /// Makes a request available and kicks.
  @discardableResult func post(_ posted: inout Posted, on queue: Int = 0, kicks: Bool = true) -> UInt16 {
    posted.id = hands[queue].offer(posted.chain)
    if kicks { hands[queue].kick() }
    return posted.id
  }

  /// Makes a request, waits, and checks the memory around it.
  func perform(
    _ request: BlockRequest, on queue: Int = 0, out: [Int]? = nil, into: [Int]? = nil, indirect isIndirect: Bool = false
  ) throws -> Answer {
    var posted = try make(request, out: out, into: into)
    if isIndirect { posted.chain = [try indirect(posted.chain)] }
    post(&posted, on: queue)
    return try answer(posted, on: queue)
  }

  /// Waits for the answer to a request that was posted.
  func answer(_ posted: Posted, on queue: Int = 0) throws -> Answer {
    let used = try awaitUsed(posted.id, on: queue, "\(posted.request)")
    let memory = try memory()
    for buffer in [posted.readable, posted.writable] {
      if let place = memory.damage(around: buffer) {
        throw Trouble.broken("\(posted.request): the device wrote to \(place), next to the request's buffers")
      }
    }
    return Answer(status: posted.status, data: posted.data, used: used)
  }

  /// A request that has to be answered with OK.
  @discardableResult func good(_ request: BlockRequest, on queue: Int = 0) throws -> Answer {
    let answer = try perform(request, on: queue)
    try expect(answer.isOK, "\(request) was answered with \(answer.words)")
    return answer
  }

  // MARK: Contents

  /// One logical block, bytes.
  var block: Int { facts.block }
  /// 512-byte sectors of the disk.
  var capacity: UInt64 { facts.config.capacity }
  /// Sectors in a logical block.
  var step: UInt64 { UInt64(block / 512) }

  /// Random bytes from the seed. Each 8 of them have a bit set.
  func pattern(_ bytes: Int) -> [UInt8] {
    var result: [UInt8] = []
    result.reserveCapacity(bytes + 8)
    while result.count < bytes { result += littleEndian(random.next() | 1) }
    return Array(result.prefix(bytes))
  }

  /// A read of whole blocks from a sector on.
  func read(_ sector: UInt64, blocks: Int = 1) -> BlockRequest { .read(sector: sector, bytes: blocks * block) }
  func write(_ sector: UInt64, _ bytes: [UInt8]) -> BlockRequest { .write(sector: sector, bytes) }

  /// A good request that any disk can answer.
  var harmless: BlockRequest { read(0) }

  // MARK: Surviving what no driver may do

  /// Whether the device is alive, and what it took.
  ///
  /// - Throws: `Trouble.wedged` if it is not.
  func alive(on queue: Int? = nil, after what: String) throws -> String {
    let witness = queue ?? (hands.count > 1 ? 1 : nil)
    if let witness {
      do {
        let failed = try hasFailed(0, milliseconds: 0)
        if !failed || subject.bus == .vhostUser {
          var posted = try make(harmless)
          post(&posted, on: witness)
          let hand = hands[witness]
          let answered = try quickly {
            try hand.look()
            return hand.take(posted.id) != nil
          }
          if answered, posted.status == 0 { return "queue \(witness) continues" }
        }
      } catch is DriverError {
        // The connection may have been lost by what was done; a new one will show.
      }
    }
    if let transport = try? transport() {
      do {
        try transport.reset()
        try start()
        try good(harmless)
        return "the device continues after a reset"
      } catch is DriverError {
        // As above.
      } catch Trouble.wedged where subject.bus == .vhostUser {
        // A queue may be broken for as long as the connection lasts.
      }
    }
    drop()
    do {
      try start()
      try good(harmless)
    } catch {
      throw Trouble.wedged("\(what): no answer to a good request afterwards, not even by a new driver (\(describe(error)))")
    }
    return "the device continues with a new connection"
  }

  /// Like `eventually` with a fraction of the time limit, for what need not happen.
  private func quickly(_ isSo: () throws -> Bool) throws -> Bool {
    if attachedIsStepped { return try eventually(isSo) }
    let end = ContinuousClock.now + settings.limit / 10
    while try !isSo() {
      guard .now < end else { return false }
      pause()
    }
    return true
  }
}

/// What an error says, in one sentence.
func describe(_ error: any Error) -> String {
  switch error {
  case Trouble.broken(let words), Trouble.wedged(let words), Trouble.notApplicable(let words): words
  default: "\(error)"
  }
}
