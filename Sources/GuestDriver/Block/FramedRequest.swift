/// A block request laid out in guest memory, each piece in a separate buffer with guards around it, and the checks of its
/// answer.
internal import Glibc
internal import VirtioCore

/// The pieces of one request, from submission to its answer.
struct FramedRequest {
  let request: BlockRequest
  let readable: [GuestBuffer]
  let writable: [GuestBuffer]
  private let readableBytes: [UInt8]

  /// Writes the request into fresh buffers. The writable ones hold poison, so that what was not written shows.
  init(_ request: BlockRequest, _ framing: Framing, in memory: DriverMemory) throws(DriverError) {
    self.request = request
    readableBytes = request.header + request.payload
    var readable: [GuestBuffer] = []
    var writable: [GuestBuffer] = []
    do throws(DriverError) {
      for length in Framing.lengths(framing.readableCuts, of: readableBytes.count) {
        readable.append(try memory.allocate(length, alignment: framing.alignment))
      }
      for length in Framing.lengths(framing.writableCuts, of: request.answerBytes + 1) {
        writable.append(try memory.allocate(length, alignment: framing.alignment))
      }
    } catch {
      for buffer in readable + writable { memory.release(buffer) }
      throw error
    }
    var done = 0
    for buffer in readable {
      buffer.store(readableBytes[done..<done + buffer.count])
      done += buffer.count
    }
    if let last = writable.last { last[last.count - 1] = BlockStatusCode.poison.rawValue }
    self.readable = readable
    self.writable = writable
  }

  var pieces: [ChainPiece] {
    readable.map { ChainPiece($0.address, length: UInt32($0.count), deviceWrites: false) }
      + writable.map { ChainPiece($0.address, length: UInt32($0.count), deviceWrites: true) }
  }

  var status: BlockStatusCode {
    guard let last = writable.last else { return .poison }
    return BlockStatusCode(rawValue: last[last.count - 1])
  }

  /// The writable bytes without the status.
  var answer: [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(request.answerBytes + 1)
    for buffer in writable { unsafe bytes.append(contentsOf: UnsafeRawBufferPointer(start: buffer.host, count: buffer.count)) }
    bytes.removeLast()
    return bytes
  }

  /// Checks for everything that a device must not do to the buffers of a request.
  ///
  /// - Parameter length: from the used element.
  func check(queue: Int, head: UInt16, length: UInt32, in memory: DriverMemory) throws(DriverFault) {
    for buffer in readable + writable {
      if let address = memory.damage(around: buffer) {
        throw .strayWrite(address, near: "next to a buffer of \(request) at \(buffer.address)+\(buffer.count)")
      }
    }
    var offset = 0
    for buffer in readable {
      let same = unsafe readableBytes.withUnsafeBytes { expected in
        unsafe expected.baseAddress.map { base in unsafe memcmp(buffer.host, base + offset, buffer.count) == 0 } ?? true
      }
      if !same {
        let first = zip(buffer.bytes, readableBytes[offset...]).enumerated().first { $1.0 != $1.1 }
        throw .readableBufferModified(queue: queue, head: head, offset: offset + (first?.offset ?? 0))
      }
      offset += buffer.count
    }
    if status == .poison { throw .noStatus(queue: queue, head: head) }
  }

  /// The first of `length` bytes of the answer that was certainly not written: a whole run of eight still holds the poison.
  /// Every byte that is counted must have been written (virtio 2.6.8.2).
  func unwrittenByte(within length: UInt32) -> Int? {
    var offset = 0
    for buffer in writable {
      let counted = min(buffer.count, min(Int(length), request.answerBytes) - offset)
      var start = 0
      while start + 8 <= counted {
        if Poison.damage(memoryOf: buffer, from: start, count: 8) == nil { return offset + start }
        start += 8
      }
      offset += buffer.count
    }
    return nil
  }

  func release(to memory: DriverMemory) { for buffer in readable + writable { memory.release(buffer) } }
}
