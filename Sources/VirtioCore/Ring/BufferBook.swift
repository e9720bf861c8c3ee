/// What a packed ring writes down about the chains that it has taken: nothing, or enough for whoever comes after it.

/// The record of a packed ring. The ring itself knows which buffer ids are in flight and how many slots each covers; a book
/// keeps what has to outlive the ring.
///
/// Verbs are in the way of every request: conformers are inlined as a whole.
public protocol BufferBook: ~Copyable {
  /// Whether chains can be found that were taken before this ring began. A ring with such a book shows its answers one by one,
  /// each between `willShow` and `didShow`; one without shows a batch at once.
  static var isLasting: Bool { get }

  /// - Parameters:
  ///   - size: of the ring; slots are smaller.
  ///   - record: where it is written down, for a book that lasts.
  ///   - available: where the driver's transport says that the ring stands.
  ///   - used: the same of what was used.
  ///   - ring: the descriptor ring in guest memory.
  init(
    size: UInt16, record: InflightRecord?, available: PackedPosition, used: PackedPosition, ring: UnsafeMutableRawPointer
  ) throws(QueueError)

  /// Where the ring takes the next chain.
  var begin: PackedPosition { get }
  /// Where the next used descriptor goes.
  var beginUsed: PackedPosition { get }

  /// A chain is about to be executed. - Parameters:
  ///   - place: of its first descriptor, in the ring.
  ///   - span: how many slots it covers.
  mutating func take(_ id: UInt16, at place: UnsafeMutableRawPointer, span: Int)
  /// Its used descriptor is going to be shown. - Parameter next: where the used descriptor after it goes.
  mutating func willShow(_ id: UInt16, next: PackedStand)
  /// It was: the chain is the driver's again.
  mutating func didShow(_ id: UInt16, next: PackedStand)

  /// Chains that were taken before this ring began and have to be taken again, before any other one.
  var interrupted: Int { get }
  /// Buffer id and number of slots of every one of them; asked once.
  var interruptedBuffers: [(id: UInt16, span: Int)] { get }
  /// The next one of them, in the order in which they were taken, as its descriptors were. - Returns: `nil` when there is none.
  func nextInterrupted() -> InterruptedChain?
  /// It was taken again.
  mutating func resume()
}

/// A position in the two shapes that a record has it in: as the one that counts, and as the previous one.
@frozen
public struct PackedStand {
  /// The slot in bits 0 … 15, the wrap counter in bit 32.
  @usableFromInline let now: UInt64
  /// The slot in bits 16 … 31, the wrap counter in bit 40.
  @usableFromInline let before: UInt64

  /// - Parameter wrap: the wrap counter, in bit 32.
  @inlinable @inline(__always)
  init(slot: UInt64, wrap: UInt64) {
    now = slot | wrap
    before = slot &<< 16 | wrap &<< 8
  }

  @inlinable
  init(_ position: PackedPosition) { self.init(slot: UInt64(position.slot), wrap: position.wrap ? 1 << 32 : 0) }
}

/// A chain as it was written down when it was taken.
public struct InterruptedChain {
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
    precondition(record == nil, "this ring writes down nothing for others")
    begin = available
    beginUsed = used
  }

  @inlinable @inline(__always) public func take(_ id: UInt16, at place: UnsafeMutableRawPointer, span: Int) {}
  @inlinable @inline(__always) public func willShow(_ id: UInt16, next: PackedStand) {}
  @inlinable @inline(__always) public func didShow(_ id: UInt16, next: PackedStand) {}

  @inlinable public var interrupted: Int { 0 }
  @inlinable public var interruptedBuffers: [(id: UInt16, span: Int)] { [] }
  @inlinable public func nextInterrupted() -> InterruptedChain? { nil }
  @inlinable public mutating func resume() {}
}
