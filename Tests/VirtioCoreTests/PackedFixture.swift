/// A packed ring in plain memory and a driver for it, written and read byte by byte in the layout of the specification. It
/// shares nothing with the code under test.
import Testing
import VirtioCore

@safe
final class PackedFixture {
  static let base: UInt64 = 0x10_0000
  static let bytes = 4 << 20
  static let next: UInt16 = 1
  static let write: UInt16 = 2
  static let indirect: UInt16 = 4

  let mapping: Mapping
  let memory: GuestMemory
  let size: Int
  let ring = base
  let driverEvents: UInt64
  let deviceEvents: UInt64
  /// Free guest addresses for buffers begin here.
  let buffers: UInt64

  /// Where the driver makes the next chain available, and where it looks for the next used descriptor.
  private(set) var nextAvailable: (slot: Int, wrap: Bool)
  private(set) var nextUsed: (slot: Int, wrap: Bool)
  /// Slots of each buffer id in flight.
  private(set) var spans: [UInt16: Int] = [:]

  /// - Parameter position: where both sides begin.
  init(size: Int, at position: (slot: Int, wrap: Bool) = (0, true)) throws {
    mapping = try Mapping(anonymous: Self.bytes)
    memory = try GuestMemory([
      GuestRegion(start: GuestAddress(Self.base), size: UInt64(Self.bytes), mapping: mapping)
    ])
    self.size = size
    driverEvents = Self.base + UInt64(16 * size)
    deviceEvents = driverEvents + 4
    buffers = (deviceEvents + 4 + 4095) & ~4095
    nextAvailable = position
    nextUsed = position
    // In a round other than the first, every slot is as a used descriptor left it.
    for slot in 0..<size {
      let round = slot < position.slot ? position.wrap : !position.wrap
      setFlags(slot, round ? 0x8080 : 0)
    }
  }

  var configuration: QueueConfiguration {
    QueueConfiguration(
      size: UInt16(truncatingIfNeeded: size), descriptorTable: GuestAddress(ring), availableRing: GuestAddress(driverEvents),
      usedRing: GuestAddress(deviceEvents))
  }

  var position: QueuePosition {
    let (available, used) = (Self.word(nextAvailable), Self.word(nextUsed))
    return QueuePosition(available: available, used: used)
  }

  static func word(_ position: (slot: Int, wrap: Bool)) -> UInt16 { UInt16(position.slot) | (position.wrap ? 0x8000 : 0) }

  /// A queue that takes everything the driver has not got back.
  func queue(_ features: FeatureSet = [.indirectDescriptors]) throws(QueueError) -> PackedQueue {
    let used = Self.word(nextUsed)
    return try PackedQueue(
      configuration, memory: memory, features: features.union(.packedRing),
      position: QueuePosition(available: used, used: used))
  }

  // MARK: Bytes

  func store<Value: FixedWidthInteger>(_ value: Value, at address: UInt64) {
    unsafe mapping.base.storeBytes(of: value.littleEndian, toByteOffset: Int(address - Self.base), as: Value.self)
  }

  func load<Value: FixedWidthInteger>(_ type: Value.Type = Value.self, at address: UInt64) -> Value {
    unsafe Value(littleEndian: mapping.base.loadUnaligned(fromByteOffset: Int(address - Self.base), as: Value.self))
  }

  func place(_ slot: Int) -> UInt64 { ring + 16 * UInt64(slot) }
  func flags(_ slot: Int) -> UInt16 { load(at: place(slot) + 14) }
  func setFlags(_ slot: Int, _ flags: UInt16) { store(flags, at: place(slot) + 14) }

  // MARK: The driver's half

  struct Buffer: Equatable {
    var address: UInt64
    var length: UInt32
    var flags: UInt16 = 0
  }

  /// Writes an entry of an indirect table.
  func describe(inTable table: UInt64, _ index: Int, _ buffer: Buffer, id: UInt16 = 0) {
    let place = table + UInt64(16 * index)
    store(buffer.address, at: place)
    store(buffer.length, at: place + 8)
    store(id, at: place + 12)
    store(buffer.flags, at: place + 14)
  }

  /// Makes a list of buffers available; every descriptor except the last has a meaningless id.
  func makeAvailable(_ id: UInt16, _ list: [Buffer]) {
    let first = nextAvailable
    for (index, buffer) in list.enumerated() {
      let isLast = index == list.count - 1
      let place = place(nextAvailable.slot)
      store(buffer.address, at: place)
      store(buffer.length, at: place + 8)
      store(isLast ? id : ~id, at: place + 12)
      let flags = buffer.flags | (isLast ? 0 : Self.next) | (nextAvailable.wrap ? 0x80 : 0x8000)
      // The flags of the first one are stored last.
      if index > 0 { store(flags, at: place + 14) }
      advance(&nextAvailable, by: 1)
    }
    let head = list[0].flags | (list.count > 1 ? Self.next : 0) | (first.wrap ? 0x80 : 0x8000)
    store(head, at: place(first.slot) + 14)
    spans[id] = list.count
  }

  private func advance(_ position: inout (slot: Int, wrap: Bool), by span: Int) {
    position.slot += span
    guard position.slot >= size else { return }
    position.slot -= size
    position.wrap.toggle()
  }

