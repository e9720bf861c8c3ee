/// A split ring in plain memory, written and read byte by byte in the layout of the specification. It shares nothing with the
/// code under test.
import Testing
import VirtioCore

@safe
final class RingFixture {
  static let base: UInt64 = 0x10_0000
  static let bytes = 4 << 20

  let mapping: Mapping
  let memory: GuestMemory
  let size: Int
  let table = base
  let available: UInt64
  let used: UInt64
  /// Free guest addresses for buffers begin here.
  let buffers: UInt64

  init(size: Int) throws {
    mapping = try Mapping(anonymous: Self.bytes)
    memory = try GuestMemory([
      GuestRegion(start: GuestAddress(Self.base), size: UInt64(Self.bytes), mapping: mapping)
    ])
    self.size = size
    available = Self.base + UInt64(16 * size)
    used = (available + UInt64(6 + 2 * size) + 3) & ~3
    buffers = (used + UInt64(6 + 8 * size) + 4095) & ~4095
  }

  var configuration: QueueConfiguration {
    QueueConfiguration(
      size: UInt16(size), descriptorTable: GuestAddress(table), availableRing: GuestAddress(available),
      usedRing: GuestAddress(used))
  }

  func queue(_ features: FeatureSet = [], at position: QueuePosition = QueuePosition()) throws(QueueError) -> SplitQueue {
    try SplitQueue(configuration, memory: memory, features: features, position: position)
  }

  // MARK: Bytes

  func store<Value: FixedWidthInteger>(_ value: Value, at address: UInt64) {
    unsafe mapping.base.storeBytes(of: value.littleEndian, toByteOffset: Int(address - Self.base), as: Value.self)
  }

  func load<Value: FixedWidthInteger>(_ type: Value.Type = Value.self, at address: UInt64) -> Value {
    unsafe Value(littleEndian: mapping.base.loadUnaligned(fromByteOffset: Int(address - Self.base), as: Value.self))
  }

  // MARK: The driver's half

  static let next: UInt16 = 1
  static let write: UInt16 = 2
  static let indirect: UInt16 = 4

  func describe(_ index: Int, _ address: UInt64, _ length: UInt32, _ flags: UInt16 = 0, next: UInt16 = 0) {
    describe(inTable: table, index, address, length, flags, next: next)
  }

  func describe(
    inTable table: UInt64, _ index: Int, _ address: UInt64, _ length: UInt32, _ flags: UInt16 = 0, next: UInt16 = 0
  ) {
    let place = table + UInt64(16 * index)
    store(address, at: place)
    store(length, at: place + 8)
    store(flags, at: place + 12)
    store(next, at: place + 14)
  }

  var availableIndex: UInt16 {
    get { load(at: available + 2) }
    set { store(newValue, at: available + 2) }
  }

  func makeAvailable(_ heads: UInt16...) {
    for head in heads {
      let index = availableIndex
      store(head, at: available + 4 + 2 * UInt64(Int(index) % size))
      availableIndex = index &+ 1
    }
  }

  var availableFlags: UInt16 {
    get { load(at: available) }
    set { store(newValue, at: available) }
  }

  var usedEvent: UInt16 {
    get { load(at: available + 4 + 2 * UInt64(size)) }
    set { store(newValue, at: available + 4 + 2 * UInt64(size)) }
  }

  var usedIndex: UInt16 { load(at: used + 2) }
  var usedFlags: UInt16 { load(at: used) }
  var availableEvent: UInt16 { load(at: used + 4 + 8 * UInt64(size)) }

  func usedElement(_ index: UInt16) -> (id: UInt32, length: UInt32) {
    let place = used + 4 + 8 * UInt64(Int(index) % size)
    return (load(at: place), load(at: place + 4))
  }
}

/// The result of a pop, as plain values.
struct Popped: Equatable {
  var head: UInt16
  var readable: Int
  var writable: Int
  var readableBytes: UInt64
  var writableBytes: UInt64
  var defect: Chain.Defect?
  /// Guest addresses and lengths, derived from the fixture's mapping.
  var pieces: [Piece]

  struct Piece: Equatable {
    var address: UInt64
    var count: Int
  }
}

extension RingFixture {
  /// Pops one chain and answers it at once.
  func popAndPush(_ queue: inout SplitQueue, written: UInt32 = 0, capacity: Int = 64) throws(QueueError) -> Popped? {
    let room = UnsafeMutablePointer<MemorySegment>.allocate(capacity: capacity)
    defer { unsafe room.deallocate() }
    var shape = unsafe ChainShape(at: room)
    guard let chain = unsafe try queue.pop(into: room, capacity: capacity, shape: &shape) else { return nil }
    let readable = unsafe shape.readableCount(from: room)
    // With a defect there is only the status byte.
    let count = shape.defect == nil ? readable + shape.writableCount : 0
    let pieces = (0..<count).map { index in
      let segment = unsafe room[index]
      return unsafe Popped.Piece(
        address: Self.base + UInt64(segment.base - mapping.base), count: segment.count)
    }
    let popped = Popped(
      head: chain.head, readable: readable, writable: shape.writableCount, readableBytes: shape.readableBytes,
      writableBytes: shape.writableBytes, defect: shape.defect, pieces: pieces)
    queue.push(chain, written: written)
    return popped
  }

  // The test macros cannot call mutating methods of noncopyable values themselves.
  func needsCall(_ queue: inout SplitQueue) -> Bool { queue.needsCall() }
  func enableKicks(_ queue: inout SplitQueue) -> Bool { queue.enableKicks() }

  /// Pops a chain and leaves it unanswered: for tests about chains in flight.
  func popAndAbandon(_ queue: inout SplitQueue) throws(QueueError) -> UInt16? {
    let room = UnsafeMutablePointer<MemorySegment>.allocate(capacity: 64)
    defer { unsafe room.deallocate() }
    var shape = unsafe ChainShape(at: room)
    guard let chain = unsafe try queue.pop(into: room, capacity: 64, shape: &shape) else { return nil }
    let head = chain.head
    chain.abandon()
    return head
  }
}
