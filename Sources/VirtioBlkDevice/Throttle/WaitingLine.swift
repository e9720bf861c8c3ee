/// Requests of one queue and one kind that wait for a limit.

/// A FIFO. It allocates no memory before `open`, so a queue that is never limited has none for it.
@safe
struct WaitingLine: ~Copyable {
  /// The most requests of one booking; a limit that allows more in the time of one booking takes several bookings.
  private static let bookedAtOnce = 128

  /// Slots, in a ring.
  private var slots: UnsafeMutableBufferPointer<UInt16>
  private var head = 0
  private(set) var count = 0
  /// The sizes of those that are booked for.
  private var sizes: UnsafeMutableBufferPointer<UInt64>
  /// What is booked for the first of them and not used yet; `nil`: nothing.
  private var booking: Booking?

  init() {
    unsafe slots = UnsafeMutableBufferPointer(start: nil, count: 0)
    unsafe sizes = UnsafeMutableBufferPointer(start: nil, count: 0)
  }

  deinit {
    unsafe slots.deallocate()
    unsafe sizes.deallocate()
  }

  /// Makes room, once. - Parameter capacity: slots of the queue.
  mutating func open(capacity: Int) {
    guard unsafe slots.isEmpty else { return }
    unsafe slots = .allocate(capacity: capacity)
    unsafe slots.initialize(repeating: 0)
    unsafe sizes = .allocate(capacity: Self.bookedAtOnce)
    unsafe sizes.initialize(repeating: 0)
  }

  var isEmpty: Bool { count == 0 }
  /// Whether exactly one is waiting.
  var isSingle: Bool { count == 1 }

  private func slot(_ place: Int) -> Int { Int(unsafe slots[(head + place) % slots.count]) }

  private mutating func removeFirst() -> Int {
    let first = slot(0)
    unsafe head = (head + 1) % slots.count
    count -= 1
    if let left = booking { booking = left.count > 1 ? Booking(due: left.due, count: left.count - 1) : nil }
    return first
  }

  /// When the next one may start; `nil` if none is waiting.
  var due: UInt64? { isEmpty ? nil : booking?.due ?? 0 }

  mutating func append(_ index: Int) {
    precondition(unsafe count < slots.count, "more requests in flight than slots")
    unsafe slots[(head + count) % slots.count] = UInt16(index)
    count += 1
  }

  /// The booking is void.
  mutating func forgetBooking() { booking = nil }

  /// Takes the next one if it may start now.
  ///
  /// - Parameter slab: where the sizes of the requests are.
  mutating func next(_ kind: ThrottledKind, _ throttle: DiskThrottle, _ slab: borrowing RequestSlab, now: UInt64) -> Int? {
    guard count > 0 else { return nil }
    if booking == nil {
      let some = min(count, Self.bookedAtOnce)
      for place in 0..<some { unsafe sizes[place] = slab.slot(slot(place)).pointee.throttledBytes }
      booking = unsafe throttle.book(kind, sizes: UnsafeBufferPointer(start: sizes.baseAddress, count: some), now: now)
    }
    guard let booking, booking.due <= now else { return nil }
    return removeFirst()
  }

  /// Takes the next one whatever the limits say.
  ///
  /// - Returns: the slot, and whether its tokens were taken already.
  mutating func nextOnCredit() -> (index: Int, isPaid: Bool)? {
    guard count > 0 else { return nil }
    let isPaid = booking != nil
    return (removeFirst(), isPaid)
  }

  mutating func removeAll() {
    count = 0
    booking = nil
  }
}
