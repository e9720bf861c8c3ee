/// Whole disks whose driver is behind an IOMMU: the front-end answers translation requests and withdraws all translations again
/// and again, while the driver checks every byte.
import Foundation
import TestSupport
import Testing
import VirtioCore

@testable import GuestDriver
@testable import VhostUser

@Suite(.serialized) struct TranslatedDiskTests {
  struct Way: Sendable, CustomTestStringConvertible {
    var engine: String
    var features = BlockFeature.understood
    var queues = 2
    /// Answers before all translations are withdrawn.
    var answers = 23
    var options: [String] = []
    var testDescription: String {
      ([engine, "\(queues) queues", "after \(answers)"] + options
        + (features.contains(.packedRing) ? ["packed rings"] : [])).joined(separator: ", ")
    }
  }

  private static let packed = BlockFeature.understood.union(.packedRing)
  static let ways = [
    Way(engine: "sync"), Way(engine: "sync", features: packed), Way(engine: "uring", queues: 4),
    Way(engine: "uring", features: packed, queues: 4), Way(engine: "threads", answers: 7),
    Way(engine: "threads", features: packed.subtracting(.indirectDescriptors), answers: 7), Way(engine: "mapped", answers: 3),
    Way(engine: "cached", features: packed, answers: 3), Way(engine: "aio", answers: 0),
    Way(
      engine: "sync", features: BlockFeature.understood.subtracting([.indirectDescriptors, .eventIndex]), queues: 1, answers: 5),
    Way(engine: "uring", options: ["--inject", "any:delay=200us"]), Way(engine: "uring", options: ["--threads", "1"]),
    Way(engine: "sync", options: ["--publish-in-order", "off"]),
  ]

  private static func serve(_ directory: String, _ way: Way, more: [String] = []) throws -> Program {
    let image = directory + "/disk"
    if !FileManager.default.fileExists(atPath: image) { try Data(count: 8 << 20).write(to: URL(fileURLWithPath: image)) }
    let server = try Program(
      [
        "serve", "--blk-file", image, "--engine", way.engine, "--num-queues", "4", "--control", directory + "/control",
        "--features", "default,access_platform",
      ] + way.options + (more.isEmpty ? ["--socket-path", directory + "/disk.sock"] : more))
    try #require(server.firstLine().hasPrefix("Serving "))
    return server
  }

  private static func transport(
    _ directory: String, _ way: Way, reconnection: Reconnection? = nil
  ) throws -> VhostUserTransport {
    var policy = TranslationPolicy()
    policy.answersBetweenInvalidations = way.answers
    return try VhostUserTransport(
      path: directory + "/disk.sock", memory: DriverMemory(size: 16 << 20), reconnection: reconnection, translation: policy)
  }

  private static func client(_ transport: VhostUserTransport, _ way: Way) throws -> BlockClient {
    try BlockClient(
      transport,
      options: DriverOptions(
        features: way.features.union(.accessPlatform), queues: way.queues, queueSize: 64, indirectTables: 8, indirectEntries: 32
      ))
  }

  @Test(arguments: ways) func everyByteIsRight(way: Way) throws {
    try withDirectory { directory in
      let server = try Self.serve(directory, way)
      let transport = try Self.transport(directory, way)
      let client = try Self.client(transport, way)
      #expect(client.session.features.contains(.accessPlatform))
      client.depth = 12
      let options = VerifyOptions(seed: 5, range: 0..<4 << 20, limit: .bytes(12 << 20), largest: 64 << 10, cuts: .all)
      var verifier = try Verifier(client, options)
      do { _ = try verifier.run() } catch {
        server.process.terminate()
        Issue.record("\(error); \(transport.translationCounts); the server: \(server.finish())")
        return
      }
      let counts = transport.translationCounts
      #expect(counts.answers > 20 && (way.answers == 0 || counts.invalidations > 1), "\(counts)")
      try client.shutDown()
      server.process.terminate()
      let end = server.finish()
      #expect(end.status == 0 && !end.errors.contains("IOTLB_MSG"), "\(end.errors)")
    }
  }

