/// What an operator asks of a running process, and what it answers: lines of JSON on the control socket, described in
/// Docs/control.md.
internal import GuestDriver
package import VirtioCore

package enum Operator {
  package enum Verb: String, Codable, CaseIterable {
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
    /// Queues that were paused, or that stall, continue.
    case resume
    /// Figures of every disk, or of one.
    case metrics
    /// What the disk may do in a second.
    case limit
    /// The disk is as large as its image is, or is made to be.
    case resize
    /// What happens to requests is written down for a while.
    case trace
    /// Which lines are logged.
    case logLevel = "log-level"
    /// Everything is drained, and the process ends.
    case drain
  }

  package struct Request: Codable {
    package var request: Verb
    /// Which disk; may be left out where there is one.
    package var disk: String?
    /// With `log-level`; `nil` asks.
    package var level: String?
    /// With `limit`: by the words of `LimitWord`; `null` lifts one, and "none" with whatever value all, first of all. `nil`
    /// asks.
    package var limits: [String: Limit?]?
    /// With `resize`: bytes that the image is to have; `nil`: it has another size already.
    package var size: UInt64?
    /// With `resize`: what lies beyond may be lost.
    package var shrink: Bool?
    /// With `trace`.
    package var action: TraceAction?
    /// With `trace` and `start`: when it ends at the latest, milliseconds.
    package var milliseconds: Int?
    /// With `trace` and `start`: how many are kept for each thread.
    package var records: Int?
    /// With `trace` and `start`: how many each thread writes within a tenth of a second; `nil`: all.
    package var budget: Int?
    /// With `trace` and `read`: which thread, and from which record on, 0 for the oldest.
    package var thread: Int?
    package var from: Int?

    package init(
      request: Verb, disk: String? = nil, level: String? = nil, limits: [String: Limit?]? = nil, size: UInt64? = nil,
      shrink: Bool? = nil
    ) {
      self.request = request
      self.disk = disk
      self.level = level
      self.limits = limits
      self.size = size
      self.shrink = shrink
    }
  }

  /// With `add`: beside the verb, what the disk is.
  package enum EntryKey: String, CodingKey { case entry }

  /// The answer where there is nothing else to say, and to what cannot be done.
  package struct Answer: Codable {
    /// Why not: one sentence.
    package var error: String?

    package init(error: String? = nil) { self.error = error }
  }

  /// The answer to `list`.
  package struct Disks: Codable {
    package var disks: [Summary]

    package init(disks: [Summary]) { self.disks = disks }
  }

  /// The answer to `status` without a disk.
  package struct Service: Codable {
    package var program: String
    package var process: Int32
    /// One of `Takeover.Transport`.
    package var transport: String
    /// Since the process began to serve, seconds.
    package var uptime: UInt64
    package var logLevel: String
    /// What the process has given up; empty: nothing. A server of an earlier version does not say.
    package var sandbox: [String]?
    package var disks: [Summary]

    package init(
      program: String, process: Int32, transport: String, uptime: UInt64, logLevel: String, sandbox: [String]? = nil,
      disks: [Summary]
    ) {
      self.program = program
      self.process = process
      self.transport = transport
      self.uptime = uptime
      self.logLevel = logLevel
      self.sandbox = sandbox
      self.disks = disks
    }
  }

  package struct Summary: Codable {
    /// Where it is served: the absolute path of its socket or memory file, or words.
    package var disk: String
    package var image: String
    /// Bytes.
    package var size: UInt64
    package var state: State

    package init(disk: String, image: String, size: UInt64, state: State) {
      self.disk = disk
      self.image = image
      self.size = size
      self.state = state
    }
  }

  package enum State: String, Codable, CaseIterable {
    /// Nobody drives it.
    case idle
    case driven
    case paused
    /// It is not served any more, and drains.
    case draining
  }

  /// The answer to `status` of a disk.
  package struct Disk: Codable {
    package var disk: String
    package var image: String
    /// Bytes.
    package var size: UInt64
    package var state: State
    package var readOnly: Bool
    /// Bytes.
    package var logicalBlockSize: Int
    package var direct: Bool
    package var serial: String
    package var engine: String
    package var engineReason: String
    package var engineWarning: String?
    /// A flush failed, and none will succeed before the image is opened again.
    package var flushFailed: Bool
    package var queues: Int
    package var maximumQueueSize: Int
    /// Names of the features that it offers.
    package var features: [String]
    package var driver: Driver?
    package var limits: [String: Limit]
    package var counters: Counters

    package init(
      disk: String, image: String, size: UInt64, state: State, readOnly: Bool, logicalBlockSize: Int, direct: Bool,
      serial: String, engine: String, engineReason: String, engineWarning: String? = nil, flushFailed: Bool, queues: Int,
      maximumQueueSize: Int, features: [String], driver: Driver? = nil, limits: [String: Limit], counters: Counters
    ) {
      self.disk = disk
      self.image = image
      self.size = size
      self.state = state
      self.readOnly = readOnly
      self.logicalBlockSize = logicalBlockSize
      self.direct = direct
      self.serial = serial
      self.engine = engine
      self.engineReason = engineReason
      self.engineWarning = engineWarning
      self.flushFailed = flushFailed
      self.queues = queues
      self.maximumQueueSize = maximumQueueSize
      self.features = features
      self.driver = driver
      self.limits = limits
      self.counters = counters
    }
  }

  /// Who drives a disk.
  package struct Driver: Codable {
    /// The front-end's, as far as the kernel knows them.
    package var process: Int32?
    package var user: UInt32?
    /// Names of the features that the driver has chosen; `nil`: it has not yet.
    package var features: [String]?
    /// Names of the features of the protocol between the two ends.
    package var protocolFeatures: [String]?
    /// Guest memory, bytes.
    package var memory: UInt64?
    /// Queues that were set up.
    package var rings: [Ring]

    package init(
      process: Int32? = nil, user: UInt32? = nil, features: [String]? = nil, protocolFeatures: [String]? = nil,
      memory: UInt64? = nil, rings: [Ring]
    ) {
      self.process = process
      self.user = user
      self.features = features
      self.protocolFeatures = protocolFeatures
      self.memory = memory
      self.rings = rings
    }
  }

  package struct Ring: Codable {
    package var queue: Int
    /// Entries.
    package var size: Int
    package var state: RingState

    package init(queue: Int, size: Int, state: RingState) {
      self.queue = queue
      self.size = size
      self.state = state
    }
  }

  package enum RingState: String, Codable {
    /// Set up, and not started or not enabled.
    case stopped
    case running
    /// It met something that it could not continue after.
    case failed
  }

  /// The answer to `add`.
  package struct Added: Codable {
    package var disk: String

    package init(disk: String) { self.disk = disk }
  }

  /// The answer to `reload`.
  package struct Reloaded: Codable {
    package var added: [String]
    package var removed: [String]
    package var untouched: Int

    package init(added: [String], removed: [String], untouched: Int) {
      self.added = added
      self.removed = removed
      self.untouched = untouched
    }
  }

  package struct Limit: Codable {
    /// Requests or bytes per second.
    package var rate: UInt64
    /// What may go at once after a pause; `nil`: a tenth of that.
    package var burst: UInt64?

    package init(rate: UInt64, burst: UInt64? = nil) {
      self.rate = rate
      self.burst = burst
    }
  }

  /// The answer to `limit`: what holds from now on.
  package struct Limits: Codable {
    package var limits: [String: Limit]

    package init(limits: [String: Limit]) { self.limits = limits }
  }

  /// The answer to `resize`.
  package struct Resized: Codable {
    /// Bytes.
    package var size: UInt64

    package init(size: UInt64) { self.size = size }
  }

  /// The answer to `log-level`.
  package struct Level: Codable {
    package var level: String

    package init(level: String) { self.level = level }
  }
}

extension Operator {
  /// Lowest bit first.
  package static func names(of features: FeatureSet) -> [String] {
    features.bits.map { BlockFeature.name(ofBit: $0) ?? "bit \($0)" }
  }
}
