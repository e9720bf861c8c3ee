/// One descriptor chain as a user wants to see it, read from a copy of guest memory.
internal import MemoryFile
public import VirtioCore

/// One descriptor, as it stands in its table.
public struct DescriptorPicture: Equatable, Sendable {
  /// Its place in the table.
  public let index: UInt16
  public let address: GuestAddress
  /// Bytes.
  public let length: UInt32
  public let flags: UInt16
  public let next: UInt16

  public var hasNext: Bool { flags & 1 != 0 }
  /// The device writes to the buffer; otherwise it reads.
  public var isWritable: Bool { flags & 2 != 0 }
  public var isIndirect: Bool { flags & 4 != 0 }

  /// - Parameter bytes: 16 bytes (virtio 2.7.5).
  init(index: UInt16, bytes: ArraySlice<UInt8>) {
    self.index = index
    address = GuestAddress(bytes.word(at: 0))
    length = bytes.word(at: 8)
    flags = bytes.word(at: 12)
    next = bytes.word(at: 14)
  }
}

/// A chain, with the table that its last descriptor may refer to, and what is wrong with it.
public struct ChainPicture: Equatable, Sendable {
  public let head: UInt16
  public let descriptors: [DescriptorPicture]
  /// The descriptors of the indirect table that the last descriptor refers to, in chain order.
  public let indirect: [DescriptorPicture]
  /// Entries of the indirect table, whether in the chain or not.
  public let indirectEntries: Int
  /// One sentence each.
  public let problems: [String]
  /// The first 16 readable bytes, fewer if there are not that many: a request's header.
  public let header: [UInt8]
  /// The total length of the buffers of each kind, in bytes.
  public let readableBytes: UInt64
  public let writableBytes: UInt64
  /// The last writable byte: where a device puts the status.
  public let lastWritable: (address: GuestAddress, value: UInt8)?

  /// The buffers in order: direct ones, then those of the indirect table.
  public var buffers: [DescriptorPicture] { descriptors.filter { !$0.isIndirect } + indirect }

  /// Follows a chain as far as it can be followed.
  ///
  /// - Parameters:
  ///   - table: a copy of the descriptor table; its 16-byte entries bound the walk.
  init(head: UInt16, table: [UInt8], memory: GuestBytes, features: FeatureSet) {
    var walk = Walk(head: head)
    let size = table.count / 16
    if Int(head) >= size {
      walk.problems.append(QueueError.headOutOfRange(head).description)
    } else {
      walk.follow(from: head, in: table, isIndirect: false)
    }
    self.head = head
    descriptors = walk.chain
    var indirect: [DescriptorPicture] = []
    var entries = 0
    if let last = walk.chain.last, last.isIndirect {
      if !features.contains(.indirectDescriptors) {
        walk.problems.append(QueueError.indirectNotNegotiated(head: head).description)
      }
      if last.length == 0 || last.length % 16 != 0 || last.length > 16 * 32768 {
        walk.problems.append(QueueError.badIndirectLength(head: head, last.length).description)
      } else if let inner = memory.bytes(at: last.address, count: Int(last.length)) {
        entries = inner.count / 16
        walk.chain = []
        walk.follow(from: 0, in: inner, isIndirect: true)
        indirect = walk.chain
      } else {
        walk.problems.append(QueueError.indirectUnmapped(head: head, last.address).description)
      }
    }
    self.indirect = indirect
    indirectEntries = entries

    let buffers = descriptors.filter { !$0.isIndirect } + indirect
    let readable = buffers.filter { !$0.isWritable }
    let writable = buffers.filter { $0.isWritable && $0.length > 0 }
    readableBytes = readable.reduce(0) { $0 + UInt64($1.length) }
    writableBytes = writable.reduce(0) { $0 + UInt64($1.length) }
    for buffer in buffers where buffer.length > 0 && !memory.contains(buffer.address, count: UInt64(buffer.length)) {
      walk.problems.append(
        "descriptor \(buffer.index) has \(buffer.length) bytes at \(buffer.address), not all inside guest memory")
    }
    if readableBytes + writableBytes > 1 << 32 { walk.problems.append(QueueError.chainTooLarge(head: head).description) }
    if let first = buffers.firstIndex(where: \.isWritable), buffers[first...].contains(where: { !$0.isWritable }) {
      walk.problems.append(QueueError.readableAfterWritable(head: head).description)
    }
    var header: [UInt8] = []
    for buffer in readable where header.count < 16 {
      header += memory.bytes(at: buffer.address, count: min(Int(buffer.length), 16 - header.count)) ?? []
    }
    self.header = header
    let status = writable.last.flatMap { $0.address.advanced(by: UInt64($0.length) - 1) }
    lastWritable = status.flatMap { address in memory.bytes(at: address, count: 1).map { (address, $0[0]) } }
    if writable.isEmpty, !buffers.isEmpty {
      walk.problems.append(QueueError.noWritableByte(head: head).description)
    } else if lastWritable == nil, !writable.isEmpty {
      walk.problems.append(QueueError.statusUnmapped(head: head).description)
    }
    problems = walk.problems
  }

  public static func == (left: ChainPicture, right: ChainPicture) -> Bool {
    left.head == right.head && left.descriptors == right.descriptors && left.indirect == right.indirect
      && left.problems == right.problems && left.header == right.header
      && left.lastWritable?.address == right.lastWritable?.address
      && left.lastWritable?.value == right.lastWritable?.value
  }

  /// The walk through one table.
  private struct Walk {
    let head: UInt16
    var chain: [DescriptorPicture] = []
    var problems: [String] = []

    init(head: UInt16) { self.head = head }

    mutating func follow(from first: UInt16, in table: [UInt8], isIndirect: Bool) {
      let size = table.count / 16
      var seen = Set<UInt16>()
      var index = first
      while true {
        guard Int(index) < size else {
          problems.append(QueueError.nextOutOfRange(index).description)
          return
        }
        guard seen.insert(index).inserted else {
          problems.append(
            QueueError.chainLoops(head: head).description + " (back to descriptor \(index))")
          return
        }
        let descriptor = DescriptorPicture(index: index, bytes: table[Int(index) * 16..<Int(index) * 16 + 16])
        chain.append(descriptor)
        if descriptor.isIndirect {
          if isIndirect { problems.append(QueueError.nestedIndirect(head: head).description) }
          if descriptor.hasNext { problems.append(QueueError.indirectWithNext(head: head).description) }
          return
        }
        guard descriptor.hasNext else { return }
        index = descriptor.next
      }
    }
  }
}

extension ArraySlice<UInt8> {
  /// A little-endian word; the caller has checked that it is inside. - Parameter offset: from the slice's beginning.
  func word<Word: FixedWidthInteger>(at offset: Int) -> Word {
    let start = startIndex + offset
    return self[start..<start + Word.bitWidth / 8].reversed().reduce(0) { $0 << 8 | Word(truncatingIfNeeded: $1) }
  }
}
