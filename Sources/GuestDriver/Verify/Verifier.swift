/// Verifies a disk by using it: random requests of all kinds on all queues, with each answer compared with a model of what the
/// disk must hold, and everything once more at the end.
internal import VirtioCore

/// One run.
public struct Verifier {
  private let client: BlockClient
  private let options: VerifyOptions
  private let block: UInt64
  private var model: DiskModel
  private var random: SeededRandom
  private var inFlight: [Int: (sectors: Range<UInt64>, writes: Bool)] = [:]
  private var progress = VerifyProgress()
  private let kinds: [BlockRequestType]
  private let start = ContinuousClock.now
  private var lastReport = ContinuousClock.now
  private var lastEnd: UInt64
  /// Called at each answer with how many there were, those of the last pass included.
  public var whenAnswered: ((Int) -> Void)?
  /// Ends the run when it returns false, before the limit does.
  public var goesOn: (() -> Bool)?

  /// - Throws: when the options do not fit the disk.
  public init(_ client: BlockClient, _ options: VerifyOptions) throws(VerifyError) {
    let block = UInt64(client.config.logicalBlock)
    let range = options.range ?? 0..<min(client.capacity, 1 << 30) / block * block
    guard !range.isEmpty, range.upperBound <= client.capacity, range.lowerBound % block == 0, range.upperBound % block == 0
    else {
      throw .badOptions(
        "the range \(range.lowerBound)…\(range.upperBound) is not part of a disk of \(client.capacity) bytes in whole blocks of \(block)"
      )
    }
    self.client = client
    self.options = options
    self.block = block
    let sectors = range.lowerBound / 512..<range.upperBound / 512
    model = DiskModel(sectors: sectors, seed: options.seed)
    random = SeededRandom(seed: options.seed)
    lastEnd = sectors.lowerBound
    var kinds = Array(repeating: BlockRequestType.read, count: max(options.weights.read, 1))
    let features = client.session.features
    if !client.isReadOnly {
      kinds += Array(repeating: .write, count: options.weights.write)
      if features.contains(BlockFeature.discard), (client.config.discard?.maximumSectors ?? 0) >= block / 512 {
        kinds += Array(repeating: .discard, count: options.weights.discard)
      }
      if features.contains(BlockFeature.writeZeroes), (client.config.writeZeroes?.maximumSectors ?? 0) >= block / 512 {
        kinds += Array(repeating: .writeZeroes, count: options.weights.writeZeroes)
      }
    }
    if features.contains(BlockFeature.flush) { kinds += Array(repeating: .flush, count: options.weights.flush) }
    self.kinds = kinds
  }

  /// Runs until the limit, and then reads everything back that the run knows.
  ///
  /// - Parameter report: called about ten times per second.
  public mutating func run(report: (VerifyProgress) -> Void = { _ in }) throws(VerifyError) -> VerifyProgress {
    do throws(Failure) {
      client.session.transport.memory.poisonFreeMemory()
      try work(report)
      try readBack(report)
      if let address = client.session.transport.memory.damageOutside() {
        throw .driver(.fault(.strayWrite(address, near: "far from every buffer and ring")))
      }
    } catch {
      switch error {
      case .driver(let error): throw .driver(error, seed: options.seed)
      case .verify(let error): throw error
      }
    }
    tell(report, now: true)
    return progress
  }

  private enum Failure: Error {
    case driver(DriverError)
    case verify(VerifyError)
  }

  /// What stopped the pump, which can only throw driver errors.
  private var verifyError: VerifyError? = nil

  private mutating func work(_ report: (VerifyProgress) -> Void) throws(Failure) {
    try pump { this, _, number in
      this.tell(report)
      return this.isOver ? nil : this.choose(number)
    } completed: { this, queue, number, outcome in
      this.finish(number, outcome, queue: queue)
    }
  }

