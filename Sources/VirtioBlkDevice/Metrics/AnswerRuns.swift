/// Answers whose times are still to be recorded: those of requests that arrived together share an entry, so that one more costs
/// a comparison and an addition.

/// When a request arrived and what kind it is, in one word.
struct ArrivalWord: Equatable {
  private static let kindBits: UInt64 = 4
  /// For every request if no times are recorded: all transfers then look alike.
  static let none = ArrivalWord(raw: 1)
  /// The same if transfers have to be distinguished.
  static let untimed = ArrivalWord(time: 0)
  /// No request has it.
  static let never = ArrivalWord(raw: .max)

  private let raw: UInt64

  private init(raw: UInt64) { self.raw = raw }

  /// - Parameter time: of a `TickClock`.
  init(time: UInt64) { raw = time &<< Self.kindBits }

  /// The same moment, with a kind.
  @inline(__always)
  func with(_ kind: ArrivalKind) -> ArrivalWord { ArrivalWord(raw: raw | kind.bits) }

  var time: UInt64 { raw &>> Self.kindBits }
  /// The number of a `RequestKind`.
  var kind: Int { Int(truncatingIfNeeded: raw & 7) }
  var isTransfer: Bool { raw & ArrivalKind.other == 0 }
}

/// A `RequestKind` as a few bits of a word, which are at hand when a transfer is popped.
struct ArrivalKind {
  fileprivate static let other: UInt64 = 8
  fileprivate let bits: UInt64

  @inline(__always)
  private init(bits: UInt64) { self.bits = bits }

  /// One instruction each, wherever a request is popped.
  static var read: ArrivalKind { @inline(__always) get { ArrivalKind(bits: 0) } }
  static var write: ArrivalKind { @inline(__always) get { ArrivalKind(bits: 1) } }
  /// A write whose answer is never plain.
  static var zonedWrite: ArrivalKind { @inline(__always) get { ArrivalKind(bits: 1 | other) } }
  static var flush: ArrivalKind { @inline(__always) get { ArrivalKind(bits: 2 | other) } }
  static var discard: ArrivalKind { @inline(__always) get { ArrivalKind(bits: 3 | other) } }
  static var writeZeroes: ArrivalKind { @inline(__always) get { ArrivalKind(bits: 4 | other) } }
  static var unknown: ArrivalKind { @inline(__always) get { ArrivalKind(bits: 5 | other) } }

  /// - Parameter kind: of a transfer.
  @inline(__always)
  init(_ kind: IOOperation.Kind) { bits = UInt64(truncatingIfNeeded: kind.rawValue) }

  var isWrite: Bool { bits == 1 }
}

/// The answers of one lane in one turn, of requests that had a slot.
@safe
struct AnswerRuns: ~Copyable {
  private static let capacity = 64
  typealias Run = (arrival: ArrivalWord, count: UInt64)

  /// The arrival of plain transfers of the present run: those that need only a status and a used element.
  private var plain: ArrivalWord
  /// The present run, to which the last answer belongs.
  private var arrival = ArrivalWord.never
  private var count: UInt64 = 0
  /// The runs before it.
  private let runs: UnsafeMutablePointer<Run>
  private var closed = 0

  /// - Parameter plain: if nothing is recorded: the arrival of all plain transfers.
  init(plain: ArrivalWord = .never) {
    self.plain = plain
    unsafe runs = .allocate(capacity: Self.capacity)
  }
  deinit { unsafe runs.deallocate() }

  var isEmpty: Bool { count == 0 }

  /// No answer is plain until one is added as plain.
  mutating func stopPlain() { plain = .never }
  /// If nothing is recorded: all plain transfers are plain again.
  mutating func startPlain() { plain = ArrivalWord.none.with(.read) }

  /// Counts the answer to a plain transfer of the present run. - Returns: false if it is something else.
  @inline(__always)
  mutating func extendPlain(_ arrival: ArrivalWord) -> Bool {
    guard arrival == plain else { return false }
    count &+= 1
    return true
  }

  /// Counts any answer. - Returns: false if there is no room: call `takeAll` first.
  mutating func add(_ arrival: ArrivalWord, isPlain: Bool) -> Bool {
    if arrival != self.arrival {
      guard closed < Self.capacity else { return false }
      if count > 0 {
        unsafe (runs + closed).initialize(to: (self.arrival, count))
        closed &+= 1
      }
      self.arrival = arrival
      plain = isPlain ? arrival : .never
      count = 0
    }
    count &+= 1
    return true
  }

  /// Takes all of them. The next answer begins a new run.
  ///
  /// - Returns: how many there were.
  mutating func takeAll(_ each: (Run) -> Void) -> UInt64 {
    var total = count
    for index in 0..<closed {
      unsafe total &+= runs[index].count
      unsafe each(runs[index])
    }
    if count > 0 { each((arrival, count)) }
    closed = 0
    count = 0
    arrival = .never
    plain = .never
    return total
  }
}
