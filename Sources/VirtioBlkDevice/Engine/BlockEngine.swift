/// The protocol of engines, which move data between guest memory and the medium, and in which workers sleep.
internal import SystemPackage
internal import VirtioCore

/// One operation on the medium, given to an engine by value. The segments must stay in place until it is finished.
@safe
struct IOOperation {
  enum Kind: UInt8 {
    case read
    case write
    /// When it finishes, everything written before is on stable storage.
    case flush
    /// Afterwards the range reads as zeroes and has no space allocated.
    case punchHole
    /// Afterwards the range reads as zeroes and keeps its space.
    case zeroRange
    /// Allocates space for the range; its data is kept.
    case allocate
    /// Discards the range with the call that block devices have for that. It may take long, and engines for files do not have
    /// it; see `CallPool`.
    case blockDiscard

    /// Whether it moves data.
    var isTransfer: Bool {
      @inline(__always) get { self == .read || self == .write }
    }
  }

  /// The kind, plus 0x100 if it is durable: a single store, because each transfer is stored.
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

  /// Stores it field by field, from registers.
  @inline(__always)
  func store(in place: UnsafeMutablePointer<IOOperation>) {
    unsafe place.pointee.word = word
    unsafe place.pointee.offset = offset
    unsafe place.pointee.length = length
    unsafe place.pointee.segments = segments
    unsafe place.pointee.segmentCount = segmentCount
  }
}

/// The outcome of starting an operation.
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

/// An engine is owned by one worker and used only on its thread. It has room for as many operations as the worker has slots, so
/// starting one cannot fail.
///
/// Waiting belongs here: an engine knows best how to sleep for completions, kicks and the mailbox at once.
protocol BlockEngine: ~Copyable {
  /// Whether data really moves between guest memory and the medium.
  static var movesData: Bool { get }
  /// A transfer may be finished when `start` returns.
  static var finishesInPlace: Bool { get }
  /// Most transfers are copies by the worker's own thread, and take less than a microsecond each.
  static var copies: Bool { get }
  /// Whether a write past the end of a truncated file fails by itself.
  static var noticesCuts: Bool { get }
  /// The largest transfer that it is given at once, bytes; at least `MediumFacts.leastStepBytes`. If transfers take CPU time of
  /// the worker's own thread, it is a matter of fairness: between two steps other queues have their turn, and the CPU is
  /// yielded to other threads.
  static var stepBytes: UInt64 { get }
  /// Flushes and range operations have to be done elsewhere (a ring that polls its device accepts only transfers).
  var takesOnlyTransfers: Bool { get }
  /// It supports `blockDiscard`, and everything is discarded with it.
  var takesDiscards: Bool { get }
  /// The kernel accepts nothing from this engine any more, and nothing in flight will complete.
  var isLost: Bool { get }

  /// Other threads of this machine work on something in flight: kernel workers, or a library's threads. They may need the worker's
  /// CPU.
  var awaitsThreads: Bool { get }

  /// - Parameter operation: inside the medium; a transfer has 1 … 2^30 bytes, as many as its segments together.
  mutating func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome
  /// Submits what was started, without waiting.
  mutating func submit()
  /// Submits what was started and sleeps until there is an event, or until the time is over.
  /// - Parameter nanoseconds: `nil` sleeps without limit.
  mutating func wait(nanoseconds: Int64?)
  /// The next event; `nil`: there is none now.
  mutating func nextEvent() -> EngineEvent?

  /// There is a completion that needs no sleep: the worker keeps asking for events instead of waiting for kicks.
  var hasFinished: Bool { get }

  /// Makes visible what has already happened, without waiting: for a worker that polls instead of sleeping.
  mutating func poll()

  /// Guest memory that operations will point into from now on.
  mutating func use(_ memory: GuestMemory)

  /// Reports kicks from now on.
  /// - Throws: why it cannot; `unwatch` has to be called even then.
  mutating func watch(_ kick: KickSource, lane: Int) throws(Errno)
  /// Reports no more kicks for this lane. The source may be closed afterwards.
  mutating func unwatch(lane: Int)
  /// It is lost, and what was in flight has been given up: no completions are reported any more.
  mutating func abandon()

  /// From now on the worker has its own thread (`true`), or shares one. Only for an engine that was made with a seat.
  /// - Throws: if that is not possible; nothing has changed then.
  mutating func move(alone: Bool) throws(Errno)

  /// System calls made so far, to prove what a request costs.
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
