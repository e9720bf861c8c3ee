/// The layer between virtio and an engine: byte ranges go in, and one answer for each comes out, whatever steps the medium
/// needs.
///
/// Everything that depends on what a medium supports is here: alignment and copies into aligned buffers, short transfers, the
/// end of a file, fallbacks for zeroing and discarding, calls that no engine supports, sticky flush errors.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// The state of a job after it was requested, or continued.
enum JobProgress {
  /// An event with its tag will come.
  case pending
  case done
  case failed
}

/// Something that a worker was waiting for.
enum MediumEvent {
  case done(tag: UInt32)
  case failed(tag: UInt32)
  /// The driver of this lane kicked, or might have.
  case kick(lane: Int)
  case mailbox
}

/// The medium as one worker sees it: engine, jobs and buffers are used only on its thread. What the queues of a disk share
/// belongs to the image.
@safe
struct Medium<Engine: BlockEngine & ~Copyable>: ~Copyable {
  static var stepBytes: UInt64 { Engine.stepBytes }
  /// Bytes of data that a queue may take in one turn, before the next queue has its turn.
  static var turnBytes: Int { Int(stepBytes) }
  /// Bytes that are discarded or zeroed at once, unless zeroes have to be written.
  static var rangeStepBytes: UInt64 { 64 << 20 }
  /// The most attempts without progress.
  static var attempts: UInt8 { 4 }
  /// The most attempts after EAGAIN, each after a pause: a tenth of a second in all.
  static var patience: UInt8 { 100 }
  /// Threads for calls that the engine does not support.
  private static var helpers: Int { 2 }

  let facts: MediumFacts
  var engine: Engine
  let jobs: MediumJobs
  var backlog = Backlog()
  var buffers = BouncePool()
  let counters: CounterBlock
  /// Operations that the medium turned out not to support.
  var cannotPunch = false
  var cannotZeroRange = false
  /// What the backlog may still do in this turn, bytes.
  private var allowance: UInt64 = 0

  let board: CompletionBoard
  private var pool: CallPool<PlainIO>?
  /// The mailbox rang, so there may be something on the board.
  private var boardIsNews = false
  private var taken: [(tag: UInt32, result: Int32)] = []

  /// Guest memory by lane.
  private var memories: [GuestMemory?]
  private var length: FileLength
  /// Flushes and stable writes in flight, if they have to be tracked.
  var syncs: OwnSyncs?
  /// The threads that record the states of zones.
  var recorders: CallPool<ZoneRecorder>?

  /// - Parameters:
  ///   - worker: the number of the worker among those of its device.
  ///   - lanes: lanes of the worker; tags are below `lanes` times `LaneContext.slots`.
  ///   - wake: makes the worker's mailbox ring; called from other threads.
  init(
    _ facts: MediumFacts, engine: consuming Engine, worker: Int, lanes: Int, counters: CounterBlock,
    wake: @escaping @Sendable () -> Void
  ) throws(Errno) {
    jobs = try MediumJobs(count: lanes * LaneContext.slots)
    self.facts = facts
    self.engine = engine
    self.counters = counters
    board = CompletionBoard(wake: wake)
    memories = Array(repeating: nil, count: lanes)
    length = FileLength(descriptor: facts.descriptor, full: facts.size)
    syncs = facts.syncs.map { OwnSyncs($0, worker: worker) }
  }

  deinit {
    pool?.end()
    recorders?.end()
    board.awaitPosters()
  }

  // MARK: Events

  /// The next event; `nil` if there is none now. Also works on the backlog, as much as the turn allows.
  @inline(__always)
  mutating func nextEvent() -> MediumEvent? {
    while let event = engine.nextEvent() {
      switch event {
      case .completion(let tag, let result):
        let job = unsafe jobs[tag]
        // A transfer is shorter than 2^31 bytes, so 32 bits hold its whole length, and no negative errno equals it.
        if unsafe job.pointee.stage == .whole
          && UInt32(bitPattern: result) == UInt32(truncatingIfNeeded: job.pointee.operation.length)
        {
          return .done(tag: tag)
        }
        if let event = self.event(of: tag, goOn(tag, result)) { return event }
      case .kick(let lane): return .kick(lane: lane)
      case .mailbox:
        boardIsNews = true
        return .mailbox
      }
    }
    return backlog.hasReady || boardIsNews ? otherEvent() : nil
  }

