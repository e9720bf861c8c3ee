/// A lane's writes to guest memory, marked by guest address in a dirty log.
internal import VirtioCore

/// Marks pages after they are written and before the driver can see that: a front-end that clears a mark and then copies the
/// page finds everything that was written, or another mark.
@safe
struct LaneLog {
  /// A region of guest memory.
  private struct Piece {
    var host: UInt
    var size: UInt
    var guest: UInt64
  }

  /// Marks the parts of a ring that the device writes, for the duration of a publication: it keeps nothing alive and counts no
  /// references.
  struct RingMarks {
    fileprivate let bits: DirtyBits
    /// The address of the used ring, or of a packed queue's device event suppression structure, that the front-end wants
    /// logged.
    fileprivate let device: UInt64
    /// The address of the descriptor table or ring.
    fileprivate let descriptors: UInt64

    /// - Parameters:
    ///   - offset: in the area, bytes.
    ///   - count: bytes.
    func mark(_ area: WrittenArea, offset: Int, count: Int) {
      let base =
        switch area {
        case .device: device
        case .descriptors: descriptors
        }
      let (place, overflow) = base.addingReportingOverflow(UInt64(offset))
      if !overflow { bits.mark(place, count: count) }
    }
  }

  private let log: DirtyLog
  private let bits: DirtyBits
  /// `nil`: writes to the ring are not logged.
  let ringMarks: RingMarks?
  private let coversBuffers: Bool
  private let pieces: [Piece]
  /// The piece that was hit last.
  private var last: Piece

  /// - Parameter configuration: that of the running queue.
  init(_ queue: QueueLog, memory: GuestMemory, configuration: QueueConfiguration) {
    let bits = queue.log.bits
    log = queue.log
    self.bits = bits
    coversBuffers = queue.coversBuffers
    last = Piece(host: 0, size: 0, guest: 0)
    let pieces = memory.regions.map {
      unsafe Piece(
        host: UInt(bitPattern: $0.mapping.base) &+ UInt(bitPattern: $0.offset), size: UInt($0.size), guest: $0.start.rawValue)
    }
    self.pieces = pieces
    // Behind an IOMMU, none of a ring's addresses is a guest address, including the one for the log.
    var view = memory.view()
    func guest(_ address: UInt64) -> UInt64? {
      guard let place = view.contiguous(GuestAddress(address), count: 1, for: .write) else { return nil }
      let host = unsafe UInt(bitPattern: place.base)
      return pieces.first { host &- $0.host < $0.size }.map { $0.guest &+ UInt64(host &- $0.host) }
    }
    let isTranslated = memory.lookup != nil
    // A split ring's table is only read, and may not be translated for writes.
    let (table, used) = (configuration.descriptorTable.rawValue, configuration.usedRing.rawValue)
    ringMarks = queue.usedRing.map {
      RingMarks(
        bits: bits, device: isTranslated ? guest(used) ?? $0 : $0, descriptors: isTranslated ? guest(table) ?? table : table)
    }
  }

  var hasFaulted: Bool { log.hasFaulted }

  /// Logs bytes that were written into one of the driver's buffers.
  mutating func markBuffer(_ pointer: UnsafeRawPointer, count: Int) {
    guard coversBuffers else { return }
    let address = UInt(bitPattern: pointer)
    if address &- last.host >= last.size {
      guard let found = piece(of: address) else { return }
      last = found
    }
    bits.mark(last.guest &+ UInt64(address &- last.host), count: count)
  }

  @inline(never)
  private func piece(of address: UInt) -> Piece? { pieces.first { address &- $0.host < $0.size } }

  /// Logs everything that a read may have written to, wherever it ended.
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
      // The last one is without its status byte, and may be empty.
      unsafe next += 1
    }
  }
}
