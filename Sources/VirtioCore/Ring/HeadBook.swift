/// What a split ring records about the heads that it has taken: for itself only, or also for a successor.

/// Which heads are taken and not yet published as used. The ring checks this before it takes one: if a head that is in flight
/// is made available again, the two would share their buffers and their answer.
///
/// Each function is one or two stores, and every request goes through them: conformers are inlined, but for `takeBack`.
public protocol HeadBook: ~Copyable {
  /// Whether the book can hold heads that were taken before this ring started.
  static var isLasting: Bool { get }

  /// - Parameters:
  ///   - size: of the ring; heads are smaller.
  ///   - record: the memory that it is kept in, for a book that outlives the ring.
  ///   - position: where the ring stands according to the transport.
  ///   - indices: what the ring in memory says.
  init(
    size: UInt16, record: InflightRecord?, position: QueuePosition, indices: SplitIndices
  ) throws(QueueError)

  /// The index of the next available entry to take. Its low 16 bits are the ring's; the others count wraps, so that it also
  /// tells in which order heads were taken.
  var begin: UInt64 { get }
  /// The free-running index of the next used element.
  var beginUsed: UInt16 { get }

  func isTaken(_ head: UInt16) -> Bool
  /// - Parameter order: greater than that of every head taken before.
  func take(_ head: UInt16, order: UInt64)
  /// It turned out that it cannot be taken, and nothing was executed.
  func takeBack(_ head: UInt16)

  /// The head's used element is in place, but not published.
  func answer(_ head: UInt16)
  /// The used index has moved: all heads answered since the previous call are the driver's again.
  func didPublish(from old: UInt16, to used: UInt16)

  /// Heads that were taken before this ring started and have to be taken again, before any other.
  var interrupted: Int { get }
  /// The next one of them, in the order in which they were taken. - Returns: `nil` when there is none.
  var nextInterrupted: UInt16? { get }
  /// It was taken again.
  mutating func resume()
}

/// The index words of a split ring as they were in guest memory when it started.
public struct SplitIndices: Sendable {
  public var available: UInt16
  public var used: UInt16
  /// What both rings name, slot by slot; `nil` where one used element may stand for many, and for a book that does not last.
  public var names: Names?

  /// As many of each as the ring has entries. Guests write them.
  public struct Names: Sendable {
    public var available: [UInt16]
    public var used: [UInt32]

    public init(available: [UInt16], used: [UInt32]) {
      self.available = available
      self.used = used
    }
  }

  public init(available: UInt16, used: UInt16, names: Names? = nil) {
    self.available = available
    self.used = used
    self.names = names
  }
}

/// One queue's part of the record.
public struct InflightRecord: Sendable {
  public var memory: InflightMemory
  public var queue: Int

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
    precondition(record == nil, "this ring writes down nothing for others")
    begin = UInt64(position.available)
    beginUsed = position.used ?? indices.used
    unsafe marks = .allocate(capacity: Int(size))
    unsafe marks.initialize(repeating: false, count: Int(size))
  }

  deinit { unsafe marks.deallocate() }

  @inlinable @inline(__always) public func isTaken(_ head: UInt16) -> Bool { unsafe marks[Int(head)] }
  @inlinable @inline(__always) public func take(_ head: UInt16, order: UInt64) { unsafe marks[Int(head)] = true }
  /// Rare, and not inlined: the fast path would otherwise keep the mark's address for it on the stack.
  @inline(never) public func takeBack(_ head: UInt16) { unsafe marks[Int(head)] = false }
  @inlinable @inline(__always) public func answer(_ head: UInt16) { unsafe marks[Int(head)] = false }
  @inlinable @inline(__always) public func didPublish(from old: UInt16, to used: UInt16) {}

  @inlinable public var interrupted: Int { 0 }
  @inlinable public var nextInterrupted: UInt16? { nil }
  @inlinable public mutating func resume() {}
}
