/// The requests that one queue can have under way: allocated when the queue starts, never grown.
internal import SystemPackage
internal import VirtioCore

/// Where a request stands.
enum RequestStage: UInt8 {
  /// All data was handed over in one operation: if that transfers everything, the request is done.
  case whole
  /// Data moves between the guest's segments and the medium.
  case transfer
  /// Ranges are being discarded.
  case discard
  /// Ranges are being zeroed.
  case zero
  /// What was written goes to stable storage.
  case flush
}

/// One request under way. One that finishes in place never gets here.
@safe
struct RequestSlot: ~Copyable {
  var chain: Chain?
  var stage: RequestStage = .transfer
  var status: BlockStatus = .ok
  /// Answered, but an earlier one is not: with publication in order it waits here.
  var isFinished = false
  /// How often this step was tried again without progress.
  var retries: UInt8 = 0
  /// How a range is being zeroed; see `Lane.zeroNext`.
  var method: ZeroMethod = .punch
  var rangeIndex: UInt8 = 0
  var rangeCount: UInt8 = 0

  /// Where the status goes.
  var statusByte: UnsafeMutableRawPointer?
  /// Bytes that the device may write, with the status.
  var writableBytes: UInt64 = 0
  /// Bytes put into guest memory so far, from the first writable byte on.
  var written: UInt64 = 0
  /// What is left of a transfer, or of the range being zeroed.
  var operation = unsafe IOOperation(kind: .read)
  /// An aligned copy of a piece of the data, while the medium cannot take the guest's own buffers.
  var bounce: Bounce?

  /// Counts a step that made no progress. - Returns: whether it may be tried again.
  mutating func retry() -> Bool {
    retries &+= 1
    return retries < 100
  }
}

/// The slots, their segments and their ranges.
@safe
struct RequestSlab: ~Copyable {
  /// Pieces that one request can have: what one vectored call of the kernel takes.
  static let segmentsPerSlot = 1024
  /// Slots of the segment area are a little longer than that, so that the first pieces of neighbours do not fall into the
  /// same lines of the processor's cache.
  private static let segmentStride = segmentsPerSlot + 12

  let capacity: Int
  private let slots: UnsafeMutablePointer<RequestSlot>
  private let segmentArea: Mapping
  private let segmentBase: UnsafeMutablePointer<MemorySegment>
  private let rangeArea: Mapping
  /// A stack, so that at low depth the same few slots are used and stay warm.
  private let free: UnsafeMutablePointer<UInt16>
  private var freeCount = 0
  /// Slots from the front that were in use at some time. The others are not initialized, so that a queue that has never been
  /// deep costs no memory for its depth.
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
    unsafe segmentBase = segmentArea.base.bindMemory(
      to: MemorySegment.self, capacity: capacity * Self.segmentStride)
    unsafe free = .allocate(capacity: capacity)
  }

  deinit {
    unsafe slots.deinitialize(count: begunCount)
    unsafe slots.deallocate()
    unsafe free.deallocate()
  }

  var inUse: Int { begunCount &- freeCount }

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