  private func event(of tag: UInt32, _ progress: JobProgress) -> MediumEvent? {
    switch progress {
    case .pending: nil
    case .done: .done(tag: tag)
    case .failed: .failed(tag: tag)
    }
  }

  /// Events from what helpers finished, and from jobs in the backlog.
  @inline(never)
  private mutating func otherEvent() -> MediumEvent? {
    // If the engine is lost, so is everything in flight, including what helpers do.
    if boardIsNews, pool != nil || facts.zones != nil, !engine.isLost {
      if taken.isEmpty { board.take(into: &taken) }
      while let (tag, result) = taken.popLast() {
        if let event = event(of: tag, goOn(tag, result)) { return event }
      }
    }
    boardIsNews = false
    while allowance > 0, let tag = backlog.next() {
      if let event = event(of: tag, goOn(tag, nil)) { return event }
    }
    return nil
  }

  /// Begins a turn: the backlog gets its allowance, and jobs that have rested long enough are retried.
  @inline(__always)
  mutating func beginTurn() {
    allowance = Self.stepBytes
    if backlog.hasResting { backlog.wakeRested(now: Clock.now) }
  }

  /// Something that the thread did itself took this much of the turn.
  mutating func spend(_ bytes: UInt64) { allowance -= min(allowance, bytes) }

  /// There is something to do without waiting.
  var hasReady: Bool {
    @inline(__always) get { engine.hasFinished || backlog.hasReady }
  }

  /// When a resting job has to be retried; `Clock` nanoseconds.
  var restEnds: UInt64? { backlog.restEnds }

  // MARK: Transfers

  /// Reads into the operation's segments, or writes from them. The segments and the operation must not change until it is done.
  ///
  /// - Parameter operation: a read or a write of whole blocks inside the medium, of 1 … `stepBytes` bytes.
  @inline(__always)
  mutating func transfer(_ operation: IOOperation, tag: UInt32) -> JobProgress {
    // An engine that moves no data needs no alignment.
    guard !Engine.movesData || !operation.isMisaligned(facts.memoryMask) else {
      prepare(operation, tag: tag)
      return transferPrepared(tag)
    }
    guard Engine.finishesInPlace else {
      prepare(operation, tag: tag)
      guard case .finished(let result) = engine.start(operation, tag: tag) else { return .pending }
      return goOn(tag, result)
    }
    let outcome = engine.start(operation, tag: tag)
    // In 32 bits, as above.
    if case .finished(let result) = outcome, UInt32(bitPattern: result) == UInt32(truncatingIfNeeded: operation.length) {
      return .done
    }
    prepare(operation, tag: tag)
    if case .finished(let result) = outcome { return goOn(tag, result) }
    return .pending
  }

  /// Stores the transfer in its job, field by field, so that the path of most transfers needs no copy of it.
  @inline(__always)
  func prepare(_ operation: IOOperation, tag: UInt32) {
    let job = unsafe jobs[tag]
    unsafe operation.store(in: &job.pointee.operation)
    unsafe job.pointee.stage = .whole
  }

  /// The operation that `prepare` stored.
  func prepared(_ tag: UInt32) -> IOOperation { unsafe jobs[tag].pointee.operation }

  /// Like `transfer`, for the stored operation: of any length, and in parts if necessary.
  @inline(never)
  mutating func transferPrepared(_ tag: UInt32) -> JobProgress {
    let operation = unsafe jobs[tag].pointee.operation
    guard operation.length > 0 else { return .done }
    guard operation.length <= Self.stepBytes, !operation.isMisaligned(facts.memoryMask), !operation.isDurable || syncs == nil
    else { return begin(MediumJob(.parts, operation), tag) }
    let outcome = engine.start(operation, tag: tag)
    guard case .finished(let result) = outcome else { return .pending }
    return UInt64(bitPattern: Int64(result)) == operation.length ? .done : goOn(tag, result)
  }

