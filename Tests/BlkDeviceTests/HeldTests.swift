/// Queues that are prepared, started held, and released: nothing happens before the release, and nothing slow is left for it.
import Foundation
import Glibc
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct HeldTests {
  static let engines: [EngineKind] = [.uring, .cached, .aio, .sync, .threads, .mapped, .null]

  /// A disk with one queue, and its guest's memory.
  private struct Disk {
    let scratch: Scratch
    let device: BlockDevice
    let memory: SharedMemory
    let hand: HandQueue

    init(
      _ engine: EngineKind, queues: Int = 1, publishesInOrder: Bool = false,
      _ change: (inout BlockDeviceOptions) -> Void = { _ in }
    )
      throws
    {
      scratch = try Scratch()
      memory = try SharedMemory(size: 1 << 20)
      var options = BlockDeviceOptions()
      options.engine = engine
      options.queueCount = queues
      options.threads = 1
      change(&options)
      let image = try ImageFile(ImageOptions(path: scratch.image("disk", size: 1 << 20), direct: .off))
      device = try BlockDevice(image: image, options: options)
      hand = try HandQueue(device, 0, memory, size: 64, publishesInOrder: publishesInOrder)
    }

    var guestBytes: [UInt8] {
      memory.driver.regions.flatMap { region in
        unsafe [UInt8](UnsafeRawBufferPointer(start: region.mapping.base + Int(region.offset), count: Int(region.size)))
      }
    }

    func submit(_ count: Int) throws {
      for number in 0..<count { try hand.submit(.write(sector: UInt64(number), pattern(512, seed: number + 1))) }
      hand.queue.publish()
      EventCounter.signal(hand.kick.rawValue)
    }

    func reap(_ count: Int) throws {
      var left = count
      try waitUntil("all are answered") {
        while let outcome = try hand.queue.reap() {
          #expect(outcome.status == .ok)
          left -= 1
        }
        return left == 0
      }
    }

    /// Gives the worker time for several turns.
    func letTheWorkerLook() throws {
      for _ in 0..<20 {
        EventCounter.signal(hand.kick.rawValue)
        usleep(1000)
      }
    }
  }

  @Test(arguments: engines, [false, true]) func nothingIsTakenBeforeTheRelease(engine: EngineKind, isInOrder: Bool) throws {
    let disk = try Disk(engine, publishesInOrder: isInOrder)
    let attended = disk.hand.attended
    try attended.prepareAndWait([0], memory: disk.memory.device, isRecorded: false)
    #expect(!attended.isPreparing)
    try disk.submit(5)
    let before = disk.guestBytes
    for position in [QueuePosition(), QueuePosition(available: 0, used: nil)] {
      try disk.hand.startHeld(at: position)
      try disk.letTheWorkerLook()
      #expect(disk.hand.stop() == position)
      #expect(firstDifference(disk.guestBytes, before) == nil)
    }
    try disk.hand.startHeld()
    try disk.letTheWorkerLook()
    #expect(firstDifference(disk.guestBytes, before) == nil)
    #expect(disk.device.counters.writes == 0)
    attended.releaseAll()
    try disk.reap(5)
    #expect(try disk.hand.perform(.read(sector: 0, bytes: 512)).status == .ok)
    // Releasing it again changes nothing.
    attended.releaseAll()
    #expect(disk.hand.stop() == QueuePosition(available: 6, used: 6))
    if engine != .null {
      #expect(
        try firstDifference(disk.scratch.contents(disk.scratch.path + "/disk", at: 512, count: 512), pattern(512, seed: 2))
          == nil)
    }
  }

  /// Until the release, the in-flight record belongs to the previous server.
  @Test(arguments: [EngineKind.uring, .sync]) func aHeldQueueLeavesTheRecordAlone(engine: EngineKind) throws {
    let disk = try Disk(engine)
    try disk.submit(6)
    let heads = (0..<4).map { disk.hand.queue.ring.ring.availableEntry(UInt16($0)).loadRelaxed() }
    let record = try RecordFile(queues: 1, size: 64)
    record.interrupt(heads)
    let before = disk.guestBytes
    try disk.hand.attended.prepareAndWait([0], memory: disk.memory.device, isRecorded: true)
    try disk.hand.startHeld(at: QueuePosition(available: 4, used: 0), record: record.memory)
    try disk.letTheWorkerLook()
    #expect(disk.hand.stop() == QueuePosition(available: 4, used: 0))
    #expect(firstDifference(disk.guestBytes, before) == nil)
    #expect(record.inFlight == Set(heads) && record.used == 0)
    try disk.hand.startHeld(at: QueuePosition(available: 4, used: 0), record: record.memory)
    disk.device.release(queue: 0)
    try disk.reap(6)
    #expect(disk.hand.stop() == QueuePosition(available: 6, used: 6))
    #expect(record.inFlight.isEmpty && record.used == 6)
  }

  /// The previous server has notified the driver of all that it answered. A call for each takeover would be one too many for
  /// a driver that asked for none.
  @Test(arguments: [false, true]) func aReleaseNotifiesNobody(isInOrder: Bool) throws {
    let disk = try Disk(.sync, publishesInOrder: isInOrder)
    try disk.hand.startHeld()
    disk.hand.attended.releaseAll()
    // The stop is handled after the release.
    #expect(disk.hand.stop() == QueuePosition())
    #expect(EventCounter.drain(disk.hand.call.rawValue) == 0)
  }

  /// A broken ring is found before the release.
  @Test func aRingThatIsNoneIsRefusedHeld() throws {
    let disk = try Disk(.sync)
    try disk.hand.attended.prepareAndWait([0], memory: disk.memory.device, isRecorded: false)
    var bad = disk.hand.activation
    bad.configuration.size = 3
    bad.isHeld = true
    #expect(throws: QueueError.badSize(3)) { try disk.hand.attended.startAndWait(bad) }
    try disk.hand.start()
    #expect(disk.hand.stop() == QueuePosition())
  }

  // MARK: Preparing

  /// A worker that was prepared and never started goes away, and so do those that the last owner of a device leaves.
  @Test func whatIsPreparedGoes() async {
    await #expect(processExitsWith: .success) {
      for engine in HeldTests.engines {
        try HeldTests.prepareInVain(engine)
        try waitUntil("the workers of \(engine) have ended with their device") { HeldTests.hasNoThreads }
      }
    }
  }

  /// Runs in a separate process.
  private static func prepareInVain(_ engine: EngineKind) throws {
    let disk = try Disk(engine, queues: 2) {
      $0.threads = 2
      // A worker that never sleeps has nothing to check before its first start.
      if engine == .sync { $0.waiting = .busy }
    }
    let (memory, attended) = (disk.memory.device, disk.hand.attended)
    for isRecorded in [false, true, false] {
      try attended.prepareAndWait([0, 1], memory: memory, isRecorded: isRecorded)
      #expect(threads("queue").count >= 2, "\(engine)")
    }
    let workers = threads("queue")
    let before = try workers.reduce(0) { try $0 + ThisProcess.ticks(of: $1) }
    usleep(300_000)
    #expect(try workers.reduce(0) { try $0 + ThisProcess.ticks(of: $1) } <= before + 2, "\(engine)")
    attended.unprepare()
    try settle(disk)
    try waitUntil("the workers of \(engine) are gone") { hasNoThreads }
    // An answer that nobody waits for is dropped.
    attended.prepare([0, 1], memory: memory, isRecorded: false)
    attended.unprepare()
    try waitUntil("the workers of \(engine) are gone again") {
      let answers = attended.takeEvents().filter(\.isPreparation)
      #expect(answers.isEmpty)
      return hasNoThreads
    }
    try attended.prepareAndWait([1], memory: memory, isRecorded: true)
  }

  @Test func aQueueOfTheOtherKindStarts() throws {
    let disk = try Disk(.sync, queues: 2)
    let record = try RecordFile(queues: 2, size: 64)
    try disk.hand.attended.prepareAndWait([0, 1], memory: disk.memory.device, isRecorded: false)
    try disk.hand.start(record: record.memory)
    #expect(try disk.hand.perform(.read(sector: 0, bytes: 512)).status == .ok)
    // A running worker has what it needs; one of the other kind can only follow it.
    for isRecorded in [true, false] {
      try disk.hand.attended.prepareAndWait([0, 1], memory: disk.memory.device, isRecorded: isRecorded)
      #expect(try disk.hand.perform(.read(sector: 0, bytes: 512)).status == .ok)
    }
    disk.hand.attended.unprepare()
    #expect(try disk.hand.perform(.read(sector: 0, bytes: 512)).status == .ok)
    #expect(disk.hand.stop() == QueuePosition(available: 4, used: 4))
  }

  /// Prepares and starts over and over, at the moment when the previous worker ends.
  @Test func aWorkerThatIsEndingIsPreparedAgain() throws {
    let disk = try Disk(.sync)
    var position = QueuePosition()
    for round in 0..<200 {
      try disk.hand.attended.prepareAndWait([0], memory: disk.memory.device, isRecorded: false)
      if round % 3 == 0 { disk.hand.attended.unprepare() }
      try disk.hand.start(at: position)
      if round % 50 == 0 { #expect(try disk.hand.perform(.read(sector: 0, bytes: 512)).status == .ok) }
      position = try #require(disk.hand.stop())
    }
    #expect(position == QueuePosition(available: 4, used: 4))
  }

  /// However few descriptors there are, preparing succeeds, or reports why not and keeps nothing.
  @Test func outOfDescriptors() async {
    await #expect(processExitsWith: .success) {
      for engine in [EngineKind.sync, .uring, .threads] { try HeldTests.prepareWithFewDescriptors(engine) }
    }
  }

  /// Runs in a separate process.
  private static func prepareWithFewDescriptors(_ engine: EngineKind) throws {
    let disk = try Disk(engine, queues: 2) { $0.threads = 2 }
    let attended = disk.hand.attended
    // What is made at its first use exists from here on.
    try attended.prepareAndWait([0, 1], memory: disk.memory.device, isRecorded: false)
    attended.unprepare()
    try settle(disk)
    let descriptors = ThisProcess.descriptors
    var limit = rlimit()
    try #require(unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0)
    limit.rlim_cur = 256
    try #require(unsafe setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0)
    // All descriptors are used up, and given back one by one.
    var taken: [Int32] = []
    while case let descriptor = dup(0), descriptor >= 0 { taken.append(descriptor) }
    var (refused, prepared) = (0, 0)
    for _ in 0..<24 {
      do throws(QueueError) {
        try attended.prepareAndWait([0, 1], memory: disk.memory.device, isRecorded: false)
        prepared += 1
        attended.unprepare()
      } catch {
        #expect(error == .outOfDescriptors)
        refused += 1
      }
      try settle(disk)
      close(taken.removeLast())
    }
    for descriptor in taken { close(descriptor) }
    #expect(refused > 0 && prepared > 0, "\(engine): \(refused) \(prepared)")
    #expect(ThisProcess.descriptors == descriptors, "\(engine)")
    try waitUntil("no thread of \(engine) is left") { hasNoThreads }
    try disk.hand.start()
    #expect(try disk.hand.perform(.read(sector: 0, bytes: 512)).status == .ok)
    #expect(disk.hand.stop() == QueuePosition(available: 1, used: 1))
  }

  /// Waits until no worker is left.
  private static func settle(_ disk: Disk) throws {
    try waitUntil("the workers are gone") {
      _ = disk.hand.attended.takeEvents()
      return !disk.device.hasWorkers
    }
  }

  /// Threads of this process whose names begin with `name`. For tests that run in a separate process.
  private static func threads(_ name: String) -> Set<String> {
    ThisProcess.threads.filter { thread in
      // A thread that is ending has no name any more.
      (try? String(contentsOfFile: "/proc/self/task/\(thread)/comm", encoding: .utf8))?.hasPrefix(name) ?? false
    }
  }

  private static var hasNoThreads: Bool { threads("queue").isEmpty && threads("pool").isEmpty }
}

extension BlockDevice {
  fileprivate var hasWorkers: Bool { places.contains { $0.worker != nil } }
}
