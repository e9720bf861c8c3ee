/// Each check of a driver is able to fail: a driver without a fault passes all of them, and one with one fault does not.
import GuestDriver
import Testing
import VirtioCore

@testable import DriverCheck
@testable import GuestDriver

@Suite struct MutantTests {
  // MARK: Rings

  @Test("a ring fault is found, and is the only violation", arguments: RingMutant.all)
  func ring(_ mutant: RingMutant) throws {
    let rig = try RingRig(mutant.format, more: mutant.more, less: mutant.less)
    try mutant.drive(rig)
    #expect(rig.findings.account(mutant.rule).broken > 0, "\(rig.broken)")
    let violation = try #require(rig.findings.account(mutant.rule).violations.first)
    #expect(!violation.place.isEmpty && !violation.words.isEmpty && violation.queue == 0)
  }

  struct Sound: Sendable, CustomTestStringConvertible {
    var format: RingFormat
    var more: FeatureSet
    var testDescription: String { "\(format) \(more)" }
    static let all: [Sound] = RingFormat.allCases.flatMap { format in
      ([[], .eventIndex, .inOrder, [.eventIndex, .inOrder]] as [FeatureSet]).map { Sound(format: format, more: $0) }
    }
  }

  @Test("a driver without a fault breaks nothing, over many rounds of a ring", arguments: Sound.all)
  func sound(_ sound: Sound) throws {
    let rig = try RingRig(sound.format, more: sound.more)
    let requests: [(RingRig) throws -> [RawDescriptor]] = [
      { try $0.good() },
      { try $0.request(1, sector: 2047, out: [UInt8](repeating: 7, count: 512)) },
      { try $0.request(4) },
      { try $0.request(8, into: 20) },
      { try $0.request(11, out: $0.range() + $0.range(16)) },
      { try $0.request(13, out: $0.range(2040, 8, flags: 1)) },
      { try $0.request(14, out: $0.range()) },
      { [try $0.indirect($0.good())] },
    ]
    for round in 0..<40 {
      // Two at a time, and sometimes the device asks for kicks.
      for step in 0..<2 { rig.offer(try requests[(2 * round + step) % requests.count](rig)) }
      try rig.serve()
      if round % 3 == 0 { try rig.sleep() }
    }
    #expect(rig.broken.isEmpty, "\(rig.broken)")
    #expect(rig.findings.account("d.cleanup.1").kept == 80)
    #expect(rig.findings.account("d.blk.op.2").kept > 50)
  }

  @Test("a chain may use the slots of one that was answered out of order, while the one before it is still held")
  func nextLap() throws {
    let rig = try RingRig(.packed, size: 4)
    // Two chains fill the ring. The second is answered first, so the third uses the first one's slots.
    for _ in 0..<2 { rig.offer(try rig.request(4)) }
    let third = try rig.request(4)
    try rig.overtake { rig.offer(third) }
    #expect(rig.broken.isEmpty, "\(rig.broken)")
    #expect(rig.findings.account("d.cleanup.1").kept == 3)
  }

  // MARK: Kicks

  static let kickRules: [(missing: String, superfluous: String?, features: FeatureSet)] = [
    ("d.split.availnotif.4", "d.split.availnotif.3", .version1),
    ("d.split.availnotif.6", "d.split.availnotif.7", [.version1, .eventIndex]),
    ("i.driver.kick", nil, [.version1, .packedRing]),
  ]

  @Test("a missing kick, and unwanted kicks", arguments: kickRules.indices)
  func kicks(_ row: Int) {
    let (missing, superfluous, features) = Self.kickRules[row]
    let findings = DriverFindings()
    let account = KickAccount(0, features, findings, limit: .seconds(10))
    // In time: no violation.
    account.sleeps()
    account.look(now: 0, hasMore: true)
    account.look(now: 9_000_000_000, hasMore: true)
    account.kicked(1)
    #expect(findings.account(missing).broken == 0 && findings.account(missing).kept == 1)
    // Nothing is available, so no kick is due.
    account.sleeps()
    account.look(now: 10_000_000_000, hasMore: false)
    account.look(now: 30_000_000_000, hasMore: false)
    #expect(findings.account(missing).broken == 0)
    account.look(now: 30_000_000_000, hasMore: true)
    account.look(now: 41_000_000_000, hasMore: true)
    account.look(now: 60_000_000_000, hasMore: true)
    #expect(findings.account(missing).broken == 1)
    guard let superfluous else { return }
    account.wakes()
    account.takes()
    account.kicked(KickAccount.unwantedInOrder)
    #expect(findings.account(superfluous).broken == 0)
    account.kicked(1)
    account.kicked(1)
    #expect(findings.account(superfluous).broken == 1)
  }