  struct Used: Equatable {
    var id: UInt16
    var length: UInt32
    var isWritten: Bool
  }

  /// The next used descriptor, if there is one.
  func reap() throws -> Used? {
    let flags = flags(nextUsed.slot)
    guard flags & 0x8080 == (nextUsed.wrap ? 0x8080 : 0) else { return nil }
    let place = place(nextUsed.slot)
    let used = Used(id: load(at: place + 12), length: load(at: place + 8), isWritten: flags & Self.write != 0)
    let span = try #require(spans[used.id], "used a buffer that was not in flight: \(used)")
    spans[used.id] = nil
    advance(&nextUsed, by: span)
    return used
  }

  /// All bytes except the buffers' contents, at one moment.
  struct Moment {
    fileprivate var bytes: [UInt8]
    fileprivate var nextAvailable: (slot: Int, wrap: Bool)
    fileprivate var nextUsed: (slot: Int, wrap: Bool)
    fileprivate var spans: [UInt16: Int]
  }

  private var ringBytes: Int { Int(deviceEvents + 4 - ring) }

  var moment: Moment {
    let bytes = unsafe Array(UnsafeRawBufferPointer(start: mapping.base, count: ringBytes))
    return Moment(bytes: bytes, nextAvailable: nextAvailable, nextUsed: nextUsed, spans: spans)
  }

  func restore(_ moment: Moment) {
    unsafe moment.bytes.withUnsafeBytes { unsafe mapping.base.copyMemory(from: $0.baseAddress!, byteCount: ringBytes) }
    (nextAvailable, nextUsed, spans) = (moment.nextAvailable, moment.nextUsed, moment.spans)
  }

  func wish(_ word: UInt32) { store(word, at: driverEvents) }
  var deviceWish: UInt32 { load(at: deviceEvents) }
}

extension PackedFixture {
  /// Chains that were taken and are not answered yet.
  @safe
  final class Held {
    private var chains: [UInt16: UnsafeMutablePointer<Chain>] = unsafe [:]

    func keep(_ chain: consuming Chain) {
      let (id, place) = (chain.head, UnsafeMutablePointer<Chain>.allocate(capacity: 1))
      unsafe place.initialize(to: chain)
      unsafe chains[id] = place
    }

    func take(_ id: UInt16) -> Chain? {
      guard let place = unsafe chains[id] else { return nil }
      unsafe chains[id] = nil
      defer { unsafe place.deallocate() }
      return unsafe place.move()
    }

    deinit {
      for id in unsafe Array(chains.keys) { if let chain = take(id) { chain.abandon() } }
    }
  }

  /// Takes a chain and keeps it. - Returns: the chain, as plain values.
  func take<Book: BufferBook & ~Copyable>(
    _ queue: inout PackedRing<Book>, _ held: Held, capacity: Int = 64, retakes: Bool = false
  ) throws(QueueError) -> Popped? {
    let room = UnsafeMutablePointer<MemorySegment>.allocate(capacity: capacity)
    defer { unsafe room.deallocate() }
    var shape = unsafe ChainShape(at: room)
    let taken =
      retakes
      ? unsafe try queue.retake(into: room, capacity: capacity, shape: &shape)
      : unsafe try queue.pop(into: room, capacity: capacity, shape: &shape)
    guard let chain = consume taken else { return nil }
    let readable = unsafe shape.readableCount(from: room)
    let count = shape.defect == nil ? readable + shape.writableCount : 0
    let pieces = (0..<count).map { index in
      let segment = unsafe room[index]
      return unsafe Popped.Piece(address: Self.base + UInt64(segment.base - mapping.base), count: segment.count)
    }
    let popped = Popped(
      head: chain.head, readable: readable, writable: shape.writableCount, readableBytes: shape.readableBytes,
      writableBytes: shape.writableBytes, defect: shape.defect, pieces: pieces)
    held.keep(chain)
    return popped
  }

  /// Answers a chain that is held. It must be.
  func answer<Book: BufferBook & ~Copyable>(
    _ queue: inout PackedRing<Book>, _ held: Held, _ id: UInt16, written: UInt32 = 0
  ) {
    if let chain = held.take(id) { queue.push(chain, written: written) }
  }

  /// The same for a driver that relies on the order.
  func answerInOrder<Book: BufferBook & ~Copyable>(
    _ queue: inout PackedRing<Book>, _ held: Held, _ id: UInt16, isWhole: Bool
  ) {
    guard let chain = held.take(id) else { preconditionFailure("the chain was not taken") }
    queue.pushInOrder(chain, written: 1, isWhole: isWhole)
  }

  func popAndPush<Book: BufferBook & ~Copyable>(
    _ queue: inout PackedRing<Book>, written: UInt32 = 0, capacity: Int = 64
  ) throws(QueueError) -> Popped? {
    let held = Held()
    guard let popped = try take(&queue, held, capacity: capacity) else { return nil }
    answer(&queue, held, popped.head, written: written)
    return popped
  }

  // The test macros cannot call mutating methods of noncopyable values themselves.
  func needsCall(_ queue: inout PackedQueue) -> Bool { queue.needsCall() }
  func enableKicks(_ queue: inout PackedQueue) -> Bool { queue.enableKicks() }
  func hasAvailable(_ queue: inout PackedQueue) -> Bool { queue.hasAvailable() }
}
