/// The order in which requests were taken, for queues that publish in that order.

/// First in, first out. Callers know that it is not empty: each request in flight is in it, exactly once.
@safe
struct OrderQueue: ~Copyable {
  private let entries: UnsafeMutablePointer<UInt16>
  /// Entries are a power of two, so that no division is needed; this is one less.
  private let mask: Int
  private var head = 0
  private var tail = 0

  /// - Parameter capacity: of slots; 0: nothing is ever appended.
  init(capacity: Int) {
    var count = 1
    while count < capacity { count *= 2 }
    mask = count - 1
    unsafe entries = .allocate(capacity: count)
    unsafe entries.initialize(repeating: 0, count: count)
  }

  deinit { unsafe entries.deallocate() }

  @inline(__always)
  mutating func append(_ index: Int) {
    unsafe entries[tail & mask] = UInt16(truncatingIfNeeded: index)
    tail &+= 1
  }

  var isEmpty: Bool { head == tail }
  /// The oldest one. The queue must not be empty.
  var first: Int {
    @inline(__always) get { Int(unsafe entries[head & mask]) }
  }

  @inline(__always)
  mutating func removeFirst() { head &+= 1 }
}
