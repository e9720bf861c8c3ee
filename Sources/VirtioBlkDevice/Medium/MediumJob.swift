/// What a medium remembers about one job.
internal import SystemPackage
internal import VirtioCore

/// One transfer, flush, discard or zeroing in progress. All fields are plain numbers, and all zeroes is a valid value.
@safe
struct MediumJob {
  enum Stage: UInt8 {
    /// A transfer that was submitted as it is: it is done if all of it was transferred.
    case whole
    /// A transfer that continues in parts.
    case parts
    case flush
    case discard
    case zero
    /// A word from somebody else, which is posted to the board.
    case word
  }

  /// What was requested. It does not change; `done` says how much of it is done.
  var operation = unsafe IOOperation(kind: .read)
  var stage = Stage.whole
  /// How often the current part was retried without progress.
  var retries: UInt8 = 0
  /// How the current range is zeroed, and whether that may deallocate its space.
  var method = ZeroMethod.punch
  /// The medium did not accept the buffers as they are: the rest goes through a copy.
  var mustBounce = false
  /// It succeeded, and waits for the results of concurrent flushes and stable writes.
  var waitsForOthers = false
  /// The number of its bounce buffer, plus 1; 0: none.
  var buffer: Int32 = 0
  /// Bytes that are done.
  var done: UInt32 = 0
  /// Bytes of the part in flight.
  var part: UInt32 = 0
  /// In `SyncLedger`: its own number, then the number of the last call that it waits for; 0: it is not such a call.
  var sync: UInt64 = 0
  /// The pieces of that part, if they are not the operation's own segments; room for `operation.segmentCount`.
  var pieces: UnsafeMutablePointer<MemorySegment>?

  /// - Parameter stage: not `whole`, which needs nothing but the operation.
  init(_ stage: Stage, _ operation: IOOperation) {
    self.stage = stage
    self.operation = operation
  }

  /// Bytes that are left to do.
  var left: UInt64 { operation.length &- UInt64(done) }

  /// Counts an attempt that made no progress. - Returns: whether there may be another.
  mutating func retry(atMost limit: UInt8) -> Bool {
    retries &+= 1
    return retries < limit
  }

  /// The next part of what is left, with its own pieces.
  mutating func takePart(_ bytes: UInt64) -> IOOperation {
    part = UInt32(truncatingIfNeeded: bytes)
    let isWhole = done == 0 && bytes == operation.length
    var operation = operation
    operation.offset &+= UInt64(done)
    operation.length = bytes
    // The whole operation needs no separate pieces.
    guard let all = unsafe operation.segments, !isWhole else { return operation }
    let pieces = unsafe pieces ?? .allocate(capacity: operation.segmentCount)
    unsafe self.pieces = pieces
    var skip = Int(done)
    var wanted = Int(bytes)
    var count = 0
    for index in 0..<operation.segmentCount where wanted > 0 {
      let segment = unsafe all[index]
      guard skip < segment.count else {
        skip -= segment.count
        continue
      }
      let size = min(segment.count - skip, wanted)
      unsafe pieces[count] = MemorySegment(base: segment.base + skip, count: size)
      count += 1
      wanted -= size
      skip = 0
    }
    unsafe operation.segments = pieces
    operation.segmentCount = count
    return operation
  }

  mutating func freePieces() {
    unsafe pieces?.deallocate()
    unsafe pieces = nil
  }
}

/// The jobs of a worker by their tags.
@safe
struct MediumJobs: ~Copyable {
  /// Only mapped: what is not used costs no memory.
  private let area: Mapping
  private let base: UnsafeMutablePointer<MediumJob>

  /// - Parameter count: tags are below it.
  init(count: Int) throws(Errno) {
    area = try Mapping(anonymous: max(1, count) * MemoryLayout<MediumJob>.stride)
    unsafe base = area.base.bindMemory(to: MediumJob.self, capacity: max(1, count))
  }

  @inline(__always)
  subscript(tag: UInt32) -> UnsafeMutablePointer<MediumJob> { unsafe base + Int(tag) }
}
