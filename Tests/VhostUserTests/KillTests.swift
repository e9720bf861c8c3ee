/// Killed and back: whatever moment a back-end is killed at, no acknowledged write is lost, no request is answered twice, and
/// none is never answered. The guest is the synthetic one, which keeps a model of what was acknowledged and reads everything
/// back at the end.
import Foundation
import Synchronization
import TestSupport
import Testing
import VirtioCore

@testable import GuestDriver
@testable import VhostUser

/// One way to be killed.
struct Killing: Sendable, CustomTestStringConvertible {
  var engine: String
  var queues = 1
  var features = BlockFeature.understood
  var base = Reconnection.Base.used
  var keepsRecords = true
  var kills = 3
  var options: [String] = []

  var testDescription: String {
    var words = ["\(engine), \(queues) queue\(queues == 1 ? "" : "s")"]
    if features.contains(.packedRing) { words.append("packed rings") }
    if !features.contains(.indirectDescriptors) { words.append("no indirect descriptors") }
    if !features.contains(.eventIndex) { words.append("no event index") }
    if base == .available { words.append("base behind what is available") }
    if !keepsRecords { words.append("no records, published in order") }
    return words.joined(separator: ", ")
  }

  static let plain = BlockFeature.understood.subtracting([.indirectDescriptors, .eventIndex])
  static let packed = BlockFeature.understood.union(.packedRing)

  /// Of a packed ring only records say what was taken.
  static let packedWays: [Killing] = [
    Killing(engine: "uring", queues: 4, features: BlockFeature.understood.union(.packedRing)),
    Killing(engine: "sync", queues: 2, features: plain.union(.packedRing)),
    Killing(
      engine: "threads", features: BlockFeature.understood.subtracting(.indirectDescriptors).union(.packedRing), kills: 4),
  ]

  static let all: [Killing] = [
    Killing(engine: "uring", queues: 4, kills: 4),
    Killing(engine: "uring", features: BlockFeature.understood.subtracting(.eventIndex), base: .available),
    Killing(engine: "sync", queues: 4, features: BlockFeature.understood.subtracting(.indirectDescriptors), base: .available),
    Killing(engine: "sync", features: plain),
    Killing(engine: "threads", queues: 4, base: .available),
    Killing(engine: "threads", features: plain),
    Killing(engine: "mapped", queues: 4, features: plain),
    Killing(engine: "mapped", base: .available),
    Killing(engine: "cached", queues: 4, features: BlockFeature.understood.subtracting(.eventIndex)),
    Killing(engine: "aio", queues: 4, base: .available),
    Killing(engine: "uring", queues: 4, features: packed, kills: 4),
    Killing(engine: "threads", features: packed.subtracting(.indirectDescriptors), base: .available),
    Killing(engine: "mapped", queues: 4, features: plain.union(.packedRing)),
    // Without records, what is used has to be what is done.
    Killing(engine: "uring", queues: 4, keepsRecords: false),
    Killing(engine: "threads", queues: 4, features: plain, keepsRecords: false),
    Killing(engine: "mapped", keepsRecords: false),
    Killing(engine: "uring", queues: 4, features: packed, keepsRecords: false),
    Killing(engine: "threads", features: plain.union(.packedRing), keepsRecords: false),
  ]
}

/// Killings and crashes, one after the other: each keeps two CPUs busy.
@Suite(.serialized) struct KillTests {
  /// The moment follows from how far the guest is, not from a clock. Every third victim is killed again before it has answered
  /// anything, which is while it recovers or before.
  @Test(arguments: Killing.all + Killing.packedWays) func atRandomMoments(killing: Killing) throws {
    try withDirectory { directory in
      let server = try Self.serve(directory, killing)
      defer { _ = server.end() }
      var random = SeededRandom(seed: 42)
      var next = 1 + Int(random.next() % 60)
      var kills = 0
      let report = try Self.verify(server, killing, seed: 7) { answered in
        guard answered >= next, kills < killing.kills else { return kills < killing.kills }
        server.kill()
        kills += 1
        next = answered + 1 + Int(random.next() % 60)
        guard kills % 3 == 0 else { return true }
        // Its successor is there, or nearly: any moment of its start will do.
        let deaths = server.deaths
        guard eventually({ server.deaths > deaths || server.deaths >= kills }) else { return true }
        usleep(UInt32(random.next() % 60_000))
        server.kill()
        return true
      }
      #expect(report.reconnections > 0)
      #expect(server.end() == [], "\(server.words)")
    }
  }

  // MARK: the rig

  static func serve(
    _ directory: String, _ killing: Killing, environment: @escaping @Sendable (Int) -> [String] = { _ in [] }
  ) throws -> MortalServer {
    let image = directory + "/disk"
    try Data(count: 8 << 20).write(to: URL(fileURLWithPath: image))
    return MortalServer(
      directory, options: ["--engine", killing.engine, "--num-queues", "4"] + killing.options, environment: environment)
  }

  /// Runs the guest for as long as `goesOn`, which is asked at every answer, says so; everything is read back then.
  static func verify(
    _ server: MortalServer, _ killing: Killing, seed: UInt64, goesOn: @escaping (_ answered: Int) -> Bool
  ) throws -> (progress: VerifyProgress, reconnections: Int) {
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
    client.depth = 12
    var weights = VerifyOptions.Weights()
    (weights.flush, weights.discard, weights.writeZeroes) = (6, 8, 12)
    let options = VerifyOptions(
      seed: seed, range: 0..<4 << 20, limit: .bytes(.max), largest: 32 << 10, weights: weights, cuts: .all)
    var verifier = try Verifier(client, options)
    var isOn = true
    verifier.whenAnswered = { answered in if isOn { isOn = goesOn(answered) } }
    verifier.goesOn = { isOn }
    let progress = try verifier.run()
    try client.shutDown()
    return (progress, transport.reconnections)
  }
}
