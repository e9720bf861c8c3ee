/// The engine for exports of NBD servers: commands through libnbd, on a connection that belongs to this worker alone.
///
/// The library makes no thread and never waits. Its socket is in the same epoll set as kicks and the mailbox. The engine also
/// reconnects after a connection was lost; see NBDEngine+Link.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

@safe
struct NBDEngine: BlockEngine, ~Copyable {
  static let movesData = true
  static let finishesInPlace = false
  static let noticesCuts = true
  /// Buffers for transfers in many small pieces: a command of the library has one piece, and a copy is cheaper than more
  /// commands.
  private static let buffers = 32
  /// Pieces of at least this size, bytes, become separate commands.
  private static let largePiece = 16 << 10
  /// How often a socket is read from before kicks are checked.
  private static let attempts = 64

  let export: NBDExport
  let worker: Int
  let tell: @Sendable (String) -> Void
  /// The state of the image.
  let state: ImageState
  var waiter: EpollWaiter
  var requests: NBDRequests
  var buffers = BouncePool(limit: NBDEngine.buffers)
  var link: NBDLink
  private var sequence: UInt64 = 0
  /// Losses that drivers of this worker know about, and those that they are about to be told.
  private var toldLosses: UInt64
  private var seenLosses: UInt64
  private var isUsed = false
  private var commands: UInt64 = 0

  init(_ export: NBDExport, _ plan: EnginePlan, mailbox: Int32) throws(Errno) {
    let waiter = try EpollWaiter(mailbox: mailbox)
    let requests = try NBDRequests(count: plan.depth)
    self.waiter = waiter
    self.requests = requests
    self.export = export
    worker = plan.worker
    tell = plan.tell
    state = plan.image.state
    toldLosses = export.toldLosses(worker: plan.worker)
    seenLosses = toldLosses
    link = NBDLink(limit: UInt64(export.options.reconnectTimeout) &* 1_000_000_000, now: Clock.now)
    if let connection = export.take() { adopt(connection) }
  }

  deinit {
    link.attempt?.abandon()
    _ = export.comesBack(worker: worker, isOver: true)
    if link.isUp, requests.active.isEmpty, let connection = link.connection { export.give(connection) }
  }

  var takesDiscards: Bool { true }

  // MARK: Asking

