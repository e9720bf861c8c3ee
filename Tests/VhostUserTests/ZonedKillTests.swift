/// Zones of a server that is killed and restarted: answered data is there exactly once, and nothing else is.
import Foundation
import Synchronization
import TestSupport
import Testing
import VirtioCore

@testable import GuestDriver
@testable import VhostUser

/// A guest that appends and writes to zones through all queues, and remembers the answers.
private final class ZonedGuest {
  static let zoneSectors: UInt64 = 2048
  static let zones = 6
  let client: BlockClient
  private var random: SeededRandom
  /// Content of each zone, by sector of the disk: the number of the request that wrote it.
  private var written: [Int: [UInt64: (number: Int, bytes: Int)]] = [:]
  /// Requests in flight per zone; a reset is sent only to an idle zone.
  private var busy: [Int: Int] = [:]
  /// Zones that are written at the write pointer, one request at a time, and that pointer.
  private var pointers: [Int: UInt64] = [:]
  private var meant: [Int: (zone: Int, bytes: Int, type: BlockRequestType)] = [:]
  private(set) var answered = 0
  /// Bytes submitted to each zone since it was empty.
  private var given: [Int: UInt64] = [:]

  init(_ client: BlockClient, seed: UInt64) {
    self.client = client
    random = SeededRandom(seed: seed)
  }

  static func bytes(_ number: Int, _ count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    for place in 0..<count {
      let sum: Int = number &* 31 &+ (place / 512) &* 7 &+ place
      bytes[place] = UInt8(truncatingIfNeeded: sum)
    }
    return bytes
  }

  func run(_ goesOn: @escaping (_ answered: Int) -> Bool) throws {
    var isOn = true
    try client.run { [self] _, number throws(DriverError) in
      guard isOn else { return nil }
      return next(number)
    } completed: { [self] _, number, outcome throws(DriverError) in
      try note(number, outcome)
      answered += 1
      if isOn { isOn = goesOn(answered) }
    }
  }

  private func next(_ number: Int) -> Submission? {
    // All queues append to even zones at once; odd zones are written.
    let zone = Int(random.next() % UInt64(Self.zones))
    let start = UInt64(zone) * Self.zoneSectors
    let count = 512 * (1 + Int(random.next() % 8))
    let isFull = given[zone, default: 0] + UInt64(count) > Self.zoneSectors * 512
    if isFull || random.next() % 60 == 0 {
      guard busy[zone, default: 0] == 0 else { return Submission(.flush) }
      busy[zone] = 1_000_000
      meant[number] = (zone, 0, .zoneReset)
      return Submission(.zone(.zoneReset, start))
    }
    guard busy[zone, default: 0] < 1_000_000 else { return Submission(.flush) }
    if zone % 2 == 0 {
      busy[zone, default: 0] += 1
      given[zone, default: 0] += UInt64(count)
      meant[number] = (zone, count, .zoneAppend)
      return Submission(.append(zone: start, Self.bytes(number, count)))
    }
    guard busy[zone, default: 0] == 0 else { return Submission(.flush) }
    busy[zone] = 1
    given[zone, default: 0] += UInt64(count)
    meant[number] = (zone, count, .write)
    return Submission(.write(sector: pointers[zone] ?? start, Self.bytes(number, count)))
  }

  private func note(_ number: Int, _ outcome: BlockOutcome) throws(DriverError) {
    guard let (zone, bytes, type) = meant.removeValue(forKey: number) else { return }
    let start = UInt64(zone) * Self.zoneSectors
    switch type {
    case .zoneReset:
      busy[zone] = 0
      given[zone] = 0
      pointers[zone] = start
      written[zone] = [:]
    case .zoneAppend:
      busy[zone, default: 0] -= 1
      let place = BlockClient.appendedSector(outcome)
      guard written[zone, default: [:]][place] == nil else { throw .requestFailed("two appends were told sector \(place)") }
      written[zone, default: [:]][place] = (number, bytes)
    default:
      busy[zone] = 0
      let place = pointers[zone] ?? start
      written[zone, default: [:]][place] = (number, bytes)
      pointers[zone] = place + UInt64(bytes / 512)
    }
  }

  /// Every zone contains the answered requests, from its beginning to its write pointer without a gap: nothing lost, nothing
  /// twice.
  func check() throws {
    for zone in 0..<Self.zones {
      let start = UInt64(zone) * Self.zoneSectors
      let reported = try client.zone(zone)
      var next = start
      for (place, (number, bytes)) in written[zone, default: [:]].sorted(by: { $0.key < $1.key }) {
        #expect(place == next, "zone \(zone): \(place) follows \(next)")
        let found = try client.read(at: place * 512, count: bytes)
        #expect(found == Self.bytes(number, bytes), "zone \(zone), sector \(place)")
        next = place + UInt64(bytes / 512)
      }
      if reported.state != .full { #expect(reported.pointer == next, "zone \(zone): the pointer") }
      #expect(next - start <= Self.zoneSectors)
    }
  }
}

extension KillTests {
  private static let zonedWays: [Killing] = [
    Killing(engine: "sync", queues: 2), Killing(engine: "threads", queues: 4), Killing(engine: "uring", queues: 4, kills: 4),
    Killing(engine: "mapped", queues: 2, features: Killing.packed), Killing(engine: "threads", queues: 2, keepsRecords: false),
    Killing(engine: "sync", queues: 1, features: Killing.plain, base: .available),
  ]

