/// The order of the answers, for queues that publish in the order in which requests were popped.

/// Each request in flight has a number, one more than that of the request popped before it. An answer that is not due yet waits
/// here, in a table in which the next one is found without a search. If completions come in order, the table is never touched.
@safe
struct AnswerOrder: ~Copyable {
  /// The slots of waiting answers, plus one, at the index of their numbers; 0: none.
  private let waiting: UnsafeMutablePointer<UInt16>
  /// One less than the number of entries, which is a power of two, so that no division is needed.
  private let mask: UInt32
  private var nextNumber: UInt32
  /// The number of the oldest unanswered request.
  private var due: UInt32
  /// The value of `nextNumber` with which a request that completes in place can be answered at once: `due`. On lanes whose
  /// answers are never plain it is half of all numbers away from that, and so never reached.
  private var clear: UInt32
  private(set) var waitingCount = 0

  /// - Parameters:
  ///   - capacity: the number of slots; 0: no request ever gets a number.
  ///   - isWatched: whether no answer is plain.
  ///   - first: the first request's number.
  init(capacity: Int, isWatched: Bool, first: UInt32 = 0) {
    nextNumber = first
    due = first
    clear = isWatched ? first &+ 1 << 31 : first
    var count = 1
    while count < capacity { count *= 2 }
    mask = UInt32(count - 1)
    unsafe waiting = .allocate(capacity: count)
    unsafe waiting.initialize(repeating: 0, count: count)
  }

  deinit { unsafe waiting.deallocate() }

  /// Whether every request with a number has been answered.
  var isEmpty: Bool { nextNumber == due }
  /// The same, if a plain answer is enough.
  var isClear: Bool {
    @inline(__always) get { nextNumber == clear }
  }

  /// A number for a request that was just popped.
  @inline(__always)
  mutating func takeNumber() -> UInt32 {
    defer { nextNumber &+= 1 }
    return nextNumber
  }

  @inline(__always)
  func isDue(_ number: UInt32) -> Bool { number == due }

  /// The request that was due has been answered.
  @inline(__always)
  mutating func advance() {
    due &+= 1
    clear &+= 1
  }

  /// Stores an answer until it is due.
  mutating func wait(_ index: Int, _ number: UInt32) {
    unsafe waiting[Int(number & mask)] = UInt16(truncatingIfNeeded: index &+ 1)
    waitingCount &+= 1
  }

  /// Takes the slot of the answer that is due, if it waits here. The next one is due then.
  mutating func takeDue() -> Int? {
    guard waitingCount > 0 else { return nil }
    let place = Int(due & mask)
    guard let index = unsafe waiting[place] > 0 ? Int(waiting[place]) - 1 : nil else { return nil }
    unsafe waiting[place] = 0
    waitingCount &-= 1
    advance()
    return index
  }
}
