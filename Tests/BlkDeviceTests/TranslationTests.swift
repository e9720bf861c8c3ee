/// Queues of drivers behind an IOMMU: missing translations are requested and waited for, withdrawn ones are released, and no
/// other queue is affected.
import CLinux
import Glibc
import GuestDriver
import Testing

@testable import VirtioBlkDevice
@testable import VirtioCore

@Suite struct TranslationTests {
  /// Both ring formats.
  static let formats: [FeatureSet] = [BlockFeature.understood, BlockFeature.understood.union(.packedRing)]
  private static let everything: UInt64 = .max

  private struct Rig {
    let scratch: Scratch
    let path: String
    let device: BlockDevice
    let iommu: Iommu
    let hand: HandQueue

    init(
      _ features: FeatureSet, _ script: Script? = nil, engine: EngineKind = .sync, queues: Int = 1, tables: Int = 0,
      starts: Bool = true, size: UInt16 = 64, _ change: (inout BlockDeviceOptions) -> Void = { _ in }
    ) throws {
      scratch = try Scratch()
      path = try scratch.image("disk", size: 4 << 20)
      var options = BlockDeviceOptions()
      options.engine = script == nil ? engine : .sync
      options.queueCount = queues
      options.waiting = .sleep
      options.requestedFeatures = .accessPlatform
      change(&options)
      let image = try ImageFile(ImageOptions(path: path, direct: .off))
      if let script {
        device = try BlockDevice(image: image, options: options) { script.serve($0, $1) }
      } else {
        device = try BlockDevice(image: image, options: options)
      }
      iommu = try Iommu(size: 16 << 20)
      hand = try HandQueue(device, 0, iommu.memory, size: size, features: features, tables: tables)
      iommu.mapRing(hand)
      if starts { try start() }
    }

    func start(at position: QueuePosition? = nil, record: InflightMemory? = nil) throws {
      hand.use(iommu.translatedMemory())
      try hand.start(at: position, record: record)
    }

    /// Another queue on the same device, behind the same IOMMU.
    func another(_ index: Int, _ features: FeatureSet) throws -> HandQueue {
      let other = try HandQueue(device, index, iommu.memory, size: 64, features: features, beside: hand)
      iommu.mapRing(other)
      other.use(iommu.translatedMemory())
      try other.start()
      return other
    }

    @discardableResult
    func submit(_ request: BlockRequest) throws -> UInt32 {
      let tag = try #require(try hand.queue.submit(request, framing: .classic(request, alignment: 4096)))
      hand.queue.publish()
      return tag
    }
  }

  // MARK: Misses

  @Test(arguments: formats, [EngineKind.sync, .uring, .mapped, .threads]) func whatIsNotTranslatedIsAskedFor(
    features: FeatureSet, engine: EngineKind
  ) throws {
    for tables in [0, 4] {
      let rig = try Rig(features, engine: engine, tables: tables)
      for round in 0..<12 {
        let data = pattern(4096 * (1 + round % 5), seed: round)
        #expect(try rig.iommu.perform(rig.hand, .write(sector: UInt64(round * 64), data)).status == .ok)
        let read = try rig.iommu.perform(rig.hand, .read(sector: UInt64(round * 64), bytes: data.count))
        #expect(read.status == .ok && firstDifference(read.answer, data) == nil)
        // All translations are released, with nothing in flight.
        rig.iommu.withdraw(rig.hand, first: 0, last: Self.everything)
        try rig.iommu.waitForWithdrawal(rig.hand)
        rig.iommu.mapRing(rig.hand)
      }
      #expect(rig.iommu.misses.count >= 36)
      #expect(rig.iommu.failures.isEmpty && rig.hand.stop() != nil)
    }
  }