  /// Retries a failed transfer from its beginning.
  mutating func transferAgain(_ tag: UInt32) -> JobProgress {
    begin(MediumJob(.parts, unsafe jobs[tag].pointee.operation), tag)
  }

  /// Bytes that a read has put into its segments so far, from the first one on, without a gap.
  func filled(_ tag: UInt32) -> UInt64 { unsafe jobs[tag].pointee.stage == .whole ? 0 : UInt64(jobs[tag].pointee.done) }

  /// When it is done, everything that was written before is on stable storage.
  mutating func flush(tag: UInt32) -> JobProgress {
    guard facts.flushFailed.loadRelaxed() == 0 else { return .failed }
    let job = MediumJob(.flush, unsafe IOOperation(kind: .flush))
    return syncs == nil ? ask(job, tag) : begin(job, tag)
  }

  /// Starts a job that is not a transfer and usually takes a single step: its operation.
  @inline(__always)
  mutating func ask(_ job: MediumJob, _ tag: UInt32) -> JobProgress {
    guard !engine.takesOnlyTransfers, allowance > 0 else {
      unsafe jobs[tag].pointee = job
      backlog.append(tag)
      return .pending
    }
    let outcome = engine.start(job.operation, tag: tag)
    if case .finished(let result) = outcome, result >= 0 {
      spend(Self.stepCost(job.operation.length))
      return .done
    }
    unsafe jobs[tag].pointee = job
    unsafe jobs[tag].pointee.part = UInt32(truncatingIfNeeded: job.operation.length)
    if case .finished(let result) = outcome { return goOn(tag, result) }
    return .pending
  }

  /// What a step that moves no data counts for, in bytes of data.
  static func stepCost(_ bytes: UInt64) -> UInt64 { 4096 &+ bytes >> 6 }

  mutating func begin(_ job: MediumJob, _ tag: UInt32) -> JobProgress {
    unsafe jobs[tag].pointee = job
    return goOn(tag, nil)
  }

  // MARK: Steps

  /// What to do after the result of a step.
  enum Next {
    /// Another step.
    case step
    /// Another step after a rest.
    case rest
    case done
    case failed
  }

  /// The outcome of starting a step.
  enum Start {
    case outcome(IOOutcome)
    /// It continues when a buffer comes back.
    case waitsForBuffer
    case failed
  }

  /// Continues a job. At most one step is executed by the thread itself; the rest goes to the backlog.
  ///
  /// - Parameter result: the result of its last step; `nil`: there was none.
  @inline(never)
  mutating func goOn(_ tag: UInt32, _ result: Int32?) -> JobProgress {
    let job = unsafe jobs[tag]
    if unsafe job.pointee.waitsForOthers { return unsafe goOnWaiting(tag, job) }
    if let result {
      if let progress = unsafe settle(tag, job, next(tag, job, result)) { return progress }
    }
    switch unsafe start(tag, job) {
    case .outcome(.pending): return .pending
    case .outcome(.finished(let result)):
      unsafe spend(job.pointee.stage == .parts ? UInt64(job.pointee.part) : Self.stepCost(UInt64(job.pointee.part)))
      if let progress = unsafe settle(tag, job, next(tag, job, result)) { return progress }
      backlog.append(tag)
      return .pending
    case .waitsForBuffer:
      backlog.waitForBuffer(tag)
      return .pending
    case .failed: return unsafe end(job, .failed)
    }
  }

  /// - Returns: `nil` if another step follows at once.
  private mutating func settle(_ tag: UInt32, _ job: UnsafeMutablePointer<MediumJob>, _ next: Next) -> JobProgress? {
    switch next {
    case .step: return nil
    case .rest:
      backlog.rest(tag, now: Clock.now)
      return .pending
    case .done: return unsafe job.pointee.sync == 0 ? end(job, .done) : waitForOthers(tag, job)
    case .failed:
      // The kernel drops data from the page cache that a stable write or a flush failed to store.
      if !facts.isDirect, unsafe job.pointee.stage == .flush || job.pointee.operation.isDurable {
        facts.flushFailed.storeRelaxed(1)
      }
      return unsafe end(job, .failed)
    }
  }