  mutating func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    guard !link.hasGivenUp else { return .finished(-EIO) }
    if !isUsed {
      isUsed = true
      export.noteUse(worker: worker)
    }
    let facts = export.facts
    switch operation.kind {
    case .read, .write: break
    case .flush:
      // Without a flush command there is nothing to send; but a loss still has to be reported.
      if !facts.canFlush {
        guard owesWord(export.lossCount) else {
          export.noteFlush(export.written)
          return .finished(0)
        }
      }
    case .blockDiscard: guard facts.canTrim else { return .finished(-EOPNOTSUPP) }
    case .punchHole, .zeroRange: guard facts.canZero else { return .finished(-EOPNOTSUPP) }
    case .allocate: return .finished(-EOPNOTSUPP)
    }
    sequence &+= 1
    requests.add(tag, operation, sequence: sequence)
    if link.isUp { send(tag) }
    return .pending
  }

  /// Sends the request of a tag, in one command or several. There has to be a connection.
  mutating func send(_ tag: UInt32) {
    guard let connection = link.connection else { return }
    let request = unsafe requests[tag]
    let operation = unsafe request.pointee.operation
    let isDurable = operation.isDurable && export.facts.canFUA
    unsafe request.pointee.state = .sent
    requests.beginSending(tag)
    switch operation.kind {
    case .read, .write: unsafe transfer(tag, request, operation, connection, flags: isDurable ? 1 : 0)
    case .flush: unsafe flush(tag, request, connection)
    case .blockDiscard:
      unsafe command(tag, connection) { functions, handle, job in
        unsafe functions.pointee.aio_trim(handle, operation.length, operation.offset, clinux_nbd_to(job), isDurable ? 1 : 0)
      }
    case .punchHole, .zeroRange:
      // 2: no hole.
      let flags: UInt32 = (isDurable ? 1 : 0) | (operation.kind == .zeroRange ? 2 : 0)
      unsafe command(tag, connection) { functions, handle, job in
        unsafe functions.pointee.aio_zero(handle, operation.length, operation.offset, clinux_nbd_to(job), flags)
      }
    case .allocate: break
    }
    requests.endSending(tag)
  }

  /// Whether the drivers do not know about all these losses. They may have learned about them from another process meanwhile.
  private mutating func owesWord(_ losses: UInt64) -> Bool {
    guard losses != toldLosses else { return false }
    toldLosses = export.toldLosses(worker: worker)
    return losses != toldLosses
  }

  private mutating func flush(_ tag: UInt32, _ request: UnsafeMutablePointer<NBDRequest>, _ connection: NBDConnection) {
    let losses = export.lossCount
    guard !owesWord(losses) else {
      // Every flush fails until the first of them is answered.
      seenLosses = losses
      unsafe request.pointee.state = .lost
      unsafe requests.job(tag).pointee.error = EIO
      return
    }
    unsafe request.pointee.covers = export.written
    unsafe command(tag, connection) { functions, handle, job in
      unsafe functions.pointee.aio_flush(handle, clinux_nbd_to(job), 0)
    }
  }

  private mutating func transfer(
    _ tag: UInt32, _ request: UnsafeMutablePointer<NBDRequest>, _ operation: IOOperation, _ connection: NBDConnection,
    flags: UInt32
  ) {
    guard let segments = unsafe operation.segments else { return }
    var (pieces, count) = unsafe (segments, operation.segmentCount)
    if unsafe count > 1 && (request.pointee.buffer > 0 || gather(tag, request, operation)) {
      unsafe pieces = buffers.segment(Int(request.pointee.buffer) - 1, bytes: Int(operation.length))
      count = 1
      guard unsafe requests.job(tag).pointee.error == 0 else { return }
    }
    var offset = operation.offset
    let largest = Int(export.facts.largestTransfer)
    for index in 0..<count {
      var rest = unsafe pieces[index]
      while rest.count > 0 {
        let (base, bytes) = unsafe (rest.base, min(rest.count, largest))
        let isSent = unsafe command(tag, connection) { functions, handle, job in
          operation.kind == .read
            ? unsafe functions.pointee.aio_pread(handle, base, bytes, offset, clinux_nbd_to(job), 0)
            : unsafe functions.pointee.aio_pwrite(handle, base, bytes, offset, clinux_nbd_to(job), flags)
        }
        guard isSent else { return }
        offset &+= UInt64(bytes)
        rest.removeFirst(bytes)
      }
    }
  }

  /// Takes a buffer for a transfer in many small pieces, and copies what is to be written. - Returns: false if commands for the
  /// pieces are better, or no buffer is free.
  private mutating func gather(
    _ tag: UInt32, _ request: UnsafeMutablePointer<NBDRequest>, _ operation: IOOperation
  ) -> Bool {
    let bytes = Int(operation.length)
    guard bytes <= BouncePool.size, bytes / operation.segmentCount < Self.largePiece, case .buffer(let index) = buffers.take()
    else {
      return false
    }
    unsafe request.pointee.buffer = UInt32(index) + 1
    guard operation.kind == .write else { return true }
    let faults = FaultGuard.count
    buffers.fill(index, from: operation, skipping: 0, bytes: bytes)
    // If memory was lost while it was copied, the copy is not written.
    if FaultGuard.count != faults, !operation.isMemoryThere() { unsafe requests.job(tag).pointee.error = EFAULT }
    return true
  }

  /// - Returns: whether the library accepted it.
  @discardableResult
  private mutating func command(
    _ tag: UInt32, _ connection: NBDConnection,
    _ call: (UnsafeMutablePointer<clinux_nbd>, OpaquePointer, UnsafeMutablePointer<clinux_nbd_job>) -> Int64
  ) -> Bool {
    let job = unsafe requests.job(tag)
    let functions = unsafe connection.library.functions
    unsafe job.pointee.left += 1
    commands &+= 1
    guard unsafe call(functions, connection.handle, job) < 0 else { return true }
    unsafe job.pointee.left -= 1
    // A refusal by a connection that has ended is not a refusal of the command.
    let error = connection.isDead ? ENOTCONN : max(unsafe functions.pointee.get_errno(), 0)
    if unsafe job.pointee.error == 0 { unsafe job.pointee.error = error == 0 ? EIO : error }
    return false
  }

  // MARK: Answers

  mutating func nextEvent() -> EngineEvent? {
    while true {
      while requests.hasDone { if let event = finish(requests.nextDone()) { return event } }
      if link.isBroken { lose() }
      if !link.isUp { tick() }
      guard !requests.hasDone, !link.isBroken else { continue }
      switch waiter.nextWake() {
      case nil: return nil
      case .kick(let lane): return .kick(lane: lane)
      case .mailbox: return .mailbox
      case .completions: attend()
      }
    }
  }

  /// The socket is ready for something.
  private mutating func attend() {
    guard let connection = link.connection else { return takeAttempt() }
    let ready = waiter.readiness
    connection.attend(ready)
    guard link.isUp else { return goOnConnecting() }
    // Each call reads one answer, or a part of one; otherwise each remaining answer would cost a turn.
    var attempts = 0
    while ready.contains(.read), attempts < Self.attempts, connection.hasMore {
      connection.attend(.read)
      attempts += 1
      commands &+= 1
    }
    if connection.isDead { link.isBroken = true }
  }

  /// All commands of a tag are over. - Returns: `nil` if the request is not finished by that.
  private mutating func finish(_ tag: UInt32) -> EngineEvent? {
    let request = unsafe requests[tag]
    let error = unsafe requests.job(tag).pointee.error
    let operation = unsafe request.pointee.operation
    let isLost = unsafe request.pointee.state == .lost
    if error == ENOTCONN || error == ESHUTDOWN {
      // The first is how the library reports a lost connection, the second how the server reports its shutdown: it is sent
      // again.
      unsafe request.pointee.state = .waiting
      link.isBroken = true
      return nil
    }
    if error == 0 {
      guard unsafe isSettled(tag, request, operation) else { return nil }
    } else if isLost {
      toldLosses = seenLosses
      export.tell(toldLosses, worker: worker)
    } else if unsafe !link.hasGivenUp && error != EFAULT
      && (operation.kind == .flush || operation.isDurable || request.pointee.state == .settling)
    {
      // The server may have dropped what it could not store, without reporting it again.
      state.flushFailed.storeRelaxed(1)
    }
    if unsafe request.pointee.buffer > 0 { unsafe buffers.give(Int(request.pointee.buffer) - 1) }
    requests.remove(tag)
    if error == 0, link.outage != nil { link.outage = nil }
    let result = error != 0 ? -error : operation.kind.isTransfer ? Int32(truncatingIfNeeded: operation.length) : 0
    return .completion(tag: tag, result: result)
  }

  /// All commands succeeded. - Returns: false if another step has to follow.
  private mutating func isSettled(
    _ tag: UInt32, _ request: UnsafeMutablePointer<NBDRequest>, _ operation: IOOperation
  ) -> Bool {
    switch operation.kind {
    case .read:
      if unsafe request.pointee.buffer > 0 {
        unsafe buffers.empty(Int(request.pointee.buffer) - 1, into: operation, skipping: 0, bytes: Int(operation.length))
      }
    case .flush: unsafe export.noteFlush(request.pointee.covers)
    case .write, .blockDiscard, .punchHole, .zeroRange, .allocate:
      if operation.isDurable {
        if export.facts.canFUA { break }
        if unsafe request.pointee.state == .settling {
          unsafe export.noteFlush(request.pointee.covers)
          break
        }
        export.noteWrite()
        return unsafe !settle(tag, request)
      }
      export.noteWrite()
    }
    return true
  }

  /// Makes a write stable with a flush, because the server does not support FUA. - Returns: false if it does not support
  /// flushes, either.
  private mutating func settle(_ tag: UInt32, _ request: UnsafeMutablePointer<NBDRequest>) -> Bool {
    guard export.facts.canFlush else { return false }
    guard let connection = link.connection, !link.isBroken else {
      // It starts again from its beginning, on the next connection.
      unsafe request.pointee.state = .waiting
      return true
    }
    unsafe request.pointee.state = .settling
    unsafe request.pointee.covers = export.written
    requests.beginSending(tag)
    unsafe command(tag, connection) { functions, handle, job in
      unsafe functions.pointee.aio_flush(handle, clinux_nbd_to(job), 0)
    }
    requests.endSending(tag)
    return true
  }

  // MARK: Sleeping

  var hasFinished: Bool { requests.hasDone || link.isBroken }

  mutating func submit() { updateInterest() }

  mutating func poll() {
    updateInterest()
    waiter.wait(nanoseconds: 0)
  }

  mutating func wait(nanoseconds: Int64?) {
    guard !hasFinished else { return }
    updateInterest()
    guard !link.isUp else { return waiter.wait(nanoseconds: nanoseconds) }
    let left = max(Int64(clamping: link.due) - Int64(clamping: Clock.now), 0)
    waiter.wait(nanoseconds: min(nanoseconds ?? .max, left))
  }

  mutating func watch(_ kick: KickSource, lane: Int) throws(Errno) { try waiter.watch(kick, lane: lane) }
  mutating func unwatch(lane: Int) { waiter.unwatch(lane: lane) }
  /// Commands are counted as one each, although the library makes several calls for some.
  var systemCalls: UInt64 { commands &+ waiter.systemCalls }
}