  /// A known translation is not requested again.
  @Test(arguments: formats) func whatIsTranslatedIsFound(features: FeatureSet) throws {
    let rig = try Rig(features, starts: false)
    rig.iommu.map(0, count: 16 << 20)
    try rig.start()
    for sector in 0..<20 { #expect(try rig.iommu.perform(rig.hand, .read(sector: UInt64(sector), bytes: 28672)).status == .ok) }
    #expect(rig.iommu.misses.isEmpty)
  }

  /// A request of the largest size has room for all its pieces, none of which is adjacent to another.
  @Test(arguments: formats) func theLargestRequestIsInPages(features: FeatureSet) throws {
    let rig = try Rig(features, starts: false, size: 256)
    rig.iommu.map(0, count: 16 << 20)
    rig.iommu.isScattered = true
    try rig.start()
    let (count, bytes) = (126, 28672)
    #expect(rig.device.readConfiguration(at: 8, count: 8) == [0, 0x70, 0, 0, 126, 0, 0, 0])
    let data = pattern(count * bytes)
    var request = BlockRequest.write(sector: 0, data)
    for isRead in [false, true] {
      if isRead { request = .read(sector: 0, bytes: data.count) }
      // One byte after the beginning of a page.
      var framing = Framing(readableCuts: [16], writableCuts: [request.answerBytes])
      let cuts = (1..<count).map { $0 * bytes }
      if isRead { framing.writableCuts = cuts + [data.count] } else { framing.readableCuts = [16] + cuts.map { 16 + $0 } }
      _ = try #require(try rig.hand.queue.submit(request, framing: framing))
      rig.hand.queue.publish()
      let outcome = try rig.iommu.outcomes(rig.hand)[0]
      #expect(outcome.status == .ok && (!isRead || firstDifference(outcome.answer, data) == nil))
    }
  }

  /// A permission can be added when it is needed.
  @Test(arguments: formats) func permissionsGrow(features: FeatureSet) throws {
    let rig = try Rig(features, starts: false)
    rig.iommu.map(0, count: 16 << 20, .read)
    rig.iommu.mapRing(rig.hand)
    try rig.start()
    let outcome = try rig.iommu.perform(rig.hand, .read(sector: 0, bytes: 8192))
    #expect(outcome.status == .ok)
    #expect(!rig.iommu.misses.isEmpty && rig.iommu.misses.allSatisfy { $0.access.contains(.write) })
  }

  /// A request whose access is still not permitted after the answer fails, and later ones do not.
  @Test(arguments: formats) func whatIsNotAllowedFails(features: FeatureSet) throws {
    let rig = try Rig(features, starts: false)
    rig.iommu.map(0, count: 16 << 20, .read)
    rig.iommu.mapRing(rig.hand)
    try rig.start()
    // The data's pages keep their permission, and the status may be written.
    let outcome = try rig.iommu.perform(rig.hand, .read(sector: 0, bytes: 16384)) { miss in
      rig.iommu.misses.count == 1 ? .read : miss.access
    }
    #expect(outcome.status == .ioError)
    #expect(rig.iommu.misses.count == 2)
    #expect(try rig.iommu.perform(rig.hand, .read(sector: 0, bytes: 4096)).status == .ok)
    #expect(rig.iommu.failures.isEmpty)
  }

  /// If not even the status can be written, there is no way to tell the driver.
  @Test(arguments: formats) func withoutAStatusTheQueueFails(features: FeatureSet) throws {
    let rig = try Rig(features, starts: false)
    rig.iommu.map(0, count: 16 << 20, .read)
    rig.iommu.mapRing(rig.hand)
    try rig.start()
    try rig.submit(.flush)
    try waitUntil("the queue fails") {
      rig.iommu.serve(rig.hand) { _ in .read }
      return !rig.iommu.failures.isEmpty
    }
    guard case .statusUnmapped = rig.iommu.failures[0] else {
      Issue.record("\(rig.iommu.failures)")
      return
    }
  }

  /// Waiting costs no CPU time, and no other queue waits.
  @Test(arguments: formats) func aQueueWaitsAloneAndAsleep(features: FeatureSet) throws {
    for threads in [1, 2] {
      let rig = try Rig(features, queues: 2) { $0.threads = threads }
      let other = try rig.another(1, features)
      try rig.submit(.write(sector: 0, pattern(4096)))
      try rig.iommu.nextMiss(rig.hand)
      _ = try rig.iommu.perform(other, .read(sector: 8, bytes: 4096))
      let before = rig.device.counters.turns
      for sector in 0..<100 { #expect(try rig.iommu.perform(other, .read(sector: UInt64(sector), bytes: 512)).status == .ok) }
      #expect(rig.device.counters.turns - before < 100 * 12)
      #expect(try rig.hand.queue.reap() == nil)
      #expect(rig.hand.stop() != nil && other.stop() != nil)
    }
  }

  /// Waiting requests are not taken: a stop completes at once, and the next run begins with them.
  @Test(arguments: formats) func aStopWaitsForNoTranslation(features: FeatureSet) throws {
    let rig = try Rig(features)
    let position = try #require(rig.hand.stop())
    try rig.start(at: position)
    try rig.submit(.write(sector: 3, pattern(512)))
    try rig.iommu.nextMiss(rig.hand)
    #expect(rig.hand.stop() == position)
    try rig.start(at: position)
    #expect(try rig.iommu.outcomes(rig.hand).map(\.status) == [.ok])
    #expect(try firstDifference(rig.scratch.contents(rig.path, at: 3 * 512, count: 512), pattern(512)) == nil)
  }

  /// The operator's pause ends before the translation arrives, or after it.
  @Test(arguments: formats, [false, true]) func aPauseIsNoAnswer(features: FeatureSet, answersFirst: Bool) throws {
    let rig = try Rig(features)
    try rig.submit(.write(sector: 3, pattern(512)))
    let miss = try rig.iommu.nextMiss(rig.hand)
    rig.device.pause()
    try waitUntil("nothing moves") {
      rig.iommu.serve(rig.hand) { _ in nil }
      return rig.device.isAtRest
    }
    if !answersFirst { rig.device.resume() }
    rig.iommu.map(miss.address)
    rig.device.translate(queue: 0, by: rig.iommu.translations(), refused: nil)
    if answersFirst { rig.device.resume() }
    #expect(try rig.iommu.outcomes(rig.hand).map(\.status) == [.ok])
  }

  /// An update that is older than a withdrawal is ignored.
  @Test(arguments: formats) func whatIsOlderChangesNothing(features: FeatureSet) throws {
    let rig = try Rig(features)
    #expect(try rig.iommu.perform(rig.hand, .write(sector: 0, pattern(4096))).status == .ok)
    let old = rig.iommu.translations()
    rig.iommu.withdraw(rig.hand, first: 0, last: Self.everything)
    try rig.iommu.waitForWithdrawal(rig.hand)
    rig.device.translate(queue: 0, by: old, refused: nil)
    let before = rig.iommu.misses.count
    #expect(try rig.iommu.perform(rig.hand, .write(sector: 0, pattern(4096))).status == .ok)
    #expect(rig.iommu.misses.count > before)
  }

  // MARK: Withdrawals

  /// A translation is released when the requests that use it have been published, and not before.
  @Test(arguments: formats) func whatIsInUseIsGivenBackLater(features: FeatureSet) throws {
    let script = try Script(completesLater: true)
    let rig = try Rig(features, script)
    script.hold()
    try rig.submit(.read(sector: 0, bytes: 4096))
    try waitUntil("it is with the medium") {
      rig.iommu.serve(rig.hand)
      return script.held == 1
    }
    // The header has been read, and still its page counts as in use: nothing records that it is not.
    let data = try #require(rig.iommu.misses.first { $0.access.contains(.write) })
    rig.iommu.withdraw(rig.hand, first: data.address, last: data.address)
    // A queue that still uses a withdrawn translation takes no more requests.
    try rig.submit(.read(sector: 8, bytes: 4096))
    try rig.iommu.waitForTurns(rig.hand)
    #expect(rig.iommu.withdrawn.isEmpty && script.held == 1)
    script.release()
    try rig.iommu.waitForWithdrawal(rig.hand)
    #expect(try rig.hand.queue.reap()?.status == .ok, "it was released before the answer was published")
    #expect(try rig.iommu.outcomes(rig.hand).map(\.status) == [.ok])
  }

  /// A translation that nothing in flight uses is released at once.
  @Test(arguments: formats) func whatIsNotInUseIsGivenBackAtOnce(features: FeatureSet) throws {
    let script = try Script(completesLater: true)
    let rig = try Rig(features, script)
    script.hold()
    try rig.submit(.read(sector: 0, bytes: 4096))
    try waitUntil("it is with the medium") {
      rig.iommu.serve(rig.hand)
      return script.held == 1
    }
    let free: UInt64 = 15 << 20
    rig.iommu.map(free)
    rig.device.translate(queue: 0, by: rig.iommu.translations(), refused: nil)
    rig.iommu.withdraw(rig.hand, first: free, last: free + 4095)
    try rig.iommu.waitForWithdrawal(rig.hand)
    #expect(script.held == 1)
    // The same after translations were forgotten: then it is unknown what is in use.
    rig.iommu.losses += 1
    rig.iommu.withdraw(rig.hand, first: free, last: free + 4095)
    try rig.iommu.waitForTurns(rig.hand)
    #expect(rig.iommu.withdrawn.count == 1)
    script.release()
    try rig.iommu.waitForWithdrawal(rig.hand)
    #expect(try rig.iommu.outcomes(rig.hand).map(\.status) == [.ok])
    // And afterwards it is known again.
    script.hold()
    try rig.submit(.read(sector: 0, bytes: 4096))
    try waitUntil("it is with the medium") {
      rig.iommu.serve(rig.hand)
      return script.held == 1
    }
    rig.iommu.withdraw(rig.hand, first: free, last: free + 4095)
    try rig.iommu.waitForWithdrawal(rig.hand)
    script.release()
    #expect(try rig.iommu.outcomes(rig.hand).map(\.status) == [.ok])
  }

  /// A queue that waits for a translation uses none.
  @Test(arguments: formats) func whoWaitsGivesBackAtOnce(features: FeatureSet) throws {
    let rig = try Rig(features)
    try rig.submit(.write(sector: 0, pattern(4096)))
    let miss = try rig.iommu.nextMiss(rig.hand)
    rig.iommu.withdraw(rig.hand, first: miss.address, last: Self.everything)
    try rig.iommu.waitForWithdrawal(rig.hand)
    rig.iommu.mapRing(rig.hand)
    rig.iommu.map(miss.address, miss.access)
    rig.device.translate(queue: 0, by: rig.iommu.translations(), refused: nil)
    #expect(try rig.iommu.outcomes(rig.hand).map(\.status) == [.ok])
  }

  /// A withdrawal waits for no operator and for no limit.
  @Test(arguments: formats, ["stalled", "throttled", "paused", "in order"]) func nothingHoldsAWithdrawalUp(
    features: FeatureSet, by what: String
  ) throws {
    let script = try Script(what == "stalled" ? [.result(-EIO)] : [], completesLater: true)
    let rig = try Rig(features.union(.inOrder), script) { options in
      if what == "stalled" { options.onError = .stop }
      if what == "throttled" { options.limits.readBytes = RateLimit(perSecond: 1, burst: 1) }
      if what == "in order" { options.requestedFeatures.insert(.inOrder) }
    }
    try rig.submit(.read(sector: 0, bytes: 4096))
    try rig.submit(.read(sector: 8, bytes: 4096))
    if what == "paused" {
      script.hold()
      try waitUntil("one is with the medium") {
        rig.iommu.serve(rig.hand)
        return script.held >= 1
      }
      rig.device.pause()
      script.release()
    }
    var outcomes: [BlockOutcome] = []
    if what != "paused" {
      try waitUntil("everything is taken") {
        rig.iommu.serve(rig.hand)
        while let outcome = try rig.hand.queue.reap() { outcomes.append(outcome) }
        return switch what {
        case "stalled": rig.iommu.misses.count >= 3 && script.records.count >= 1
        case "throttled": rig.device.counters.throttled >= 1
        default: script.records.count >= 1
        }
      }
    }
    rig.iommu.withdraw(rig.hand, first: 0, last: Self.everything)
    try rig.iommu.waitForWithdrawal(rig.hand)
    rig.device.resume()
    rig.iommu.mapRing(rig.hand)
    try waitUntil("both are answered") {
      rig.device.setLimits(RateLimits())
      rig.iommu.serve(rig.hand)
      rig.device.resume()
      while let outcome = try rig.hand.queue.reap() { outcomes.append(outcome) }
      return outcomes.count == 2
    }
    #expect(outcomes.allSatisfy { $0.status == .ok || what == "stalled" })
    #expect(rig.iommu.failures.isEmpty)
  }

  /// Both messages reach the worker at once, and the update in force is newer than the withdrawal. Requests that use the
  /// withdrawn translation are still waited for.
  @Test(arguments: formats, [false, true]) func aNewerAnswerHidesNoWithdrawal(
    features: FeatureSet, isFirst: Bool
  ) throws {
    let script = try Script(completesLater: true)
    let rig = try Rig(features, script)
    script.hold()
    try rig.submit(.read(sector: 0, bytes: 4096))
    try waitUntil("it is with the medium") {
      rig.iommu.serve(rig.hand)
      return script.held == 1
    }
    let data = try #require(rig.iommu.misses.first { $0.access.contains(.write) })
    let withdrawal = rig.iommu.withdrawal(first: data.address, last: data.address)
    let newer = rig.iommu.translations()
    if isFirst {
      rig.device.translate(queue: 0, by: newer, refused: nil)
      try rig.iommu.waitForTurns(rig.hand)
    }
    rig.device.withdraw(queue: 0, withdrawal)
    if !isFirst { rig.device.translate(queue: 0, by: newer, refused: nil) }
    try rig.iommu.waitForTurns(rig.hand)
    #expect(rig.iommu.withdrawn.isEmpty && script.held == 1)
    script.release()
    try rig.iommu.waitForWithdrawal(rig.hand)
    #expect(try rig.hand.queue.reap()?.status == .ok)
  }

  /// A refusal is not lost if something newer arrives before the worker has read it.
  @Test func aRefusalStaysInItsOrder() throws {
    var order = QueueOrder()
    let (old, new) = (TranslationMiss(address: 1, access: .read), Translations([], number: 7, losses: 0))
    order.add(new, refused: old)
    order.add(new, refused: nil)
    #expect(order.translations?.refused == old)
  }

  /// A page is both read and written, and each answer permits only what was asked for.
  @Test(arguments: formats) func whoAllowsNoMoreThanAskedForIsAskedForAll(features: FeatureSet) throws {
    let rig = try Rig(features, queues: 2)
    rig.iommu.isLiteral = true
    let other = try rig.another(1, features)
    for sector in 0..<8 {
      let request = BlockRequest.read(sector: UInt64(sector), bytes: 512)
      // Header and status are in the same page.
      for hand in [rig.hand, other] {
        _ = try #require(try hand.queue.submit(request, framing: .classic(request, alignment: 16)))
        hand.queue.publish()
        #expect(try rig.iommu.outcomes(hand)[0].status == .ok)
      }
    }
  }

  /// A refusal applies only to the access that was refused, and at most two are remembered.
  @Test func refusalsAreOfWhatWasAsked() {
    let lookup = TranslationLookup(Translations([], number: 1, losses: 0))
    var memory = [UInt8](repeating: 0, count: 4096)
    unsafe memory.withUnsafeMutableBytes { bytes in
      let entry = unsafe Translations.Entry(start: 0, size: 4096, host: bytes.baseAddress!, access: .read)
      let known = Translations([entry], number: 2, losses: 0)
      lookup.use(known)
      for address in 0..<UInt64(10) {
        #expect(lookup.find(address, for: .write) == nil)
        let asked = TranslationMiss(address: address, access: [.read, .write])
        #expect(lookup.takeMiss() == asked)
        // A refusal of another access.
        lookup.use(known, refused: TranslationMiss(address: address, access: .read))
        #expect(lookup.find(address, for: .write) == nil)
        #expect(lookup.takeMiss() == asked)
        lookup.use(known, refused: asked)
        #expect(lookup.find(address, for: .write) == nil && lookup.takeMiss() == nil)
        #expect(lookup.find(address, for: .read) != nil)
      }
      // The last two are still refused, and older ones are requested again.
      #expect(lookup.find(8, for: .write) == nil && lookup.takeMiss() == nil)
      #expect(lookup.find(7, for: .write) == nil && lookup.takeMiss() != nil)
    }
  }

  /// Part of a range that has one translation is withdrawn: a queue that does not use that part releases it at once.
  @Test(arguments: formats) func onlyTheTakenPartIsLookedFor(features: FeatureSet) throws {
    let script = try Script(completesLater: true)
    let rig = try Rig(features, script, starts: false)
    rig.iommu.map(0, count: 16 << 20)
    try rig.start()
    script.hold()
    try rig.submit(.read(sector: 0, bytes: 4096))
    try waitUntil("it is with the medium") {
      rig.iommu.serve(rig.hand)
      return script.held == 1
    }
    let free: UInt64 = 15 << 20
    rig.iommu.withdraw(rig.hand, first: free, last: free + 4095)
    try rig.iommu.waitForWithdrawal(rig.hand)
    #expect(script.held == 1)
    script.release()
    #expect(try rig.iommu.outcomes(rig.hand).map(\.status) == [.ok])
  }

  /// The operator resumes a paused queue during a withdrawal: it takes nothing before the withdrawal is complete.
  @Test(arguments: formats) func aResumeEndsNoWithdrawal(features: FeatureSet) throws {
    let script = try Script(completesLater: true)
    let rig = try Rig(features, script)
    script.hold()
    try rig.submit(.read(sector: 0, bytes: 4096))
    try waitUntil("it is with the medium") {
      rig.iommu.serve(rig.hand)
      return script.held == 1
    }
    rig.device.pause()
    try rig.iommu.waitForTurns(rig.hand)
    let data = try #require(rig.iommu.misses.first { $0.access.contains(.write) })
    rig.iommu.withdraw(rig.hand, first: data.address, last: data.address)
    try rig.iommu.waitForTurns(rig.hand)
    rig.device.resume()
    try rig.submit(.read(sector: 8, bytes: 4096))
    try rig.iommu.waitForTurns(rig.hand)
    #expect(script.held == 1 && rig.iommu.withdrawn.isEmpty)
    script.release()
    try rig.iommu.waitForWithdrawal(rig.hand)
    #expect(try rig.iommu.outcomes(rig.hand, 2).map(\.status) == [.ok, .ok])
  }

  /// Requests that did not wait for the limit are charged before any more are taken.
  @Test(arguments: formats) func aWithdrawalIsNoWayRoundALimit(features: FeatureSet) throws {
    let script = try Script(completesLater: true)
    let rig = try Rig(features, script) { $0.limits.readBytes = RateLimit(perSecond: 1, burst: 1) }
    // The first request uses the burst, the second waits.
    try rig.submit(.read(sector: 0, bytes: 4096))
    try rig.submit(.read(sector: 8, bytes: 4096))
    var outcomes: [BlockOutcome] = []
    func serve() throws {
      rig.iommu.serve(rig.hand)
      while let outcome = try rig.hand.queue.reap() { outcomes.append(outcome) }
    }
    try waitUntil("one waits for the limit") {
      try serve()
      return rig.device.counters.throttled >= 1
    }
    rig.iommu.withdraw(rig.hand, first: 0, last: Self.everything)
    try rig.iommu.waitForWithdrawal(rig.hand)
    rig.iommu.mapRing(rig.hand)
    try waitUntil("both are answered") {
      try serve()
      return outcomes.count == 2
    }
    for round in 0..<3 {
      try rig.submit(.read(sector: UInt64(16 + round), bytes: 4096))
      try rig.iommu.waitForTurns(rig.hand)
      rig.iommu.withdraw(rig.hand, first: 0, last: Self.everything)
      try rig.iommu.waitForWithdrawal(rig.hand)
      rig.device.translate(queue: 0, by: rig.iommu.translations(), refused: nil)
      try rig.iommu.waitForTurns(rig.hand)
      #expect(script.records.count == 2 && rig.device.counters.reads == 2)
    }
    // A removed limit leaves no debt.
    rig.device.setLimits(RateLimits())
    rig.iommu.mapRing(rig.hand)
    try waitUntil("all are answered") {
      try serve()
      return outcomes.count == 5
    }
    #expect(outcomes.allSatisfy { $0.status == .ok })
  }

  /// A paused queue starts nothing, even if the driver withdraws its memory: the withdrawal waits for the operator.
  @Test(arguments: formats) func aWithdrawalBeginsNothingInAPause(features: FeatureSet) throws {
    let script = try Script(completesLater: true)
    let rig = try Rig(features, script) { $0.limits.readBytes = RateLimit(perSecond: 1, burst: 1) }
    try rig.submit(.read(sector: 0, bytes: 4096))
    try rig.submit(.read(sector: 8, bytes: 4096))
    var outcomes: [BlockOutcome] = []
    func serve() throws {
      rig.iommu.serve(rig.hand)
      while let outcome = try rig.hand.queue.reap() { outcomes.append(outcome) }
    }
    try waitUntil("one waits for the limit") {
      try serve()
      return rig.device.counters.throttled >= 1 && outcomes.count == 1
    }
    rig.device.pause()
    try waitUntil("nothing moves") {
      try serve()
      return rig.device.isAtRest
    }
    rig.iommu.withdraw(rig.hand, first: 0, last: Self.everything)
    try rig.iommu.waitForTurns(rig.hand)
    #expect(script.records.count == 1 && rig.iommu.withdrawn.isEmpty)
    rig.device.resume()
    try rig.iommu.waitForWithdrawal(rig.hand)
    try waitUntil("both are answered") {
      try serve()
      return outcomes.count == 2
    }
  }

  /// Segments are whole blocks, and as many as fit, for every block size.
  @Test(arguments: [512, 4096, 8192, 16384, 32768, 65536]) func largeBlocksHaveRoom(block: Int) throws {
    let scratch = try Scratch()
    let path = try scratch.image("disk", size: 4 << 20)
    var imageOptions = ImageOptions(path: path, direct: .off, isLocked: false)
    imageOptions.logicalBlockSize = block
    var options = BlockDeviceOptions()
    options.engine = .sync
    options.requestedFeatures = .accessPlatform
    let device = try BlockDevice(image: ImageFile(imageOptions), options: options)
    func word(at offset: Int) -> Int {
      device.readConfiguration(at: offset, count: 4).enumerated().reduce(0) { $0 | Int($1.element) << (8 * $1.offset) }
    }
    let (bytes, segments) = (word(at: 8), word(at: 12))
    #expect(bytes >= max(block, 4096) && bytes % block == 0 && segments > 0)
    #expect(segments * (bytes / 4096 + 1) + 4 <= RequestSlab.segmentsPerSlot)
    var choice = ConfigurationChoice()
    choice[.segMax] = UInt32(segments + 1)
    options.configuration = choice
    if segments < 126 {
      #expect(throws: EngineError.self) { _ = try BlockDevice(image: ImageFile(imageOptions), options: options) }
    }
  }

  /// A stop during a withdrawal completes both.
  @Test(arguments: formats) func aStopGivesBack(features: FeatureSet) throws {
    let script = try Script(completesLater: true)
    let rig = try Rig(features, script)
    script.hold()
    try rig.submit(.read(sector: 0, bytes: 4096))
    try waitUntil("it is with the medium") {
      rig.iommu.serve(rig.hand)
      return script.held == 1
    }
    rig.iommu.withdraw(rig.hand, first: 0, last: Self.everything)
    #expect(rig.hand.attended.stop(queue: 0))
    script.release()
    try rig.iommu.waitForWithdrawal(rig.hand)
    try waitUntil("the queue has stopped") {
      rig.iommu.serve(rig.hand)
      return rig.hand.attended.isAtRest
    }
    #expect(try rig.hand.queue.reap()?.status == .ok)
  }

  // MARK: Records and logs

  /// Interrupted requests wait for their translations, too, and a stop meanwhile leaves them for the next run.
  @Test(arguments: formats, [false, true]) func whatWasInterruptedIsTranslatedFirst(features: FeatureSet, stops: Bool) throws {
    let script = try Script(completesLater: true)
    let rig = try Rig(features, script, starts: false)
    let record = try InflightMemory.create(queueCount: 1, queueSize: 64, isPacked: features.contains(.packedRing))
    script.hold()
    try rig.start(record: record)
    for number in 0..<5 { try rig.submit(.write(sector: UInt64(number), pattern(512, seed: number))) }
    try waitUntil("all are with the medium") {
      rig.iommu.serve(rig.hand)
      return script.held == 5
    }
    script.lose()
    try waitUntil("the queue fails") {
      rig.iommu.serve(rig.hand)
      return rig.iommu.failures == [.mediumLost]
    }
    _ = rig.hand.stop()
    rig.iommu.failures = []
    // Another process, which knows only the rings.
    let image = try ImageFile(ImageOptions(path: rig.path, direct: .off, isLocked: false))
    var options = BlockDeviceOptions()
    options.engine = .sync
    let device = try BlockDevice(image: image, options: options)
    rig.iommu.withdraw(rig.hand, first: 0, last: Self.everything)
    let next = try HandQueue(taking: rig.hand, on: device)
    rig.iommu.mapRing(next)
    next.use(rig.iommu.translatedMemory())
    try next.start(record: record)
    try rig.iommu.nextMiss(next)
    if stops {
      let position = try #require(next.stop())
      next.use(rig.iommu.translatedMemory())
      try next.start(at: position, record: record)
    } else {
      let miss = rig.iommu.misses[rig.iommu.misses.count - 1]
      rig.iommu.map(miss.address, miss.access)
      device.translate(queue: 0, by: rig.iommu.translations(), refused: nil)
    }
    #expect(try rig.iommu.outcomes(next, 5).map(\.status) == [.ok, .ok, .ok, .ok, .ok])
    for number in 0..<5 {
      let found = try rig.scratch.contents(rig.path, at: number * 512, count: 512)
      #expect(firstDifference(found, pattern(512, seed: number)) == nil)
    }
    #expect(next.stop() != nil)
  }

  /// A dirty log uses guest addresses, whatever addresses the driver uses.
  @Test(arguments: formats) func pagesAreLoggedByGuestAddresses(features: FeatureSet) throws {
    let rig = try Rig(features, starts: false)
    let first = Int(Iommu.distance / 4096)
    let count = (first + (16 << 20) / 4096) / 8
    let log = try LogFile(bytes: count)
    // The address that a front-end gives for the used ring is one of the driver's, too.
    rig.hand.log(
      QueueLog(log: log.log, coversBuffers: true, usedRing: rig.hand.ring.layout.usedRing.rawValue))
    try rig.start()
    let read = try rig.iommu.perform(rig.hand, .read(sector: 0, bytes: 8192))
    #expect(read.status == .ok)
    #expect(rig.hand.stop() != nil)
    let written = Set(rig.iommu.misses.filter { $0.access.contains(.write) }.map { Int($0.address / 4096) })
    let layout = rig.hand.ring.layout
    let ring = Int((features.contains(.packedRing) ? layout.descriptorTable : layout.usedRing).rawValue / 4096)
    let marks = log.marks
    #expect(written.union([ring]).allSatisfy { marks.contains($0 + first) }, "\(marks) instead of \(written), \(ring)")
    #expect(marks.allSatisfy { $0 >= first })
  }
}

/// A log in its own file.
private final class LogFile {
  let log: DirtyLog
  private let mapping: Mapping
  private let count: Int

  init(bytes: Int) throws {
    let number = unsafe memfd_create("log", UInt32(MFD_CLOEXEC))
    try #require(number >= 0 && ftruncate(number, off_t(bytes)) == 0)
    mapping = try Mapping(descriptor: number, count: bytes)
    log = try DirtyLog(descriptor: OwnedDescriptor(number), offset: 0, size: UInt64(bytes))
    count = bytes
  }

  /// Pages that have a mark.
  var marks: Set<Int> {
    var pages: Set<Int> = []
    for index in 0..<count {
      let byte = unsafe mapping.base.load(fromByteOffset: index, as: UInt8.self)
      for bit in 0..<8 where byte >> bit & 1 == 1 { pages.insert(index * 8 + bit) }
    }
    return pages
  }
}
