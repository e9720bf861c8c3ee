/// IN_ORDER: a driver that relies on the order of its requests gets their answers in that order, whatever the order of
/// completion.
import Foundation
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct InOrderTests {
  private static func options(
    _ ring: RingFormat, more: FeatureSet = [], size: Int = 4 << 20, script: Script? = nil
  ) -> RigOptions {
    var options = RigOptions(size: size, script: script)
    options.device.requestedFeatures = .inOrder
    options.features = BlockFeature.understood.union(.inOrder).union(more)
    if ring == .packed { options.features.insert(.packedRing) }
    return options
  }

  @Test func itIsOfferedOnRequestAlone() throws {
    let scratch = try Scratch()
    let image = try ImageFile(ImageOptions(path: scratch.image()))
    for isAsked in [false, true] {
      var options = BlockDeviceOptions()
      if isAsked { options.requestedFeatures = .inOrder }
      #expect(try BlockDevice(image: image, options: options).features.contains(.inOrder) == isAsked)
    }
  }

  /// The medium completes in reverse order: the driver sees its own order, and most requests share an answer.
  @Test(arguments: [RingFormat.split, .packed]) func answersComeInTheOrderOfTheRequests(_ ring: RingFormat) throws {
    let script = try Script(completesLater: true, isBackwards: true)
    let rig = try Rig(Self.options(ring, script: script))
    let queue = rig.client.queues[0]
    #expect(rig.client.session.features.contains(.inOrder) && rig.client.session.format == ring)
    for _ in 0..<8 {
      script.hold()
      var tags: [UInt32] = []
      for number in 0..<9 {
        // Refused at once, but it has to wait for those before it; its used length is shorter than its buffers.
        let request =
          number == 4 ? .read(sector: 1 << 40, bytes: 512) : BlockRequest.read(sector: UInt64(number), bytes: 512)
        tags.append(try #require(try queue.submit(request)))
      }
      queue.publish()
      try waitUntil("they are in flight") { script.held == 8 }
      let isEarly = queue.ring.hasUsed
      #expect(!isEarly, "an answer overtook another one")
      script.release()
      var order: [UInt32] = []
      try waitUntil("all are answered") {
        while let outcome = try queue.reap() {
          #expect(outcome.status == (outcome.tag == tags[4] ? .ioError : .ok))
          #expect(outcome.length == (outcome.tag == tags[4] ? 0 : 513))
          order.append(outcome.tag)
        }
        return order.count == 9
      }
      #expect(order == tags)
    }
  }

  /// One used element stands for four requests, names the last of them, and is where the first one's would be.
  @Test func aBatchHasOneElement() throws {
    let script = try Script(completesLater: true, isBackwards: true)
    let rig = try Rig(Self.options(.split, script: script))
    let queue = rig.client.queues[0]
    let raw = queue.ring.ring
    for slot: UInt16 in 0..<4 { raw.usedID(slot).storeRelaxed(0xAAAA) }
    script.hold()
    for sector: UInt64 in 0..<4 { _ = try #require(try queue.submit(.write(sector: sector, pattern(512)))) }
    queue.publish()
    try waitUntil("they are in flight") { script.held == 4 }
    script.release()
    try waitUntil("all are used") { raw.usedIndex.loadAcquire() == 4 }
    let last = UInt32(raw.availableEntry(3).loadRelaxed())
    #expect((0..<4).map { raw.usedID($0).loadRelaxed() } == [last, 0xAAAA, 0xAAAA, 0xAAAA])
    for _ in 0..<4 { #expect(try queue.reap()?.status == .ok) }
    #expect(try queue.reap() == nil)
  }

  struct Case: Sendable, CustomTestStringConvertible {
    var ring: RingFormat
    var engine: EngineKind
    var notification = Notification.batch
    var limits = RateLimits()
    var note = ""
    var testDescription: String { "\(ring), \(engine)\(note)" }
  }

  static let cases: [Case] = [RingFormat.split, .packed].flatMap { ring in
    var limits = RateLimits()
    limits.readIOPS = RateLimit(perSecond: 20_000, burst: 8)
    return EngineKind.allCases.filter { ![.auto, .null, .nbd, .rbd].contains($0) }.map { Case(ring: ring, engine: $0) } + [
      Case(ring: ring, engine: .uring, notification: .each, note: ", calls each"),
      Case(ring: ring, engine: .uring, notification: .coalesce(count: 8, microseconds: 200), note: ", calls coalesced"),
      Case(ring: ring, engine: .uring, limits: limits, note: ", limited reads"),
    ]
  }

  /// A packed ring that publishes each answer at once does not notify of each, unless that is requested.
  @Test(arguments: [RingFormat.split, .packed], [Notification.batch, .each])
  func callsAreAsManyAsRequested(ring: RingFormat, notification: VirtioBlkDevice.Notification) throws {
    let scratch = try Scratch()
    var options = BlockDeviceOptions()
    options.engine = .sync
    options.notification = notification
    let device = try BlockDevice(image: ImageFile(ImageOptions(path: scratch.image(), direct: .off)), options: options)
    var features = BlockFeature.understood.subtracting(.eventIndex)
    if ring == .packed { features.formUnion(.packedRing) }
    let queue = try HandQueue(device, 0, SharedMemory(size: 4 << 20), size: 64, features: features, publishesInOrder: true)
    for number in 0..<8 { try queue.submit(.read(sector: UInt64(number), bytes: 512)) }
    queue.queue.publish()
    try queue.start()
    try waitUntil("all are answered") {
      while try queue.queue.reap() != nil {}
      return queue.queue.outstanding == 0
    }
    #expect(queue.stop() != nil)
    var calls: UInt64 = 0
    #expect(unsafe read(queue.call.rawValue, &calls, 8) == 8)
    // At most one at the start, one with the first answer, whose memory is checked, and one at the end of the turn.
    #expect(notification == .each ? calls >= 8 : calls <= 3, "\(calls)")
  }

  /// Every kind of request and framing, against a model of the disk, on each engine.
  @Test(arguments: cases) func everyEngineKeepsTheOrder(_ test: Case) throws {
    var options = Self.options(test.ring, size: 16 << 20)
    options.engine = test.engine
    options.device.queueCount = 2
    options.device.notification = test.notification
    options.device.limits = test.limits
    let rig = try Rig(options)
    rig.client.depth = 16
    var verifier = try Verifier(rig.client, VerifyOptions(seed: 35, limit: .bytes(1 << 20)))
    _ = try verifier.run()
    #expect(rig.device.counters.failures == 0)
  }

  /// Requests in flight are finished, and the ring position is behind them.
  @Test(arguments: [RingFormat.split, .packed]) func aStopAnswersInOrder(_ ring: RingFormat) throws {
    let script = try Script(completesLater: true, isBackwards: true)
    let rig = try Rig(Self.options(ring, script: script))
    let queue = rig.client.queues[0]
    script.hold()
    var tags: [UInt32] = []
    for sector: UInt64 in 0..<6 { tags.append(try #require(try queue.submit(.read(sector: sector, bytes: 512)))) }
    queue.publish()
    try waitUntil("they are in flight") { script.held == 6 }
    Thread.detachNewThread { script.release() }
    let position = try #require(rig.transport.stopQueue(0))
    var order: [UInt32] = []
    while let outcome = try queue.reap() { order.append(outcome.tag) }
    #expect(order == tags)
    let standing = queue.ring.standing
    #expect(position == QueuePosition(available: standing.available, used: standing.used))
  }
}
