/// The engine for images of Ceph clusters: requests to librbd, on the handle that all queues of the disk share. The library's
/// threads post completions and wake the worker.
///
/// The library copies data to be written before `start` returns; its threads put data that was read into the segments. If the
/// cluster is away, the library lets requests wait.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

@safe
struct RBDEngine: BlockEngine, ~Copyable {
  static let movesData = true
  static let finishesInPlace = false
  static let noticesCuts = true
  /// RBD_WRITE_ZEROES_FLAG_THICK_PROVISION.
  private static let thick: Int32 = 1

  private let rbd: RBDImage
  /// The state of the image.
  private let state: ImageState
  private let tell: @Sendable (String) -> Void
  private let functions: UnsafeMutablePointer<clinux_rbd>
  private let image: UnsafeMutableRawPointer?
  private let owner: RBDRequests
  private let requests: UnsafeMutablePointer<RBDRequest>
  private var waiter: BoardWaiter
  /// Requests in the library.
  private var pending = 0
  /// The cluster accepts nothing from this client any more: only answers from before reach a driver.
  private var isFenced: Bool
  private var calls: UInt64 = 0

  init(_ rbd: RBDImage, _ plan: EnginePlan, mailbox: Int32) throws(Errno) {
    let waiter = try BoardWaiter(mailbox: mailbox)
    let owner = try RBDRequests(count: plan.depth)
    guard rbd.enter() else { throw .badFileDescriptor }
    unsafe requests = owner.base
    self.waiter = waiter
    self.owner = owner
    unsafe functions = rbd.functions
    unsafe image = rbd.image
    self.rbd = rbd
    state = plan.image.state
    tell = plan.tell
    isFenced = rbd.isFenced
  }

  deinit {
    precondition(pending == 0, "the library would write to freed memory")
    rbd.leave()
  }

  var takesDiscards: Bool { true }
  /// True only after the last answer: until then the library may write to a driver's memory.
  var isLost: Bool { isFenced && pending == 0 }
  var awaitsThreads: Bool { pending > 0 }

  // MARK: Asking

  mutating func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    guard operation.kind != .allocate else { return .finished(-EOPNOTSUPP) }
    guard !isFenced else { return .pending }
    unsafe (requests + Int(tag)).initialize(
      to: RBDRequest(
        board: Unmanaged.passUnretained(waiter.board), functions: functions, tag: tag, operation: operation))
    return send(operation, operation.kind, tag: tag)
  }

  /// - Parameter kind: what is requested: the operation's kind, or the flush after it.
  private mutating func send(_ operation: IOOperation, _ kind: IOOperation.Kind, tag: UInt32) -> IOOutcome {
    var completion: UnsafeMutableRawPointer?
    let created = unsafe functions.pointee.aio_create_completion(requests + Int(tag), RBDRequests.completed, &completion)
    guard created >= 0 else { return .finished(created) }
    // The request may be over before the call returns.
    pending &+= 1
    calls &+= 1
    let result = unsafe request(operation, kind, completion)
    guard result < 0 else { return .pending }
    pending &-= 1
    unsafe functions.pointee.aio_release(completion)
    return .finished(result)
  }

  @inline(__always)
  private func request(_ operation: IOOperation, _ kind: IOOperation.Kind, _ completion: UnsafeMutableRawPointer?) -> Int32 {
    let (offset, length) = (operation.offset, operation.length)
    switch kind {
    case .read, .write:
      // The layout is the same; the pieces stay in place until the request is over.
      let pieces = unsafe UnsafeRawPointer(operation.segments)?.assumingMemoryBound(to: iovec.self)
      let count = Int32(truncatingIfNeeded: operation.segmentCount)
      return unsafe kind == .read
        ? functions.pointee.aio_readv(image, pieces, count, offset, completion)
        : functions.pointee.aio_writev(image, pieces, count, offset, completion)
    case .flush: return unsafe functions.pointee.aio_flush(image, completion)
    case .blockDiscard: return unsafe functions.pointee.aio_discard(image, offset, length, completion)
    case .punchHole: return unsafe functions.pointee.aio_write_zeroes(image, offset, Int(length), completion, 0, 0)
    case .zeroRange: return unsafe functions.pointee.aio_write_zeroes(image, offset, Int(length), completion, Self.thick, 0)
    case .allocate: return -EOPNOTSUPP
    }
  }

  // MARK: Answers

  mutating func nextEvent() -> EngineEvent? {
    while let event = waiter.nextEvent() {
      guard case .completion(let tag, let result) = event else { return event }
      pending &-= 1
      if let event = finish(tag, result) { return event }
    }
    return nil
  }

  /// - Returns: `nil` if the request is not finished by that.
  private mutating func finish(_ tag: UInt32, _ result: Int32) -> EngineEvent? {
    let request = unsafe requests + Int(tag)
    let operation = unsafe request.pointee.operation
    if result == -ESHUTDOWN || result == -EROFS {
      // The second is the error for a client that has lost the lock.
      isFenced = true
      if let news = rbd.fence() { tell(news) }
      return nil
    }
    guard result >= 0 else {
      // The library may have dropped what the cluster could not store, without reporting it again.
      if unsafe operation.kind == .flush || request.pointee.isSettling { state.flushFailed.storeRelaxed(1) }
      return .completion(tag: tag, result: result)
    }
    if operation.isDurable, operation.kind != .read, unsafe !request.pointee.isSettling {
      unsafe request.pointee.isSettling = true
      guard case .finished(let error) = send(operation, .flush, tag: tag) else { return nil }
      return .completion(tag: tag, result: error)
    }
    let count = operation.kind == .read ? result : operation.kind == .write ? Int32(truncatingIfNeeded: operation.length) : 0
    return .completion(tag: tag, result: count)
  }

  // MARK: Sleeping

  mutating func submit() {}
  mutating func wait(nanoseconds: Int64?) { waiter.wait(nanoseconds: nanoseconds) }
  mutating func poll() { waiter.poll() }
  mutating func watch(_ kick: KickSource, lane: Int) throws(Errno) { try waiter.watch(kick, lane: lane) }
  mutating func unwatch(lane: Int) { waiter.unwatch(lane: lane) }
  /// Requests are counted as one each, although the library's threads make the calls.
  var systemCalls: UInt64 { calls &+ waiter.systemCalls }
}
