/// A queue of a disk, from the ring to the engine and back, on the fuzzer's own thread: the worker is the real one, and while
/// it sleeps, the guest runs.
internal import Glibc
internal import SystemPackage
internal import VirtioCore

@testable internal import VirtioBlkDevice

func attackSplitRing(_ shaper: inout Shaper) { attackDevice(&shaper, isPacked: false, isRecorded: shaper.choice(8) == 1) }
func attackPackedRing(_ shaper: inout Shaper) { attackDevice(&shaper, isPacked: true, isRecorded: shaper.choice(8) == 1) }

/// What a queue needs besides its guest, created once.
@safe
final class Stage {
  let image: ImageFile
  let shared: SharedBlock
  let context: LaneContext
  let stallingNews: DeviceNews
  let counters = CounterBlock()
  let metrics: MetricsArea
  let sectors: UInt64
  nonisolated(unsafe) static var news: DeviceNews = make { () throws(Errno) in try DeviceNews() }

  /// - Parameter stalls: failures of the medium are reported to the operator, not to the driver.
  private init(isReadOnly: Bool, blockSize: Int, direct: ImageOptions.Direct, stalls: Bool) {
    let bytes: Int64 = 1 << 20
    var name = Array("/tmp/vmm-blk-fuzz-XXXXXX".utf8CString)
    let file = OwnedDescriptor(unsafe mkstemp(&name))
    let path = String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    guard file.rawValue >= 0, ftruncate(file.rawValue, off_t(bytes)) == 0 else { fail("no file in /tmp") }
    defer { unsafe unlink(path) }
    do {
      image = try ImageFile(
        ImageOptions(path: path, isReadOnly: isReadOnly, direct: direct, logicalBlockSize: blockSize, isLocked: false))
      shared = try SharedBlock(serial: "fuzz", capacity: UInt64(bytes) / 512)
      metrics = try MetricsArea(queueCount: 1, workers: 1)
      stallingNews = try DeviceNews()
    } catch { fail("a disk cannot be created: \(error)") }
    sectors = UInt64(bytes) / 512
    context = unsafe LaneContext(
      limits: BlockLimits(blockMask: UInt64(blockSize - 1), isReadOnly: isReadOnly, segments: 126, segmentBytes: 4 << 20),
      capacity: shared.capacity, medium: MediumFacts(image: image, zeroes: shared.zeroes), writeback: shared.writeback,
      stalls: stalls ? stallingNews : nil, serial: shared.serial, lifetime: image.lifetime, zones: nil)
  }

  nonisolated(unsafe) static let all = [
    Stage(isReadOnly: false, blockSize: 512, direct: .off, stalls: false),
    Stage(isReadOnly: true, blockSize: 512, direct: .off, stalls: false),
    Stage(isReadOnly: false, blockSize: 4096, direct: .off, stalls: false),
    Stage(isReadOnly: false, blockSize: 512, direct: .auto, stalls: false),
    Stage(isReadOnly: false, blockSize: 512, direct: .off, stalls: true),
  ]

  /// Back to the initial state.
  func reset() {
    image.state.flushFailed.storeRelaxed(0)
    shared.writeback.storeRelaxed(1)
    shared.capacity.storeRelaxed(sectors)
    _ = stallingNews.take()
  }
}

/// Runs code that can fail only for lack of resources.
func make<Value>(_ body: () throws -> Value) -> Value {
  do { return try body() } catch { fail("the fuzzer has no resources: \(error)") }
}

/// In-flight records, one for each ring format.
enum Records {
  static let split = make { () throws(InflightError) in
    try InflightMemory.create(queueCount: 1, queueSize: 256)
  }
  static let packed = make { () throws(InflightError) in
    try InflightMemory.create(queueCount: 1, queueSize: 256, isPacked: true)
  }
}

