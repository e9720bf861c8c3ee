/// Requests of zoned disks (virtio 5.2.6): where data may be written, zone commands, and when their effects are durable.
internal import CLinux
internal import Glibc
internal import VirtioCore

/// Request types of zoned disks.
enum ZoneRequestType {
  static let append: UInt32 = 15
  static let report: UInt32 = 16
}

extension Lane where Ring: ~Copyable {
  private func zoneRequest(_ index: Int) -> ZoneRequest {
    let slot = unsafe slab.slot(index)
    let isOrdered = isOrdered && !Ring.isRecorded
    return unsafe ZoneRequest(
      queue: queue, head: slab.head(at: index), position: UInt16(truncatingIfNeeded: slot.pointee.zoneWord),
      type: slot.pointee.zoneType,
      origin: state == .recovering ? .retaken : isOrdered ? .inOrder : .fresh, isKept: Ring.isRecorded || isOrdered)
  }

  /// A transfer was just popped.
  mutating func noteZonePosition(_ index: Int) {
    let slot = unsafe slab.slot(index)
    unsafe slot.pointee.zoneWord = UInt32(ring.position.available)
    // An append has set its type before it gets here.
    if unsafe slot.pointee.written == 1 { unsafe slot.pointee.zoneType = UInt8(RequestType.write.rawValue) }
  }

  // MARK: Transfers

  /// Whether a transfer that was prepared may be submitted. Otherwise it was answered.
  @inline(never)
  mutating func mayEnterZone<Engine: BlockEngine & ~Copyable>(_ index: Int, _ medium: inout Medium<Engine>) -> Bool {
    guard let zones = context.zones else { return true }
    // A driver that has not accepted ZONED cannot use the disk (virtio 5.2.5.2); a legacy driver cannot be told any earlier.
    guard rules.hasZones else {
      refuse(index, .ioError)
      return false
    }
    let operation = medium.prepared(tag(index))
    return operation.kind == .read
      ? mayRead(index, operation, zones, &medium) : mayWrite(index, operation, zones, &medium)
  }

