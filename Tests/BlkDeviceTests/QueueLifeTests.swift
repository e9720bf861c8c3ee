/// The life of a queue as its transport sees it: every request is answered with an event, and nothing blocks.
import Glibc
import GuestDriver
import Synchronization
import SystemPackage
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct QueueLifeTests {
  /// A queue whose kicks cannot be polled is refused, with a reason, and can be started again.
  @Test(arguments: [
    (Errno.noSpace, QueueError.outOfMemory), (.noMemory, .outOfMemory), (.tooManyOpenFiles, .outOfDescriptors),
    (.tooManyOpenFilesInSystem, .outOfDescriptors), (.resourceTemporarilyUnavailable, .outOfThreads),
    (.notPermitted, .kickCannotBeWaitedFor),
  ])
  func aKickThatCannotBeWaitedForRefusesTheStart(error: Errno, reason: QueueError) throws {
    let script = try Script()
    let scratch = try Scratch()
    let image = try ImageFile(ImageOptions(path: scratch.image(size: 1 << 20), direct: .off))
    let device = try BlockDevice(image: image, options: .init()) { script.serve($0, $1) }
    let queue = try HandQueue(device, 0, SharedMemory())
    script.refuseWatch(error)
    #expect(throws: reason) { try queue.start() }
    try queue.start()
    #expect(try queue.queue.perform(.write(sector: 0, pattern(512))).status == .ok)
    #expect(queue.stop() == QueuePosition(available: 1, used: 1))
  }

  /// A disk whose medium completes when the script says so, and one queue on it.
  private struct Disk {
    let scratch: Scratch
    let script: Script
    let device: BlockDevice
    let hand: HandQueue

    init(queues: Int = 1, threads: Int = 1) throws {
      scratch = try Scratch()
      script = try Script(completesLater: true)
      var options = BlockDeviceOptions()
      options.engine = .sync
      options.queueCount = queues
      options.threads = threads
      let image = try ImageFile(ImageOptions(path: scratch.image("disk", size: 1 << 20), direct: .off))
      device = try BlockDevice(image: image, options: options) { [script] in script.serve($0, $1) }
      hand = try HandQueue(device, 0, SharedMemory())
    }

    /// Submits a request that the medium holds.
    func submitAndHold() throws {
      script.hold()
      try hand.submit(.read(sector: 0, bytes: 512))
      hand.queue.publish()
      try waitUntil("the medium has the request") { script.held == 1 }
    }

    /// Collects events until this one arrives.
    func events(until wanted: DeviceEvent) throws -> [DeviceEvent] {
      var events: [DeviceEvent] = []
      try waitUntil("\(wanted)") {
        events += hand.attended.takeEvents()
        return events.contains(wanted)
      }
      return events
    }
  }

  private static let stopped = DeviceEvent.stopped(queue: 0, QueuePosition(available: 1, used: 1))

  @Test func aStopOnAMediumThatDoesNotAnswerIsAnsweredWhenItDoes() throws {
    let disk = try Disk()
    try disk.hand.start()
    try disk.submitAndHold()
    #expect(disk.hand.attended.stop(queue: 0))
    #expect(disk.hand.attended.state(of: 0) == .stopping)
    // The worker has seen the stop, and does not answer it yet.
    disk.device.replaceFailure(queue: 0, .none)
    #expect(disk.hand.attended.takeEvents().isEmpty)
    #expect(disk.hand.attended.busyQueues == [0])
    disk.script.release()
    #expect(try disk.events(until: Self.stopped) == [Self.stopped])
    #expect(disk.hand.attended.isAtRest)
  }

  @Test func aStopThatIsAskedForAgainIsOneStop() throws {
    let disk = try Disk()
    try disk.hand.start()
    try disk.submitAndHold()
    // Also directly to the device, past the transport's account.
    for _ in 0..<5 { disk.device.stop(queue: 0) }
    disk.script.release()
    #expect(try disk.events(until: Self.stopped) == [Self.stopped])
    disk.device.stop(queue: 0)
    try disk.hand.start(at: QueuePosition(available: 1, used: 1))
    #expect(try disk.hand.queue.reap() != nil)
    #expect(try disk.hand.perform(.read(sector: 0, bytes: 512)).status == .ok)
    #expect(disk.hand.stop() == QueuePosition(available: 2, used: 2))
    #expect(disk.hand.attended.takeEvents().isEmpty)
  }

  /// The worker may not have looked at its mailbox since the queue stopped.
  @Test func whatWasOrderedForTheLastLifeDoesNotReachTheNextOne() throws {
    let disk = try Disk()
    let mailbox = try WorkerMailbox()
    #expect(mailbox.post { $0.add(0) { ($0.stops, $0.releases) = (true, true) } })
    #expect(mailbox.post { $0.add(0) { $0.begin(disk.hand.activation) } })
    let order = try #require(mailbox.take().queues[0])
    #expect(order.start != nil && !order.stops && !order.releases)
    #expect(mailbox.post { $0.add(0) { $0.begin(disk.hand.activation) } })
    #expect(mailbox.post { $0.add(0) { $0.stops = true } })
    #expect(mailbox.take().queues[0]?.stops == true, "a stop after the start is meant for it")
  }

  @Test func aStopBeforeTheStartIsAnsweredComesAfterIt() throws {
    let disk = try Disk()
    for _ in 0..<50 {
      disk.hand.attended.start(disk.hand.activation)
      disk.hand.attended.stop(queue: 0)
      let last = DeviceEvent.stopped(queue: 0, QueuePosition(available: 0, used: 0))
      #expect(try disk.events(until: last) == [.started(queue: 0), last])
    }
  }

  @Test func aStartThatFailsIsTheAnswerToItsStopToo() throws {
    let disk = try Disk()
    var bad = disk.hand.activation
    bad.configuration.size = 3
    for _ in 0..<50 {
      disk.hand.attended.start(bad)
      disk.hand.attended.stop(queue: 0)
      let only = DeviceEvent.notStarted(queue: 0, .badSize(3))
      #expect(try disk.events(until: only) == [only])
      #expect(disk.hand.attended.isAtRest)
    }
    try disk.hand.start()
    #expect(disk.hand.stop() == QueuePosition())
  }

  /// A worker may be ending by itself; a start that arrives at that very moment is not lost.
  @Test func aStartForAWorkerThatIsEndingIsCarriedOut() throws {
    let disk = try Disk()
    var position = QueuePosition()
    for round in 0..<300 {
      try disk.hand.start(at: position)
      if round % 50 == 0 { #expect(try disk.hand.perform(.read(sector: 0, bytes: 512)).status == .ok) }
      position = try #require(disk.hand.stop())
    }
  }

  @Test func aQueueThatIsLeftComesBackWhenItsMediumDoes() throws {
    let disk = try Disk(queues: 2)
    let other = try HandQueue(disk.device, 1, SharedMemory(), beside: disk.hand)
    try disk.hand.start()
    try other.start()
    try disk.submitAndHold()
    disk.device.leave(queue: 0)
    #expect(disk.device.leftQueues == [0])
    // Its slot is not free, and its neighbour is not affected.
    disk.device.start(disk.hand.activation)
    let refused = DeviceEvent.notStarted(queue: 0, .leftBehind)
    #expect(try disk.events(until: refused) == [refused])
    disk.script.release()
    #expect(try other.perform(.read(sector: 0, bytes: 512)).status == .ok)
    try waitUntil("the queue that was left has ended") {
      let events = disk.hand.attended.takeEvents()
      #expect(events.isEmpty, "a queue that was left reports nothing")
      return disk.device.leftQueues.isEmpty
    }
    try disk.hand.start(at: QueuePosition(available: 1, used: 1))
    #expect(try disk.hand.queue.reap() != nil)
    #expect(try disk.hand.perform(.read(sector: 0, bytes: 512)).status == .ok)
    #expect(disk.hand.stop() != nil && other.stop() != nil)
  }

  /// Control messages that a front-end can send as often as it likes replace each other, also while the worker does not look.
  @Test func callsThatReplaceEachOtherDoNotPileUp() async {
    await #expect(processExitsWith: .success) {
      let entered = Atomic(false)
      let mayGoOn = Atomic(false)
      let scratch = try Scratch()
      // The worker itself hangs, as in a call to the medium.
      let script = try Script {
        entered.store(true, ordering: .releasing)
        while !mayGoOn.load(ordering: .acquiring) { usleep(1000) }
      }
      var options = BlockDeviceOptions()
      options.engine = .sync
      let image = try ImageFile(ImageOptions(path: scratch.image("disk", size: 1 << 20), direct: .off))
      let device = try BlockDevice(image: image, options: options) { script.serve($0, $1) }
      let hand = try HandQueue(device, 0, SharedMemory())
      try hand.start()
      try hand.submit(.read(sector: 0, bytes: 512))
      hand.queue.publish()
      try waitUntil("the worker hangs") { entered.load(ordering: .acquiring) }
      let before = ThisProcess.descriptors
      for _ in 0..<1000 {
        device.replaceCall(queue: 0, .eventCounter(try .eventCounter()))
        device.replaceFailure(queue: 0, .eventCounter(try .eventCounter()))
        device.stop(queue: 0)
      }
      #expect(ThisProcess.descriptors <= before + 2)
      mayGoOn.store(true, ordering: .releasing)
      #expect(hand.stop() == QueuePosition(available: 1, used: 1))
    }
  }

  /// The workers' events are bounded, even if nobody takes them.
  @Test func newsThatNobodyTakesDoesNotPileUp() throws {
    let news = try DeviceNews()
    for number in 0..<1000 {
      news.post(.notice("\(number)"))
      news.post(.configurationChanged)
    }
    let events = news.take().events
    #expect(events.filter { $0 == .configurationChanged }.count == 1)
    #expect(events.count == 10)
    #expect(events.last == .notice("992 more notices were left out"))
    #expect(news.take().events.isEmpty)
  }
}
