/// Queues that are started, stopped and restarted while others run; order; abandoned queues.
import CLinux
import Foundation
import Synchronization
import Testing
import VirtioCore

@testable import GuestDriver
@testable import VirtioBlkDevice

@Suite struct WorkerTests {
  static let engines: [EngineKind] = [.uring, .cached, .aio, .sync, .threads, .mapped, .null]

  private static func device(
    _ scratch: Scratch, _ engine: EngineKind, queues: Int = 2, threads: Int? = nil
  ) throws
    -> BlockDevice
  {
    var options = BlockDeviceOptions()
    options.engine = engine
    options.queueCount = queues
    options.threads = threads
    let path = try scratch.image(UUID().uuidString, size: 1 << 20)
    return try BlockDevice(image: ImageFile(ImageOptions(path: path, direct: .off)), options: options)
  }

  /// Writes and reads back; `null` keeps nothing.
  private static func work(_ queue: BlockQueue, _ round: Int, engine: EngineKind) throws {
    let sector = UInt64(queue.index * 8)
    let data = pattern(1024, seed: round)
    #expect(try queue.perform(.write(sector: sector, data)).status == .ok)
    let read = try queue.perform(.read(sector: sector, bytes: 1024))
    #expect(read.status == .ok)
    if engine != .null { #expect(firstDifference(read.answer, data) == nil) }
  }

  /// One queue starts and stops, each time where it left off; the other is not affected. On one thread and on two.
  @Test(arguments: engines, [1, 2]) func oneComesAndGoesWhileTheOtherWorks(engine: EngineKind, threads: Int) throws {
    let scratch = try Scratch()
    let device = try Self.device(scratch, engine, threads: threads)
    let memory = try SharedMemory()
    let steady = try HandQueue(device, 0, memory)
    try steady.start()
    let isOver = Atomic(false)
    let rounds = Atomic(0)
    try withBackground {
      var round = 0
      while !isOver.load(ordering: .acquiring) {
        try Self.work(steady.queue, round, engine: engine)
        round += 1
        rounds.store(round, ordering: .releasing)
      }
    } during: {
      defer { isOver.store(true, ordering: .releasing) }
      let visitor = try HandQueue(device, 1, memory)
      var position = QueuePosition()
      for round in 0..<25 {
        try visitor.start(at: position)
        if round % 3 != 0 { try Self.work(visitor.queue, round, engine: engine) }
        position = try #require(visitor.stop())
        #expect(position.available == position.used)
        #expect(position.used == visitor.usedIndex)
        #expect(visitor.stop() == nil)
      }
      #expect(position.available == 2 * 16)
      let before = rounds.load(ordering: .acquiring)
      try waitUntil("the other queue goes on") { rounds.load(ordering: .acquiring) > before + 1 }
    }
    #expect(steady.stop() != nil)
    #expect(device.counters.failures == 0)
  }

  @Test(arguments: [(EngineKind.sync, 256), (.uring, 4), (.aio, 4)]) func manyQueues(engine: EngineKind, threads: Int) throws {
    let scratch = try Scratch()
    let device = try Self.device(scratch, engine, queues: 256, threads: threads)
    let memory = try SharedMemory(size: 16 << 20)
    let first = try HandQueue(device, 0, memory, size: 4)
    let queues = try [first] + (1..<256).map { try HandQueue(device, $0, memory, size: 4, beside: first) }
    for queue in queues { try queue.start() }
    for queue in queues {
      try queue.submit(.write(sector: UInt64(queue.queue.index * 8), pattern(512, seed: queue.queue.index)))
      queue.queue.publish()
    }
    for queue in queues {
      var outcome: BlockOutcome?
      try waitUntil("queue \(queue.queue.index) answers") {
        outcome = try queue.queue.reap()
        return outcome != nil
      }
      #expect(outcome?.status == .ok)
    }
    for queue in queues {
      let read = try queue.queue.perform(.read(sector: UInt64(queue.queue.index * 8), bytes: 512))
      #expect(firstDifference(read.answer, pattern(512, seed: queue.queue.index)) == nil)
    }
    for queue in queues { #expect(queue.stop() == QueuePosition(available: 2, used: 2)) }
    #expect(device.counters.requests == 512)
  }

  /// A ring that holds more requests than a lane has slots, than one system call takes, and than the device offered.
  @Test(arguments: [(EngineKind.uring, UInt16(4096)), (.uring, 4), (.aio, 4096), (.aio, 4), (.threads, 4096)])
  func moreRequestsThanSlots(engine: EngineKind, offered: UInt16) throws {
    let scratch = try Scratch()
    var options = BlockDeviceOptions()
    options.engine = engine
    options.maximumQueueSize = offered
    let image = try ImageFile(ImageOptions(path: scratch.image(size: 1 << 20), direct: .off))
    let device = try BlockDevice(image: image, options: options)
    let queue = try HandQueue(device, 0, SharedMemory(size: 32 << 20), size: 4096)
    for number in 0..<1300 { try queue.submit(.write(sector: UInt64(number), pattern(512, seed: number))) }
    queue.queue.publish()
    try queue.start()
    var answers = 0
    try waitUntil("all are answered") {
      while let outcome = try queue.queue.reap() {
        #expect(outcome.status == .ok)
        answers += 1
      }
      return answers == 1300
    }
    #expect(queue.stop() == QueuePosition(available: 1300, used: 1300))
    for number in [0, 255, 256, 1023, 1024, 1299] {
      let written = try scratch.contents(image.path, at: number * 512, count: 512)
      #expect(firstDifference(written, pattern(512, seed: number)) == nil)
    }
  }

  /// With a medium that completes nothing, no more requests are taken than there are slots.
  @Test func noMoreIsTakenThanThereAreSlots() throws {
    let scratch = try Scratch()
    let script = try Script(completesLater: true)
    let image = try ImageFile(ImageOptions(path: scratch.image(size: 1 << 20)))
    let device = try BlockDevice(image: image, options: BlockDeviceOptions()) { script.serve($0, $1) }
    let queue = try HandQueue(device, 0, SharedMemory(size: 32 << 20), size: 4096)
    script.hold()
    for number in 0..<1300 { try queue.submit(.read(sector: UInt64(number), bytes: 512)) }
    queue.queue.publish()
    try queue.start()
    try waitUntil("the slots are full") { script.held == 1024 }
    usleep(20_000)
    #expect(script.records.count == 1024)
    script.release()
    try waitUntil("all are answered") { queue.usedIndex == 1300 }
    #expect(queue.stop() == QueuePosition(available: 1300, used: 1300))
  }

  /// Answers published while nobody listened to the old call descriptor are notified through the new one.
  @Test(arguments: engines) func aNewCallRingsOnce(engine: EngineKind) throws {
    let scratch = try Scratch()
    let device = try Self.device(scratch, engine)
    let memory = try SharedMemory()
    let queue = try HandQueue(device, 0, memory)
    try queue.start()
    let fresh = try OwnedDescriptor.eventCounter()
    device.replaceCall(queue: 0, .eventCounter(fresh))
    // The stop is answered after all messages before it.
    let position = try #require(queue.stop())
    #expect(EventCounter.drain(fresh.rawValue) == 1)
    #expect(EventCounter.drain(queue.call.rawValue) == 0)
    // And from then on the new one is used.
    try queue.start(at: position)
    device.replaceCall(queue: 0, .eventCounter(fresh))
    try waitUntil("the new call is in use") { EventCounter.drain(fresh.rawValue) == 1 }
    try queue.submit(.read(sector: 0, bytes: 512))
    queue.queue.ring.disableCalls()
    _ = queue.queue.ring.enableCalls()
    queue.queue.publish()
    try waitUntil("it is answered") { queue.usedIndex == 1 }
    _ = queue.stop()
    #expect(EventCounter.drain(fresh.rawValue) == 1)
    #expect(EventCounter.drain(queue.call.rawValue) == 0)
  }

  /// A stop waits for requests in flight, publishes them, and notifies the driver; requests that were not taken stay in the
  /// ring and are executed by the next run.
  @Test(arguments: [false, true]) func stopDrains(isBackwards: Bool) throws {
    let scratch = try Scratch()
    let script = try Script(completesLater: true, isBackwards: isBackwards)
    let image = try ImageFile(ImageOptions(path: scratch.image()))
    let device = try BlockDevice(image: image, options: BlockDeviceOptions()) { script.serve($0, $1) }
    let memory = try SharedMemory()
    let queue = try HandQueue(device, 0, memory, size: 64, features: [.version1])
    try queue.start()
    script.hold()
    for number in 0..<5 { try queue.submit(.write(sector: UInt64(number), pattern(512, seed: number))) }
    queue.queue.publish()
    try waitUntil("five are in flight") { script.held == 5 }
    let hasStopped = Atomic(false)
    let position = Mutex<QueuePosition?>(nil)
    try withBackground {
      let result = queue.stop()
      position.withLock { $0 = result }
      hasStopped.store(true, ordering: .releasing)
    } during: {
      usleep(30_000)
      let isEarly = hasStopped.load(ordering: .acquiring)
      #expect(!isEarly)
      // It is draining by now: these come too late.
      for number in 5..<8 { try queue.submit(.write(sector: UInt64(number), pattern(512, seed: number))) }
      queue.queue.publish()
      usleep(10_000)
      #expect(script.held == 5)
      #expect(queue.usedIndex == 0)
      script.release()
    }
    let stopped = try #require(position.withLock { $0 })
    #expect(stopped == QueuePosition(available: 5, used: 5))
    #expect(queue.usedIndex == 5)
    #expect(EventCounter.drain(queue.call.rawValue) > 0)
    var answered = 0
    func reapAll() throws {
      while let outcome = try queue.queue.reap() {
        #expect(outcome.status == .ok)
        answered += 1
      }
    }
    try reapAll()
    #expect(answered == 5)
    try queue.start(at: stopped)
    try waitUntil("the rest is answered") {
      try reapAll()
      return answered == 8
    }
    #expect(queue.stop() == QueuePosition(available: 8, used: 8))
    for number in 0..<8 {
      let written = try scratch.contents(image.path, at: number * 512, count: 512)
      #expect(firstDifference(written, pattern(512, seed: number)) == nil)
    }
  }

  /// A call that is held back to coalesce is sent when no more answers will come.
  @Test func stopTellsWhatWasHeldBack() throws {
    let scratch = try Scratch()
    var options = BlockDeviceOptions()
    options.notification = .coalesce(count: 64, microseconds: 60_000_000)
    options.engine = .sync
    let device = try BlockDevice(image: ImageFile(ImageOptions(path: scratch.image())), options: options)
    let memory = try SharedMemory()
    let queue = try HandQueue(device, 0, memory, features: [.version1])
    try queue.start()
    for _ in 0..<3 { try queue.submit(.read(sector: 0, bytes: 512)) }
    queue.queue.publish()
    try waitUntil("three are answered") { queue.usedIndex == 3 }
    #expect(EventCounter.drain(queue.call.rawValue) == 0)
    #expect(queue.stop() == QueuePosition(available: 3, used: 3))
    #expect(EventCounter.drain(queue.call.rawValue) == 1)
  }

  /// Counters are totals: a queue that is restarted continues counting.
  @Test(arguments: engines) func countersOnlyGrow(engine: EngineKind) throws {
    let scratch = try Scratch()
    let device = try Self.device(scratch, engine)
    let queue = try HandQueue(device, 0, SharedMemory())
    var position = QueuePosition()
    var last = BlockCounters()
    for round in 1...3 {
      try queue.start(at: position)
      for _ in 0..<(5 - round) { try Self.work(queue.queue, round, engine: engine) }
      position = try #require(queue.stop())
      let now = device.counters
      #expect(now.systemCalls > last.systemCalls)
      #expect(now.turns > last.turns)
      #expect(now.requests == last.requests + UInt64(2 * (5 - round)))
      last = now
    }
  }

  /// A broken ring affects no other queue, even on the same thread, and can be started again.
  @Test(arguments: engines, [1, 2]) func aBrokenQueueLeavesTheOthersAlone(engine: EngineKind, threads: Int) throws {
    let scratch = try Scratch()
    let device = try Self.device(scratch, engine, threads: threads)
    let memory = try SharedMemory()
    let good = try HandQueue(device, 0, memory)
    let bad = try HandQueue(device, 1, memory, beside: good)
    try good.start()
    try bad.start()
    try Self.work(good.queue, 1, engine: engine)
    try Self.work(bad.queue, 2, engine: engine)
    bad.queue.ring.ring.availableIndex.storeRelease(9000)
    EventCounter.signal(bad.kick.rawValue)
    var events: [DeviceEvent] = []
    try waitUntil("the device says that the queue failed") {
      events += good.attended.takeEvents()
      return !events.isEmpty
    }
    #expect(events == [.queueFailed(queue: 1, .availableIndexJumped(from: 2, to: 9000, size: 16))])
    for round in 0..<20 { try Self.work(good.queue, round, engine: engine) }
    #expect(bad.stop() == QueuePosition(available: 2, used: 2))
    let again = try HandQueue(device, 1, memory, beside: good)
    try again.start()
    try Self.work(again.queue, 3, engine: engine)
    #expect(again.stop() != nil && good.stop() != nil)
    #expect(good.attended.takeEvents().isEmpty)
  }

  /// A driver that makes a chain available for each one that is taken never lets the worker sleep, and must not prevent a
  /// stop.
  @Test func aRingThatNeverRunsDryIsStopped() throws {
    let scratch = try Scratch()
    let memory = try SharedMemory()
    let isOver = Atomic(false)
    let index = Mutex<SharedCell<UInt16>?>(nil)
    let script = try Script(then: .result(512)) {
      guard !isOver.load(ordering: .acquiring), let index = index.withLock({ $0 }) else { return }
      index.storeRelease(index.loadRelaxed() &+ 1)
    }
    var options = BlockDeviceOptions()
    options.engine = .sync
    let image = try ImageFile(ImageOptions(path: scratch.image("disk", size: 1 << 20), direct: .off))
    let device = try BlockDevice(image: image, options: options) { script.serve($0, $1) }
    let hand = try HandQueue(device, 0, memory)
    let ring = hand.queue.ring.ring
    let chains: UInt16 = 4
    for _ in 0..<chains { try hand.submit(.read(sector: 0, bytes: 512)) }
    let heads = (0..<chains).map { ring.availableEntry($0).loadRelaxed() }
    for entry in 0..<ring.layout.size { ring.availableEntry(entry).storeRelaxed(heads[Int(entry % chains)]) }
    ring.availableIndex.storeRelease(2)
    index.withLock { $0 = ring.availableIndex }
    let isStopped = Atomic(false)
    try hand.start()
    try withBackground {
      #expect(hand.stop() != nil)
      isStopped.store(true, ordering: .releasing)
    } during: {
      defer { isOver.store(true, ordering: .releasing) }
      try waitUntil("the queue stops") { isStopped.load(ordering: .acquiring) }
    }
    #expect(device.counters.reads > UInt64(ring.layout.size))
    #expect(hand.attended.takeEvents().isEmpty)
  }

  /// An invalid ring configuration is refused, and costs nothing.
  @Test func aRingThatIsNoneIsRefused() throws {
    let scratch = try Scratch()
    let device = try Self.device(scratch, .sync)
    let queue = try HandQueue(device, 0, SharedMemory())
    var activation = queue.activation
    activation.configuration.size = 3
    #expect(throws: QueueError.badSize(3)) { try queue.attended.startAndWait(activation) }
    activation.configuration.size = 16
    activation.configuration.usedRing = GuestAddress(1 << 40)
    #expect(throws: QueueError.unmapped(part: .usedRing, GuestAddress(1 << 40))) { try queue.attended.startAndWait(activation) }
    #expect(queue.stop() == nil)
    try queue.start()
    try Self.work(queue.queue, 1, engine: .sync)
    #expect(queue.stop() != nil)
  }
}
