/// The limits of a disk per second, in words: `iops=2000,write-bytes=50M/100M`.
internal import ArgumentParser
package import VirtioBlkDevice
internal import VirtioCore

/// One limit's name.
package enum LimitWord: String, CaseIterable {
  case iops
  case readIOPS = "read-iops"
  case writeIOPS = "write-iops"
  case bytes
  case readBytes = "read-bytes"
  case writeBytes = "write-bytes"

  package var field: WritableKeyPath<RateLimits, RateLimit?> {
    switch self {
    case .iops: \.totalIOPS
    case .readIOPS: \.readIOPS
    case .writeIOPS: \.writeIOPS
    case .bytes: \.totalBytes
    case .readBytes: \.readBytes
    case .writeBytes: \.writeBytes
    }
  }
}

/// Changes of limits: comma-separated words, each with a rate and optionally, after a slash, a burst (by default a tenth of the
/// rate). `none` instead of a rate lifts a limit, and alone it lifts all.
package struct LimitChange: ExpressibleByArgument, Equatable {
  /// In the order in which they were given.
  package private(set) var changes: [(word: LimitWord, limit: RateLimit?)] = []
  package private(set) var liftsAll = false

  package static let forms =
    "words of \(LimitWord.allCases.map(\.rawValue).joined(separator: ", ")) as in iops=2000,write-bytes=50M/100M, or none"

  package init?(argument: String) {
    if argument == "none" {
      liftsAll = true
      return
    }
    for part in argument.split(separator: ",", omittingEmptySubsequences: false) {
      let sides = part.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      guard sides.count == 2, let word = LimitWord(rawValue: String(sides[0])) else { return nil }
      guard !changes.contains(where: { $0.word == word }) else { return nil }
      if sides[1] == "none" {
        changes.append((word, nil))
        continue
      }
      let numbers = sides[1].split(separator: "/", omittingEmptySubsequences: false).map { ByteSize.parse(String($0)) }
      guard numbers.count <= 2, let rate = numbers[0], rate > 0 else { return nil }
      guard numbers.count == 1 || (numbers[1] ?? 0) > 0 else { return nil }
      changes.append((word, RateLimit(perSecond: rate, burst: numbers.count == 2 ? numbers[1] : nil)))
    }
  }

  package init(_ changes: [(word: LimitWord, limit: RateLimit?)], liftsAll: Bool) {
    self.changes = changes
    self.liftsAll = liftsAll
  }

  package func apply(to limits: inout RateLimits) {
    if liftsAll { limits = RateLimits() }
    for change in changes { limits[keyPath: change.word.field] = change.limit }
  }

  /// The resulting limits if nothing was limited before.
  package var limits: RateLimits {
    var limits = RateLimits()
    apply(to: &limits)
    return limits
  }

  package static func == (one: Self, other: Self) -> Bool { one.limits == other.limits && one.liftsAll == other.liftsAll }

  package var defaultValueDescription: String { "none" }
}

extension RateLimits {
  /// In the words above; "none" where nothing is limited.
  package var words: String {
    let parts = LimitWord.allCases.compactMap { word in
      self[keyPath: word.field].map { "\(word.rawValue)=\($0.perSecond)/\($0.burst)" }
    }
    return parts.isEmpty ? "none" : parts.joined(separator: ",")
  }
}
