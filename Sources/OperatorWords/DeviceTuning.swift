/// The options that tune how a device works. What `bench --paths` recommends is given with them.
public import ArgumentParser
public import VirtioBlkDevice
internal import VirtioCore

extension Waiting: ExpressibleByArgument {
  /// `sleep`, `poll:50`, `adaptive:50` (microseconds) or `busy`.
  public init?(argument: String) {
    let parts = argument.split(separator: ":", omittingEmptySubsequences: false)
    let microseconds = parts.count == 2 ? Int(parts[1]) : nil
    switch (parts[0], microseconds) {
    case ("sleep", nil) where parts.count == 1: self = .sleep
    case ("busy", nil) where parts.count == 1: self = .busy
    case ("poll", let window?) where (0...1_000_000).contains(window): self = .poll(microseconds: window)
    case ("adaptive", let window?) where (0...1_000_000).contains(window): self = .adaptive(maximumMicroseconds: window)
    default: return nil
    }
  }

  public var defaultValueDescription: String {
    switch self {
    case .sleep: "sleep"
    case .busy: "busy"
    case .poll(let window): "poll:\(window)"
    case .adaptive(let window): "adaptive:\(window)"
    }
  }
}

extension Notification: ExpressibleByArgument {
  /// `batch`, `each` or `coalesce:COUNT:US`.
  public init?(argument: String) {
    let parts = argument.split(separator: ":", omittingEmptySubsequences: false)
    switch parts[0] {
    case "batch" where parts.count == 1: self = .batch
    case "each" where parts.count == 1: self = .each
    case "coalesce" where parts.count == 3:
      guard let count = Int(parts[1]), let window = Int(parts[2]), (1...65535).contains(count),
        (0...1_000_000).contains(window)
      else { return nil }
      self = .coalesce(count: count, microseconds: window)
    default: return nil
    }
  }

  public var defaultValueDescription: String {
    switch self {
    case .batch: "batch"
    case .each: "each"
    case .coalesce(let count, let window): "coalesce:\(count):\(window)"
    }
  }
}

extension UringSetup: ExpressibleByArgument {
  public init?(argument: String) {
    guard let setup = try? UringSetup(words: argument) else { return nil }
    self = setup
  }

  /// Comma-separated words, each of which changes one default.
  package init(words: String) throws(UringMistake) {
    self.init()
    var given: [String: Substring] = [:]
    for word in words.split(separator: ",", omittingEmptySubsequences: false) {
      let parts = word.split(separator: "=", maxSplits: 1)
      let number = parts.count == 2 ? Int(parts[1]) : nil
      let name = parts.first.map(String.init) ?? ""
      if let other = given.updateValue(word, forKey: Self.subjects[name] ?? name) {
        throw .contradiction("\(other)", "\(word)")
      }
      switch (parts.first, number) {
      case ("deferred", nil): completion = .deferred
      case ("cooperative", nil): completion = .cooperative
      case ("plain", nil): completion = .plain
      case ("sqpoll", let cpu): completion = .submissionThread(cpu: cpu)
      case ("iopoll", nil): poll = .on
      case ("iopoll-hybrid", nil): poll = .hybrid
      case ("buffers", nil): registersBuffers = true
      case ("no-file", nil): registersFile = false
      case ("no-ring", nil): registersRing = false
      case ("epoll", nil): kicksThroughEpoll = true
      case ("wait", let count?) where (1...256).contains(count): minimumWait = count
      case ("no-sqarray", nil): usesIndexArray = false
      case ("whole", nil): handover = .whole
      case ("batch", let count?) where (1...256).contains(count): handover = .every(count)
      default: throw .unknown
      }
    }
  }

  /// The subjects of words that exclude each other.
  private static let subjects = [
    "deferred": "completion", "cooperative": "completion", "plain": "completion", "sqpoll": "completion", "iopoll": "poll",
    "iopoll-hybrid": "poll", "whole": "handover", "batch": "handover",
  ]

  public var defaultValueDescription: String { "deferred" }
}

/// Why words do not describe the setup of a ring.
package enum UringMistake: Error, Equatable, CustomStringConvertible {
  case unknown
  /// Two words of which only one can hold.
  case contradiction(String, String)

  package var description: String {
    switch self {
    case .unknown: "use words as in deferred,batch=8; --help lists them"
    case .contradiction(let one, let other) where one == other: "use '\(printable(one))' once"
    case .contradiction(let one, let other): "use '\(printable(one))' or '\(printable(other))', which exclude each other"
    }
  }
}

/// Which threads the queues of many disks share: `auto`, `off`, or how many. Disks that are described together have the same
/// choice.
package struct SharedWorkersChoice: ExpressibleByArgument {
  package let workers: SharedWorkers?
  package let words: String

  package static var auto: SharedWorkersChoice { SharedWorkersChoice(workers: SharedWorkers(), words: "auto") }
  package static var off: SharedWorkersChoice { SharedWorkersChoice(workers: nil, words: "off") }

  private init(workers: SharedWorkers?, words: String) {
    self.workers = workers
    self.words = words
  }

  package init?(argument: String) {
    switch argument {
    case "auto": self = .auto
    case "off": self = .off
    default:
      guard let count = Int(argument), (1...256).contains(count) else { return nil }
      self.init(workers: SharedWorkers(count: count, leastDisks: 1), words: "\(count)")
    }
  }

  package var defaultValueDescription: String { words }
}

/// How the device works, beyond what it is.
package struct DeviceTuning: ParsableArguments {
  @Option(
    help: .init(
      "How an idle queue waits: sleep, poll:US (poll for that long first), adaptive:US (poll for as long as that pays off; the "
        + "default, with 50) or busy.", valueName: "way"))
  package var waiting: Waiting?

  @Option(help: .init("Short for --waiting poll:US.", valueName: "us"))
  package var pollUs: Int?

  @Option(help: .init("When the driver is notified: batch, each, or coalesce:COUNT:US.", valueName: "when"))
  package var notify = Notification.batch

  @Option(
    help: .init(
      "How the io_uring engine sets up its ring: a comma-separated list of deferred, cooperative, plain, sqpoll[=CPU], iopoll, "
        + "iopoll-hybrid, buffers, no-file, no-ring, no-sqarray, epoll, wait=N, whole, batch=N. (default: deferred)",
      valueName: "words"), transform: { try UringSetup(words: $0) })
  package var uring: UringSetup?

  @Option(help: .init("Record how long requests take, for 'ctl metrics', 'top' and --metrics.", valueName: "on|off"))
  package var latencies = OnOff.on

  @Option(
    help: .init(
      "Threads shared by the queues of disks whose medium never blocks: auto (one per CPU, from \(SharedWorkers.usualLeastDisks) "
        + "such disks on), off, or a number.", valueName: "auto|off|n"))
  package var sharedWorkers = SharedWorkersChoice.auto

  package init() {}

  package func validate() throws {
    if let pollUs, !(0...1_000_000).contains(pollUs) {
      throw ValidationError("--poll-us \(pollUs) is not from 0 to 1000000")
    }
    if waiting != nil, pollUs != nil { throw ValidationError("--poll-us and --waiting say the same: give one of them") }
  }

  package func apply(to options: inout BlockDeviceOptions) {
    if let pollUs { options.waiting = pollUs > 0 ? .poll(microseconds: pollUs) : .sleep }
    if let waiting { options.waiting = waiting }
    options.notification = notify
    options.metrics = latencies == .on
    if let uring { options.uring = uring }
    options.shared = sharedWorkers.workers
    // A user who says how long to poll wants the device to poll.
    if case .adaptive? = waiting { options.shared = nil }
  }
}
