/// The requests that one queue can have in flight: allocated when the queue starts, never grown.
internal import SystemPackage
internal import VirtioCore

/// What a request waits for.
enum RequestStage: UInt8 {
  /// The slot has no request, or one that has been answered.
  case none
  /// Its data: when the medium has moved it, the request is answered.
  case transfer
  /// The same, with an answer that is more than its status byte and its used element.
  case watchedTransfer
  /// A range is being discarded.
  case discard
  /// A range is being zeroed.
  case zero
  /// A range is being overwritten.
  case erase
  /// Written data is being committed to stable storage.
  case flush
  /// Of zoned disks: data for which a zone's write pointer has advanced.
  case zoneWrite
  /// Written data is being committed to stable storage, and then the zones' states.
  case zoneFlush
  /// Writes or a command before it in its zone.
  case zoneWait
  /// The zones' states are being committed to stable storage.
  case zoneRecord
}

/// One request in flight. A request that completes in place never gets here.
@safe
struct RequestSlot {
  var stage = RequestStage.none
  var status: BlockStatus = .ok
  /// Complete, but an earlier one is not: with publication in order its answer waits here.
  var isFinished = false
  /// Everything writable was written.
  var isWhole = false
  /// For ranges: they have to be on stable storage before the answer.
  var isDurable = false
  /// The range to submit next.
  var rangeIndex: UInt8 = 0
  var rangeCount: UInt8 = 0
  /// Of zoned disks: the low byte of the request's type.
  var zoneType: UInt8 = 0
  /// The used element's length, once it is known; for a transfer, the length if all of it succeeds.
  var written: UInt32 = 0
  /// Of zoned disks: the position of the queue, then the zone that is written, or the ticket of a record.
  var zoneWord: UInt32 = 0
  /// With publication in order: its number in `AnswerOrder`.
  var number: UInt32 = 0
  /// When it arrived, and its kind.
  var arrival = ArrivalWord.none
  /// While it waits for a limit: how many bytes it counts for. For a write in a zone: its sector.
  var throttledBytes: UInt64 = 0
  /// Where the status byte goes.
  var statusByte: UnsafeMutableRawPointer?
}

/// The slots, their segments and their ranges.
@safe
struct RequestSlab: ~Copyable {
  /// Segments that one request can have: as many as one vectored system call takes.
  static let segmentsPerSlot = 1024
  /// The stride of the segment area is a little longer than that, so that the first segments of neighbouring slots do not
  /// compete for the same cache sets.
  private static let segmentStride = segmentsPerSlot + 12

  let capacity: Int
  private let slots: UnsafeMutablePointer<RequestSlot>
  /// The chain of each request in flight, beside its slot: there is one if and only if the stage is not `none`.
  private let chains: UnsafeMutablePointer<Chain>
  private let segmentArea: Mapping
  private let segmentBase: UnsafeMutablePointer<MemorySegment>
  private let rangeArea: Mapping
  /// A stack, so that at low queue depth the same few slots are used and stay cached.
  private let free: UnsafeMutablePointer<UInt16>
  private var freeCount = 0
  /// How many slots, from the first, were ever in use. The others are not initialized, so that a queue that never had many
  /// requests in flight does not use the memory for them.
  private var begunCount = 0

  /// - Parameter capacity: 1 … 32768.
  init(capacity: Int) throws(Errno) {
    // Mapped, not touched: only slots that are used cost memory.
    let segmentArea = try Mapping(anonymous: capacity * Self.segmentStride * MemoryLayout<MemorySegment>.stride)
    let rangeArea = try Mapping(anonymous: capacity * BlockLimits.ranges * MemoryLayout<RequestRange>.stride)
    self.capacity = capacity
    self.segmentArea = segmentArea
    self.rangeArea = rangeArea
    unsafe slots = .allocate(capacity: capacity)
    unsafe chains = .allocate(capacity: capacity)
    unsafe segmentBase = segmentArea.base.bindMemory(
      to: MemorySegment.self, capacity: capacity * Self.segmentStride)
    unsafe free = .allocate(capacity: capacity)
  }

  deinit {
    for index in 0..<begunCount where unsafe slots[index].stage != .none { unsafe (chains + index).move().abandon() }
    unsafe slots.deallocate()
    unsafe chains.deallocate()
    unsafe free.deallocate()
  }

  var inUse: Int { begunCount &- freeCount }
  /// How many slots were ever in use.
  var begun: Int { begunCount }

  @inline(__always)
  mutating func take() -> Int? {
    guard freeCount > 0 else { return begin() }
    freeCount &-= 1
    return Int(unsafe free[freeCount])
  }

  /// The first use of a slot.
  @inline(never)
  private mutating func begin() -> Int? {
    guard begunCount < capacity else { return nil }
    let index = begunCount
    unsafe (slots + index).initialize(to: RequestSlot())
    begunCount &+= 1
    return index
  }

  @inline(__always)
  mutating func give(_ index: Int) {
    unsafe free[freeCount] = UInt16(truncatingIfNeeded: index)
    freeCount &+= 1
  }

  /// - Parameter index: a slot that was taken.
  @inline(__always)
  func slot(_ index: Int) -> UnsafeMutablePointer<RequestSlot> { unsafe slots + index }

  /// Keeps the chain of a request that is not answered yet. - Parameter stage: what it waits for; not `none`.
  @inline(__always)
  func keep(_ chain: consuming Chain, at index: Int, _ stage: RequestStage) {
    unsafe (chains + index).initialize(to: chain)
    unsafe slots[index].stage = stage
  }

  /// The chain of a request that is answered now.
  @inline(__always)
  func takeChain(at index: Int) -> Chain {
    unsafe slots[index].stage = .none
    return unsafe (chains + index).move()
  }

  /// The head of a request in flight.
  func head(at index: Int) -> UInt16 { unsafe chains[index].head }

  /// The beginning of a slot's segment area.
  @inline(__always)
  func segments(_ index: Int) -> UnsafeMutablePointer<MemorySegment> {
    unsafe segmentBase + index &* Self.segmentStride
  }

  /// A slot's private copy of its ranges.
  @inline(__always)
  func ranges(_ index: Int) -> UnsafeMutablePointer<RequestRange> {
    unsafe rangeArea.base.assumingMemoryBound(to: RequestRange.self) + index &* BlockLimits.ranges
  }
}