  /// Releases what the job used.
  mutating func end(_ job: UnsafeMutablePointer<MediumJob>, _ progress: JobProgress) -> JobProgress {
    unsafe forgetSync(job)
    unsafe job.pointee.freePieces()
    if unsafe job.pointee.buffer > 0 {
      unsafe buffers.give(Int(job.pointee.buffer) - 1)
      unsafe job.pointee.buffer = 0
      backlog.wakeOne()
    }
    return progress
  }

  private mutating func start(_ tag: UInt32, _ job: UnsafeMutablePointer<MediumJob>) -> Start {
    switch unsafe job.pointee.stage {
    case .whole, .parts:
      if unsafe job.pointee.operation.isDurable { unsafe beginSync(job) }
      return unsafe startPart(tag, job)
    case .flush:
      guard facts.flushFailed.loadRelaxed() == 0 else { return .failed }
      unsafe beginSync(job)
      return call(unsafe IOOperation(kind: .flush), tag)
    case .discard: return unsafe startDiscard(tag, job)
    case .zero: return unsafe startZero(tag, job)
    case .word: return .failed
    }
  }

  private mutating func next(_ tag: UInt32, _ job: UnsafeMutablePointer<MediumJob>, _ result: Int32) -> Next {
    if unsafe job.pointee.stage == .whole {
      // Only the operation was stored. The job continues from here in parts.
      unsafe job.pointee = MediumJob(.parts, job.pointee.operation)
      unsafe job.pointee.part = UInt32(truncatingIfNeeded: job.pointee.operation.length)
    }
    if result == -EINTR { return unsafe job.pointee.retry(atMost: Self.patience) ? .step : .failed }
    if result == -EAGAIN { return unsafe job.pointee.retry(atMost: Self.patience) ? .rest : .failed }
    switch unsafe job.pointee.stage {
    case .whole, .parts: return unsafe nextPart(job, result)
    case .flush: return result < 0 ? .failed : .done
    case .discard: return unsafe nextDiscard(job, result)
    case .zero: return unsafe nextZero(job, result)
    case .word:
      unsafe job.pointee.part = UInt32(bitPattern: result)
      return .done
    }
  }

  /// Starts an operation that is not a transfer: in the engine, or on a helper if the engine does not support it.
  mutating func call(_ operation: IOOperation, _ tag: UInt32) -> Start {
    guard engine.takesOnlyTransfers || operation.kind == .blockDiscard && !engine.takesDiscards else {
      return .outcome(engine.start(operation, tag: tag))
    }
    if pool == nil { pool = try? CallPool(PlainIO(descriptor: facts.descriptor), board: board, threads: Self.helpers) }
    guard let pool else { return .failed }
    pool.add(operation, tag: tag)
    return .outcome(.pending)
  }

  // MARK: What changes in the meantime

  /// Memory that transfers of a lane point into from now on.
  mutating func use(_ memory: GuestMemory, lane: Int) {
    memories[lane] = memory
    engine.use(memory.untranslated)
  }

  /// The lane has no jobs any more.
  mutating func forgetMemory(ofLane lane: Int) { memories[lane] = nil }

  /// Whether some of the memory behind a job's segments is lost: what was read from it is not the driver's data.
  func memoryIsLost(_ tag: UInt32) -> Bool { memories[LaneContext.lane(of: tag)]?.hasFaulted ?? false }

  /// Whether the length of the file has to be checked, because it may be truncated while it is open.
  var canBeCut: Bool { !facts.isBlockDevice && !Engine.noticesCuts }

  /// Whether the medium still has all bytes before this offset, for cases that the engine does not notice.
  mutating func holds(end: UInt64) -> Bool { facts.isBlockDevice || length.holds(end: end) }

  /// Whether the file was as long as the disk when it was last checked.
  var isWhole: Bool { length.isFull }

  var systemCalls: UInt64 { engine.systemCalls &+ length.calls }

  /// The engine can no longer reach the kernel. The lanes answer what was in flight.
  mutating func abandonJobs() {
    backlog.removeAll()
    abandonSyncs()
    engine.abandon()
  }
}