  /// Servers take over from each other: translations are handed over, and open requests are repeated.
  @Test(arguments: [BlockFeature.understood, packed]) func takenOver(features: FeatureSet) throws {
    let way = Way(engine: "uring", features: features, answers: 11)
    try withDirectory { directory in
      let first = try Self.serve(directory, way)
      var before = first
      let report = try Load.run {
        let transport = try Self.transport(directory, way, reconnection: Reconnection(base: .used, keepsRecords: true))
        return try Self.client(transport, way)
      } during: { load in
        for _ in 0..<4 {
          try load.wait()
          let after = try Self.serve(directory, way, more: ["--take-over", directory + "/control"])
          let end = before.finish()
          #expect(end.status == 0, "\(end.errors)")
          before = after
        }
        try load.wait()
      }
      #expect(report.reconnections == 0 && report.progress.answered > 0)
      before.process.terminate()
      #expect(before.finish().status == 0)
    }
  }

  /// A server that is killed leaves records, and its successor translates before it recovers them.
  @Test(arguments: [BlockFeature.understood, packed]) func killed(features: FeatureSet) throws {
    let killing = Killing(
      engine: "threads", queues: 2, features: features.union(.accessPlatform),
      options: ["--features", "default,access_platform"])
    try withDirectory { directory in
      let server = try KillTests.serve(directory, killing)
      defer { _ = server.end() }
      var kills = 0
      let report = try KillTests.verify(server, killing, seed: 3) { answered in
        guard answered >= 40 * (kills + 1), kills < 4 else { return kills < 4 }
        server.kill()
        kills += 1
        return true
      }
      #expect(report.reconnections > 0)
      #expect(server.end() == [], "\(server.words)")
    }
  }

  /// A front-end whose ring lacks only translations, and its channel.
  private static func waiting(_ path: String) throws -> (frontend: Frontend, channel: BackendChannel) {
    let frontend = try Frontend(connectingTo: path)
    _ = try frontend.handshake()
    let channel = try frontend.openBackendChannel()
    try frontend.setFeatures([.version1, .accessPlatform])
    let file = TestMemory.file("vhost-translated", size: Int(Rig.memorySize))
    try frontend.setMemory([FrontendRegion(Rig.region(), descriptor: file)])
    try frontend.start(
      FrontendQueue(
        index: 0, size: 64, descriptorTable: 0x1000, availableRing: 0x2000, usedRing: 0x3000, kick: eventCounter(),
        call: eventCounter()))
    return (frontend, channel)
  }

  /// Reads translation requests until this address is requested. - Returns: how many there were.
  private static func read(_ channel: BackendChannel, until address: UInt64) throws -> Int {
    var count = 0
    var isThere = false
    try wait(until: "\(address) is requested") {
      while !isThere, let said = try channel.nextMessage() {
        guard case .translation(let asked) = said else { continue }
        count += 1
        isThere = asked.address == address
      }
      return isThere
    }
    return count
  }

  /// Makes a ring request more translations than its channel can buffer. - Returns: the last address requested.
  private static func flood(_ frontend: Frontend) throws -> UInt64 {
    var last: UInt64 = 0
    for number in 1...3000 {
      last = UInt64(number) << 16
      try frontend.tell(
        .setVringAddress,
        VringAddress(index: 0, descriptorTable: last, usedRing: last + 0x2000, availableRing: last + 0x1000).bytes)
    }
    return last
  }

  /// Requests that do not fit into a front-end's channel are lost, except for the one that is still open.
  @Test func aQuestionIsNotLostInAFullChannel() throws {
    try withDirectory { directory in
      let server = RunningServer(FakeDevice(features: Rig.features.union(.accessPlatform)), path: directory + "/disk.sock")
      defer { server.close() }
      let (frontend, channel) = try Self.waiting(directory + "/disk.sock")
      let last = try Self.flood(frontend)
      #expect(try Self.read(channel, until: last) < 3000)
    }
  }

