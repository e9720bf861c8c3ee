/// What a medium remembers of one thing that was asked of it.
internal import SystemPackage
internal import VirtioCore

/// One transfer, flush, discard or zeroing on its way. All fields are plain numbers, and all zeroes is a valid value.
@safe
struct MediumJob {
  enum Stage: UInt8 {
    /// A transfer that was handed over as it is: if all of it is transferred, it is done.
    case whole
    /// A transfer that continues in parts.
    case parts
    case flush
    case discard
    case zero
    /// Somebody else's word, which comes through the board.
    case word
  }

  /// What was requested. It stays as it is; `done` says how far it has come.
  var operation = unsafe IOOperation(kind: .read)
  var stage = Stage.whole
  /// How often the current part was retried without progress.
  var retries: UInt8 = 0
  /// How the current range is zeroed, and whether space may be given back by it.
  var method = ZeroMethod.punch
  /// The medium did not take the buffers as they are: what is left goes through a copy.
  var mustBounce = false
  /// It went well, and waits until the flushes and stable writes that were beside it have been heard of.
  var waitsForOthers = false
  /// Number of the buffer that it goes through + 1; 0: none.
  var buffer: Int32 = 0
  /// Bytes that are done.
  var done: UInt32 = 0
  /// Bytes of the part in flight.
  var part: UInt32 = 0
  /// In `SyncLedger`: its own number, then the number of the last that it waits for; 0: it is no such call.
  var sync: UInt64 = 0
  /// The pieces of that part, when they are not simply the operation's: `operation.segmentCount` long.
  var pieces: UnsafeMutablePointer<MemorySegment>?

  /// - Parameter stage: not `whole`, which needs nothing but the operation.
  init(_ stage: Stage, _ operation: IOOperation) {
    self.stage = stage
    self.operation = operation
  }

  /// Bytes that are not done.
  var left: UInt64 { operation.length &- UInt64(done) }

  /// Counts an attempt that made no progress. - Returns: whether there may be another.
  mutating func retry(atMost limit: UInt8) -> Bool {
    retries &+= 1
    return retries < limit
  }

  /// The next part, from what is left on, with pieces of its own.
  mutating func takePart(_ bytes: UInt64) -> IOOperation {
    part = UInt32(truncatingIfNeeded: bytes)
    var operation = operation
    operation.offset &+= UInt64(done)
    operation.length = bytes
    // All of it needs no pieces of its own.
    guard let all = unsafe operation.segments, done > 0 || bytes < operation.length else { return operation }
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
