/// What the layer between virtio and an engine does for a medium: sticky errors, split requests, copies, helpers, and lost
/// engines.
import CLinux
import Foundation
import GuestDriver
import Synchronization
import SystemPackage
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct MediumTests {
  // MARK: Flush errors

  /// The kernel reports a write-back error of the page cache once, to whichever queue asks first.
  @Test func aFailedFlushFailsAllLaterOnes() throws {
    let script = try Script([.result(-EIO)])
    var options = RigOptions(size: 1 << 20, script: script)
    options.device.queueCount = 2
    let rig = try Rig(options)
    try rig.expect(.flush, .ioError)
    for queue in [0, 1, 0] { #expect(try rig.perform(.flush, queue: queue).status == .ioError) }
    // Everything else keeps working.
    try rig.expect(.write(sector: 8, pattern(4096)))
    #expect(try firstDifference(rig.expect(.read(sector: 8, bytes: 4096)).answer, pattern(4096)) == nil)
    #expect(script.records.filter { $0.kind == .flush }.count == 1, "no later flush asks the kernel, which has forgotten")
    // Opened again, the image starts without the error.
    let again = try Rig(RigOptions(script: Script()), image: rig.path, isLocked: false)
    try again.expect(.flush)
  }

  /// Two flushes at once: the kernel reports the error to one of them, and the other may complete first. One thread sees the
  /// successful one first; with two threads either may be first.
  @Test(arguments: [1, 2], [BlockRequest.flush, .write(sector: 8, pattern(4096))])
  func aFlushBesideOneThatFailsIsNotOK(threads: Int, other: BlockRequest) throws {
    let script = try Script([.result(-EIO)], completesLater: true, isBackwards: true)
    var options = RigOptions(size: 1 << 20, script: script)
    options.device.queueCount = 2
    options.device.threads = threads
    let rig = try Rig(options)
    #expect(rig.device.writeConfiguration(at: 32, [0]))
    script.hold()
    for (queue, request) in [other, .flush].enumerated() {
      _ = try #require(try rig.client.queues[queue].submit(request))
      rig.client.queues[queue].publish()
      try waitUntil("it is in flight") { script.records.count == queue + 1 }
    }
    #expect(try answers(rig, [1, 1], while: script.release) == [[.ioError], [.ioError]])
  }

  /// The same without an error: each waits for the other, and all are answered.
  @Test(arguments: [1, 2]) func flushesBesideEachOtherAreAnswered(threads: Int) throws {
    let script = try Script(completesLater: true, isBackwards: true)
    var options = RigOptions(size: 1 << 20, script: script)
    options.device.queueCount = 2
    options.device.threads = threads
    let rig = try Rig(options)
    for _ in 0..<20 {
      for queue in rig.client.queues {
        for _ in 0..<8 { _ = try #require(try queue.submit(.flush)) }
        queue.publish()
      }
      let all = [BlockStatusCode](repeating: .ok, count: 8)
      #expect(try answers(rig, [8, 8], while: script.release) == [all, all])
    }
  }

  /// Waits for that many answers on each queue.
  private func answers(_ rig: Rig, _ counts: [Int], while step: () -> Void) throws -> [[BlockStatusCode]] {
    var found = counts.map { _ in [BlockStatusCode]() }
    try waitUntil("all are answered") {
      step()
      for (index, queue) in rig.client.queues.enumerated() {
        while let outcome = try queue.reap() { found[index].append(outcome.status) }
      }
      return found.map(\.count) == counts
    }
    return found
  }

  @Test func aFailedStableWriteFailsAllLaterFlushes() throws {
    let script = try Script([.result(-EIO)])
    let rig = try Rig(RigOptions(size: 1 << 20, script: script))
    #expect(rig.device.writeConfiguration(at: 32, [0]))
    try rig.expect(.write(sector: 8, pattern(4096)), .ioError)
    #expect(script.records.first?.isDurable == true)
    try rig.expect(.flush, .ioError)
  }

  /// A failed write that was not promised to be stable is reported to the driver, and fails no flush.
  @Test func aFailedWriteSaysNothingAboutFlushes() throws {
    let rig = try Rig(RigOptions(size: 1 << 20, script: Script([.result(-ENOSPC)])))
    try rig.expect(.write(sector: 8, pattern(4096)), .ioError)
    try rig.expect(.flush)
  }

  /// With direct I/O, the page cache has no dirty data to lose.
  @Test func aDirectImageFlushesAgain() throws {
    let rig = try Rig(RigOptions(size: 1 << 20, direct: .auto, script: Script([.result(-EIO)])))
    try #require(rig.device.image.isDirect, "the temporary folder takes no direct I/O")
    try rig.expect(.flush, .ioError)
    try rig.expect(.flush)
  }

  // MARK: Alignment

  /// A medium that needs a stricter alignment than it reports gets one attempt through a copy.
  @Test(arguments: [false, true], [false, true]) func aRefusedDirectTransferIsBouncedOnce(isRead: Bool, later: Bool) throws {
    let script = try Script([.result(-EINVAL), .whole, .result(-EINVAL), .result(-EINVAL)], completesLater: later)
    let rig = try Rig(RigOptions(size: 1 << 20, direct: .auto, script: script))
    try #require(rig.device.image.isDirect, "the temporary folder takes no direct I/O")
    let request = isRead ? BlockRequest.read(sector: 8, bytes: 4096) : .write(sector: 8, pattern(4096))
    try rig.expect(request)
    #expect(rig.device.counters.bounces == 1)
    if !isRead { #expect(try firstDifference(rig.contents(at: 4096, count: 4096), pattern(4096)) == nil) }
    try rig.expect(request, .ioError)
    #expect(script.records.count == 4)
  }

  @Test func aRefusedTransferThroughThePageCacheIsAnError() throws {
    let rig = try Rig(RigOptions(size: 1 << 20, script: Script([.result(-EINVAL)])))
    try rig.expect(.read(sector: 8, bytes: 4096), .ioError)
    #expect(rig.device.counters.bounces == 0)
  }

  /// When more requests need a copy than there are buffers, the others wait for one.
  @Test(.enabled(if: Host.refusesOddBuffers, "direct I/O takes any buffer in the temporary folder"))
  func moreCopiesThanBuffers() throws {
    let script = try Script(completesLater: true)
    let scratch = try Scratch()
    let image = try ImageFile(ImageOptions(path: scratch.image(size: 4 << 20)))
    let device = try BlockDevice(image: image, options: .init()) { script.serve($0, $1) }
    let queue = try HandQueue(device, 0, SharedMemory(size: 16 << 20), size: 256)
    let requests = (0..<40).map { BlockRequest.write(sector: UInt64($0 * 8), pattern(4096, seed: $0)) }
    for request in requests { _ = try #require(try queue.queue.submit(request, framing: .classic(request, alignment: 1))) }
    script.hold()
    queue.queue.publish()
    try queue.start()
    try waitUntil("some are in flight") { script.held >= 16 }
    script.release()
    var answers = 0
    try waitUntil("all are answered") {
      while let outcome = try queue.queue.reap() {
        #expect(outcome.status == .ok)
        answers += 1
      }
      return answers == requests.count
    }
    #expect(queue.stop() != nil)
    for number in requests.indices {
      let bytes = try scratch.contents(image.path, at: number * 4096, count: 4096)
      #expect(firstDifference(bytes, pattern(4096, seed: number)) == nil)
    }
  }

  // MARK: Split requests

  /// A driver that ignores limits may ask for more than one turn transfers.
  @Test(arguments: [EngineKind.sync, .uring, .aio, .threads, .mapped], [Medium.disk, .memory])
  func largeRequestsGoInParts(engine: EngineKind, medium: Medium) throws {
    let size = 12 << 20
    let scratch = try Scratch(in: medium.folder)
    var options = BlockDeviceOptions()
    options.engine = engine
    let image = try ImageFile(ImageOptions(path: scratch.image(size: 16 << 20), direct: .off))
    let device = try BlockDevice(image: image, options: options)
    let features = BlockFeature.understood.subtracting([.blockSizeMax, .blockSegMax])
    let queue = try HandQueue(device, 0, SharedMemory(size: 64 << 20), size: 128, features: features)
    try queue.start()
    let data = pattern(size)
    for framing in [nil, Framing.pieces(61, .write(sector: 8, data))] {
      #expect(try queue.queue.perform(.write(sector: 8, data), framing: framing).status == .ok)
      let outcome = try queue.queue.perform(.read(sector: 8, bytes: size))
      #expect(outcome.status == .ok && Int(outcome.length) == size + 1 && firstDifference(outcome.answer, data) == nil)
    }
    #expect(queue.stop() != nil)
    #expect(try firstDifference(scratch.contents(image.path, at: 4096, count: size), data) == nil)
  }

  /// Nor are its segments: an engine that goes by them would transfer everything in the first part, and the rest again.
  @Test(arguments: [1, 2, 61]) func aPartIsNoLongerThanATurn(pieces: Int) throws {
    let script = try Script()
    let scratch = try Scratch()
    let image = try ImageFile(ImageOptions(path: scratch.image(size: 16 << 20), direct: .off))
    let device = try BlockDevice(image: image, options: .init()) { script.serve($0, $1) }
    let features = BlockFeature.understood.subtracting([.blockSizeMax, .blockSegMax])
    let queue = try HandQueue(device, 0, SharedMemory(size: 32 << 20), size: 128, features: features)
    try queue.start()
    let request = BlockRequest.write(sector: 0, pattern(9 << 20))
    #expect(try queue.queue.perform(request, framing: .pieces(pieces, request)).status == .ok)
    #expect(script.records.map(\.length) == [4 << 20, 4 << 20, 1 << 20])
    #expect(script.records.map(\.segmentBytes) == [4 << 20, 4 << 20, 1 << 20])
    #expect(queue.stop() != nil)
  }

  /// Two queues on one thread: one has a ring full of the largest requests; the other, which starts while the thread is
  /// working on the first of them, has a small one. It waits only for the current turn.
  @Test(arguments: ["reads", "zeroes"]) func aFullQueueLeavesTheOtherItsTurn(what: String) throws {
    let gate = Gate()
    let script = try Script(then: what == "zeroes" ? .result(0) : .whole) { gate.pass() }
    let scratch = try Scratch()
    let image = try ImageFile(ImageOptions(path: scratch.image(size: 64 << 30), direct: .off))
    var options = BlockDeviceOptions()
    options.queueCount = 2
    options.threads = 1
    let device = try BlockDevice(image: image, options: options) { script.serve($0, $1) }
    let memory = try SharedMemory(size: 64 << 20)
    let full = try HandQueue(device, 0, memory, size: 64)
    let other = try HandQueue(device, 1, memory, size: 64, beside: full)
    let ranges = (0..<32).map { BlockRange(sector: UInt64($0) << 21, sectors: 1 << 21) }
    for _ in 0..<8 { try full.submit(what == "zeroes" ? .writeZeroes(ranges) : .read(sector: 0, bytes: 4 << 20)) }
    full.queue.publish()
    try other.submit(.write(sector: 1, pattern(512)))
    other.queue.publish()
    try full.start()
    gate.waitForVisitor()
    other.attended.start(other.activation)
    gate.open()
    try waitUntil("the other queue has its answer") { try other.queue.reap() != nil }
    try waitUntil("the full queue has its answers") {
      while try full.queue.reap() != nil {}
      return full.queue.outstanding == 0
    }
    let lengths = script.records.map(\.length)
    let place = try #require(lengths.firstIndex(of: 512))
    // At most two turns' operations of the full queue came before it.
    #expect(place <= (what == "zeroes" ? 16 : 2), "\(place) of \(lengths.count)")
    #expect(other.stop() != nil && full.stop() != nil)
  }

  /// Holds the first thread that arrives until the gate is opened.
  private final class Gate: Sendable {
    private let visitor = DispatchSemaphore(value: 0)
    private let opening = DispatchSemaphore(value: 0)
    private let hasBeenPassed = Atomic<Bool>(false)

    func pass() {
      guard !hasBeenPassed.exchange(true, ordering: .relaxed) else { return }
      visitor.signal()
      opening.wait()
    }
    func waitForVisitor() { visitor.wait() }
    func open() { opening.signal() }
  }

  // MARK: Offered limits

  @Test func aRequestOfTooManySegmentsIsAnError() throws {
    let scratch = try Scratch()
    let image = try ImageFile(ImageOptions(path: scratch.image(size: 16 << 20), direct: .off))
    let device = try BlockDevice(image: image, options: .init())
    let queue = try HandQueue(device, 0, SharedMemory(size: 16 << 20), size: 256)
    try queue.start()
    let limit = BlockDeviceOptions.maximumSegments
    for (segments, status) in [(limit, BlockStatusCode.ok), (limit + 1, .ioError), (1, .ok)] {
      let request = BlockRequest.read(sector: 0, bytes: segments * 512)
      let framing = Framing(readableCuts: [], writableCuts: (1...segments).map { $0 * 512 })
      #expect(try queue.queue.perform(request, framing: framing, placement: .direct).status == status, "\(segments)")
    }
    #expect(queue.stop() != nil)
  }

  @Test func aSegmentThatIsTooLongIsAnError() throws {
    let scratch = try Scratch()
    let image = try ImageFile(ImageOptions(path: scratch.image(size: 16 << 20), direct: .off))
    let device = try BlockDevice(image: image, options: .init())
    let queue = try HandQueue(device, 0, SharedMemory(size: 32 << 20))
    try queue.start()
    let request = BlockRequest.read(sector: 0, bytes: (4 << 20) + 512)
    #expect(try queue.queue.perform(request).status == .ioError)
    let cut = Framing(readableCuts: [], writableCuts: [4 << 20, (4 << 20) + 512])
    #expect(try queue.queue.perform(request, framing: cut).status == .ok)
    #expect(queue.stop() != nil)
  }

  // MARK: Rings that accept only transfers

  @Test func aPolledRingGetsNothingButTransfers() throws {
    let script = try Script(takesOnlyTransfers: true)
    let rig = try Rig(RigOptions(size: 1 << 20, script: script))
    try rig.expect(.write(sector: 8, pattern(8192)))
    try rig.expect(.flush)
    try rig.expect(.writeZeroes([BlockRange(sector: 8, sectors: 8)]))
    if rig.device.features.contains(.blockDiscard) { try rig.expect(.discard([BlockRange(sector: 64, sectors: 8)])) }
    #expect(try firstDifference(rig.contents(at: 4096, count: 4096), zeroes(4096)) == nil)
    #expect(try firstDifference(rig.contents(at: 8192, count: 4096), Array(pattern(8192)[4096...])) == nil)
    #expect(script.records.allSatisfy { $0.kind == .read || $0.kind == .write })
    #expect(rig.device.counters.failures == 0)
  }

  @Test(arguments: [EngineKind.auto, .uring, .cached]) func aMediumWithoutPolledQueuesIsNotPolled(engine: EngineKind) throws {
    let scratch = try Scratch()
    let image = try ImageFile(ImageOptions(path: scratch.image(), direct: engine == .cached ? .off : .auto))
    try #require(!image.canPoll)
    var options = BlockDeviceOptions()
    options.engine = engine
    options.uring.poll = .on
    #expect(throws: EngineError.cannotPoll(path: image.path)) { _ = try BlockDevice(image: image, options: options) }
  }

  // MARK: Lost engines

  /// The kernel accepts no more requests: those in flight are answered, the queue fails, and it can be stopped.
  @Test func aLostEngineIsAnErrorWithAnEnd() throws {
    let script = try Script(completesLater: true)
    let scratch = try Scratch()
    let image = try ImageFile(ImageOptions(path: scratch.image(size: 1 << 20), direct: .off))
    var options = BlockDeviceOptions()
    options.queueCount = 2
    options.threads = 1
    let device = try BlockDevice(image: image, options: options) { script.serve($0, $1) }
    let memory = try SharedMemory()
    let queue = try HandQueue(device, 0, memory)
    try queue.start()
    script.hold()
    for number in 0..<3 { try queue.submit(.write(sector: UInt64(number), pattern(512))) }
    queue.queue.publish()
    try waitUntil("all are in flight") { script.held == 3 }
    script.lose()
    var answers: [BlockStatusCode] = []
    try waitUntil("all are answered") {
      while let outcome = try queue.queue.reap() { answers.append(outcome.status) }
      return answers.count == 3
    }
    #expect(answers == [.ioError, .ioError, .ioError])
    try waitUntil("the queue says so") {
      queue.attended.takeEvents().contains(.queueFailed(queue: 0, .mediumLost))
    }
    // No queue starts on the lost engine; once its last queue has stopped, the next start makes a new one.
    let other = try HandQueue(device, 1, memory, beside: queue)
    #expect(throws: QueueError.mediumLost) { try other.start() }
    #expect(queue.stop() == QueuePosition(available: 3, used: 3))
  }

  /// What the kernel still completes on a lost ring is reported to nobody, and the worker can still be told to end.
  @Test func aLostRingCompletesNothing() throws {
    let scratch = try Scratch()
    let image = try ImageFile(ImageOptions(path: scratch.image(size: 1 << 20), direct: .off))
    let mailbox = try OwnedDescriptor.eventCounter()
    var setup = UringSetup()
    setup.registersRing = false
    var engine = try UringEngine(descriptor: image.descriptor, mailbox: mailbox.rawValue, depth: 16, setup: setup)
    let buffer = try Mapping(anonymous: 4096)
    let segment = UnsafeMutablePointer<MemorySegment>.allocate(capacity: 1)
    unsafe segment.initialize(to: MemorySegment(base: buffer.base, count: 4096))
    defer { unsafe segment.deallocate() }
    let operation = unsafe IOOperation(kind: .read, length: 4096, segments: segment, segmentCount: 1)
    guard case .pending = engine.start(operation, tag: 3) else { throw Errno.ioError }
    // One request is complete and not yet reported when the ring's descriptor is replaced.
    engine.wait(nanoseconds: nil)
    var isLost = engine.isLost
    #expect(!isLost)
    let other = unsafe open("/dev/null", O_RDWR | O_CLOEXEC)
    try #require(unsafe dup3(other, engine.ring.pointee.ring_fd, Int32(O_CLOEXEC)) >= 0)
    close(other)
    guard case .pending = engine.start(operation, tag: 4) else { throw Errno.ioError }
    engine.submit()
    isLost = engine.isLost
    #expect(isLost)
    var event = engine.nextEvent()
    #expect(isNothing(event))
    engine.wait(nanoseconds: 0)
    event = engine.nextEvent()
    #expect(isNothing(event))
    EventCounter.signal(mailbox.rawValue)
    engine.wait(nanoseconds: nil)
    guard case .mailbox = engine.nextEvent() else { throw Errno.ioError }
    withExtendedLifetime((buffer, image)) {}
  }

  // MARK: Guest memory

  struct LostCase: Codable, Sendable, CustomTestStringConvertible {
    var engine: String
    var isDirect = false
    var alignment = 512

    init(_ engine: EngineKind, isDirect: Bool = false, alignment: Int = 512) {
      self.engine = engine.rawValue
      self.isDirect = isDirect
      self.alignment = alignment
    }
    var testDescription: String { "\(engine)\(isDirect ? ", direct" : ""), buffers aligned to \(alignment)" }
  }

  static let lostCases: [LostCase] = [
    LostCase(.mapped), LostCase(.sync), LostCase(.uring), LostCase(.aio), LostCase(.cached),
    LostCase(.sync, isDirect: true, alignment: 1), LostCase(.uring, isDirect: true, alignment: 1),
  ]

  /// The ring's memory is there, the data's is not: a copy reads zeroes, and must not report them as the guest's data.
  @Test(arguments: lostCases) func aWriteOfAPageThatIsGoneIsNeverOK(_ test: LostCase) async {
    // In a separate process, because lost pages are counted per process.
    await #expect(processExitsWith: .success) { [test] in
      let scratch = try Scratch(in: test.engine == "mapped" ? "/dev/shm" : nil)
      var options = BlockDeviceOptions()
      options.engine = try #require(EngineKind(rawValue: test.engine))
      let image = try ImageFile(ImageOptions(path: scratch.image(size: 4 << 20), direct: test.isDirect ? .auto : .off))
      let device = try BlockDevice(image: image, options: options)
      let memory = try SharedMemory(size: 8 << 20)
      let queue = try HandQueue(device, 0, memory)
      try queue.start()
      let data = pattern(1 << 20)
      // First, one request shows that the queue is served.
      #expect(try queue.queue.perform(.write(sector: 0, data)).status == .ok)
      let request = BlockRequest.write(sector: 4096, data)
      let framing = Framing.classic(request, alignment: test.alignment)
      _ = try #require(try queue.queue.submit(request, framing: framing))
      let file = try #require(memory.driver.regions[0].descriptor)
      // Rings and headers are at the front; most of the data is gone.
      try #require(ftruncate(file.rawValue, 256 << 10) == 0)
      queue.queue.publish()
      // The used index is enough; the rest of the memory may be gone for the driver, too.
      var isOver = false
      try waitUntil("the request is answered or the queue stops") {
        isOver = isOver || queue.attended.takeEvents().contains(.queueFailed(queue: 0, .memoryLost))
        return isOver || queue.usedIndex == 2
      }
      if queue.usedIndex == 2 { #expect(try queue.queue.reap()?.status != .ok) }
      _ = queue.stop()
    }
  }
}

private func isNothing(_ event: EngineEvent?) -> Bool { if case .none = event { true } else { false } }
