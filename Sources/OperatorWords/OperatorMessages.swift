/// What an operator asks of a running process, and what it answers: lines of JSON on the control socket, described in
/// Docs/control.md.
internal import GuestDriver
package import VirtioCore

package enum Operator {
  package enum Verb: String, Codable, CaseIterable {
    /// Lists the disks.
    case list
    /// Shows the process, or everything about one disk.
    case status
    /// Adds a disk.
    case add
    /// Drains a disk and closes it.
    case remove
    /// Reads the list of disks again.
    case reload
    /// Makes all written data stable.
    case flush
    /// Stops taking requests from the queues.
    case pause
    /// Resumes queues that were paused, or that have stalled.
    case resume
    /// Shows the metrics of every disk, or of one.
    case metrics
    /// Shows or changes the limits of a disk.
    case limit
    /// Adapts a disk to the size of its image, or resizes both.
    case resize
    /// Records what happens to requests for a while.
    case trace
    /// Shows or changes the log level.
    case logLevel = "log-level"
    /// Drains everything and ends the process.
    case drain
  }

  package struct Request: Codable {
    package var request: Verb
    /// Which disk; may be left out if there is only one.
    package var disk: String?
    /// With `log-level`: the new level; `nil` only asks for it.
    package var level: String?
    /// With `limit`: the new limits, by the words of `LimitWord`; `null` lifts one. "none", with any value, first lifts all.
    /// `nil` only asks for them.
    package var limits: [String: Limit?]?
    /// With `resize`: the new size of the image, in bytes; `nil` if the image was resized already.
    package var size: UInt64?
    /// With `resize`: the data beyond the new end may be lost.
    package var shrink: Bool?
    /// With `trace`.
    package var action: TraceAction?
    /// With `trace` and `start`: after how many milliseconds it ends at the latest.
    package var milliseconds: Int?
    /// With `trace` and `start`: how many records each thread keeps.
    package var records: Int?
    /// With `trace` and `start`: how many records each thread writes within a tenth of a second; `nil` for all.
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

  /// With `add`: the member that describes the disk.
  package enum EntryKey: String, CodingKey { case entry }

  /// The answer to a request without a result, and to one that fails.
  package struct Answer: Codable {
    /// Why it failed: one sentence; `nil` if it did not.
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
    /// Seconds since the process began to serve.
    package var uptime: UInt64
    package var logLevel: String
    /// What the process has given up, empty if nothing; `nil` from a server of an earlier version.
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
    /// Where it is served: the absolute path of its socket or memory file, or words such as "descriptor 5".
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
    /// No front-end or driver uses it.
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

  /// The front-end or driver of a disk.
  package struct Driver: Codable {
    /// The front-end's process and user, if the kernel reports them.
    package var process: Int32?
    package var user: UInt32?
    /// Names of the features that the driver has chosen; `nil` if it has not chosen yet.
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
    /// It stopped at an error from which it could not continue.
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
    /// How much may run at once after a quiet time; `nil` for a tenth of the rate.
    package var burst: UInt64?

    package init(rate: UInt64, burst: UInt64? = nil) {
      self.rate = rate
      self.burst = burst
    }
  }

  /// The answer to `limit`: the limits in force.
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
  /// The names of features, lowest bit first.
  package static func names(of features: FeatureSet) -> [String] {
    features.bits.map { BlockFeature.name(ofBit: $0) ?? "bit \($0)" }
  }
}
