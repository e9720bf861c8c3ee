/// Killed and restarted: at whatever moment a back-end is killed, no acknowledged write is lost, no request is answered twice,
/// and none stays unanswered. The guest is the synthetic one, which keeps a model of what was acknowledged and reads everything
/// back at the end.
import Foundation
import Synchronization
import TestSupport
import Testing
import VirtioCore

@testable import GuestDriver
@testable import VhostUser

/// One way of being killed.
struct Killing: Sendable, CustomTestStringConvertible {
  var engine: String
  var queues = 1
  var features = BlockFeature.understood
  var base = Reconnection.Base.used
  var keepsRecords = true
  /// Kills from outside. Every second one is followed by one during the recovery from it: a third of all.
  var kills = 2
  var options: [String] = []

  var testDescription: String {
    var words = ["\(engine), \(queues) queue\(queues == 1 ? "" : "s")"]
    if features.contains(.packedRing) { words.append("packed rings") }
    if !features.contains(.indirectDescriptors) { words.append("no indirect descriptors") }
    if !features.contains(.eventIndex) { words.append("no event index") }
    if base == .available { words.append("base behind the available index") }
    if !keepsRecords { words.append("no records, published in order") }
    return words.joined(separator: ", ")
  }

  static let plain = BlockFeature.understood.subtracting([.indirectDescriptors, .eventIndex])
  static let packed = BlockFeature.understood.union(.packedRing)

  /// In a packed ring, only records tell what was taken.
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
    // Without records, used has to equal done.
    Killing(engine: "uring", queues: 4, keepsRecords: false),
    Killing(engine: "threads", queues: 4, features: plain, keepsRecords: false),
    Killing(engine: "mapped", keepsRecords: false),
    Killing(engine: "uring", queues: 4, features: packed, keepsRecords: false),
    Killing(engine: "threads", features: plain.union(.packedRing), keepsRecords: false),
  ]
}

/// Which processes are to end during their recovery, and how many did: none, unless the build has the places for it (debug
/// builds).
final class RecoveryKills: Sendable {
  private enum Role {
    /// Lives until it is killed from outside.
    case ordinary
    /// Ends with requests in flight, so that there is something to recover.
    case precursor
    /// Ends in its recovery.
    case victim
  }

  private struct State {
    var random = SeededRandom(seed: 11)
    /// Processes that are still to end during their recovery.
    var due = 0
    /// The role of the current process.
    var role = Role.ordinary
    /// It was killed from outside, after its recovery was over.
    var wasMissed = false
    var misses = 0
    var hits = 0
  }

  private let state = Mutex(State())
  private let keepsRecords: Bool

  init(_ killing: Killing) { keepsRecords = killing.keepsRecords }

  /// For the next process; the previous one has ended.
  func environment() -> [String] {
    state.withLock { state in
      if state.role == .victim, !state.wasMissed {
        state.hits += 1
        state.due -= 1
      }
      // An engine that was killed between two turns leaves nothing to recover.
      let needsPrecursor = keepsRecords && state.role == .victim && state.wasMissed
      state.role = state.due == 0 ? .ordinary : needsPrecursor ? .precursor : .victim
      state.wasMissed = false
      switch state.role {
      case .ordinary: return []
      case .precursor: return ["VMM_BLK_KILL_AT=takeMarked:\(5 + state.random.next() % 40)"]
      case .victim:
        // Without records only answers are places. The first place is reached whenever anything has to be recovered.
        let most: UInt64 = state.misses > 0 ? 1 : keepsRecords ? 16 : 4
        return ["VMM_BLK_KILL_AT=recovery:\(1 + state.random.next() % most)"]
      }
    }
  }

  /// The process after the one that is about to be killed is to end in its recovery.
  func order() {
    #if DEBUG
    state.withLock { $0.due += 1 }
    #endif
  }

  /// It did not end in its recovery, and is about to be killed.
  func miss() {
    state.withLock { state in
      state.wasMissed = true
      state.misses += 1
      // If so many found nothing to recover, they cannot, and the test reports it.
      if state.misses > 20 { state.due = 0 }
    }
  }

  var isDue: Bool { state.withLock { $0.due > 0 } }
  var hits: Int { state.withLock { $0.hits } }
}

/// Kills and crashes, one after the other, because each keeps two CPUs busy.
@Suite(.serialized) struct KillTests {
  /// The moment depends on the guest's progress, not on a clock. After every second kill the next process ends as well, while
  /// it recovers.
  @Test(arguments: Killing.all + Killing.packedWays) func atRandomMoments(killing: Killing) throws {
    try withDirectory { directory in
      let recovery = RecoveryKills(killing)
      let server = try Self.serve(directory, killing) { _ in recovery.environment() }
      defer { _ = server.end() }
      var random = SeededRandom(seed: 42)
      var next = 1 + Int(random.next() % 60)
      var kills = 0
      var (deaths, since) = (0, 0)
      let report = try Self.verify(server, killing, seed: 7) { answered in
        if server.deaths != deaths { (deaths, since) = (server.deaths, answered) }
        if recovery.isDue {
          // A process that gets this far has recovered, with less to do than expected.
          guard answered - since > 200 else { return true }
          since = answered
          recovery.miss()
          server.kill()
        } else if kills < killing.kills, answered >= next {
          kills += 1
          if kills % 2 == 0 { recovery.order() }
          server.kill()
          next = answered + 1 + Int(random.next() % 60)
        }
        return kills < killing.kills || recovery.isDue
      }
      #expect(report.reconnections > 0)
      #if DEBUG
      #expect(recovery.hits == killing.kills / 2, "\(server.words)")
      #endif
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

  /// Runs the guest as long as `goesOn`, which is called at every answer, returns true; then everything is read back.
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
    let progress: VerifyProgress
    do { progress = try verifier.run() } catch {
      // What the server said is gone with its folder.
      Issue.record("\(error); the server said: \(server.words)")
      throw error
    }
    try client.shutDown()
    return (progress, transport.reconnections)
  }
}
