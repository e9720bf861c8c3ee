/// Zoned disks through their queues (virtio 5.2.6).
import Foundation
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct ZonedDiskTests {
  static let zone = 256 << 10
  static let sectors = UInt64(zone / 512)

  static func options(
    _ engine: EngineKind = .sync, size: Int = 4 << 20, queues: Int = 1, _ change: (inout ZonedOptions) -> Void = { _ in }
  ) -> RigOptions {
    var options = RigOptions(engine: engine, size: size)
    options.device.queueCount = queues
    var zoned = ZonedOptions()
    zoned.zoneSize = UInt64(zone)
    change(&zoned)
    options.zoned = zoned
    return options
  }

  static func start(_ zone: Int) -> UInt64 { UInt64(zone) * sectors }

  static func place(_ outcome: BlockOutcome) -> UInt64 { BlockClient.appendedSector(outcome) }

  static func states(_ rig: Rig) throws -> [ReportedZone.State] { try rig.client.zones().map(\.state) }

  @Test(arguments: [EngineKind.sync, .threads, .mapped, .cached, .uring, .aio])
  func dataGoesWhereThePointerIs(engine: EngineKind) throws {
    let rig = try Rig(Self.options(engine))
    let data = pattern(16 << 10)
    let at = Self.start(1)
    try rig.expect(.write(sector: at, data))
    try rig.expect(.write(sector: at, data), .zoneUnaligned)
    try rig.expect(.write(sector: at + 64, data), .zoneUnaligned)
    #expect(Self.place(try rig.expect(.append(zone: at, data))) == at + 32)
    #expect(Self.place(try rig.expect(.append(zone: at, Array(data.prefix(512))))) == at + 64)
    let read = try rig.expect(.read(sector: at, bytes: 40 << 10)).answer
    #expect(firstDifference(read, data + data + Array(data.prefix(512)) + zeroes(7 << 10 | 512)) == nil)
    let zone = try rig.client.zone(1)
    #expect(zone == ReportedZone(capacity: Self.sectors, start: at, pointer: at + 65, type: 2, state: .implicitlyOpen))
    try rig.expect(.flush)
    try rig.expect(.zone(.zoneFinish, at))
    try rig.expect(.append(zone: at, data), .zoneInvalid)
    try rig.expect(.zone(.zoneReset, at))
    #expect(try rig.client.zone(1).state == .empty)
    #expect(rig.device.counters.mediumFailures == 0)
  }

  /// Whatever the image holds, sectors that were not written since the zone was empty read as zeroes.
  @Test func whatWasThereBeforeIsNeverRead() throws {
    let scratch = try Scratch()
    let path = try scratch.image(size: 4 << 20)
    try Data(repeating: 0xee, count: 4 << 20).write(to: URL(fileURLWithPath: path))
    let rig = try Rig(Self.options { $0.conventional = 1 }, image: path)
    // A conventional zone shows the image's content.
    #expect(try rig.expect(.read(sector: 0, bytes: 512)).answer == [UInt8](repeating: 0xee, count: 512))
    #expect(try rig.expect(.read(sector: Self.start(2), bytes: 8192)).answer == zeroes(8192))
    try rig.expect(.write(sector: Self.start(2), [UInt8](repeating: 1, count: 1024)))
    // In pieces that end inside each part.
    var framing = Framing.classic(.read(sector: 0, bytes: 4096))
    framing.writableCuts = [300, 900, 1100, 2000]
    let read = try rig.expect(.read(sector: Self.start(2), bytes: 4096), framing: framing).answer
    #expect(read == [UInt8](repeating: 1, count: 1024) + zeroes(3072))
    try rig.expect(.zone(.zoneReset, Self.start(2)))
    try rig.expect(.write(sector: Self.start(2), [UInt8](repeating: 2, count: 512)))
    #expect(
      try rig.expect(.read(sector: Self.start(2), bytes: 1024)).answer == [UInt8](repeating: 2, count: 512) + zeroes(512))
    // A read must not cross a zone boundary.
    try rig.expect(.read(sector: Self.start(3) - 1, bytes: 1024), .zoneInvalid)
    try rig.expect(.read(sector: Self.start(1) - 1, bytes: 1024), .zoneInvalid)
  }

  @Test func offersAndConfiguration() throws {
    let rig = try Rig(
      Self.options {
        ($0.maximumOpen, $0.maximumActive, $0.maximumAppend, $0.granularity) = (3, 5, 64 << 10, 4096)
      })
    let zoned = try rig.client.zoning()
    #expect([zoned.zoneSectors, zoned.maximumOpen, zoned.maximumActive, zoned.maximumAppend] == [512, 3, 5, 128])
    #expect(zoned.granularity == 4096)
    #expect(zoned.model == 1)
    let offered = rig.client.session.offered
    #expect(offered.contains(BlockFeature.zoned) && !offered.contains(BlockFeature.discard))
    #expect(!offered.contains(BlockFeature.secureErase) && rig.client.config.writeZeroes?.maximumSegments == 1)
    // A driver that does not negotiate zones cannot use a disk with sequential-write zones (virtio 5.2.5.2).
    #expect(!rig.device.accepts(rig.device.features.subtracting(.blockZoned)))
    #expect(rig.device.accepts(rig.device.features))
    let plain = try Rig()
    #expect(!plain.device.features.contains(.blockZoned))
    for type: UInt32 in [15, 16, 18, 20, 22, 24, 26] {
      try plain.expect(BlockRequest(type: BlockRequestType(rawValue: type), answerBytes: 64), .unsupported)
    }
  }

  @Test func reports() throws {
    let rig = try Rig(Self.options(size: 4 << 20) { $0.conventional = 2 })
    #expect(try Self.states(rig) == [.notWritePointer, .notWritePointer] + Array(repeating: .empty, count: 14))
    // From the zone that contains the sector on, as many as there is room for.
    for (room, count) in [(64, 0), (127, 0), (128, 1), (64 + 64 * 3 + 10, 3), (64 + 64 * 20, 13)] {
      let answer = try rig.perform(
        BlockRequest(type: .zoneReport, sector: Self.start(3) + 7, answerBytes: room))
      #expect(answer.status == .ok)
      let zones = try ReportedZone.list(answer.answer)
      #expect(zones.count == count && zones.first.map { $0.start == Self.start(3) } ?? true)
      #expect(answer.length == (room == 64 + 64 * count ? UInt32(room) + 1 : UInt32(64 + 64 * count)))
    }
    try rig.expect(BlockRequest(type: .zoneReport, sector: 1 << 20, answerBytes: 128), .zoneInvalid)
    try rig.expect(BlockRequest(type: .zoneReport, sector: 0, answerBytes: 63), .zoneInvalid)
  }

  @Test func zeroesAreAWrite() throws {
    let rig = try Rig(Self.options { $0.conventional = 1 })
    let at = Self.start(1)
    try rig.expect(.write(sector: at, pattern(4096)))
    try rig.expect(.writeZeroes([BlockRange(sector: at, sectors: 8)]), .zoneUnaligned)
    try rig.expect(.writeZeroes([BlockRange(sector: at + 8, sectors: 8, flags: 1)]))
    try rig.expect(.write(sector: at + 16, pattern(4096, seed: 2)))
    #expect(
      firstDifference(
        try rig.expect(.read(sector: at, bytes: 12288)).answer, pattern(4096) + zeroes(4096) + pattern(4096, seed: 2)) == nil)
    try rig.expect(.writeZeroes([BlockRange(sector: at + 24, sectors: 1), BlockRange(sector: at + 25, sectors: 1)]), .ioError)
    try rig.expect(.writeZeroes([BlockRange(sector: at + 24, sectors: 1, flags: 2)]), .unsupported)
    try rig.expect(.write(sector: 8, pattern(4096)))
    try rig.expect(.writeZeroes([BlockRange(sector: 8, sectors: 4)]))
    #expect(try rig.expect(.read(sector: 8, bytes: 2048)).answer == zeroes(2048))
    try rig.expect(.discard([BlockRange(sector: 0, sectors: 8)]), .unsupported)
  }

  @Test func brokenAppends() throws {
    let rig = try Rig(Self.options { $0.maximumAppend = 8192 })
    let at = Self.start(1)
    func append(_ bytes: Int, sector: UInt64? = nil, room: Int = 8) -> BlockRequest {
      BlockRequest(type: .zoneAppend, sector: sector ?? at, payload: pattern(bytes), answerBytes: room)
    }
    try rig.expect(append(8704), .zoneInvalid)
    try rig.expect(append(512, sector: at + 1), .zoneInvalid)
    try rig.expect(append(512, sector: .max), .zoneInvalid)
    try rig.expect(append(100), .zoneUnaligned)
    try rig.expect(append(0), .zoneInvalid)
    try rig.expect(append(512, room: 7), .ioError)
    // The sector is at the front of the buffer and the status at its end, as Linux expects, however the buffer is cut.
    let outcome = try rig.perform(
      append(512, room: 20), framing: Framing(readableCuts: [16], writableCuts: [3, 14, 15, 17, 20]))
    #expect(outcome.status == BlockStatusCode.ok)
    #expect(outcome.length == 8)
    #expect(Self.place(outcome) == at)
    #expect(try rig.client.zone(1).pointer == at + 1)
  }

  /// Appends by four queues at once: each gets its own sectors, the zone is filled from its beginning without gaps, and each
  /// sector has the data of its own append.
  @Test(arguments: [EngineKind.threads, .uring, .sync]) func manyQueuesAppend(engine: EngineKind) throws {
    let rig = try Rig(Self.options(engine, queues: 4) { $0.zoneSize = 1 << 20 })
    rig.client.depth = 8
    var places: [UInt64: Int] = [:]
    let count = 400
    try rig.client.run { _, number throws(DriverError) in
      number < count
        ? Submission(.append(zone: UInt64(1 + number % 2) * 2048, pattern(512 * (1 + number % 3), seed: number))) : nil
    } completed: { _, number, outcome throws(DriverError) in
      places[Self.place(outcome)] = number
    }
    #expect(places.count == count)
    for zone in 1...2 {
      var next = UInt64(zone) * 2048
      while let number = places.removeValue(forKey: next) {
        let bytes = 512 * (1 + number % 3)
        #expect(try rig.client.read(at: next * 512, count: bytes) == pattern(bytes, seed: number))
        next += UInt64(bytes / 512)
      }
      #expect(try rig.client.zone(zone).pointer == next)
    }
    #expect(places.isEmpty)
  }

  // MARK: Order

  /// Writes that complete in reverse order are answered in the zone's order.
  @Test func answersComeInTheOrderOfTheZone() throws {
    let script = try Script(completesLater: true, isBackwards: true)
    var options = Self.options(queues: 1)
    options.script = script
    let rig = try Rig(options)
    rig.client.depth = 9
    script.hold()
    var order: [Int] = []
    var isReleased = false
    try rig.client.run { _, number throws(DriverError) in
      if number == 8, !isReleased {
        isReleased = true
        script.release()
      }
      return number < 8 ? Submission(.append(zone: Self.start(1), pattern(512, seed: number))) : nil
    } completed: { _, number, outcome throws(DriverError) in
      order.append(Int(Self.place(outcome) - Self.start(1)))
    }
    #expect(order == Array(0..<8))
  }

  /// With the write cache off, each write is stable and recorded before it is answered. If the cache is turned on again while
  /// one is in flight, its record must not include the writes after it, which may be lost.
  @Test(arguments: [true, false]) func theWriteCacheIsTurnedOnAgain(whileInFlight: Bool) throws {
    let script = try Script(completesLater: true, isBackwards: true)
    var options = Self.options()
    options.script = script
    let rig = try Rig(options)
    let queue = rig.client.queues[0]
    func cache(_ mode: UInt8) { rig.transport.writeConfiguration(at: 32, [mode]) }
    func submit(_ sector: UInt64, held: Int) throws {
      _ = try queue.submit(.write(sector: Self.start(1) + sector, pattern(512)))
      queue.publish()
      try waitUntil("\(held) are with the medium") { script.held == held }
    }
    cache(0)
    script.hold()
    try submit(0, held: 1)
    if whileInFlight { cache(1) }
    try submit(1, held: 2)
    script.release()
    var answers = 0
    try waitUntil("both are answered") {
      while let outcome = try queue.reap() {
        #expect(outcome.status == .ok)
        answers += 1
      }
      return answers == 2
    }
    #expect(script.records.filter { $0.kind == .write }.map(\.isDurable) == [true, !whileInFlight])
    // Durable writes need no flush before they are recorded.
    #expect(script.records.contains { $0.kind == .flush } == whileInFlight)
  }

  /// A write behind a failed one would leave a gap, so it fails, too; the zone continues where its data ends.
  @Test func aFailureTakesWhatIsBehindItAlong() throws {
    let script = try Script([.whole, .result(-5), .whole, .whole], completesLater: true)
    var options = Self.options()
    options.script = script
    let rig = try Rig(options)
    script.hold()
    var statuses: [BlockStatusCode] = []
    let queue = rig.client.queues[0]
    for number in 0..<4 { _ = try queue.submit(.append(zone: Self.start(1), pattern(1024, seed: number))) }
    queue.publish()
    try waitUntil("all are with the medium") { script.held == 4 }
    script.release()
    try waitUntil("all are answered") {
      while let outcome = try queue.reap() { statuses.append(outcome.status) }
      return statuses.count == 4
    }
    #expect(statuses == [.ok, .ioError, .ioError, .ioError])
    #expect(try rig.client.zone(1).pointer == Self.start(1) + 2)
    #expect(Self.place(try rig.expect(.append(zone: Self.start(1), pattern(512)))) == Self.start(1) + 2)
  }

  /// A reset waits for the writes of its zone, and data from before it is never read again.
  @Test func aResetWaitsForWrites() throws {
    let script = try Script(completesLater: true)
    var options = Self.options()
    options.script = script
    let rig = try Rig(options)
    script.hold()
    let queue = rig.client.queues[0]
    var left: [UInt32: BlockStatusCode] = [:]
    for request in [
      BlockRequest.append(zone: Self.start(1), pattern(1024)), .zone(.zoneReset, Self.start(1)),
      .zone(.zoneFinish, Self.start(2)), .zone(.zoneResetAll, 0),
    ] { _ = try queue.submit(request) }
    queue.publish()
    func reap(_ count: Int) throws {
      try waitUntil("\(count) are answered") {
        while let outcome = try queue.reap() { left[outcome.tag] = outcome.status }
        return left.count == count
      }
    }
    // No writes to zone 2 are in flight.
    try reap(1)
    #expect(left == [2: .ok])
    script.release()
    try reap(4)
    #expect(left.values.allSatisfy { $0 == .ok })
    #expect(try rig.client.zones().allSatisfy { $0.state == .empty })
  }

  @Test func limitsHoldForZonesToo() throws {
    var options = Self.options()
    options.device.limits.writeBytes = RateLimit(perSecond: 64 << 20, burst: 64 << 10)
    let rig = try Rig(options)
    rig.client.depth = 16
    try rig.client.run { _, number throws(DriverError) in
      number < 32 ? Submission(.append(zone: Self.start(number % 4), pattern(32 << 10, seed: number))) : nil
    }
    #expect(rig.device.counters.throttled > 0)
    #expect(try Self.states(rig)[0...3].allSatisfy { $0 == .full })
  }

  @Test func aTraceSeesThem() throws {
    let rig = try Rig(Self.options())
    try rig.expect(.append(zone: Self.start(1), pattern(512)))
    try rig.device.startTrace(records: 1024)
    try rig.expect(.append(zone: Self.start(1), pattern(512)))
    try rig.expect(.read(sector: Self.start(1), bytes: 2048))
    try rig.expect(.zone(.zoneReset, Self.start(1)))
    try rig.expect(.flush)
    rig.device.stopTrace()
    try rig.expect(.append(zone: Self.start(1), pattern(512)))
    #expect(try rig.client.zone(1).pointer == Self.start(1) + 1)
  }

  // MARK: Failures

  @Test func zonesThatFailed() throws {
    let rig = try Rig(
      Self.options {
        $0.readOnlyZones = [2]
        $0.offlineZones = [3]
      })
    #expect(try Self.states(rig)[1...4] == [.empty, .readOnly, .offline, .empty])
    for zone in [2, 3] {
      try rig.expect(.write(sector: Self.start(zone), pattern(512)), .zoneInvalid)
      try rig.expect(.append(zone: Self.start(zone), pattern(512)), .zoneInvalid)
      for type: BlockRequestType in [.zoneOpen, .zoneClose, .zoneFinish, .zoneReset] {
        try rig.expect(.zone(type, Self.start(zone)), .zoneInvalid)
      }
    }
    #expect(try rig.expect(.read(sector: Self.start(2), bytes: 512)).answer == zeroes(512))
    try rig.expect(.read(sector: Self.start(3), bytes: 512), .zoneInvalid)
    try rig.expect(.zone(.zoneResetAll, 0))
    #expect(try Self.states(rig)[1...4] == [.empty, .readOnly, .offline, .empty])
  }

  @Test func wrongCombinationsAreRefused() throws {
    let scratch = try Scratch()
    let path = try scratch.image(size: 4 << 20)
    func failure(isReadOnly: Bool = false, _ change: (inout ZonedOptions) -> Void) -> ZoneFailure? {
      var options = ImageOptions(path: path, isReadOnly: isReadOnly, isLocked: false)
      var zoned = ZonedOptions()
      change(&zoned)
      options.zoned = zoned
      do {
        _ = try ImageFile(options)
        return nil
      } catch ImageError.zones(let failure) { return failure } catch { return nil }
    }
    #expect(failure(isReadOnly: true) { _ in } == .readOnly(path: path))
    let wrong: [(inout ZonedOptions) -> Void] = [
      { $0.zoneSize = 100_000 }, { $0.zoneSize = 32 << 10 }, { $0.zoneCapacity = 1000 }, { $0.zoneCapacity = 8 << 20 },
      { $0.conventional = 64 }, { $0.conventional = -1 },
      {
        $0.maximumOpen = 4
        $0.maximumActive = 2
      },
      { $0.maximumAppend = 100 }, { $0.maximumAppend = 1 << 30 }, { $0.granularity = 300 }, { $0.granularity = 0 },
      { $0.offlineZones = [64] }, { $0.readOnlyZones = [-1] },
    ]
    for change in wrong {
      guard case .badOption(_, let remedy)? = failure(change) else {
        Issue.record("it was accepted")
        continue
      }
      #expect(!remedy.isEmpty)
    }
    var options = BlockDeviceOptions()
    options.onError = .stop
    var image = ImageOptions(path: path, isLocked: false)
    image.zoned = ZonedOptions()
    let file = try ImageFile(image)
    #expect(throws: EngineError.zonesCannotStall) { try BlockDevice(image: file, options: options) }
    #expect(throws: ImageError.self) { try file.setLength(8 << 20) }
    #expect(try file.measure() == 4 << 20)
  }
}
