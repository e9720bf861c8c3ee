/// Decides which faults happen. There is one for all workers of a disk, so that a fault that is to happen once happens once.
internal import Synchronization
internal import VirtioCore

/// The faults of one operation.
struct FaultVerdict {
  enum Ruin: Equatable {
    case error(Int32)
    case short(UInt64)
    case never
  }
  /// Set by the first rule that applies.
  var ruin: Ruin?
  /// Nanoseconds; delays add up.
  var delay: UInt64 = 0
  /// How many results are reported in random order; below 2: in their usual order.
  var reorder = 0

  var isNothing: Bool { ruin == nil && delay == 0 && reorder < 2 }
}

final class FaultInjector: Sendable {
  private struct State {
    var random: FaultRandom
    var met = 0
    var hit = 0
  }

  private let rules: [FaultRule]
  private let states: Mutex<[State]>

  init(_ rules: [FaultRule]) {
    self.rules = rules
    states = Mutex(rules.map { State(random: FaultRandom(seed: $0.seed)) })
  }

  func decide(_ operation: IOOperation) -> FaultVerdict {
    states.withLock { states in
      var verdict = FaultVerdict()
      for (index, rule) in rules.enumerated() where rule.concerns(operation) {
        let isRuin =
          switch rule.effect {
          case .error, .short, .never: true
          case .delay, .reorder: false
          }
        // An operation that is already ruined cannot be ruined again, and does not count for this rule.
        guard !isRuin || verdict.ruin == nil else { continue }
        guard states[index].random.chance(rule.rate) else { continue }
        states[index].met += 1
        guard states[index].met > rule.spared, states[index].hit < rule.count ?? .max else { continue }
        states[index].hit += 1
        switch rule.effect {
        case .error(let number): verdict.ruin = .error(number)
        case .never: verdict.ruin = .never
        case .short(let bytes):
          let sectors = operation.length / 512
          let part = bytes ?? (sectors > 1 ? 512 &* (1 + states[index].random.next() % (sectors - 1)) : operation.length)
          if part < operation.length { verdict.ruin = .short(part) }
        case .delay(let times):
          verdict.delay += times.lowerBound + states[index].random.next() % (times.upperBound - times.lowerBound + 1)
        case .reorder(let count): verdict.reorder = max(verdict.reorder, count)
        }
      }
      return verdict
    }
  }
}

extension FaultRule {
  fileprivate func concerns(_ operation: IOOperation) -> Bool {
    switch (effect, operation.kind) {
    // Only a transfer can be short.
    case (.short, .flush), (.short, .punchHole), (.short, .blockDiscard), (.short, .zeroRange), (.short, .allocate):
      return false
    default: break
    }
    let isOfTarget =
      switch (target, operation.kind) {
      case (.any, _), (.read, .read), (.write, .write), (.flush, .flush): true
      case (.discard, .punchHole), (.discard, .blockDiscard), (.zero, .zeroRange), (.zero, .allocate): true
      default: false
      }
    guard isOfTarget, let range else { return isOfTarget }
    guard operation.kind != .flush else { return false }
    return operation.offset < range.upperBound && operation.offset &+ operation.length > range.lowerBound
  }
}

/// Numbers that follow from a seed (Steele, Lea and Flood's SplitMix64).
struct FaultRandom: RandomNumberGenerator {
  private var state: UInt64
  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ z >> 30) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ z >> 27) &* 0x94d0_49bb_1331_11eb
    return z ^ z >> 31
  }

  /// - Parameter rate: 0: never, 1: always.
  mutating func chance(_ rate: Double) -> Bool { Double(next() >> 11) < rate * Double(1 << 53 as UInt64) }
}
