/// The record that a packed ring keeps of the chains that it has taken: none, or enough for a successor to continue.

/// The book of a packed ring. The ring itself knows which buffer ids are in flight and how many slots each covers; the book
/// keeps the data that has to outlive the ring.
///
/// Every request goes through these functions: conformers are inlined, except for a long `take` or `publish`.
public protocol BufferBook: ~Copyable {
  /// Whether the book can hold chains that were taken before this ring started. A ring with such a book lets
  /// the book publish its answers; without one it publishes a batch at once.
  static var isLasting: Bool { get }

  /// - Parameters:
  ///   - size: of the ring; slots are smaller.
  ///   - record: the memory that it is kept in, for a book that outlives the ring.
  ///   - available: the position of the next available descriptor, according to the transport.
  ///   - used: the position of the next used descriptor, according to the transport.
  ///   - ring: the descriptor ring in guest memory.
  init(
    size: UInt16, record: InflightRecord?, available: PackedPosition, used: PackedPosition, ring: UnsafeMutableRawPointer
  ) throws(QueueError)

  /// Where the ring takes the next chain.
  var begin: PackedPosition { get }
  /// Where the next used descriptor goes.
  var beginUsed: PackedPosition { get }

  /// A request is about to be executed. - Parameters:
  ///   - place: of its first descriptor, in the ring.
  ///   - span: how many slots it covers.
  mutating func take(_ id: UInt16, at place: UnsafeMutableRawPointer, span: Int)
  /// Publishes each answer of a batch separately, so that after a crash each is either published or not.
  ///
  /// - Parameters:
  ///   - answers: at least one.
  ///   - first: where the first used descriptor goes, and the wrap counter there.
  mutating func publish(
    _ answers: UnsafeMutablePointer<PackedAnswer>, count: Int, at first: UnsafeMutableRawPointer, wrap: Bool)

  /// Chains that were taken before this ring started and have to be taken again, before any other.
  var interrupted: Int { get }
  /// Buffer id and number of slots of each of them; read once.
  var interruptedBuffers: [(id: UInt16, span: Int)] { get }
  /// The next one of them, in the order in which they were taken, with its descriptors as they were then. - Returns: `nil` if
  /// there is none.
  func nextInterrupted() -> InterruptedChain?
  /// That chain was taken again.
  mutating func resume()
}

/// A position in the two forms that a record stores: as the current one, and as the previous one.
struct PackedStand {
  var slot: UInt64
  /// The wrap counter, in bit 32, and in bit 40.
  private var wrap: UInt64
  private var wrapBefore: UInt64

  /// - Parameter wrap: the wrap counter, in bit 32.
  init(slot: UInt64, wrap: UInt64) {
    self.slot = slot
    self.wrap = wrap
    wrapBefore = wrap &<< 8
  }

  init(_ position: PackedPosition) { self.init(slot: UInt64(position.slot), wrap: position.wrap ? 1 << 32 : 0) }

  /// The slot in bits 0 … 15, the wrap counter in bit 32.
  var now: UInt64 { slot | wrap }
  /// The slot in bits 16 … 31, the wrap counter in bit 40.
  var before: UInt64 { slot &<< 16 | wrapBefore }

  mutating func toggleWrap() {
    wrap ^= 1 << 32
    wrapBefore ^= 1 << 40
  }
}

/// A chain as it was recorded when it was taken.
public struct InterruptedChain {
  /// Its buffer ID, with which it is returned to the driver.
  public let id: UInt16
  @usableFromInline let descriptors: [PackedDescriptor]

  @usableFromInline init(id: UInt16, descriptors: [PackedDescriptor]) {
    self.id = id
    self.descriptors = descriptors
  }
}

/// A book that ends with its ring.
public struct PrivateBuffers: BufferBook, ~Copyable {
  @inlinable public static var isLasting: Bool { false }

  public let begin: PackedPosition
  public let beginUsed: PackedPosition

  public init(
    size: UInt16, record: InflightRecord?, available: PackedPosition, used: PackedPosition, ring: UnsafeMutableRawPointer
  ) throws(QueueError) {
    precondition(record == nil, "this kind of ring keeps no in-flight record")
    begin = available
    beginUsed = used
  }

  @inlinable @inline(__always) public func take(_ id: UInt16, at place: UnsafeMutableRawPointer, span: Int) {}
  @inlinable @inline(__always) public func publish(
    _ answers: UnsafeMutablePointer<PackedAnswer>, count: Int, at first: UnsafeMutableRawPointer, wrap: Bool
  ) {}

  @inlinable public var interrupted: Int { 0 }
  @inlinable public var interruptedBuffers: [(id: UInt16, span: Int)] { [] }
  @inlinable public func nextInterrupted() -> InterruptedChain? { nil }
  @inlinable public mutating func resume() {}
}
