/// A lane's writes to guest memory, as a dirty log has them: by guest addresses.
internal import VirtioCore

/// Marks what was written after it was written and before the driver can see that: a front-end that takes a mark away and then
/// copies the page finds everything, or another mark.
@safe
struct LaneLog {
  /// A region of guest memory.
  private struct Piece {
    var host: UInt
    var size: UInt
    var guest: UInt64
  }

  private let log: DirtyLog
  private let usedRing: UInt64?
  private let coversBuffers: Bool
  private let pieces: [Piece]
  /// The one that was hit last.
  private var last = 0

  init(_ queue: QueueLog, memory: GuestMemory) {
    log = queue.log
    usedRing = queue.usedRing
    coversBuffers = queue.coversBuffers
    pieces = memory.regions.map {
      unsafe Piece(
        host: UInt(bitPattern: $0.mapping.base) &+ UInt(bitPattern: $0.offset), size: UInt($0.size), guest: $0.start.rawValue)
    }
  }

  var hasFaulted: Bool { log.hasFaulted }

  /// Bytes that were written into one buffer of the driver's.
  mutating func markBuffer(_ pointer: UnsafeRawPointer, count: Int) {
    guard coversBuffers, !pieces.isEmpty else { return }
    let address = UInt(bitPattern: pointer)
    if address &- pieces[last].host >= pieces[last].size {
      guard let found = pieces.firstIndex(where: { address &- $0.host < $0.size }) else { return }
      last = found
    }
    let distance = UInt64(address &- pieces[last].host)
    log.mark(pieces[last].guest &+ distance, count: count)
  }

  /// What a read may have written to, wherever it ended.
  ///
  /// - Parameters:
  ///   - segments: those of its chain: a header of `RequestHeader.size` bytes in one or more, then the data.
  ///   - bytes: of data.
  mutating func markRead(_ segments: UnsafeMutablePointer<MemorySegment>, bytes: Int) {
    var next = unsafe segments
    var header = RequestHeader.size
    while header > 0 {
      header -= unsafe next.pointee.count
      unsafe next += 1
    }
    var left = bytes
    while left > 0 {
      let count = unsafe min(next.pointee.count, left)
      unsafe markBuffer(next.pointee.base, count: count)
      left -= count
      // The last one has lost its status byte, and may be empty.
      unsafe next += 1
    }
  }

  /// - Parameters:
  ///   - offset: in the used ring, bytes.
  ///   - count: bytes.
  func markUsedRing(offset: Int, count: Int) {
    guard let usedRing else { return }
    let (address, overflow) = usedRing.addingReportingOverflow(UInt64(offset))
    if !overflow { log.mark(address, count: count) }
  }
}
