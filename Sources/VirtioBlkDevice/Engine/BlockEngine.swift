/// What moves bytes between guest memory and the medium, and what a worker sleeps in.
internal import SystemPackage
internal import VirtioCore

/// One operation on the medium, given to an engine by value. The segments stay where they are until it is finished.
@safe
struct IOOperation {
  enum Kind: UInt8 {
    case read
    case write
    /// Everything written before is on stable storage when it finishes.
    case flush
    /// The range reads as zeroes and holds no space.
    case punchHole
    /// The range reads as zeroes and keeps its space.
    case zeroRange
    /// The range holds space; what is written there stays.
    case allocate
    /// The range's content does not matter any more: the call that block devices have for it. It may take long, and no engine
    /// of files has it; see `CallPool`.
    case blockDiscard

    /// Data moves.
    var isTransfer: Bool {
      @inline(__always) get { self == .read || self == .write }
    }
  }

  /// The kind, and 0x100 where it is durable: one store, as each transfer is written down.
  private var word: UInt16
  /// Bytes from the beginning of the medium.
  var offset: UInt64
  /// Bytes; for reads and writes the sum of the segments.
  var length: UInt64
  var segments: UnsafeMutablePointer<MemorySegment>?
  var segmentCount: Int

  @inline(__always)
  init(
    kind: Kind, isDurable: Bool = false, offset: UInt64 = 0, length: UInt64 = 0,
    segments: UnsafeMutablePointer<MemorySegment>? = nil, segmentCount: Int = 0
  ) {
    word = UInt16(kind.rawValue) | (isDurable ? Self.durable : 0)
    self.offset = offset
    self.length = length
    unsafe self.segments = segments
    self.segmentCount = segmentCount
  }

  private static var durable: UInt16 { @inline(__always) get { 0x100 } }

  var kind: Kind {
    // Only kinds are stored there.
    @inline(__always) get { unsafe unsafeBitCast(UInt8(truncatingIfNeeded: word), to: Kind.self) }
    @inline(__always) set { word = word & Self.durable | UInt16(newValue.rawValue) }
  }
  /// A write that is on stable storage when it finishes.
  var isDurable: Bool {
    @inline(__always) get { word & Self.durable != 0 }
    @inline(__always) set { word = word & ~Self.durable | (newValue ? Self.durable : 0) }
  }

  /// Stores the same, number by number, as they are in registers.
  @inline(__always)
  func store(in place: UnsafeMutablePointer<IOOperation>) {
    unsafe place.pointee.word = word
    unsafe place.pointee.offset = offset
    unsafe place.pointee.length = length
    unsafe place.pointee.segments = segments
    unsafe place.pointee.segmentCount = segmentCount
  }
}

/// What became of an operation when it was started.
enum IOOutcome {
  /// A completion with its tag will come.
  case pending
  /// Done in place: bytes transferred, 0 for operations without data, or a negative errno.
  case finished(Int32)
}

/// Something that a worker was waiting for.
enum EngineEvent {
  case completion(tag: UInt32, result: Int32)
  /// The driver of this lane kicked, or might have.
  case kick(lane: Int)
  case mailbox
}

/// An engine is owned by one worker and used from its thread alone. It has room for as many operations as the worker has
/// slots, so starting one cannot fail.
///
/// Waiting belongs here: an engine knows best how to sleep for completions, kicks and the mailbox at once.
protocol BlockEngine: ~Copyable {
  /// Data really moves between guest memory and the medium.
  static var movesData: Bool { get }
  /// A transfer may be finished when `start` returns.
  static var finishesInPlace: Bool { get }
  /// Most transfers are copies by the worker's own thread, and take less than a microsecond each.
  static var copies: Bool { get }
  /// A write past the end of a file that was cut fails by itself.
  static var noticesCuts: Bool { get }
  /// Bytes of the largest transfer that it is given at once; at least `MediumFacts.leastStepBytes`. Where transfers take the CPU time
  /// of the worker's own thread it is a matter of fairness: between two steps others have their turn, and the CPU is offered to
  /// other threads.
  static var stepBytes: UInt64 { get }
  /// Flushes and everything about ranges have to be done elsewhere (a ring that polls its device takes nothing but transfers).
  var takesOnlyTransfers: Bool { get }
  /// It has `blockDiscard`, and that is how everything is discarded here.
  var takesDiscards: Bool { get }
  /// The kernel takes nothing from this engine any more, and nothing in flight will complete.
  var isLost: Bool { get }

  /// Something is in flight that other threads of this machine work on: kernel workers, a library's. They may have to run on the
  /// worker's CPU.
  var awaitsThreads: Bool { get }

  /// - Parameter operation: inside the medium; a transfer has at least one byte and at most 2^30, as many as its segments.
  mutating func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome
  /// Hands over what was started, without waiting.
  mutating func submit()
  /// Hands over what was started and sleeps until there is an event, or until the time is over.
  /// - Parameter nanoseconds: `nil` sleeps without limit.
  mutating func wait(nanoseconds: Int64?)
  /// The next event, `nil` when there is none now.
  mutating func nextEvent() -> EngineEvent?

  /// There is a completion that needs no sleep: the worker continues to ask for it, instead of asking for kicks.
  var hasFinished: Bool { get }

  /// Makes visible what has already happened, without waiting: for a worker that looks instead of sleeping.
  mutating func poll()

  /// Guest memory that operations will point into from now on.
  mutating func use(_ memory: GuestMemory)

  /// Reports kicks from now on.
  /// - Throws: why it cannot; `unwatch` is due all the same.
  mutating func watch(_ kick: KickSource, lane: Int) throws(Errno)
  /// Reports no more kicks for this lane. The source may be closed afterwards.
  mutating func unwatch(lane: Int)
  /// It is lost, and what was in flight was given up: nothing of it is reported any more.
  mutating func abandon()

  /// From now on the worker has a thread of its own (`true`), or one with others. Only of an engine that was made with a seat.
  /// - Throws: it cannot be, and everything stays as it is.
  mutating func move(alone: Bool) throws(Errno)

  /// System calls made so far, for the proof of what a request costs.
  var systemCalls: UInt64 { get }
}

extension BlockEngine where Self: ~Copyable {
  mutating func use(_ memory: GuestMemory) {}
  mutating func abandon() {}
  mutating func move(alone: Bool) throws(Errno) {}
  var hasFinished: Bool { false }
  static var noticesCuts: Bool { false }
  static var finishesInPlace: Bool { true }
  static var copies: Bool { false }
  static var stepBytes: UInt64 { MediumFacts.stepBytes }
  var takesOnlyTransfers: Bool { false }
  var takesDiscards: Bool { false }
  var isLost: Bool { false }
  var awaitsThreads: Bool { false }
}
