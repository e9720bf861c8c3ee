/// Queues of many disks on the same threads: they work as on threads of their own, and no disk delays the others.
import CLinux
import Foundation
import Synchronization
import Testing
import VirtioCore

@testable import GuestDriver
@testable import VirtioBlkDevice

@Suite struct SharedWorkersTests {
  private static func device(
    _ scratch: Scratch, _ workers: SharedWorkers, engine: EngineKind = .mapped, isZoned: Bool = false,
    _ change: (inout BlockDeviceOptions) -> Void = { _ in }
  ) throws -> BlockDevice {
    var options = BlockDeviceOptions()
    options.engine = engine
    options.shared = workers
    options.sharesAnyMedium = true
    options.queueCount = 2
    change(&options)
    var image = ImageOptions(path: try scratch.image(UUID().uuidString, size: 1 << 20), direct: .off)
    if isZoned {
      var zones = ZonedOptions()
      zones.zoneSize = 256 << 10
      image.zoned = zones
    }
    return try BlockDevice(image: ImageFile(image), options: options)
  }

  /// Writes and reads back; `null` keeps nothing.
  private static func work(_ queue: BlockQueue, _ round: Int, engine: EngineKind = .mapped) throws {
    let sector = UInt64(queue.index * 8 + round % 4 * 64)
    let data = pattern(1024, seed: round)
    #expect(try queue.perform(.write(sector: sector, data)).status == .ok)
    let read = try queue.perform(.read(sector: sector, bytes: 1024))
    #expect(read.status == .ok)
    if engine != .null { #expect(firstDifference(read.answer, data) == nil) }
    #expect(try queue.perform(.flush).status == .ok)
  }

  struct Case: CustomTestStringConvertible, Sendable {
    var engine = EngineKind.mapped
    var threads = 1
    var isPacked = false
    var notification = Notification.batch
    var limits = RateLimits()
    var note: String
    var testDescription: String { note }
  }

  private static func limited(_ rate: UInt64) -> RateLimits {
    var limits = RateLimits()
    limits.totalIOPS = RateLimit(perSecond: rate)
    return limits
  }

  static let cases: [Case] = [
    Case(note: "copies, one thread"),
    Case(threads: 2, note: "copies, two threads"),
    Case(engine: .sync, note: "calls"),
    Case(isPacked: true, note: "packed rings"),
    Case(engine: .sync, isPacked: true, note: "calls, packed rings"),
    Case(notification: .each, note: "a call for each"),
    Case(notification: .coalesce(count: 8, microseconds: 200), note: "calls coalesced"),
    Case(limits: limited(20000), note: "limited"),
  ]

  /// Four disks with random workloads at once, checked against a model each.
  @Test(arguments: cases) func everyAcknowledgedWriteIsThere(_ test: Case) throws {
    let scratch = try Scratch(in: "/dev/shm")
    let workers = SharedWorkers(count: test.threads, leastDisks: 1)
    let paths = try (0..<4).map { try scratch.image("disk-\($0)", size: 8 << 20) }
    let failures = Atomic(0)
    try withThrowingThreads(4) { number in
      var options = BlockDeviceOptions()
      options.engine = test.engine
      options.shared = workers
      options.queueCount = 2
      options.notification = test.notification
      options.limits = test.limits
      let device = try BlockDevice(image: ImageFile(ImageOptions(path: paths[number], direct: .off)), options: options)
      let client = try BlockClient(
        try InProcessTransport(device: device, memory: DriverMemory(size: 16 << 20)),
        options: DriverOptions(features: test.isPacked ? BlockFeature.understood.union(.packedRing) : BlockFeature.understood))
      client.depth = 8
      var verifier = try Verifier(client, VerifyOptions(seed: .random(in: 0 ... .max), limit: .bytes(1 << 20)))
      _ = try verifier.run()
      try client.shutDown()
      failures.wrappingAdd(Int(device.counters.failures), ordering: .relaxed)
      #expect(device.counters.requests > 20)
    }
    let count = failures.load(ordering: .relaxed)
    #expect(count == 0)
  }

  /// Disks that need something from their threads, or whose medium may block, get threads of their own.
  @Test(arguments: [
    ("threads", true), ("pinned", true), ("polls", true), ("busy", true), ("faults", true), ("on a disk", true),
    ("alone", true), ("zoned", true),
    ("shares", false),
  ]) func whoNeedsThreadsOfTheirOwn(what: String, isAlone: Bool) throws {
    let scratch = try Scratch(in: what == "on a disk" ? nil : "/dev/shm")
    let workers = SharedWorkers(count: 1, leastDisks: what == "alone" ? 2 : 1)
    let device = try Self.device(scratch, workers, isZoned: what == "zoned") { options in
      options.sharesAnyMedium = false
      switch what {
      case "threads": options.threads = 1
      case "pinned": options.processors = [0]
      case "polls": options.waiting = .poll(microseconds: 10)
      case "busy": options.waiting = .busy
      case "faults": options.faults = [FaultRule("write:eio:after=1000000")!]
      default: break
      }
    }
    let queue = try HandQueue(device, 0, SharedMemory())
    try queue.start()
    // A zone is written from its start.
    if what == "zoned" { #expect(try queue.queue.perform(.flush).status == .ok) } else { try Self.work(queue.queue, 1) }
    #expect(workers.hasBegun != isAlone)
    #expect(queue.stop() != nil)
  }

  /// By default, threads are shared from the eighth disk that can share on, or if eight disks were announced.
  @Test(arguments: [(disks: 7, expected: 0, shares: false), (8, 0, true), (1, 8, true), (1, 7, false)])
  func fromEightDisksOnTheyShare(disks: Int, expected: Int, shares: Bool) throws {
    let scratch = try Scratch(in: "/dev/shm")
    let workers = SharedWorkers()
    workers.expect(expected)
    let devices = try (0..<disks).map { _ in try Self.device(scratch, workers) }
    // This one does not count.
    let other = try Self.device(scratch, workers) { $0.threads = 1 }
    let queue = try HandQueue(devices[0], 0, SharedMemory())
    try queue.start()
    try Self.work(queue.queue, 1)
    #expect(workers.hasBegun == shares)
    #expect(queue.stop() != nil)
    withExtendedLifetime((devices, other)) {}
  }

  /// The queue of one disk starts and stops, and another disk comes and goes, each where it left off; the third is not
  /// affected.
  @Test(arguments: [EngineKind.mapped, .sync, .null], [1, 2]) func disksComeAndGo(engine: EngineKind, threads: Int) throws {
    let scratch = try Scratch(in: "/dev/shm")
    let workers = SharedWorkers(count: threads, leastDisks: 1)
    let steadyDevice = try Self.device(scratch, workers, engine: engine)
    let steady = try HandQueue(steadyDevice, 0, SharedMemory())
    try steady.start()
    let isOver = Atomic(false)
    let rounds = Atomic(0)
    try withBackground {
      var round = 0
      while !isOver.load(ordering: .acquiring) {
        try Self.work(steady.queue, round, engine: engine)
        round += 1
        rounds.store(round, ordering: .releasing)
        usleep(100)
      }
    } during: {
      defer { isOver.store(true, ordering: .releasing) }
      let device = try Self.device(scratch, workers, engine: engine)
      let visitor = try HandQueue(device, 1, SharedMemory())
      var position = QueuePosition()
      for round in 0..<15 {
        try visitor.start(at: position)
        if round % 3 != 0 { try Self.work(visitor.queue, round, engine: engine) }
        position = try #require(visitor.stop())
        #expect(position.used == visitor.usedIndex)
        #expect(visitor.stop() == nil)
        let other = try Self.device(scratch, workers, engine: engine)
        let queue = try HandQueue(other, 0, SharedMemory())
        try queue.start()
        try Self.work(queue.queue, round, engine: engine)
        // Every other device is released while its queue runs.
        if round % 2 == 0 { #expect(queue.stop() != nil) }
      }
      let before = rounds.load(ordering: .acquiring)
      try waitUntil("the other disk goes on") { rounds.load(ordering: .acquiring) > before + 1 }
    }
    #expect(steady.stop() != nil)
    #expect(steadyDevice.counters.failures == 0)
  }

  /// A worker comes back from its own thread with an event that it has not handled. What the shared thread noticed in the
  /// meantime, an order to stop for example, is not left until the next kick, which may never come.
  @Test func whatComesWithALeftEventIsHandledAtOnce() throws {
    func isMailbox(_ wake: EpollWaiter.Wake?) -> Bool { if case .mailbox? = wake { true } else { false } }
    let set = epoll_create1(0)
    defer { close(set) }
    let (mailbox, kick) = (try OwnedDescriptor.eventCounter(), try OwnedDescriptor.eventCounter())
    let seat = WorkerSeat(set: set)
    unsafe seat.state.pointee.number = 1
    var waiter = try EpollWaiter(mailbox: mailbox.rawValue, seat: seat)
    try waiter.watch(.eventCounter(kick), lane: 0)
    try waiter.leaveCompany()
    EventCounter.signal(kick.rawValue)
    waiter.wait(nanoseconds: nil)
    try waiter.joinCompany()
    unsafe seat.state.pointee.mailboxRang = true
    // The first turn: it asks for events, and gets what is left.
    waiter.wait(nanoseconds: 0)
    let left = waiter.nextWake()
    if case .kick(lane: 0)? = left {} else { Issue.record("the event that was left is \(String(describing: left))") }
    let further = waiter.nextWake()
    #expect(further == nil)
    waiter.wait(nanoseconds: nil)
    #expect(unsafe seat.state.pointee.rest == 0, "it has another turn at once")
    waiter.wait(nanoseconds: 0)
    let order = isMailbox(waiter.nextWake())
    #expect(order)
    waiter.wait(nanoseconds: nil)
    #expect(unsafe seat.state.pointee.rest == -1)
  }

  /// A broken ring affects no other disk, and starts again.
  @Test func aBrokenRingLeavesOtherDisksAlone() throws {
    let scratch = try Scratch(in: "/dev/shm")
    let workers = SharedWorkers(count: 1, leastDisks: 1)
    let good = try HandQueue(try Self.device(scratch, workers), 0, SharedMemory())
    let memory = try SharedMemory()
    let bad = try HandQueue(try Self.device(scratch, workers), 0, memory)
    try good.start()
    try bad.start()
    try Self.work(bad.queue, 1)
    bad.queue.ring.ring.availableIndex.storeRelease(9000)
    EventCounter.signal(bad.kick.rawValue)
    var events: [DeviceEvent] = []
    try waitUntil("the device says that the queue failed") {
      events += bad.attended.takeEvents()
      return !events.isEmpty
    }
    for round in 0..<10 { try Self.work(good.queue, round) }
    #expect(good.attended.takeEvents().isEmpty)
    #expect(bad.stop() != nil)
    let again = try HandQueue(bad.device, 0, memory, beside: bad)
    try again.start()
    try Self.work(again.queue, 2)
    #expect(again.stop() != nil && good.stop() != nil)
  }

  /// Pausing, resuming, limiting and holding a disk beside others.
  @Test func whatAnOperatorDoesToOneDiskIsDoneToIt() throws {
    let scratch = try Scratch(in: "/dev/shm")
    let workers = SharedWorkers(count: 1, leastDisks: 1)
    let other = try HandQueue(try Self.device(scratch, workers), 0, SharedMemory())
    let queue = try HandQueue(try Self.device(scratch, workers), 0, SharedMemory())
    try other.start()
    try queue.startHeld()
    try queue.submit(.read(sector: 0, bytes: 512))
    queue.queue.publish()
    try Self.work(other.queue, 1)
    #expect(queue.usedIndex == 0)
    queue.device.release(queue: 0)
    try waitUntil("the held request is answered") { queue.usedIndex == 1 }
    queue.device.pause()
    try waitUntil("it is idle") {
      _ = queue.device.takeEvents()
      return queue.device.isAtRest
    }
    try queue.submit(.read(sector: 0, bytes: 512))
    queue.queue.publish()
    try Self.work(other.queue, 2)
    #expect(queue.usedIndex == 1)
    queue.device.setLimits(Self.limited(1000))
    queue.device.resume()
    try waitUntil("it goes on") { queue.usedIndex == 2 }
    #expect(queue.stop() == QueuePosition(available: 2, used: 2))
    #expect(other.stop() != nil)
  }

  /// A worker that waits for its first queue delays no other disk.
  @Test func preparedBesideOthers() throws {
    let scratch = try Scratch(in: "/dev/shm")
    let workers = SharedWorkers(count: 1, leastDisks: 1)
    let other = try HandQueue(try Self.device(scratch, workers), 0, SharedMemory())
    try other.start()
    let memory = try SharedMemory()
    let device = try Self.device(scratch, workers)
    device.prepare([0], memory: memory.device, kind: QueueKind(isPacked: false, isRecorded: false))
    var events: [DeviceEvent] = []
    try waitUntil("it is prepared") {
      events += device.takeEvents()
      return !events.isEmpty
    }
    #expect(events == [.prepared])
    try Self.work(other.queue, 1)
    let queue = try HandQueue(device, 0, memory)
    try queue.start()
    try Self.work(queue.queue, 2)
    #expect(queue.stop() != nil && other.stop() != nil)
  }

  /// A driver whose call descriptor blocks (its front-end can arrange that at any time) holds up its own queue, for as long as
  /// it likes, and no other.
  @Test func whoStandsStillInATurnStandsAlone() throws {
    let scratch = try Scratch(in: "/dev/shm")
    let workers = SharedWorkers(count: 1, leastDisks: 1)
    let good = try HandQueue(try Self.device(scratch, workers), 0, SharedMemory())
    let bad = try HandQueue(try Self.device(scratch, workers), 0, SharedMemory())
    try good.start()
    try bad.start()
    try Self.work(good.queue, 1)
    let full = OwnedDescriptor(eventfd(0, 0))
    var most = UInt64.max - 1
    try #require(unsafe write(full.rawValue, &most, 8) == 8)
    // The worker writes to it at once, and blocks.
    bad.device.replaceCall(queue: 0, .eventCounter(full))
    try waitUntil("another thread goes on") { workers.rescues == 1 }
    for round in 0..<10 { try Self.work(good.queue, round) }
    let late = try HandQueue(try Self.device(scratch, workers), 0, SharedMemory())
    try late.start()
    try Self.work(late.queue, 3)
    // Reading it lets the worker go on.
    var value: UInt64 = 0
    try #require(unsafe read(full.rawValue, &value, 8) == 8)
    bad.device.replaceCall(queue: 0, .eventCounter(bad.call))
    try Self.work(bad.queue, 4)
    #expect(bad.stop() != nil && late.stop() != nil && good.stop() != nil)
  }

  /// A busy disk gets a thread of its own, and gives it back when it is idle.
  @Test func aBusyDiskGoesAndComesBack() throws {
    let scratch = try Scratch(in: "/dev/shm")
    let workers = SharedWorkers(count: 1, leastDisks: 1)
    let quiet = try HandQueue(try Self.device(scratch, workers), 0, SharedMemory())
    let busy = try HandQueue(try Self.device(scratch, workers), 0, SharedMemory(size: 16 << 20))
    try quiet.start()
    try busy.start()
    let data = (0..<5).map { pattern(128 << 10, seed: $0) }
    for turn in 1...2 {
      var wasAlone = false
      try waitUntil("it is alone (\(turn))") {
        // Checked between any two batches: if its driver loses its CPU for a moment, the disk is back on the shared thread in
        // the next.
        for _ in 0..<200 where !wasAlone {
          for number in 0..<5 { try busy.submit(.write(sector: UInt64(number * 256), data[number])) }
          busy.queue.publish()
          var answers = 0
          // A driver that sleeps in between does not keep its disk busy.
          let end = ContinuousClock.now + Patience.limit
          while answers < 5, ContinuousClock.now < end {
            guard let outcome = try busy.queue.reap() else { continue }
            #expect(outcome.status == .ok)
            answers += 1
          }
          try #require(answers == 5)
          wasAlone = workers.alone == 1
        }
        return wasAlone
      }
      try Self.work(quiet.queue, turn)
      try waitUntil("it is back (\(turn))") { workers.alone == 0 }
      try Self.work(busy.queue, turn)
    }
    #expect(busy.stop() != nil && quiet.stop() != nil)
  }

  /// Many disks, each with an active queue, on two threads.
  @Test func threeHundredDisks() throws {
    let scratch = try Scratch(in: "/dev/shm")
    let workers = SharedWorkers(count: 2, leastDisks: 1)
    let queues = try (0..<300).map { _ in
      try HandQueue(try Self.device(scratch, workers), 0, SharedMemory(size: 64 << 10), size: 4)
    }
    for queue in queues { try queue.start() }
    for round in 0..<3 {
      for (number, queue) in queues.enumerated() {
        try queue.submit(.write(sector: 8, pattern(512, seed: number + round)))
        queue.queue.publish()
      }
      for (number, queue) in queues.enumerated() {
        var outcome: BlockOutcome?
        try waitUntil("disk \(number) answers") {
          outcome = try queue.queue.reap()
          return outcome != nil
        }
        #expect(outcome?.status == .ok)
      }
    }
    for (number, queue) in queues.enumerated() {
      let read = try queue.queue.perform(.read(sector: 8, bytes: 512))
      #expect(firstDifference(read.answer, pattern(512, seed: number + 2)) == nil)
      #expect(queue.stop() == QueuePosition(available: 4, used: 4))
    }
  }
}

/// Runs a body on several threads at once, and throws the first error.
private func withThrowingThreads(_ count: Int, _ body: @escaping @Sendable (Int) throws -> Void) throws {
  let failure = Mutex<(any Error)?>(nil)
  let threads = try (0..<count).map { number in
    try SystemThread(name: "test \(number)", stackSize: 1 << 20) {
      do { try body(number) } catch { failure.withLock { $0 = $0 ?? error } }
    }
  }
  for thread in threads { thread.join() }
  if let error = failure.withLock({ $0 }) { throw error }
}
