/// The order of the answers, for queues that publish in the order in which requests were taken.

/// Each request in flight has a number, one more than the one taken before it. An answer whose number is not due yet waits here: in
/// a table, where the next one is found without a search. Where completions come in order it is never touched.
@safe
struct AnswerOrder: ~Copyable {
  /// The slots of answers that wait, plus one, each at its number; 0: none.
  private let waiting: UnsafeMutablePointer<UInt16>
  /// Places are a power of two, so that no division is needed; this is one less.
  private let mask: UInt32
  private var nextNumber: UInt32
  /// The number of the oldest request without an answer.
  private var due: UInt32
  /// What `nextNumber` is when a request that completes in place can be answered there: `due`; half of all numbers away from
  /// it, and so never, on lanes whose answers are more than that.
  private var clear: UInt32
  private(set) var waitingCount = 0

  /// - Parameters:
  ///   - capacity: of slots; 0: no request ever gets a number.
  ///   - isWatched: no answer is plain.
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

  /// Every request that has a number has been answered.
  var isEmpty: Bool { nextNumber == due }
  /// The same, and a plain answer is enough.
  var isClear: Bool {
    @inline(__always) get { nextNumber == clear }
  }

  /// The number of a request that was taken just now.
  @inline(__always)
  mutating func takeNumber() -> UInt32 {
    defer { nextNumber &+= 1 }
    return nextNumber
  }

  @inline(__always)
  func isDue(_ number: UInt32) -> Bool { number == due }

  /// The one that was due is answered.
  @inline(__always)
  mutating func advance() {
    due &+= 1
    clear &+= 1
  }

  /// An answer waits until it is due.
  mutating func wait(_ index: Int, _ number: UInt32) {
    unsafe waiting[Int(number & mask)] = UInt16(truncatingIfNeeded: index &+ 1)
    waitingCount &+= 1
  }

  /// The slot of the answer that is due, if it waits here. The next one is due then.
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
