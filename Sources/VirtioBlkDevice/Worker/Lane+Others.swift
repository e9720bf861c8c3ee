/// The requests that are not transfers: FLUSH, GET_ID, GET_LIFETIME, and DISCARD, WRITE_ZEROES and SECURE_ERASE range by range.
internal import CLinux
internal import VirtioCore

extension Lane where Ring: ~Copyable {
  /// Everything but reads and writes.
  @inline(never)
  mutating func parseOther<Engine: BlockEngine & ~Copyable>(
    _ type: UInt32, _ readableBytes: UInt64, _ writable: UnsafeMutablePointer<MemorySegment>, _ index: Int,
    _ medium: inout Medium<Engine>
  ) {
    guard !looksAtOthers else { return unsafe parseWatched(type, readableBytes, writable, index, &medium) }
    unsafe dispatch(type, readableBytes, writable, index, &medium)
  }

  /// A separate function, so that the fast path has no registers to save.
  @inline(never)
  private mutating func parseWatched<Engine: BlockEngine & ~Copyable>(
    _ type: UInt32, _ readableBytes: UInt64, _ writable: UnsafeMutablePointer<MemorySegment>, _ index: Int,
    _ medium: inout Medium<Engine>
  ) {
    if trace != nil { noteTaken(index) }
    if context.zones != nil, unsafe dispatchZoned(type, readableBytes, writable, index, &medium) { return }
    unsafe dispatch(type, readableBytes, writable, index, &medium)
  }

  @inline(__always)
  private mutating func dispatch<Engine: BlockEngine & ~Copyable>(
    _ type: UInt32, _ readableBytes: UInt64, _ writable: UnsafeMutablePointer<MemorySegment>, _ index: Int,
    _ medium: inout Medium<Engine>
  ) {
    switch type {
    case RequestType.flush.rawValue: askFlush(index, &medium)
    case RequestType.flushOut.rawValue where rules.isLegacy: askFlush(index, &medium)
    case RequestType.getID.rawValue: unsafe answerID(index, writable)
    case RequestType.getLifetime.rawValue where rules.hasLifetime:
      unsafe answerLifetime(index, writable)
    case RequestType.discard.rawValue: askRanges(index, .discard, readableBytes, &medium)
    case RequestType.writeZeroes.rawValue: askRanges(index, .zero, readableBytes, &medium)
    case RequestType.secureErase.rawValue: askRanges(index, .erase, readableBytes, &medium)
    default:
      counters.add(.others)
      note(.unknown, index)
      refuse(index, .unsupported)
    }
  }

  /// Reports to the driver that the medium failed its request.
  @inline(never)
  mutating func fail(_ index: Int) {
    counters.add(.mediumFailures)
    refuse(index, .ioError)
  }

  @inline(never)
  private mutating func answerID(_ index: Int, _ segments: UnsafeMutablePointer<MemorySegment>) {
    counters.add(.others)
    note(.unknown, index)
    // Without the status byte.
    let room = unsafe Int(slab.slot(index).pointee.written) - 1
    unsafe answer(
      index, segments, UnsafeRawBufferPointer(start: context.serial, count: min(room, BlockDeviceOptions.serialSize)),
      room: room)
  }

  /// Reads the lifetime from the kernel each time; if the kernel has to query the device, this queue waits for that.
  @inline(never)
  private mutating func answerLifetime(_ index: Int, _ segments: UnsafeMutablePointer<MemorySegment>) {
    counters.add(.others)
    note(.unknown, index)
    let room = unsafe Int(slab.slot(index).pointee.written) - 1
    guard room >= DeviceLifetime.size, let lifetime = context.lifetime?.read() else { return refuse(index, .ioError) }
    unsafe withUnsafeBytes(of: lifetime.bytes) { bytes in unsafe answer(index, segments, bytes, room: room) }
  }

  /// Answers with bytes of the device. - Parameter room: writable bytes without the status, at least as many.
  mutating func answer(
    _ index: Int, _ segments: UnsafeMutablePointer<MemorySegment>, _ bytes: UnsafeRawBufferPointer, room: Int
  ) {
    let count = bytes.count
    var copied = 0
    var piece = unsafe segments
    while copied < count {
      let part = min(unsafe piece.pointee.count, count - copied)
      unsafe piece.pointee.base.copyMemory(from: bytes.baseAddress! + copied, byteCount: part)
      if log != nil { unsafe log!.markBuffer(piece.pointee.base, count: part) }
      copied += part
      unsafe piece += 1
    }
    answer(index, .ok, written: count == room ? room + 1 : count)
  }

  @inline(__always)
  mutating func askFlush<Engine: BlockEngine & ~Copyable>(_ index: Int, _ medium: inout Medium<Engine>) {
    counters.add(.flushes)
    note(.flush, index)
    // A read-only disk has nothing to commit.
    guard !context.limits.isReadOnly else { return answerWithStatus(index, .ok) }
    flush(index, &medium)
  }

