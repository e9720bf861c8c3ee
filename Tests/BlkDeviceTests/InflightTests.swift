/// Queues with an in-flight record: interrupted requests are answered first, whatever else happens.
import CLinux
import Glibc
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct InflightTests {
  /// A disk, one queue on it, and requests that are in the ring before any device looks at it.
  private struct Disk {
    let scratch: Scratch
    let path: String
    let device: BlockDevice
    let hand: HandQueue
    let record: RecordFile

    init(
      _ script: Script? = nil, engine: EngineKind = .sync, queues: Int = 1, size: UInt16 = 64, publishesInOrder: Bool = false,
      isKnown: Bool = false
    ) throws {
      scratch = try Scratch()
      path = try scratch.image("disk", size: 4 << 20)
      var options = BlockDeviceOptions()
      options.engine = engine
      options.queueCount = queues
      options.threads = 1
      // The driver relies on the order, too (IN_ORDER).
      if isKnown { options.requestedFeatures = .inOrder }
      let image = try ImageFile(ImageOptions(path: path, direct: .off))
      if let script {
        device = try BlockDevice(image: image, options: options) { script.serve($0, $1) }
      } else {
        device = try BlockDevice(image: image, options: options)
      }
      hand = try HandQueue(
        device, 0, SharedMemory(size: 16 << 20), size: size, features: BlockFeature.understood.union(.inOrder),
        publishesInOrder: publishesInOrder)
      record = try RecordFile(queues: queues, size: size)
    }

    /// Puts writes into the ring, one sector each, and publishes them. - Returns: their heads.
    func submitWrites(_ count: Int) throws -> [UInt16] {
      for number in 0..<count {
        try hand.submit(.write(sector: UInt64(number), [UInt8](repeating: UInt8(number & 0xFF) | 1, count: 512)))
      }
      hand.queue.publish()
      return (0..<count).map { hand.queue.ring.ring.availableEntry(UInt16($0)).loadRelaxed() }
    }

    func reapAll(_ count: Int) throws {
      var left = count
      try waitUntil("all are answered") {
        while let outcome = try hand.queue.reap() {
          #expect(outcome.status == .ok)
          left -= 1
        }
        return left == 0
      }
    }

    func event(_ name: String, _ matches: (DeviceEvent) -> Bool) throws {
      try waitUntil(name) { hand.attended.takeEvents().contains(where: matches) }
    }
  }

  /// The previous server had taken four of six requests when it ended. They come first, in the order in which they were taken.
  @Test(arguments: [(false, false), (true, false), (false, true)])
  func interruptedRequestsComeFirst(isInOrder: Bool, isKnown: Bool) throws {
    let script = try Script(completesLater: true, isBackwards: true)
    let disk = try Disk(script, publishesInOrder: isInOrder, isKnown: isKnown)
    let heads = try disk.submitWrites(6)
    disk.record.interrupt(heads.prefix(4))
    script.hold()
    // The front-end's position is wrong after a crash.
    try disk.hand.start(at: QueuePosition(available: 6, used: nil), record: disk.record.memory)
    try waitUntil("all are with the medium") { script.held == 6 }
    #expect(script.records.map(\.offset) == (0..<6).map { $0 * 512 })
    #expect(disk.record.inFlight == Set(heads))
    script.release()
    try disk.reapAll(6)
    #expect(disk.hand.stop() == QueuePosition(available: 6, used: 6))
    #expect(disk.record.inFlight.isEmpty && disk.record.used == 6)
  }

  @Test(arguments: [EngineKind.sync, .threads, .mapped, .cached, .uring, .aio])
  func everyEngineAnswersWhatWasInterrupted(engine: EngineKind) throws {
    let disk = try Disk(engine: engine)
    let heads = try disk.submitWrites(12)
    disk.record.interrupt(heads.prefix(7))
    try disk.hand.start(record: disk.record.memory)
    try disk.reapAll(12)
    // From then on it is an ordinary queue.
    for number in 0..<100 {
      #expect(try disk.hand.perform(.write(sector: UInt64(number), [UInt8](repeating: 9, count: 512))).status == .ok)
    }
    #expect(disk.hand.stop() == QueuePosition(available: 112, used: 112))
    #expect(disk.record.inFlight.isEmpty && disk.record.used == 112)
    #expect(try disk.scratch.contents(disk.path, at: 0, count: 512 * 100) == [UInt8](repeating: 9, count: 512 * 100))
  }

  /// More interrupted requests than the queue has slots: as many at a time as there are slots, and nothing new between them.
  @Test func moreThanThereAreSlots() throws {
    let script = try Script(completesLater: true)
    let disk = try Disk(script, size: 4096)
    let heads = try disk.submitWrites(1300)
    disk.record.interrupt(heads.prefix(1290))
    script.hold()
    try disk.hand.start(record: disk.record.memory)
    try waitUntil("every slot is taken") { script.held == LaneContext.slots }
    script.release()
    try disk.reapAll(1300)
    #expect(script.records.map(\.offset) == (0..<1300).map { $0 * 512 })
    #expect(disk.hand.stop() == QueuePosition(available: 1300, used: 1300))
    #expect(disk.record.inFlight.isEmpty)
  }

  /// Interrupted requests are in flight, so a stop waits for them; the others stay in the ring.
  @Test func stopDuringTheRecoveryFinishesIt() throws {
    let script = try Script(completesLater: true)
    let disk = try Disk(script, size: 4096)
    let heads = try disk.submitWrites(1200)
    disk.record.interrupt(heads.prefix(1100))
    script.hold()
    try disk.hand.start(record: disk.record.memory)
    try waitUntil("every slot is taken") { script.held == LaneContext.slots }
    #expect(disk.hand.attended.stop(queue: 0))
    disk.device.replaceFailure(queue: 0, .none)
    // A worker that handles completions before control messages would go on with new requests.
    let call = try OwnedDescriptor.eventCounter()
    disk.device.replaceCall(queue: 0, .eventCounter(call))
    try waitUntil("the worker has its control messages") {
      var entry = pollfd(fd: call.rawValue, events: Int16(POLLIN), revents: 0)
      return unsafe poll(&entry, 1, 0) == 1
    }
    #expect(disk.hand.attended.takeEvents().isEmpty)
    script.release()
    try disk.event("it has stopped") { $0 == .stopped(queue: 0, QueuePosition(available: 1100, used: 1100)) }
    #expect(script.records.count == 1100)
    #expect(disk.record.inFlight.isEmpty && disk.record.used == 1100)
    try disk.hand.start(record: disk.record.memory)
    try disk.reapAll(1200)
    #expect(disk.hand.stop() == QueuePosition(available: 1200, used: 1200))
  }

  /// A chain that the guest broke in the meantime stops the queue and stays in the record.
  @Test func brokenChainStopsTheRecovery() throws {
    let disk = try Disk()
    let heads = try disk.submitWrites(3)
    disk.record.interrupt(heads.prefix(2))
    let table = disk.hand.activation.configuration.descriptorTable
    let memory = disk.hand.activation.memory
    var view = memory.view()
    let found = view.contiguous(GuestAddress(table.rawValue + 16 * UInt64(heads[1])), count: 16)
    let entry = try #require(found, "the chain's first descriptor")
    // A length of zero, and the flag for an indirect table.
    unsafe entry.base.storeBytes(of: 4 << 32, toByteOffset: 8, as: UInt64.self)
    try disk.hand.start(record: disk.record.memory)
    try disk.event("the queue has failed") { if case .queueFailed(0, _) = $0 { true } else { false } }
    let position = try #require(disk.hand.stop())
    #expect(position == QueuePosition(available: 2, used: 1))
    #expect(disk.record.inFlight == [heads[1]])
  }

  /// Another process holds the record's file and truncates it.
  @Test(arguments: [EngineKind.sync, .uring, .mapped]) func cutRecordStopsTheQueue(engine: EngineKind) throws {
    let disk = try Disk(engine: engine)
    let number = unsafe memfd_create("record", UInt32(MFD_CLOEXEC))
    try #require(number >= 0)
    let file = OwnedDescriptor(number)
    try #require(ftruncate(number, 1 << 16) == 0)
    let memory = try InflightMemory(descriptor: file, size: 1 << 16, offset: 0, queueCount: 1, queueSize: 64)
    try disk.hand.start(record: memory)
    #expect(try disk.hand.perform(.read(sector: 0, bytes: 512)).status == .ok)
    try #require(ftruncate(number, 0) == 0)
    try disk.hand.submit(.read(sector: 0, bytes: 512))
    disk.hand.queue.publish()
    try disk.event("the queue has failed") { $0 == .queueFailed(queue: 0, .inflightLost) }
    #expect(disk.hand.usedIndex == 1, "what may be done twice is not shown as done")
    #expect(disk.hand.stop() != nil)
  }

  /// The kernel accepts no more requests: those in flight are neither answered nor forgotten.
  @Test(arguments: [(false, false), (true, false), (false, true)])
  func lostMediumLeavesRequestsInFlight(isInOrder: Bool, isKnown: Bool) throws {
    let script = try Script(completesLater: true, isBackwards: true)
    let disk = try Disk(script, publishesInOrder: isInOrder, isKnown: isKnown)
    let heads = try disk.submitWrites(5)
    disk.record.interrupt(heads.prefix(2))
    script.hold()
    try disk.hand.start(record: disk.record.memory)
    try waitUntil("all are with the medium") { script.held == 5 }
    script.lose()
    try disk.event("the queue has failed") { $0 == .queueFailed(queue: 0, .mediumLost) }
    #expect(disk.hand.stop() == QueuePosition(available: 5, used: 0))
    #expect(disk.hand.usedIndex == 0 && disk.record.inFlight == Set(heads))
  }

  @Test func recordOfAnotherVersionIsRefused() throws {
    let disk = try Disk()
    disk.record.store(UInt16(7), at: 8)
    #expect(throws: QueueError.inflightVersion(7)) { try disk.hand.start(record: disk.record.memory) }
    disk.record.store(UInt16(0), at: 8)
    try disk.hand.start(record: disk.record.memory)
    #expect(disk.hand.stop() == QueuePosition())
  }

  /// The previous server may have ended after it published an answer and before it notified the driver.
  @Test func startSaysThatThereMayBeAnswers() throws {
    let disk = try Disk()
    try disk.hand.start(record: disk.record.memory)
    #expect(EventCounter.drain(disk.hand.call.rawValue) > 0)
    #expect(disk.hand.stop() == QueuePosition())
  }

  // MARK: With and without

  /// The same queue with a record and without, alternating: a worker supports only one of the two.
  @Test func kindsFollowEachOther() throws {
    let disk = try Disk()
    var position = QueuePosition()
    for round in 0..<40 {
      try disk.hand.start(at: position, record: round % 3 == 0 ? nil : disk.record.memory)
      #expect(try disk.hand.perform(.read(sector: 0, bytes: 512)).status == .ok)
      position = try #require(disk.hand.stop())
      #expect(position == QueuePosition(available: UInt16(round + 1), used: UInt16(round + 1)))
      // A run without a record does not touch it, but its used index is old now.
      #expect(disk.record.inFlight.isEmpty)
    }
  }

  /// Two queues on one thread: the second kind starts when the last queue of the first kind has stopped, and can be stopped
  /// earlier.
  @Test func otherKindWaitsForTheFirst() throws {
    let disk = try Disk(queues: 2)
    let other = try HandQueue(disk.device, 1, SharedMemory(), beside: disk.hand)
    try disk.hand.start()
    var activation = other.activation
    activation.inflight = disk.record.memory
    disk.hand.attended.start(activation)
    #expect(try disk.hand.perform(.read(sector: 0, bytes: 512)).status == .ok)
    #expect(disk.hand.attended.state(of: 1) == .starting)
    #expect(disk.hand.stop() == QueuePosition(available: 1, used: 1))
    try disk.event("the other one runs") { $0 == .started(queue: 1) }
    #expect(try other.perform(.read(sector: 0, bytes: 512)).status == .ok)
    // And back, with a stop that arrives while it waits.
    disk.hand.attended.start(disk.hand.activation)
    disk.hand.attended.stop(queue: 0)
    #expect(other.stop() == QueuePosition(available: 1, used: 1))
    try disk.event("the first one has stopped") { if case .stopped(0, _) = $0 { true } else { false } }
    #expect(disk.hand.attended.isAtRest)
  }

  /// An abandoned queue may never end, so nothing waits for it.
  @Test func nothingWaitsForAQueueThatWasLeft() throws {
    let script = try Script(completesLater: true)
    let disk = try Disk(script, queues: 2)
    let other = try HandQueue(disk.device, 1, SharedMemory(), beside: disk.hand)
    try disk.hand.start()
    script.hold()
    try disk.hand.submit(.read(sector: 0, bytes: 512))
    disk.hand.queue.publish()
    try waitUntil("the medium has the request") { script.held == 1 }
    #expect(disk.hand.attended.leaveAll() == [0])
    #expect(throws: QueueError.leftBehind) { try other.start(record: disk.record.memory) }
    script.release()
    try waitUntil("the queue is gone") {
      _ = disk.hand.attended.takeEvents()
      return disk.device.leftQueues.isEmpty
    }
    try other.start(record: disk.record.memory)
    #expect(other.stop() == QueuePosition())
  }
}