  /// A ring that waits to start, and has never run, is requested by the next server as well, even if its channel was full.
  @Test(arguments: [false, true]) func aRingThatWaitsIsTakenOver(isFull: Bool) throws {
    let way = Way(engine: "sync")
    try withDirectory { directory in
      let first = try Self.serve(directory, way)
      let (frontend, channel) = try Self.waiting(directory + "/disk.sock")
      var last: UInt64 = 0x1000
      if isFull { last = try Self.flood(frontend) } else { _ = try Self.read(channel, until: last) }
      let after = try Self.serve(directory, way, more: ["--take-over", directory + "/control"])
      let end = first.finish()
      #expect(end.status == 0, "\(end.errors)")
      _ = try Self.read(channel, until: last)
      for offset in [0, 0x1000, 0x2000] as [UInt64] {
        // One part after the other.
        if offset > 0 { _ = try Self.read(channel, until: last + offset) }
        let reply = try frontend.ask(
          .iotlb,
          TranslationMessage(
            address: last + offset, size: 4096, userAddress: Rig.userBase + offset, permission: 3,
            type: TranslationMessage.Kind.update.rawValue
          ).bytes)
        #expect(reply == NumberPayload.encode(0))
      }
      _ = try frontend.stop(queue: 0)
      after.process.terminate()
      let over = after.finish()
      #expect(over.status == 0, "\(over.errors)")
    }
  }

  /// Offered only if asked for, and only with the features it needs.
  @Test(
    arguments: [
      ([], false), (["--features", "default,access_platform"], true), (["--features", "all"], true),
      (["--features", "all", "--no-feature", "access_platform"], false),
      (["--features", "default,access_platform", "--no-feature", "backend_req"], false),
      (["--features", "default,access_platform", "--no-feature", "reply_ack"], false),
    ] as [([String], Bool)])
  func offered(options: [String], isOffered: Bool) throws {
    try withDirectory { directory in
      let image = directory + "/disk"
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: image))
      let server = try Program(["serve", "--blk-file", image, "--socket-path", directory + "/disk.sock"] + options)
      try #require(server.firstLine().hasPrefix("Serving "))
      let offer = try Frontend(connectingTo: directory + "/disk.sock").handshake()
      #expect(offer.features.contains(.accessPlatform) == isOffered)
      server.process.terminate()
      #expect(server.finish().status == 0)
    }
  }

  /// A front-end that never answers holds up only its own queue, and is reported once.
  @Test func whoeverDoesNotAnswerIsTold() throws {
    try withDirectory { directory in
      let device = FakeDevice(features: Rig.features.union(.accessPlatform))
      let server = RunningServer(device, path: directory + "/disk.sock")
      defer { server.close() }
      let frontend = try Frontend(connectingTo: directory + "/disk.sock")
      _ = try frontend.handshake()
      let channel = try frontend.openBackendChannel()
      try frontend.setFeatures([.version1, .accessPlatform])
      let file = TestMemory.file("vhost-translated", size: Int(Rig.memorySize))
      try frontend.setMemory([FrontendRegion(Rig.region(), descriptor: file)])
      try frontend.start(
        FrontendQueue(
          index: 0, size: 64, descriptorTable: 0x1000, availableRing: 0x2000, usedRing: 0x3000, kick: eventCounter(),
          call: eventCounter()))
      var said: BackendChannel.Said?
      try wait(until: "it asks") {
        said = try channel.nextMessage()
        return said != nil
      }
      let miss = TranslationMiss(address: 0x1000, access: .read)
      #expect(said == .translation(TranslationMessage(miss)))
      // Everything else is answered.
      #expect(try frontend.stop(queue: 1) == 0 && frontend.configuration(at: 0, count: 8).count == 8)
      try wait(until: "it is reported") { server.log.contains { $0 == .translationMissing(queue: 0, miss) } }
      #expect(try frontend.stop(queue: 0) == 0)
      #expect(server.log.events.filter { if case .translationMissing = $0 { true } else { false } }.count == 1)
    }
  }
}
