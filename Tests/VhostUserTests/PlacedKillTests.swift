/// A crash between any two stores of the algorithm, including recovery: the back-end ends by SIGKILL at the place that the test
/// names, as often as needed, and the guest must notice nothing.
import Synchronization
import TestSupport
import Testing
import VirtioCore

@testable import GuestDriver
@testable import VhostUser

#if DEBUG
/// Where each process is to end, and whether it did.
final class KillPlan: Sendable {
  private struct State {
    var random: SeededRandom
    /// The current process is to end at the place itself, not at a precursor.
    var isAimed = false
    /// It was killed from outside, because it never reached the place.
    var wasMissed = false
    var hits = 0
    var processes = 0
  }

  let place: KillPoint
  /// How often the place has to be reached.
  static let wanted = 3
  /// Number of processes after which the place counts as unreachable.
  private static let most = 40
  private let state: Mutex<State>

  init(_ place: KillPoint) {
    self.place = place
    state = Mutex(State(random: SeededRandom(seed: place.rawValue.utf8.reduce(0) { $0 &* 31 &+ UInt64($1) })))
  }

  /// What has to happen first so that a starting process reaches the place; `nil`: it is reached in ordinary operation.
  private var precursor: KillPoint? {
    switch place {
    case .recoveryFreed, .recoveryFinished: .publishShown
    case .recoveryResumed: .takeMarked
    default: nil
    }
  }

  /// Records are created only once.
  private var isOnce: Bool {
    switch place {
    case .recoveryCleared, .recoverySized, .recoveryCopied, .recoveryBegun: true
    default: false
    }
  }

  /// A driver that keeps up is hardly ever notified.
  private var isRare: Bool { place == .callDue || place == .callDone }

  private var enough: Int { isOnce ? 1 : Self.wanted }
  var hits: Int { state.withLock { $0.hits } }
  var isOver: Bool { state.withLock { $0.hits >= enough || $0.processes > Self.most } }
  var hasHit: Bool { hits >= enough }

  /// For the next process; the previous one has ended.
  func environment() -> [String] {
    state.withLock { state in
      if state.isAimed, !state.wasMissed { state.hits += 1 }
      let wasAimed = state.isAimed
      state.wasMissed = false
      state.isAimed = false
      state.processes += 1
      guard state.hits < enough, state.processes <= Self.most else { return [] }
      if let precursor, wasAimed || state.processes == 1 {
        return ["VMM_BLK_KILL_AT=\(precursor.rawValue):\(5 + state.random.next() % 40)"]
      }
      state.isAimed = true
      let count = precursor != nil || isOnce || isRare ? 1 + state.random.next() % 2 : 1 + state.random.next() % 40
      return ["VMM_BLK_KILL_AT=\(place.rawValue):\(count)"]
    }
  }

  /// The process has worked for a long time without reaching the place.
  func miss() { state.withLock { $0.wasMissed = true } }
}

extension KillTests {
  private static let ways = [
    Killing(engine: "threads", queues: 2), Killing(engine: "uring", queues: 2, features: Killing.plain, base: .available),
    Killing(engine: "sync", base: .available), Killing(engine: "mapped", queues: 2),
  ]

  @Test(arguments: KillPoint.allCases.filter { $0 != .answerPushed }) func betweenAnyTwoStores(place: KillPoint) throws {
    let index = KillPoint.allCases.firstIndex(of: place) ?? 0
    try Self.kill(at: place, Self.ways[index % Self.ways.count])
  }

  /// Most places in packed rings are the same as in split ones, between other stores.
  @Test(arguments: [
    KillPoint.takeOrdered, .takeMarked, .answerNamed, .answerLinked, .answerCounted, .publishShown, .publishFreed, .publishOver,
    .recoveryFinished, .recoveryResumed,
  ])
  func betweenStoresOfAPackedRing(place: KillPoint) throws {
    let index = KillPoint.allCases.firstIndex(of: place) ?? 0
    try Self.kill(at: place, Killing.packedWays[index % Killing.packedWays.count])
  }

  /// Without records, an answer that the driver cannot see must not lie over descriptors.
  @Test(arguments: Killing.all.filter { !$0.keepsRecords && $0.features.contains(.packedRing) }, [false, true])
  func afterAnyAnswerOfAPackedRing(killing: Killing, inOrder: Bool) throws {
    var killing = killing
    if inOrder { killing.features.formUnion(.inOrder) }
    try Self.kill(at: .answerPushed, killing)
  }

  private static func kill(at place: KillPoint, _ killing: Killing) throws {
    let index = KillPoint.allCases.firstIndex(of: place) ?? 0
    try withDirectory { directory in
      let plan = KillPlan(place)
      let server = try Self.serve(directory, killing) { _ in plan.environment() }
      defer { _ = server.end() }
      var since = 0
      var deaths = 0
      let report = try Self.verify(server, killing, seed: UInt64(index)) { answered in
        if server.deaths != deaths { (deaths, since) = (server.deaths, answered) }
        if answered - since > 300, !plan.isOver {
          plan.miss()
          server.kill()
          since = answered
        }
        return !plan.isOver
      }
      #expect(plan.hasHit, "the place was reached \(plan.hits) times; \(server.words)")
      #expect(report.reconnections > 0)
      #expect(server.end() == [], "\(server.words)")
    }
  }
}
#endif