/// A record that is written and read through its file, as a front-end can: this checks the layout that vhost-user specifies.
struct RecordFile {
  let memory: InflightMemory
  private let size: UInt16

  init(queues: Int, size: UInt16) throws {
    memory = try InflightMemory.create(queueCount: queues, queueSize: size)
    self.size = size
  }

  func store<Value: FixedWidthInteger>(_ value: Value, at offset: Int) {
    var value = value.littleEndian
    let count = MemoryLayout<Value>.size
    precondition(unsafe pwrite(memory.descriptor.rawValue, &value, count, off_t(offset)) == count)
  }

  func load<Value: FixedWidthInteger>(_ type: Value.Type, at offset: Int) -> Value {
    var value: Value = 0
    let count = MemoryLayout<Value>.size
    precondition(unsafe pread(memory.descriptor.rawValue, &value, count, off_t(offset)) == count)
    return Value(littleEndian: value)
  }

  /// Marks these heads of queue 0 as taken, in this order, with nothing used so far.
  func interrupt(_ heads: some Collection<UInt16>) {
    store(UInt16(1), at: 8)
    store(size, at: 10)
    for (number, head) in heads.enumerated() {
      store(UInt64(1000 + number), at: 16 + 16 * Int(head) + 8)
      store(UInt8(1), at: 16 + 16 * Int(head))
    }
  }

  /// Heads of queue 0 that are marked as in flight.
  var inFlight: Set<UInt16> { Set((0..<size).filter { load(UInt8.self, at: 16 + 16 * Int($0)) != 0 }) }
  /// The record's copy of the used index.
  var used: UInt16 { load(UInt16.self, at: 14) }
}