  // MARK: A device's start

  @Test("rings that are not aligned", arguments: RingFormat.allCases)
  func alignment(_ format: RingFormat) throws {
    let rig = try RingRig(format)
    let findings = DriverFindings()
    let device = WatchedDevice(IdleDevice(), findings, kickLimit: Patience.limit)
    var configuration = rig.ring.layout.configuration
    func start() {
      device.start(
        Activation(
          queue: 0, memory: rig.guest, features: rig.features, configuration: configuration, kick: .none, call: .none))
    }
    start()
    let rule = format == .split ? "d.split.align.1" : "d.packed.align.1"
    #expect(findings.account(rule).broken == 0 && findings.account(rule).kept == 1)
    configuration.usedRing = GuestAddress(configuration.usedRing.rawValue + 2)
    start()
    #expect(findings.account(rule).broken == 1)
  }

  @Test("notification data that points outside the ring; what became available meanwhile does no harm")
  func notificationData() throws {
    let rig = try RingRig(.packed, more: .notificationData)
    let findings = DriverFindings()
    let device = WatchedDevice(IdleDevice(), findings, kickLimit: Patience.limit)
    device.start(
      Activation(
        queue: 0, memory: rig.guest, features: rig.features, configuration: rig.ring.layout.configuration, kick: .none,
        call: .none))
    rig.offer(try rig.good())
    device.notified(0, UInt32(rig.next.word) << 16)
    device.notified(0, UInt32(RingPosition.start.word) << 16)
    #expect(findings.account("d.packed.desc.3").kept == 2 && findings.account("d.packed.desc.3").broken == 0)
    device.notified(0, 16 << 16)
    #expect(findings.account("d.packed.desc.3").broken == 1)
  }

  @Test("a driver that reads the capacity again is bound by the new value")
  func grown() throws {
    let rig = try RingRig(.split)
    let inner = IdleDevice()
    inner.capacity = 8
    let findings = DriverFindings()
    let device = WatchedDevice(inner, findings, kickLimit: Patience.limit)
    device.start(
      Activation(
        queue: 0, memory: rig.guest, features: rig.features, configuration: rig.ring.layout.configuration, kick: .none,
        call: .none))
    let watch = try #require(inner.watch as? QueueWatch)
    watch.begins(at: .start(rig.features))
    func reads(_ sector: UInt64) throws {
      rig.offer(try rig.request(0, sector: sector, into: 512))
      watch.looks()
      watch.took(watch.chains.keys.max() ?? 0)
    }
    try reads(8)
    #expect(findings.account("d.blk.op.2").broken == 1)
    inner.capacity = 16
    #expect(device.readConfiguration(at: 0, count: 1) == [16])
    try reads(15)
    #expect(findings.account("d.blk.op.2").broken == 1 && findings.account("d.blk.op.2").kept == 1)
  }
}

/// A device that does nothing. Used on one thread.
final class IdleDevice: VirtioDevice, @unchecked Sendable {
  let deviceID: UInt32 = 2
  let features: FeatureSet = .version1
  let queueCount = 1
  let maximumQueueSize: UInt16 = 256
  let configurationSize = 96
  let configurationGeneration: UInt32 = 0
  let leftQueues: Set<Int> = []
  let eventDescriptor: Int32 = -1
  /// Sectors.
  var capacity: UInt8 = 0
  /// The watch of the queue that was started last.
  private(set) var watch: (any RingWatch)?
  func accepts(_ features: FeatureSet) -> Bool { true }
  func negotiated(_ features: FeatureSet) {}
  func readConfiguration(at offset: Int, count: Int) -> [UInt8] {
    (offset..<offset + count).map { $0 == 0 ? capacity : 0 }
  }
  func writeConfiguration(at offset: Int, _ bytes: [UInt8]) -> Bool { true }
  func prepare(_ queues: [Int], memory: GuestMemory, kind: QueueKind) {}
  func unprepare() {}
  func start(_ activation: Activation) { watch = activation.watch }
  func release(queue: Int) {}
  func stop(queue: Int) {}
  func leave(queue: Int) {}
  func replaceCall(queue: Int, _ call: CallSink) {}
  func replaceFailure(queue: Int, _ failure: CallSink) {}
  func reset() {}
  func takeEvents() -> [DeviceEvent] { [] }
}
