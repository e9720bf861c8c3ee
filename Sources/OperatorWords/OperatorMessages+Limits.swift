/// Limits in the messages of the control socket.
package import VirtioBlkDevice
internal import VirtioCore

extension Operator {
  /// The name that lifts all limits.
  private static let noLimits = "none"

  package static func limits(_ change: LimitChange) -> [String: Limit?] {
    var limits: [String: Limit?] = [:]
    if change.liftsAll { limits.updateValue(nil, forKey: noLimits) }
    for (word, limit) in change.changes {
      limits.updateValue(limit.map { Limit(rate: $0.perSecond, burst: $0.burst) }, forKey: word.rawValue)
    }
    return limits
  }

  package static func limits(_ limits: RateLimits) -> [String: Limit] {
    var words: [String: Limit] = [:]
    for word in LimitWord.allCases {
      if let limit = limits[keyPath: word.field] { words[word.rawValue] = Limit(rate: limit.perSecond, burst: limit.burst) }
    }
    return words
  }

  /// - Throws: the word is unknown, or a rate or burst is 0.
  package static func change(_ limits: [String: Limit?]) throws(OperatorRefusal) -> LimitChange {
    var changes: [(word: LimitWord, limit: RateLimit?)] = []
    for (name, limit) in limits where name != noLimits {
      guard let word = LimitWord(rawValue: name) else {
        let words = LimitWord.allCases.map(\.rawValue)
        throw OperatorRefusal(
          "there is no limit \"\(printable(name))\""
            + (CloseWord.find(to: name, among: words).map { "; did you mean \"\($0)\"?" }
              ?? ": use " + words.joined(separator: ", ")))
      }
      if let limit, limit.rate == 0 || limit.burst == 0 {
        throw OperatorRefusal("\"\(name)\" is 0: a rate and a burst are at least 1, and null lifts a limit")
      }
      changes.append((word, limit.map { RateLimit(perSecond: $0.rate, burst: $0.burst) }))
    }
    return LimitChange(changes, liftsAll: limits.keys.contains(noLimits))
  }
}

extension Operator.Limits {
  /// As a user can type them.
  package var words: String {
    var limits = RateLimits()
    if let change = try? Operator.change(self.limits.mapValues { Optional($0) }) { change.apply(to: &limits) }
    return limits.words
  }
}