func attackDevice(
  _ shaper: inout Shaper, isPacked: Bool, isRecorded: Bool, prepare: (inout Shaper, Guest) -> Void = { _, _ in }
) {
  let stage = Stage.all[shaper.choice(Stage.all.count)]
  stage.reset()
  var features: FeatureSet = [
    .version1, .indirectDescriptors, .eventIndex, .blockFlush, .blockDiscard, .blockWriteZeroes, .blockConfigWCE, .blockSegMax,
    .blockSizeMax,
  ]
  for bit in [28, 29, 9, 13, 14, 11, 1, 2] where shaper.choice(8) == 1 { features.remove(FeatureSet(bit: bit)) }
  if isPacked { features.insert(.packedRing) } else if shaper.choice(16) == 1 { features.remove(.version1) }
  if shaper.choice(4) == 1 { stage.shared.writeback.storeRelaxed(0) }
  let guest = Guest(&shaper, isPacked: isPacked, features: features, sectors: stage.sectors)
  let records = isPacked ? Records.packed : Records.split
  // As for a ring that no device had before.
  if isRecorded { records.forget() }
  prepare(&shaper, guest)
  let mailbox = make { () throws(Errno) in try WorkerMailbox() }
  _ = Stage.news.take()
  let configuration = WorkerConfiguration(
    index: 0, context: stage.context, slots: shaper.pick([LaneContext.slots, 1, 2, 4]), lanes: 1,
    kind: QueueKind(isPacked: isPacked, isRecorded: isRecorded), waiting: .sleep,
    notification: shaper.pick([.batch, .each, .coalesce(count: 4, microseconds: 1)]), counters: stage.counters,
    throttle: DiskThrottle(RateLimits(), now: Clock.now),
    meter: shaper.flag() ? LaneMeter(block: stage.metrics.blocks[0], clock: stage.metrics.clock) : nil, mailbox: mailbox,
    events: Stage.news)
  let activation = Activation(
    queue: 0, memory: guest.arena.memory, features: features, configuration: guest.configuration, position: guest.position,
    kick: Bell.source, call: shaper.flag() ? Bell.sink : .none, publishesInOrder: shaper.choice(4) == 1,
    inflight: isRecorded ? records : nil)
  let engine = GuestEngine(shaper, guest, stage, mailbox, excused: isRecorded && guest.isTainted)
  tell(
    "\(activation.configuration) at \(activation.position), \(configuration.kind), slots \(configuration.slots), \(configuration.notification), in order \(activation.publishesInOrder)"
  )
  _ = mailbox.post { $0.add(0) { $0.begin(activation) } }
  do throws(Errno) { try work(configuration, top: engine) } catch { fail("a worker cannot be created: \(error)") }
  shaper = engine.shaper
  guest.reap()
  engine.readNews()
  check(engine.hasStopped || engine.wasRefused, "the queue did not report that it has stopped")
  check(!engine.wasRefused || guest.isBroken, "a good queue was refused")
}

/// Doorbells to which nobody listens.
enum Bell {
  nonisolated(unsafe) private static let words: UnsafeMutableRawPointer = {
    let words = UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 64)
    unsafe words.initializeMemory(as: UInt8.self, repeating: 0, count: 64)
    return unsafe words
  }()
  static var source: KickSource { unsafe .doorbell(Doorbell(SharedCell(words))) }
  static var sink: CallSink { unsafe .doorbell(Doorbell(SharedCell(words + 8)), interruptStatus: SharedCell(words + 16)) }
}

/// The medium and the guest in one: whenever the worker sleeps, it is the guest's turn.
@safe
final class GuestEngine: EngineObject {
  /// More steps than any input asks for: an endless loop is a finding.
  private static let patience = 200_000
  /// The source of all reads and the target of all writes: no run depends on the previous one.
  nonisolated(unsafe) private static let content = {
    let content = UnsafeMutableRawPointer.allocate(byteCount: 1 << 20, alignment: 4096)
    memset(content, 0x5a, 1 << 20)
    return content
  }()
  nonisolated(unsafe) private static let waste = UnsafeMutableRawPointer.allocate(byteCount: 1 << 20, alignment: 4096)

  var shaper: Shaper
  private let guest: Guest
  private let stage: Stage
  private let mailbox: WorkerMailbox
  private var inFlight: [(tag: UInt32, result: Int32)] = []
  private var isSubmitted = false
  private var hasMail = true
  private var isKicked = false
  private var turns = 0
  private var steps: Int
  private var isEnding = false
  private var isPaused = false
  private var isAskedLast = false
  /// Requests may remain unanswered.
  private var isExcused: Bool
  private var hasFailed = false
  private(set) var hasStopped = false
  private(set) var wasRefused = false
  private(set) var isLost = false
  /// Everything is done on this thread.
  let awaitsThreads = false
  private let losesAfter: Int?
  private let rewrites: Bool
  private let delays: Bool
  private let errs: Bool

  init(_ shaper: Shaper, _ guest: Guest, _ stage: Stage, _ mailbox: WorkerMailbox, excused: Bool) {
    var shaper = shaper
    self.guest = guest
    self.stage = stage
    self.mailbox = mailbox
    isExcused = excused
    steps = 1 + shaper.choice(8)
    losesAfter = shaper.mistake() ? shaper.choice(16) : nil
    rewrites = shaper.choice(4) == 1
    delays = shaper.choice(2) == 1
    errs = shaper.choice(4) == 1
    self.shaper = shaper
  }

  var takesOnlyTransfers: Bool { false }
  var takesDiscards: Bool { false }
  var hasFinished: Bool { false }
  var systemCalls: UInt64 { 0 }
  func use(_ memory: GuestMemory) {}
  func watch(_ kick: KickSource, lane: Int) throws(Errno) {}
  func unwatch(lane: Int) {}
  func abandon() { inFlight = [] }
  func submit() { isSubmitted = true }
  func poll() { isSubmitted = true }

  func nextEvent() -> EngineEvent? {
    if hasMail {
      hasMail = false
      return .mailbox
    }
    if isKicked {
      isKicked = false
      return .kick(lane: 0)
    }
    guard isSubmitted, !isLost, !inFlight.isEmpty else {
      isSubmitted = false
      return nil
    }
    let done = inFlight.remove(at: shaper.choice(min(inFlight.count, 256)))
    return .completion(tag: done.tag, result: done.result)
  }

