/// A block device as a program wants it: bytes at offsets, over all of its queues.
internal import VirtioCore

/// A live block device. It belongs to one thread.
public final class BlockClient {
  public let session: DriverSession
  /// As it was when last read; see `reloadConfiguration`.
  public private(set) var config: BlockConfig
  public let queues: [BlockQueue]
  /// Requests in flight on each queue.
  public var depth = 16
  /// Bytes of the largest request, if the device does not say less.
  public var largest = 256 * 1024
  public var waiting = Waiting.calls
  /// How long to wait without any answer.
  public var patience = Patience.limit

  /// Brings the device up.
  public init(
    _ transport: any DriverTransport, options: DriverOptions = DriverOptions(features: BlockFeature.understood)
  )
    throws(DriverError)
  {
    session = try DriverSession(transport, deviceID: 2, options: options)
    config = try BlockConfig(transport, offered: session.offered)
    try session.start(available: session.offered.contains(BlockFeature.multiQueue) ? Int(config.queues ?? 1) : 1)
    queues = session.queues.map { BlockQueue($0) }
  }

  /// Reads the configuration again, as after a configuration change notification.
  public func reloadConfiguration() throws(DriverError) {
    config = try BlockConfig(session.transport, offered: session.offered)
  }

  /// Resets one queue and sets it up again, while the others continue (RING_RESET).
  ///
  /// - Parameter size: entries of its new ring; `nil`: as many as before.
  /// - Returns: tags of requests that were in flight on it and will not be answered.
  @discardableResult
  public func resetQueue(_ index: Int, size: UInt16? = nil) throws(DriverError) -> [UInt32] {
    queues[index].restart(try session.resetQueue(index, size: size))
  }

  /// Resets the device and frees the memory.
  public func shutDown() throws(DriverError) { try session.shutDown() }

  /// Bytes of the disk.
  public var capacity: UInt64 {
    let (bytes, overflow) = config.capacity.multipliedReportingOverflow(by: 512)
    return overflow ? .max / 512 * 512 : bytes
  }
  public var isReadOnly: Bool { session.offered.contains(BlockFeature.readOnly) }

  /// The most bytes that one request carries.
  public var chunk: Int {
    var bytes = largest
    if let limit = config.sizeMax, limit >= 512 { bytes = min(bytes, Int(limit)) }
    return max(bytes / config.logicalBlock, 1) * config.logicalBlock
  }

  /// Runs requests with the client's depth, and throws an error for every status but OK.
  public func run(
    next: (_ queue: Int, _ number: Int) throws(DriverError) -> Submission?,
    completed: (_ queue: Int, _ number: Int, BlockOutcome) throws(DriverError) -> Void = { _, _, _ in }
  ) throws(DriverError) {
    var pump = RequestPump(queues: queues, on: session.transport, depth: depth, waiting: waiting)
    pump.patience = patience
    try pump.run(next: next) { queue, number, outcome throws(DriverError) in
      guard outcome.status == .ok else { throw .requestFailed("\(outcome.request) on queue \(queue): \(outcome.status)") }
      try completed(queue, number, outcome)
    }
  }

  /// One request on queue 0, whatever its status.
  public func perform(_ request: BlockRequest) throws(DriverError) -> BlockOutcome { try queues[0].perform(request) }

  private func require(_ feature: FeatureSet, _ what: String) throws(DriverError) {
    guard session.features.contains(feature) else { throw .badRequest("the device does not offer \(what)") }
  }

  private func checkRange(_ offset: UInt64, _ count: UInt64) throws(DriverError) {
    guard count <= capacity, offset <= capacity - count else {
      throw .badRequest("\(count) bytes at \(offset) go past the disk's end at \(capacity)")
    }
  }

  private func checkAligned(_ offset: UInt64, _ count: UInt64) throws(DriverError) {
    let block = UInt64(config.logicalBlock)
    guard offset % block == 0, count % block == 0 else {
      throw .badRequest("offset \(offset) and length \(count) have to be multiples of the disk's block of \(block) bytes")
    }
    try checkRange(offset, count)
  }

  public var canFlush: Bool { session.features.contains(BlockFeature.flush) }

  // MARK: data

  /// Reads, and passes the bytes on in order, a chunk at a time.
  ///
  /// - Parameters:
  ///   - offset, count: any bytes; the whole blocks around them are read.
  public func read(
    at offset: UInt64, count: UInt64, _ body: (_ offset: UInt64, ArraySlice<UInt8>) throws(DriverError) -> Void
  ) throws(DriverError) {
    try checkRange(offset, count)
    guard count > 0 else { return }
    let block = UInt64(config.logicalBlock)
    let first = offset / block * block
    let end = (offset + count + block - 1) / block * block
    let step = UInt64(chunk)
    let chunks = Int((end - first + step - 1) / step)
    // Answers come in any order and are passed on in order, so the window bounds what waits for an earlier one.
    var finished: [Int: [UInt8]] = [:]
    var given = 0
    let window = depth * queues.count
    try run { _, number throws(DriverError) in
      guard number < chunks, number < given + window else { return nil }
      let start = first + UInt64(number) * step
      return Submission(.read(sector: start / 512, bytes: Int(min(step, end - start))))
    } completed: { _, number, outcome throws(DriverError) in
      finished[number] = outcome.answer
      while let bytes = finished.removeValue(forKey: given) {
        let start = first + UInt64(given) * step
        let lower = Int(max(start, offset) - start)
        let upper = Int(min(start + UInt64(bytes.count), offset + count) - start)
        try body(start + UInt64(lower), bytes[lower..<upper])
        given += 1
      }
    }
  }

