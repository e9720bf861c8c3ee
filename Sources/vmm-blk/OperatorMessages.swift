/// What an operator asks of a running process, and what it answers: lines of JSON on the control socket, described in
/// Docs/control.md.
internal import GuestDriver
internal import VirtioBlkDevice
internal import VirtioCore

enum Operator {
  enum Verb: String, Codable, CaseIterable {
    /// The disks.
    case list
    /// The process, or everything about one disk.
    case status
    /// One more disk.
    case add
    /// One less: it is drained and closed.
    case remove
    /// The list of disks is read again.
    case reload
    /// What was written and is not stable yet is made so.
    case flush
    /// Nothing more is taken from the queues.
    case pause
    /// Queues that were paused, or that stall, go on.
    case resume
    /// Figures of every disk, or of one.
    case metrics
    /// What the disk may do in a second.
    case limit
    /// The disk is as large as its image is, or is made to be.
    case resize
    /// Which lines are logged.
    case logLevel = "log-level"
    /// Everything is drained, and the process ends.
    case drain
  }

  struct Request: Codable {
    var request: Verb
    /// Which disk; may be left out where there is one.
    var disk: String?
    /// With `log-level`; `nil` asks.
    var level: String?
    /// With `limit`: by the words of `LimitWord`; `null` lifts one, and "none" with whatever value all, first of all. `nil` asks.
    var limits: [String: Limit?]?
    /// With `resize`: bytes that the image is to have; `nil`: it has another size already.
    var size: UInt64?
    /// With `resize`: what lies beyond may be lost.
    var shrink: Bool?
  }

  /// With `add`: beside the verb, what the disk is.
  enum EntryKey: String, CodingKey { case entry }

  /// The answer where there is nothing else to say, and to what cannot be done.
  struct Answer: Codable {
    /// Why not: one sentence.
    var error: String?
  }

  /// The answer to `list`.
  struct Disks: Codable {
    var disks: [Summary]
  }

  /// The answer to `status` without a disk.
  struct Service: Codable {
    var program: String
    var process: Int32
    /// One of `Takeover.Transport`.
    var transport: String
    /// Since the process began to serve, seconds.
    var uptime: UInt64
    var logLevel: String
    /// What the process has given up; empty: nothing. A server of an earlier version does not say.
    var sandbox: [String]?
    var disks: [Summary]
  }

  struct Summary: Codable {
    /// Where it is served: the absolute path of its socket or memory file, or words.
    var disk: String
    var image: String
    /// Bytes.
    var size: UInt64
    var state: State
  }

  enum State: String, Codable, CaseIterable {
    /// Nobody drives it.
    case idle
    case driven
    case paused
    /// It is not served any more, and drains.
    case draining
  }

  /// The answer to `status` of a disk.
  struct Disk: Codable {
    var disk: String
    var image: String
    /// Bytes.
    var size: UInt64
    var state: State
    var readOnly: Bool
    /// Bytes.
    var logicalBlockSize: Int
    var direct: Bool
    var serial: String
    var engine: String
    var engineReason: String
    var engineWarning: String?
    /// A flush failed, and none will succeed before the image is opened again.
    var flushFailed: Bool
    var queues: Int
    var maximumQueueSize: Int
    /// Names of the features that it offers.
    var features: [String]
    var driver: Driver?
    var limits: [String: Limit]
    var counters: Counters
  }

  /// Who drives a disk.
  struct Driver: Codable {
    /// The front-end's, as far as the kernel knows them.
    var process: Int32?
    var user: UInt32?
    /// Names of the features that the driver has chosen; `nil`: it has not yet.
    var features: [String]?
    /// Names of the features of the protocol between the two ends.
    var protocolFeatures: [String]?
    /// Guest memory, bytes.
    var memory: UInt64?
    /// Queues that were set up.
    var rings: [Ring]
  }

  struct Ring: Codable {
    var queue: Int
    /// Entries.
    var size: Int
    var state: RingState
  }

  enum RingState: String, Codable {
    /// Set up, and not started or not enabled.
    case stopped
    case running
    /// It met something that it could not go on after.
    case failed
  }

  /// Since the disk was opened.
  struct Counters: Codable {
    var reads: UInt64
    var writes: UInt64
    var flushes: UInt64
    var discards: UInt64
    var writeZeroes: UInt64
    var others: UInt64
    var failures: UInt64
    var ioErrors: UInt64
    var unsupported: UInt64
    var mediumFailures: UInt64
    var bytesRead: UInt64
    var bytesWritten: UInt64
    var kicks: UInt64
    var calls: UInt64
    var turns: UInt64
    var systemCalls: UInt64
    var bounces: UInt64
    /// Requests that had to wait for a limit.
    var throttled: UInt64
    /// In which queues had one that did, all queues together.
    var throttledNanoseconds: UInt64
  }