  func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    count()
    if let losesAfter, turns > losesAfter { isLost = true }
    if rewrites, shaper.choice(4) == 1 { guest.rewrite(&shaper) }
    let result = perform(operation)
    tell("\(operation.kind) of \(operation.length) at \(operation.offset), tag \(tag): \(result)")
    guard delays, shaper.flag() || isLost else { return .finished(result) }
    check(!inFlight.contains { $0.tag == tag }, "an operation was started twice")
    inFlight.append((tag, result))
    return .pending
  }

  /// Counts a step, to find endless loops.
  private func count() {
    turns += 1
    check(turns < Self.patience, "the worker does not finish")
  }

  private func perform(_ operation: IOOperation) -> Int32 {
    let bytes = stage.sectors * 512
    check(operation.length > 0 || !operation.kind.isTransfer, "an empty transfer reached the engine")
    check(
      operation.offset <= bytes && operation.length <= bytes - operation.offset,
      "\(operation.kind) of \(operation.length) bytes at \(operation.offset) is outside of the disk")
    check(
      operation.kind == .read || operation.kind == .flush || !stage.image.isReadOnly, "\(operation.kind) on a read-only disk")
    var wanted = Int(operation.length)
    if errs {
      switch shaper.choice(16) {
      case 1: return -EIO
      case 2: return -ENOSPC
      case 3: return -EOPNOTSUPP
      case 4: return -EINTR
      case 5 where operation.kind.isTransfer: wanted = Int(shaper.word16()) % (wanted + 1)
      default: break
      }
    }
    guard operation.kind.isTransfer, let segments = unsafe operation.segments else { return 0 }
    var sum = 0
    for index in 0..<operation.segmentCount { unsafe sum += segments[index].count }
    check(sum == Int(operation.length), "the pieces of a transfer of \(operation.length) bytes have \(sum)")
    var (place, left) = (Int(operation.offset), wanted)
    for index in 0..<operation.segmentCount where left > 0 {
      let segment = unsafe segments[index]
      let part = min(segment.count, left)
      // With the sanitizer's own function, which checks each byte.
      if operation.kind == .read {
        unsafe memcpy(segment.base, Self.content + place, part)
      } else {
        unsafe memcpy(Self.waste + place, segment.base, part)
      }
      place += part
      left -= part
    }
    return Int32(wanted)
  }

  func wait(nanoseconds: Int64?) {
    count()
    tell("a sleep of \(nanoseconds.map { "\($0) ns" } ?? "any time"), \(inFlight.count) in flight")
    isSubmitted = true
    // The worker waits for completions, or for a time-out, and not for the guest.
    guard inFlight.isEmpty || isLost, nanoseconds == nil, !hasMail, !isKicked else { return }
    guest.reap()
    readNews()
    if !isEnding { judge() }
    guard steps > 0 else { return end() }
    steps -= 1
    tell("a step; \(guest.summary)")
    takeStep()
  }

  /// The worker has nothing left to do.
  private func judge() {
    guard !isPaused, !isExcused, !hasFailed, !isLost, !guest.isTainted, !wasRefused, stage.context.stalls == nil else { return }
    check(guest.isAllAnswered, "requests were not answered: \(guest.summary)")
  }

  func readNews() {
    for event in Stage.news.take().events {
      tell("\(event)")
      switch event {
      case .queueFailed(_, let error):
        check(guest.isBroken || isLost || isExcused, "a good queue was given up: \(error)")
        check(!hasFailed, "a queue was given up twice")
        hasFailed = true
      case .stopped:
        check(!hasStopped, "a queue stopped twice")
        hasStopped = true
      case .notStarted: wasRefused = true
      default: break
      }
    }
  }

  private func takeStep() {
    let choice = shaper.choice(12)
    tell("choice \(choice)")
    switch choice {
    case 1: guest.rewrite(&shaper)
    case 2:
      isPaused = true
      post { $0.pause = 7 }
    case 3: resume()
    case 4: post { $0.add(0) { $0.call = CallSink.none } }
    case 5 where shaper.mistake(): stage.shared.capacity.storeRelaxed(UInt64(shaper.word16()) % (stage.sectors + 1))
    case 6: stage.shared.writeback.storeRelaxed(UInt32(shaper.choice(2)))
    case 7: break
    default: guest.submit(&shaper)
    }
    isKicked = true
  }

  private func resume() {
    isPaused = false
    post { $0.resumesAll = true }
  }

  private func post(_ change: (inout WorkerOrders) -> Void) { if mailbox.post(change) { hasMail = true } }

  /// Submits one more correct request, which has to be answered, and then stops the queue.
  private func end() {
    if isPaused { resume() }
    if !isAskedLast {
      isAskedLast = true
      guest.submitPlain()
      isKicked = true
      return
    }
    isEnding = true
    post { $0.add(0) { $0.stops = true } }
  }
}