  /// Sectors that were never written read as zeroes, whatever the image contains there.
  private mutating func mayRead<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ operation: IOOperation, _ zones: ZonedDisk, _ medium: inout Medium<Engine>
  ) -> Bool {
    switch zones.read(at: operation.offset / 512, count: operation.length / 512) {
    case .refused(let status):
      refuse(index, status)
      return false
    case .sectors(let sectors):
      let bytes = sectors * 512
      guard bytes < operation.length else { return true }
      var operation = operation
      Self.clear(&operation, after: bytes)
      // Logged while the segments are still as they were popped.
      if log != nil { logTransfer(index) }
      guard bytes > 0 else {
        complete(index, isDone: true, &medium)
        return false
      }
      operation.length = bytes
      medium.prepare(operation, tag: tag(index))
      return true
    }
  }

  /// Fills the end of the segments with zeroes, and keeps the part before it.
  private static func clear(_ operation: inout IOOperation, after bytes: UInt64) {
    guard let segments = unsafe operation.segments else { return }
    var left = Int(bytes)
    var kept = 0
    for number in 0..<operation.segmentCount {
      let (base, count) = unsafe (segments[number].base, segments[number].count)
      let before = min(left, count)
      if before < count { unsafe memset(base + before, 0, count - before) }
      if before > 0 { kept = number + 1 }
      left -= before
      if left == 0, before < count, before > 0 { unsafe segments[number] = MemorySegment(base: base, count: before) }
    }
    operation.segmentCount = kept
  }

  private mutating func mayWrite<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ operation: IOOperation, _ zones: ZonedDisk, _ medium: inout Medium<Engine>
  ) -> Bool {
    let slot = unsafe slab.slot(index)
    let request = zoneRequest(index)
    let (sector, count) = (operation.offset / 512, operation.length / 512)
    let verdict =
      request.type == UInt8(ZoneRequestType.append)
      ? zones.append(request, to: sector, count: count) : zones.write(request, at: sector, count: count)
    unsafe slot.pointee.isDurable = operation.isDurable
    switch verdict {
    case .refused(let status):
      refuse(index, status)
      return false
    case .wasDone(let sector):
      unsafe slot.pointee.throttledBytes = sector
      unsafe slot.pointee.zoneWord = UInt32(zones.geometry.zone(of: sector))
      // It is not known what reached stable storage then.
      unsafe slot.pointee.isDurable = slot.pointee.isDurable || isDurable
      endZoneWrite(index, .ok, &medium)
      return false
    case .go(_, nil): return true
    case .go(let sector, let zone?):
      enterZone(index, zone, sector: sector)
      guard sector != operation.offset / 512 else { return true }
      var operation = operation
      operation.offset = sector * 512
      medium.prepare(operation, tag: tag(index))
      return true
    }
  }

  private mutating func enterZone(_ index: Int, _ zone: Int, sector: UInt64) {
    let slot = unsafe slab.slot(index)
    unsafe slot.pointee.stage = .zoneWrite
    unsafe slot.pointee.zoneWord = UInt32(zone)
    unsafe slot.pointee.throttledBytes = sector
    // Its answer takes more than that of a plain write.
    note(.zonedWrite, index)
  }

  /// The medium is lost: submitted requests may still be executed, and those that wait for other requests will not be.
  @inline(never)
  func abandonZoneRequests() {
    guard let zones = context.zones else { return }
    var writes: [(sector: UInt64, zone: Int)] = []
    var hasAny = false
    for index in 0..<slab.begun {
      let slot = unsafe slab.slot(index)
      guard unsafe !slot.pointee.isFinished else { continue }
      if unsafe slot.pointee.stage == .zoneWrite {
        unsafe writes.append((slot.pointee.throttledBytes, Int(slot.pointee.zoneWord)))
      }
      if unsafe slot.pointee.stage == .zoneWrite || slot.pointee.stage == .zoneWait { hasAny = true }
    }
    if hasAny { zones.abandon(queue: queue, writes: writes) }
  }

  // MARK: Other requests

  /// - Returns: false if zones make no difference to this request.
  @inline(never)
  mutating func dispatchZoned<Engine: BlockEngine & ~Copyable>(
    _ type: UInt32, _ readableBytes: UInt64, _ writable: UnsafeMutablePointer<MemorySegment>, _ index: Int,
    _ medium: inout Medium<Engine>
  ) -> Bool {
    guard let zones = context.zones else { return false }
    let slot = unsafe slab.slot(index)
    unsafe slot.pointee.zoneType = UInt8(truncatingIfNeeded: type)
    unsafe slot.pointee.zoneWord = UInt32(ring.position.available)
    unsafe slot.pointee.isDurable = false
    guard rules.hasZones else {
      guard type == RequestType.writeZeroes.rawValue else { return false }
      counters.add(.writeZeroes)
      note(.writeZeroes, index)
      refuse(index, .ioError)
      return true
    }
    switch type {
    case RequestType.flush.rawValue:
      counters.add(.flushes)
      note(.flush, index)
      unsafe slot.pointee.zoneWord = zones.ticket()
      flushZoned(index, &medium)
    case RequestType.writeZeroes.rawValue: askZonedZeroes(index, readableBytes, zones, &medium)
    case ZoneRequestType.append: unsafe askAppend(index, readableBytes, writable, zones, &medium)
    case ZoneRequestType.report: unsafe answerReport(index, writable, zones)
    default:
      guard let command = UInt8(exactly: type).flatMap(ZoneCommand.init) else { return false }
      counters.add(.others)
      note(.unknown, index)
      switch zones.command(command, sector(of: index), zoneRequest(index), medium.waiter(tag(index))) {
      case .status(let status): endCommand(index, status, &medium)
      case .later:
        medium.expectWord(tag(index))
        unsafe slot.pointee.stage = .zoneWait
      }
    }
    return true
  }

  /// The header's sector, which was not read before.
  private func sector(of index: Int) -> UInt64 { unsafe gatherHeader(slab.segments(index)).sector }

  private mutating func flushZoned<Engine: BlockEngine & ~Copyable>(_ index: Int, _ medium: inout Medium<Engine>) {
    unsafe slab.slot(index).pointee.stage = .zoneFlush
    switch medium.flush(tag: tag(index)) {
    case .pending: break
    case .done: completeZoned(index, isDone: true, &medium)
    case .failed: completeZoned(index, isDone: false, &medium)
    }
  }

  private mutating func askZonedZeroes<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ readableBytes: UInt64, _ zones: ZonedDisk, _ medium: inout Medium<Engine>
  ) {
    counters.add(.writeZeroes)
    note(.writeZeroes, index)
    guard rules.hasWriteZeroes else { return refuse(index, .unsupported) }
    // One range, because in a zone it is a write (`max_write_zeroes_seg`).
    guard readableBytes == UInt64(RequestHeader.size + RequestRange.size) else { return refuse(index, .ioError) }
    let ranges = unsafe slab.ranges(index)
    unsafe Self.gather(
      slab.segments(index), skipping: RequestHeader.size,
      into: UnsafeMutableRawBufferPointer(start: ranges, count: RequestRange.size))
    let range = unsafe ranges[0]
    guard range.flags & ~RequestRange.unmap == 0 else { return refuse(index, .unsupported) }
    let (offset, length) = (range.sector &* 512, UInt64(range.sectorCount) &* 512)
    guard range.sectorCount <= context.limits.zero.sectors, isInside(range.sector, bytes: length) else {
      return refuse(index, .ioError)
    }
    guard mayWrite(before: offset &+ length, &medium) else { return refuse(index, .ioError) }
    let slot = unsafe slab.slot(index)
    unsafe slot.pointee.isDurable = isDurable
    switch zones.write(zoneRequest(index), at: range.sector, count: UInt64(range.sectorCount)) {
    case .refused(let status): refuse(index, status)
    case .wasDone(let sector):
      unsafe slot.pointee.throttledBytes = sector
      unsafe slot.pointee.zoneWord = UInt32(zones.geometry.zone(of: sector))
      endZoneWrite(index, .ok, &medium)
    case .go(_, nil):
      unsafe slot.pointee.stage = .zero
      unsafe slot.pointee.rangeIndex = 0
      unsafe slot.pointee.rangeCount = 1
      askNextRange(index, &medium)
    case .go(let sector, let zone?):
      enterZone(index, zone, sector: sector)
      switch medium.zero(
        offset: offset, length: length, mayUnmap: range.flags & RequestRange.unmap != 0, tag: tag(index))
      {
      case .pending: break
      case .done: completeZoned(index, isDone: true, &medium)
      case .failed: completeZoned(index, isDone: false, &medium)
      }
    }
  }

  private mutating func askAppend<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ readableBytes: UInt64, _ writable: UnsafeMutablePointer<MemorySegment>, _ zones: ZonedDisk,
    _ medium: inout Medium<Engine>
  ) {
    counters.add(.writes)
    note(.zonedWrite, index)
    let bytes = readableBytes &- UInt64(RequestHeader.size)
    counters.add(.bytesWritten, bytes)
    guard zones.geometry.maximumAppend > 0 else { return refuse(index, .unsupported) }
    // Room for the sector at which the data was written, and for the status.
    guard unsafe slab.slot(index).pointee.written >= 9 else { return refuse(index, .ioError) }
    guard bytes % 512 == 0 else { return refuse(index, .zoneUnaligned) }
    let sector = sector(of: index)
    guard let zone = zones.geometry.zone(startingAt: sector) else { return refuse(index, .zoneInvalid) }
    let segments = unsafe slab.segments(index)
    var operation = unsafe IOOperation(
      kind: .write, isDurable: isDurable, offset: sector &* 512, length: bytes, segments: segments,
      segmentCount: writable - segments)
    // The index of the first writable segment.
    let slot = unsafe slab.slot(index)
    unsafe slot.pointee.rangeIndex = UInt8(truncatingIfNeeded: writable - segments)
    unsafe slot.pointee.rangeCount = UInt8(truncatingIfNeeded: (writable - segments) >> 8)
    operation.skip(RequestHeader.size)
    guard operation.length <= rules.requestBytes, operation.segmentCount <= rules.segments,
      operation.hasSegments(ofAtMost: rules.segmentBytes)
    else { return refuse(index, .ioError) }
    let end = (sector &+ zones.geometry.length(of: zone)) &* 512
    guard !Engine.movesData || mayWrite(before: end, &medium) else { return refuse(index, .ioError) }
    medium.prepare(operation, tag: tag(index))
    guard !isLimited || mayGo(index, .write, bytes: bytes) else { return }
    guard mayEnterZone(index, &medium) else { return }
    startPrepared(index, &medium)
  }

  private mutating func answerReport(_ index: Int, _ segments: UnsafeMutablePointer<MemorySegment>, _ zones: ZonedDisk) {
    counters.add(.others)
    note(.unknown, index)
    let room = unsafe Int(slab.slot(index).pointee.written) - 1
    guard let bytes = zones.report(from: sector(of: index), room: room) else { return refuse(index, .zoneInvalid) }
    unsafe bytes.withUnsafeBytes { bytes in unsafe answer(index, segments, bytes, room: room) }
  }

  // MARK: Completions

  /// Something that a request to a zone waited for has completed.
  @inline(never)
  mutating func completeZoned<Engine: BlockEngine & ~Copyable>(_ index: Int, isDone: Bool, _ medium: inout Medium<Engine>) {
    guard let zones = context.zones else { return fail(index) }
    let slot = unsafe slab.slot(index)
    switch unsafe slot.pointee.stage {
    case .zoneWrite:
      let (sector, zone) = unsafe (slot.pointee.throttledBytes, Int(slot.pointee.zoneWord))
      // Zeroes do not go to stable storage by themselves.
      let isDurable = unsafe slot.pointee.isDurable && slot.pointee.zoneType != UInt8(RequestType.writeZeroes.rawValue)
      switch zones.finish(at: sector, zone: zone, isDone: isDone, isDurable: isDurable, medium.waiter(tag(index))) {
      case .status(let status): endZoneWrite(index, status, &medium)
      case .later:
        medium.expectWord(tag(index))
        unsafe slot.pointee.stage = .zoneWait
      }
    case .zoneWait:
      let status = BlockStatus(rawValue: UInt8(truncatingIfNeeded: medium.word(tag(index)))) ?? .ioError
      if unsafe ZoneCommand(rawValue: slot.pointee.zoneType) != nil {
        endCommand(index, status, &medium)
      } else {
        endZoneWrite(index, status, &medium)
      }
    case .zoneFlush:
      let ticket = unsafe slot.pointee.zoneWord
      guard isDone else {
        zones.forget(ticket: ticket)
        return fail(index)
      }
      record(index, ticket, &medium)
    case .zoneRecord:
      guard isDone, medium.word(tag(index)) == 0 else { return fail(index) }
      answerZoned(index)
    default: preconditionFailure("a request that is not for a zone was completed as one")
    }
  }

  private mutating func record<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ ticket: UInt32, _ medium: inout Medium<Engine>
  ) {
    guard ticket > 0 else { return answerZoned(index) }
    unsafe slab.slot(index).pointee.stage = .zoneRecord
    guard medium.record(ticket: ticket, tag: tag(index)) else {
      context.zones?.forget(ticket: ticket)
      return fail(index)
    }
  }

  private mutating func endZoneWrite<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ status: BlockStatus, _ medium: inout Medium<Engine>
  ) {
    guard status == .ok, let zones = context.zones else { return fail(index) }
    let slot = unsafe slab.slot(index)
    guard unsafe slot.pointee.isDurable else { return answerZoned(index) }
    let (ticket, isStable) = unsafe zones.ticket(zone: Int(slot.pointee.zoneWord))
    guard !isStable else { return record(index, ticket, &medium) }
    unsafe slot.pointee.zoneWord = ticket
    flushZoned(index, &medium)
  }

  private mutating func endCommand<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ status: BlockStatus, _ medium: inout Medium<Engine>
  ) {
    guard status == .ok, let zones = context.zones else { return refuse(index, status) }
    let type = unsafe slab.slot(index).pointee.zoneType
    guard type == ZoneCommand.reset.rawValue || type == ZoneCommand.resetAll.rawValue else { return answerZoned(index) }
    // Before anything is written where the record says that there is data.
    record(index, zones.ticketOfResets(), &medium)
  }

  /// Answers a request of which everything is complete.
  private mutating func answerZoned(_ index: Int) {
    let slot = unsafe slab.slot(index)
    let request = zoneRequest(index)
    if request.isKept { zoneAnswers.append((index, request.head)) }
    guard unsafe slot.pointee.zoneType == UInt8(ZoneRequestType.append) else { return answerWithStatus(index, .ok) }
    let written = unsafe Int(slot.pointee.written)
    putSector(index, unsafe slot.pointee.throttledBytes)
    answer(index, .ok, written: written == 9 ? 9 : 8)
  }

  /// The first eight writable bytes receive the sector of an append. In the specification the status follows directly; Linux
  /// leaves room for 16 bytes, because its structure of nine bytes is padded, and expects the sector at the front and the
  /// status at the end.
  private mutating func putSector(_ index: Int, _ sector: UInt64) {
    let slot = unsafe slab.slot(index)
    let segments = unsafe slab.segments(index)
    var piece = unsafe Int(slot.pointee.rangeIndex) | Int(slot.pointee.rangeCount) << 8
    var skip = 0
    for byte in 0..<8 {
      while unsafe skip >= segments[piece].count {
        unsafe skip -= segments[piece].count
        piece += 1
      }
      let place = unsafe segments[piece].base + skip
      unsafe place.storeBytes(of: UInt8(truncatingIfNeeded: sector >> UInt64(byte * 8)), as: UInt8.self)
      if log != nil { unsafe log?.markBuffer(place, count: 1) }
      skip += 1
    }
  }

  // MARK: Notes

  /// Forgets the notes of requests that were answered and published: they do not concern a successor of this process.
  @inline(never)
  mutating func forgetZoneAnswers() {
    guard let zones = context.zones else { return }
    var heads: [UInt16] = []
    zoneAnswers.removeAll { answer in
      // In order, an answer may still wait for earlier ones.
      let isHere = unsafe slab.slot(answer.index).pointee.stage != .none && slab.head(at: answer.index) == answer.head
      if !isHere { heads.append(answer.head) }
      return !isHere
    }
    zones.published(heads, queue: queue)
  }
}