  mutating func flush<Engine: BlockEngine & ~Copyable>(_ index: Int, _ medium: inout Medium<Engine>) {
    unsafe slab.slot(index).pointee.stage = .flush
    switch medium.flush(tag: tag(index)) {
    case .pending: break
    case .done: answerWithStatus(index, .ok)
    case .failed: if !park(index) { fail(index) }
    }
  }

  /// The ranges are copied once and checked as a whole before the first one is touched.
  @inline(never)
  mutating func askRanges<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ stage: RequestStage, _ readableBytes: UInt64, _ medium: inout Medium<Engine>
  ) {
    let isOffered: Bool
    let limits: RangeLimits
    switch stage {
    case .discard:
      (isOffered, limits) = (rules.hasDiscard, context.limits.discard)
      counters.add(.discards)
      note(.discard, index)
    case .zero:
      (isOffered, limits) = (rules.hasWriteZeroes, context.limits.zero)
      counters.add(.writeZeroes)
      note(.writeZeroes, index)
    default:
      (isOffered, limits) = (rules.hasSecureErase, context.limits.erase)
      counters.add(.others)
      note(.unknown, index)
    }
    guard !context.limits.isReadOnly else { return refuse(index, .ioError) }
    guard isOffered else { return refuse(index, .unsupported) }
    let bytes = readableBytes &- UInt64(RequestHeader.size)
    let count = bytes / UInt64(RequestRange.size)
    guard bytes % UInt64(RequestRange.size) == 0, count > 0, count <= UInt64(limits.ranges) else {
      return refuse(index, .ioError)
    }
    let ranges = unsafe slab.ranges(index)
    unsafe Self.gather(
      slab.segments(index), skipping: RequestHeader.size,
      into: UnsafeMutableRawBufferPointer(start: ranges, count: Int(bytes)))
    // Flags first: an unknown flag means UNSUPP whatever the range is (virtio 5.2.6.2).
    for number in 0..<Int(count) {
      let flags = unsafe ranges[number].flags
      guard flags & ~RequestRange.unmap == 0, stage == .zero || flags == 0 else { return refuse(index, .unsupported) }
    }
    var (end, sectors): (UInt64, UInt64) = (0, 0)
    for number in 0..<Int(count) {
      let range = unsafe ranges[number]
      guard range.sectorCount <= limits.sectors, isInside(range.sector, bytes: UInt64(range.sectorCount) &* 512)
      else { return refuse(index, .ioError) }
      if stage == .erase {
        // For other requests the alignment is a hint; here, it may not be possible to erase part of a unit (virtio 5.2.6.1).
        let alignment = UInt64(limits.alignment)
        guard range.sector % alignment == 0, UInt64(range.sectorCount) % alignment == 0 else { return refuse(index, .ioError) }
      }
      sectors &+= UInt64(range.sectorCount)
      end = max(end, (range.sector &+ UInt64(range.sectorCount)) &* 512)
    }
    // After header and ranges were read: if their memory was lost, they must not be executed.
    if Engine.noticesCuts || context.faults.loadAfterLoads() != writesAreClear {
      guard mayWrite(before: end, &medium) else { return refuse(index, .ioError) }
    }
    let slot = unsafe slab.slot(index)
    unsafe slot.pointee.stage = stage
    // The old data must be gone when the request is answered, not at a later FLUSH.
    unsafe slot.pointee.isDurable = isDurable || stage == .erase
    unsafe slot.pointee.rangeIndex = 0
    unsafe slot.pointee.rangeCount = UInt8(count)
    guard !isLimited || mayGo(index, .write, bytes: stage == .erase ? sectors &* 512 : 0) else { return }
    askNextRange(index, &medium)
  }

  /// Starts the next range or the final flush, or answers.
  @inline(never)
  mutating func askNextRange<Engine: BlockEngine & ~Copyable>(_ index: Int, _ medium: inout Medium<Engine>) {
    let slot = unsafe slab.slot(index)
    while unsafe slot.pointee.rangeIndex < slot.pointee.rangeCount {
      let range = unsafe slab.ranges(index)[Int(slot.pointee.rangeIndex)]
      unsafe slot.pointee.rangeIndex &+= 1
      let offset = range.sector &* 512
      let length = UInt64(range.sectorCount) &* 512
      let progress =
        switch unsafe slot.pointee.stage {
        case .discard: medium.discard(offset: offset, length: length, tag: tag(index))
        case .erase: medium.erase(offset: offset, length: length, tag: tag(index))
        default:
          medium.zero(offset: offset, length: length, mayUnmap: range.flags & RequestRange.unmap != 0, tag: tag(index))
        }
      switch progress {
      case .pending: return
      case .done: continue
      case .failed: return park(index) ? () : fail(index)
      }
    }
    guard unsafe slot.pointee.isDurable else { return answerWithStatus(index, .ok) }
    flush(index, &medium)
  }
}