  private mutating func readBack(_ report: (VerifyProgress) -> Void) throws(Failure) {
    var next = model.sectors.lowerBound
    try pump { this, _, _ in
      this.tell(report)
      while next < this.model.sectors.upperBound {
        let sectors = next..<min(next + UInt64(this.largestRequest / 512), this.model.sectors.upperBound)
        next = sectors.upperBound
        let known = sectors.contains { sector in
          switch this.model[sector] {
          case .unknown, .unspecified: false
          case .learned, .zeroes, .written: true
          }
        }
        if known { return Submission(.read(sector: sectors.lowerBound, bytes: sectors.count * 512)) }
      }
      return nil
    } completed: { this, queue, number, outcome in
      this.progress.bytesReadBack += UInt64(outcome.answer.count)
      return this.compare(outcome, number: number, queue: queue)
    }
  }

  private mutating func pump(
    next: (inout Verifier, _ queue: Int, _ number: Int) -> Submission?,
    completed: (inout Verifier, _ queue: Int, _ number: Int, BlockOutcome) -> VerifyError?
  ) throws(Failure) {
    var pump = RequestPump(
      queues: client.queues, on: client.session.transport, depth: client.depth, waiting: client.waiting)
    pump.patience = client.patience
    do throws(DriverError) {
      try pump.run { queue, number throws(DriverError) in
        next(&self, queue, number)
      } completed: { queue, number, outcome throws(DriverError) in
        progress.answered += 1
        whenAnswered?(progress.answered)
        var error = completed(&self, queue, number, outcome)
        if outcome.status != .ok {
          error = .failed(request: "\(number), \(outcome.request)", queue: queue, status: outcome.status, seed: options.seed)
        } else if let byte = outcome.unwrittenByte {
          throw .fault(
            .reportedButNotWritten(queue: queue, request: "\(outcome.request)", length: outcome.length, offset: byte))
        }
        if let error {
          verifyError = error
          throw .requestFailed("\(error)")
        }
      }
    } catch {
      if let verifyError { throw .verify(verifyError) }
      throw .driver(error)
    }
  }

  // MARK: choosing

  private var isOver: Bool {
    if let goesOn, !goesOn() { return true }
    return switch options.limit {
    case .bytes(let bytes): progress.bytes >= bytes
    case .duration(let duration): .now - start >= duration
    }
  }

  private var largestRequest: Int {
    var bytes = min(options.largest, 4 << 20)
    if let limit = client.config.sizeMax, limit >= 512 { bytes = min(bytes, Int(limit)) }
    return max(bytes / Int(block), 1) * Int(block)
  }

  private mutating func choose(_ number: Int) -> Submission? {
    guard number < DiskModel.maximumWrites else { return nil }
    let kind = kinds[Int(random.next() % UInt64(kinds.count))]
    guard kind != .flush else {
      progress.requests[.flush, default: 0] += 1
      return framed(.flush)
    }
    // A free range is found soon on all but the smallest disks; if there is none, an answer has to come first.
    for _ in 0..<16 {
      let sectors = chooseSectors(for: kind)
      let writes = kind != .read
      guard !inFlight.values.contains(where: { ($0.writes || writes) && $0.sectors.overlaps(sectors) }) else { continue }
      inFlight[number] = (sectors, writes)
      lastEnd = sectors.upperBound
      if writes { model.set(sectors, .unspecified) }
      progress.requests[kind, default: 0] += 1
      return framed(request(kind, sectors, number))
    }
    return nil
  }

  private mutating func chooseSectors(for kind: BlockRequestType) -> Range<UInt64> {
    let unit = block / 512
    var most = UInt64(largestRequest / 512)
    switch kind {
    case .discard: most = min(most, UInt64(client.config.discard?.maximumSectors ?? 0))
    case .writeZeroes: most = min(most, UInt64(client.config.writeZeroes?.maximumSectors ?? 0))
    default: break
    }
    let all = model.sectors
    most = max(min(most, UInt64(all.count)) / unit, 1)
    // Small ones are as likely as large ones: half of the requests are at most the square root of the largest.
    let bits = 64 - most.leadingZeroBitCount
    let count = min(1 + random.next() % (1 << (random.next() % UInt64(bits + 1))), most) * unit
    let room = (UInt64(all.count) - count) / unit
    let first: UInt64 =
      switch random.next() % 16 {
      case 0: all.lowerBound
      case 1: all.lowerBound + room * unit
      case 2, 3, 4: min(lastEnd, all.lowerBound + room * unit)
      default: all.lowerBound + random.next() % (room + 1) * unit
      }
    return first..<first + count
  }