  public func read(at offset: UInt64, count: Int) throws(DriverError) -> [UInt8] {
    var result: [UInt8] = []
    try read(at: offset, count: UInt64(count)) { _, bytes throws(DriverError) in result += bytes }
    return result
  }

  /// Writes what `source` gives. - Parameters: offset, count: bytes, whole blocks.
  public func write(
    at offset: UInt64, count: UInt64, source: (_ offset: UInt64, _ count: Int) throws(DriverError) -> [UInt8],
    progress: (_ bytes: UInt64) -> Void = { _ in }
  ) throws(DriverError) {
    try checkAligned(offset, count)
    var next = offset
    var done: UInt64 = 0
    try run { _, _ throws(DriverError) in
      guard next < offset + count else { return nil }
      let bytes = try source(next, Int(min(UInt64(chunk), offset + count - next)))
      defer { next += UInt64(bytes.count) }
      return Submission(.write(sector: next / 512, bytes))
    } completed: { _, _, outcome throws(DriverError) in
      done += UInt64(outcome.request.payload.count)
      progress(done)
    }
  }

  public func write(_ bytes: [UInt8], at offset: UInt64) throws(DriverError) {
    try write(at: offset, count: UInt64(bytes.count)) { start, count throws(DriverError) in
      Array(bytes[Int(start - offset)..<Int(start - offset) + count])
    }
  }

  /// Puts everything that was answered before on stable storage (virtio 5.2.6.2).
  public func flush() throws(DriverError) {
    try require(BlockFeature.flush, "FLUSH; its writes are stable when they are answered")
    try one(.flush)
  }

  /// The serial number, without its padding.
  public func identify() throws(DriverError) -> [UInt8] {
    Array(try one(.identify).answer.prefix { $0 != 0 })
  }

  /// How much of its lifetime the underlying device has used: `pre_eol_info`, `device_lifetime_est_typ_a` and `_b`.
  public func lifetime() throws(DriverError) -> [UInt16] {
    try require(BlockFeature.lifetime, "GET_LIFETIME")
    let bytes = try one(.lifetime).answer
    return stride(from: 0, to: 6, by: 2).map { UInt16(bytes[$0]) | UInt16(bytes[$0 + 1]) << 8 }
  }

  // MARK: ranges

  /// Tells the device that the contents are no longer needed. - Parameters: bytes, whole blocks.
  public func discard(at offset: UInt64, count: UInt64) throws(DriverError) {
    try require(BlockFeature.discard, "DISCARD")
    try sendRanges(at: offset, count: count, limit: config.discard?.maximumSectors) { .discard([$0]) }
  }

  /// Makes the range read as zeroes. - Parameters: bytes, whole blocks.
  /// - Parameter unmap: whether the device may deallocate the space.
  public func writeZeroes(at offset: UInt64, count: UInt64, unmap: Bool = false) throws(DriverError) {
    try require(BlockFeature.writeZeroes, "WRITE_ZEROES")
    try sendRanges(at: offset, count: count, limit: config.writeZeroes?.maximumSectors) { range in
      .writeZeroes([BlockRange(sector: range.sector, sectors: range.sectors, flags: unmap ? 1 : 0)])
    }
  }

  /// Makes the device destroy the contents of the range. - Parameters: bytes, multiples of `secure_erase_sector_alignment`.
  public func secureErase(at offset: UInt64, count: UInt64) throws(DriverError) {
    try require(BlockFeature.secureErase, "SECURE_ERASE")
    let unit = UInt64(config.secureErase?.alignment ?? 1) * 512
    guard unit > 0, offset % unit == 0, count % unit == 0 else {
      throw .requestFailed("the disk erases multiples of \(unit) bytes, which \(count) bytes at \(offset) are not")
    }
    let limit = config.secureErase.map { $0.maximumSectors / UInt32(unit / 512) * UInt32(unit / 512) }
    try sendRanges(at: offset, count: count, limit: limit) { .secureErase([$0]) }
  }

  private func sendRanges(
    at offset: UInt64, count: UInt64, limit: UInt32?, request: (BlockRange) -> BlockRequest
  ) throws(DriverError) {
    try checkAligned(offset, count)
    let block = UInt64(config.logicalBlock / 512)
    let most = max(UInt64(limit ?? 0) / block * block, block)
    var next = offset / 512
    let end = (offset + count) / 512
    try run(next: { _, _ throws(DriverError) in
      guard next < end else { return nil }
      let sectors = min(most, end - next)
      defer { next += sectors }
      return Submission(request(BlockRange(sector: next, sectors: UInt32(sectors))))
    })
  }

  @discardableResult private func one(_ request: BlockRequest) throws(DriverError) -> BlockOutcome {
    let outcome = try perform(request)
    guard outcome.status == .ok else { throw .requestFailed("\(request): \(outcome.status)") }
    return outcome
  }
}