  /// The answer to `metrics`.
  struct Metrics: Codable {
    var process: ProcessMetrics
    var disks: [DiskMetrics]
  }

  struct ProcessMetrics: Codable {
    var program: String
    /// When it began to serve, seconds since 1970.
    var startTime: UInt64
    /// CPU time, nanoseconds.
    var cpuTime: UInt64
    /// Memory that is there, bytes.
    var residentMemory: UInt64
    var openFiles: UInt64
    var threads: UInt64
    /// What the process has given up. A server of an earlier version does not say.
    var sandbox: [String]?
  }

  struct DiskMetrics: Codable {
    var disk: String
    var image: String
    /// Bytes.
    var size: UInt64
    var engine: String
    var state: State
    var flushFailed: Bool
    /// Names of the features that it offers, and of those that the driver has chosen.
    var features: [String]
    var chosen: [String]
    var counters: Counters
    /// Requests that are taken and not answered, by queue, without those at the end that have none.
    var depths: [Int]
    /// By kind of request.
    var latencies: [String: Histogram]
  }

  /// How many requests took how long.
  struct Histogram: Codable {
    /// Nanoseconds, of all.
    var sum: UInt64
    /// Three numbers each: from so many nanoseconds on, below so many, and how many requests.
    var buckets: [[UInt64]]
  }

  /// The answer to `add`.
  struct Added: Codable {
    var disk: String
  }

  /// The answer to `reload`.
  struct Reloaded: Codable {
    var added: [String]
    var removed: [String]
    var untouched: Int
  }

  struct Limit: Codable {
    /// Requests or bytes a second.
    var rate: UInt64
    /// What may go at once after a pause; `nil`: a tenth of that.
    var burst: UInt64?
  }

  /// The answer to `limit`: what holds from now on.
  struct Limits: Codable {
    var limits: [String: Limit]
  }

  /// The answer to `resize`.
  struct Resized: Codable {
    /// Bytes.
    var size: UInt64
  }

  /// The answer to `log-level`.
  struct Level: Codable {
    var level: String
  }
}

extension Operator.Counters {
  init(_ counters: BlockCounters) {
    self.init(
      reads: counters.reads, writes: counters.writes, flushes: counters.flushes, discards: counters.discards,
      writeZeroes: counters.writeZeroes, others: counters.others, failures: counters.failures, ioErrors: counters.ioErrors,
      unsupported: counters.unsupported, mediumFailures: counters.mediumFailures, bytesRead: counters.bytesRead,
      bytesWritten: counters.bytesWritten, kicks: counters.kicks, calls: counters.calls, turns: counters.turns,
      systemCalls: counters.systemCalls, bounces: counters.bounces, throttled: counters.throttled,
      throttledNanoseconds: counters.throttledNanoseconds)
  }
}

extension Operator {
  /// Lowest bit first.
  static func names(of features: FeatureSet) -> [String] {
    features.bits.map { BlockFeature.name(ofBit: $0) ?? "bit \($0)" }
  }
}

extension Operator {
  /// What lifts all limits.
  private static let noLimits = "none"

  static func limits(_ change: LimitChange) -> [String: Limit?] {
    var limits: [String: Limit?] = [:]
    if change.liftsAll { limits.updateValue(nil, forKey: noLimits) }
    for (word, limit) in change.changes {
      limits.updateValue(limit.map { Limit(rate: $0.perSecond, burst: $0.burst) }, forKey: word.rawValue)
    }
    return limits
  }

  static func limits(_ limits: RateLimits) -> [String: Limit] {
    var words: [String: Limit] = [:]
    for word in LimitWord.allCases {
      if let limit = limits[keyPath: word.field] { words[word.rawValue] = Limit(rate: limit.perSecond, burst: limit.burst) }
    }
    return words
  }

  /// - Throws: a word that is none, or a rate that is no rate.
  static func change(_ limits: [String: Limit?]) throws(OperatorRefusal) -> LimitChange {
    var changes: [(word: LimitWord, limit: RateLimit?)] = []
    for (name, limit) in limits where name != noLimits {
      guard let word = LimitWord(rawValue: name) else {
        let words = LimitWord.allCases.map(\.rawValue)
        throw OperatorRefusal(
          "there is no limit \"\(printable(name))\""
            + (CommandWords.closest(to: name, among: words).map { "; did you mean \"\($0)\"?" }
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
  /// As they can be typed.
  var words: String {
    var limits = RateLimits()
    if let change = try? Operator.change(self.limits.mapValues { Optional($0) }) { change.apply(to: &limits) }
    return limits.words
  }
}