  private mutating func request(_ kind: BlockRequestType, _ sectors: Range<UInt64>, _ number: Int) -> BlockRequest {
    switch kind {
    case .write: .write(sector: sectors.lowerBound, model.pattern.payload(sectors: sectors, write: UInt32(number)))
    case .discard: .discard(split(sectors, limit: client.config.discard?.maximumSegments, flags: 0))
    case .writeZeroes:
      .writeZeroes(
        split(sectors, limit: client.config.writeZeroes?.maximumSegments, flags: UInt32(random.next() % 2)))
    default: .read(sector: sectors.lowerBound, bytes: sectors.count * 512)
    }
  }

  /// The range as one segment or, if the device accepts more, sometimes as several.
  private mutating func split(_ sectors: Range<UInt64>, limit: UInt32?, flags: UInt32) -> [BlockRange] {
    let unit = block / 512
    let most = min(UInt64(limit ?? 1), UInt64(sectors.count) / unit, 8)
    let count = random.chance(1, in: 2) ? 1 : 1 + random.next() % max(most, 1)
    var ranges: [BlockRange] = []
    var next = sectors.lowerBound
    for place in 0..<count {
      let end = place == count - 1 ? sectors.upperBound : next + (UInt64(sectors.count) / unit / count) * unit
      ranges.append(BlockRange(sector: next, sectors: UInt32(end - next), flags: flags))
      next = end
    }
    return ranges
  }

  private mutating func framed(_ request: BlockRequest) -> Submission {
    guard options.cuts != .classic else { return Submission(request) }
    let ring = Int(client.queues.map { $0.ring.size }.min() ?? 1)
    let framing = Framing.random(request, limit: min(ring, 24), using: &random)
    guard client.session.features.contains(.indirectDescriptors) else { return Submission(request, framing: framing) }
    let placement: ChainPlacement
    if ring < 4 {
      placement = .indirect()
    } else if random.chance(1, in: 2) {
      let isMixed = options.cuts == .all
      placement = .indirect(direct: isMixed ? Int(random.next() % 3) : 0, write: random.chance(1, in: 4))
    } else {
      placement = .direct
    }
    return Submission(request, framing: framing, placement: placement)
  }

  // MARK: answers

  private mutating func finish(_ number: Int, _ outcome: BlockOutcome, queue: Int) -> VerifyError? {
    guard let (sectors, _) = inFlight.removeValue(forKey: number), outcome.status == .ok else { return nil }
    switch outcome.request.type {
    case .read:
      progress.bytesRead += UInt64(outcome.answer.count)
      return compare(outcome, number: number, queue: queue)
    case .write:
      progress.bytesWritten += UInt64(outcome.request.payload.count)
      model.set(sectors, .written(UInt32(number)))
    case .writeZeroes: model.set(sectors, .zeroes)
    default: break
    }
    return nil
  }

  private mutating func compare(_ outcome: BlockOutcome, number: Int, queue: Int) -> VerifyError? {
    guard outcome.status == .ok, let mismatch = model.check(outcome.answer, at: outcome.request.sector) else { return nil }
    return .mismatch(mismatch, request: "\(number), \(outcome.request)", queue: queue, seed: options.seed)
  }

  private mutating func tell(_ report: (VerifyProgress) -> Void, now: Bool = false) {
    guard now || .now - lastReport > .milliseconds(100) else { return }
    lastReport = .now
    progress.elapsed = .now - start
    progress.kicks = client.queues.reduce(0) { $0 + $1.ring.notifications.kicks }
    progress.calls = client.queues.reduce(0) { $0 + $1.ring.notifications.calls }
    report(progress)
  }
}
