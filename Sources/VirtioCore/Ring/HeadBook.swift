/// The record that a split ring keeps of the heads that it has taken: for itself only, or also for a successor.

/// Which heads are taken and not yet published as used. The ring checks this before it takes one: if a head in flight were
/// taken again, the two requests would share their buffers and their used element.
///
/// Each function is one or two stores, and every request goes through them: conformers are inlined, except for `takeBack`.
public protocol HeadBook: ~Copyable {
  /// Whether the book can hold heads that were taken before this ring started.
  static var isLasting: Bool { get }

  /// - Parameters:
  ///   - size: of the ring; heads are smaller.
  ///   - record: the memory that it is kept in, for a book that outlives the ring.
  ///   - position: the ring's position, according to the transport.
  ///   - indices: the indices in guest memory.
  init(
    size: UInt16, record: InflightRecord?, position: QueuePosition, indices: SplitIndices
  ) throws(QueueError)

  /// The index of the next available entry to take. Its low 16 bits are the ring's; the others count wraps, so that it also
  /// tells in which order heads were taken.
  var begin: UInt64 { get }
  /// The free-running index of the next used element.
  var beginUsed: UInt16 { get }

  /// Whether the head was taken and is not yet the driver's again. - Parameter head: smaller than the ring's size.
  func isTaken(_ head: UInt16) -> Bool
  /// Marks a head as taken. - Parameter order: greater than that of every head taken before.
  func take(_ head: UInt16, order: UInt64)
  /// Undoes `take`: the head turned out not to be valid for the fast path, and nothing was executed.
  mutating func takeBack(_ head: UInt16)

  /// The head's used element is written, but not published.
  func answer(_ head: UInt16)
  /// The used index has moved: all heads answered since the previous call are the driver's again.
  func didPublish(from old: UInt16, to used: UInt16)

  /// Heads that were taken before this ring started and have to be taken again, before any other.
  var interrupted: Int { get }
  /// The next one of them, in the order in which they were taken. - Returns: `nil` if there is none.
  var nextInterrupted: UInt16? { get }
  /// That head was taken again.
  mutating func resume()
}

/// The index words of a split ring as they were in guest memory when it started.
public struct SplitIndices: Sendable {
  /// `avail.idx`: free-running, modulo 2^16.
  public var available: UInt16
  /// `used.idx`: free-running, modulo 2^16.
  public var used: UInt16
  /// The head in the newest used element; `nil` if one element may stand for several chains (IN_ORDER).
  public var newest: UInt32?

  /// The parameters are the properties of the same names.
  public init(available: UInt16, used: UInt16, newest: UInt32? = nil) {
    self.available = available
    self.used = used
    self.newest = newest
  }
}

/// One queue's part of the in-flight records.
public struct InflightRecord: Sendable {
  /// The records of all queues.
  public var memory: InflightMemory
  /// The queue: 0 … queueCount − 1.
  public var queue: Int

  /// The parameters are the properties.
  public init(_ memory: InflightMemory, queue: Int) {
    self.memory = memory
    self.queue = queue
  }
}

/// A book that ends with its ring.
@safe
public struct PrivateHeads: HeadBook, ~Copyable {
  @inlinable public static var isLasting: Bool { false }

  /// For each head: taken and not yet answered.
  @usableFromInline let marks: UnsafeMutablePointer<Bool>
  public let begin: UInt64
  public let beginUsed: UInt16

  public init(
    size: UInt16, record: InflightRecord?, position: QueuePosition, indices: SplitIndices
  ) throws(QueueError) {
    precondition(record == nil, "this kind of ring keeps no in-flight record")
    begin = UInt64(position.available)
    beginUsed = position.used ?? indices.used
    unsafe marks = .allocate(capacity: Int(size))
    unsafe marks.initialize(repeating: false, count: Int(size))
  }

  deinit { unsafe marks.deallocate() }

  /// Whether the head was taken and is not yet the driver's again. - Parameter head: smaller than the ring's size.
  @inlinable @inline(__always) public func isTaken(_ head: UInt16) -> Bool { unsafe marks[Int(head)] }
  @inlinable @inline(__always) public func take(_ head: UInt16, order: UInt64) { unsafe marks[Int(head)] = true }
  /// Rare, and not inlined: otherwise the fast path would keep the mark's address on the stack for it.
  @inline(never) public func takeBack(_ head: UInt16) { unsafe marks[Int(head)] = false }
  @inlinable @inline(__always) public func answer(_ head: UInt16) { unsafe marks[Int(head)] = false }
  @inlinable @inline(__always) public func didPublish(from old: UInt16, to used: UInt16) {}

  @inlinable public var interrupted: Int { 0 }
  @inlinable public var nextInterrupted: UInt16? { nil }
  @inlinable public mutating func resume() {}
}