  private static func zonedClient(_ server: MortalServer, _ killing: Killing) throws -> (BlockClient, VhostUserTransport) {
    let reconnection = Reconnection(base: killing.base, keepsRecords: killing.keepsRecords)
    var transport: VhostUserTransport?
    try wait(until: "the server listens; it said: \(server.words)") {
      transport = try? VhostUserTransport(
        path: server.socket, memory: DriverMemory(size: 16 << 20), reconnection: reconnection)
      return transport != nil
    }
    guard let transport else { throw WaitedInVain(description: "no server") }
    let client = try BlockClient(
      transport, options: DriverOptions(features: killing.features, queues: killing.queues, queueSize: 64))
    client.depth = 8
    return (client, transport)
  }

  private static func zonedServer(
    _ directory: String, _ killing: Killing, environment: @escaping @Sendable (Int) -> [String] = { _ in [] }
  ) throws -> MortalServer {
    var killing = killing
    killing.options = ["--zoned", "host-managed,zone-size=1M,max-open=4"]
    return try serve(directory, killing, environment: environment)
  }

  /// An answered append or write is where the answer said; no other one is there, and none is there twice.
  @Test(arguments: zonedWays) func zonesAtRandomMoments(killing: Killing) throws {
    try withDirectory { directory in
      let server = try Self.zonedServer(directory, killing)
      defer { _ = server.end() }
      let (client, transport) = try Self.zonedClient(server, killing)
      let guest = ZonedGuest(client, seed: 11)
      var random = SeededRandom(seed: 5)
      var next = 1 + Int(random.next() % 60)
      var kills = 0
      try guest.run { answered in
        guard answered >= next, kills < killing.kills else { return kills < killing.kills || answered < next }
        server.kill()
        kills += 1
        next = answered + 1 + Int(random.next() % 80)
        return true
      }
      try guest.check()
      #expect(transport.reconnections > 0)
      try client.shutDown()
      #expect(server.end() == [], "\(server.words)")
    }
  }

  #if DEBUG
  /// At each place in the ring code where a process can end between two stores.
  @Test(arguments: [
    KillPoint.takeMarked, .answerNamed, .answerWritten, .answerLinked, .answerCounted, .publishShown, .publishFreed,
    .publishOver,
    .callDue,
  ])
  func zonesBetweenTwoStores(place: KillPoint) throws {
    let killing = Killing(engine: place == .publishShown ? "sync" : "threads", queues: 2)
    try withDirectory { directory in
      let plan = KillPlan(place)
      let server = try Self.zonedServer(directory, killing) { _ in plan.environment() }
      defer { _ = server.end() }
      let (client, transport) = try Self.zonedClient(server, killing)
      let guest = ZonedGuest(client, seed: 3)
      var (since, deaths) = (0, 0)
      try guest.run { answered in
        if server.deaths != deaths { (deaths, since) = (server.deaths, answered) }
        if answered - since > 300, !plan.isOver {
          plan.miss()
          server.kill()
          since = answered
        }
        return !plan.isOver
      }
      try guest.check()
      #expect(plan.hasHit, "the place was reached \(plan.hits) times; \(server.words)")
      #expect(transport.reconnections > 0)
      try client.shutDown()
      #expect(server.end() == [], "\(server.words)")
    }
  }
  #endif
}

extension TakeoverTests {
  /// The next server continues with the zones' state, flushed or not, and one with another zone configuration is refused.
  @Test func zonesGoWithTheQueues() throws {
    try withDirectory { directory in
      let zoned = Succession(engine: "sync", options: ["--zoned", "host-managed,zone-size=1M"])
      var before = try Self.serve(directory, zoned)
      let transport = try VhostUserTransport(
        path: directory + "/disk.sock", memory: DriverMemory(size: 16 << 20),
        reconnection: Reconnection(base: .used, keepsRecords: true))
      let client = try BlockClient(transport, options: DriverOptions(features: zoned.features, queues: 1, queueSize: 64))
      #expect(try client.append([UInt8](repeating: 1, count: 1024), toZone: 1) == 2048)
      try client.changeZone(.zoneOpen, 2)
      let other = Succession(engine: "sync", options: ["--zoned", "host-managed,zone-size=2M"])
      let refused = try Self.start(
        directory, other, engine: "sync", more: ["--take-over", directory + "/control"])
      let end = refused.finish()
      #expect(end.status != 0 && end.errors.contains("zone size"), "\(end.errors)")
      for number in 1...3 {
        let after = try Self.start(directory, zoned, engine: "sync", more: ["--take-over", directory + "/control"])
        try #require(after.firstLine().hasPrefix("Serving "))
        #expect(before.finish().status == 0)
        before = after
        let place = try client.append([UInt8](repeating: UInt8(1 + number), count: 1024), toZone: 1)
        #expect(place == 2048 + 2 * UInt64(number))
        #expect(try client.zone(2).state == .explicitlyOpen)
      }
      for number in 0...3 {
        let data = try client.read(at: (2048 + 2 * UInt64(number)) * 512, count: 1024)
        #expect(data == [UInt8](repeating: UInt8(1 + number), count: 1024))
      }
      try client.shutDown()
      before.process.terminate()
      #expect(before.finish().status == 0)
    }
  }
}
