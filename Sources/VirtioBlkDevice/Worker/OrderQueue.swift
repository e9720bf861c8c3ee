/// The order in which requests were taken, for queues that publish in that order.

/// First in, first out; as many entries as the lane has slots.
@safe
struct OrderQueue: ~Copyable {
  private let entries: UnsafeMutablePointer<UInt16>
  private let capacity: Int
  private var head = 0
  private var count = 0

  init(capacity: Int) {
    self.capacity = capacity
    unsafe entries = .allocate(capacity: capacity)
    unsafe entries.initialize(repeating: 0, count: capacity)
  }

  deinit { unsafe entries.deallocate() }

  mutating func append(_ index: Int) {
    precondition(count < capacity, "more requests under way than slots")
    let place = head &+ count
    // No division: there is one for each request.
    unsafe entries[place < capacity ? place : place &- capacity] = UInt16(truncatingIfNeeded: index)
    count &+= 1
  }

  var isEmpty: Bool { count == 0 }
  var first: Int? { count > 0 ? Int(unsafe entries[head]) : nil }

  mutating func removeFirst() {
    head = head &+ 1 == capacity ? 0 : head &+ 1
    count &-= 1
  }
}
