/// The verbs of `vmm-blk ctl` that change something.
internal import ArgumentParser
internal import Logging
internal import OperatorWords
internal import VirtioBlkDevice
internal import VirtioCore

struct CtlAdd: CtlVerb {
  static let configuration = CommandConfiguration(
    commandName: "add", abstract: "Serve another disk.", usage: CtlTarget.usage("add blk-file=<path> socket-path=<path> ..."),
    discussion: """
      The options are those of a description file ('vmm-blk serve --help'), with the value after an equals sign: \
      read-only=true, engine=uring, num-queues=4. Their defaults are the options on the server's command line.
      """)

  @ParentCommand var ctl: CtlCommand
  @OptionGroup var target: CtlTarget

  @Argument(help: .init("An option of the disk.", valueName: "word=value"))
  var words: [String] = []

  func run() throws {
    let request = Request(entry: try EntryWords(words).values)
    try withServer { server in
      let added = try server.ask(request, Operator.Added.self)
      server.say("added \(printable(added.disk))")
    }
  }

  private struct Request: Encodable {
    var request = Operator.Verb.add
    var entry: [String: EntryWords.Value]
  }
}

/// `word=value`, as a description file has it.
struct EntryWords {
  enum Value: Encodable, Equatable {
    case text(String)
    case number(Int)
    case flag(Bool)
    case list([String])

    func encode(to encoder: any Encoder) throws {
      var container = encoder.singleValueContainer()
      switch self {
      case .text(let text): try container.encode(text)
      case .number(let number): try container.encode(number)
      case .flag(let flag): try container.encode(flag)
      case .list(let list): try container.encode(list)
      }
    }
  }

  private(set) var values: [String: Value] = [:]

  init(_ words: [String]) throws {
    for word in words {
      let sides = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
      guard sides.count == 2 else {
        throw ValidationError("'\(printable(word))' is not an option of a disk: write it like read-only=true")
      }
      guard let name = ServeDisk.Word(name: sides[0]) else {
        throw ValidationError("\(ServeDiskMistake.unknownWord(sides[0]))")
      }
      let value = try Self.value(name, sides[1])
      if name == .inject, case .list(let rules)? = values[name.rawValue], case .list(let more) = value {
        values[name.rawValue] = .list(rules + more)
      } else if values.updateValue(value, forKey: name.rawValue) != nil {
        throw ValidationError("\(name.rawValue) is given twice: give it once")
      }
    }
    for word in [ServeDisk.Word.blkFile, .socketPath]
    where values[word.rawValue] == nil && !(word == .blkFile && values[ServeDisk.Word.image.rawValue] != nil) {
      throw ValidationError("\(word.rawValue)=<path> is missing: every disk needs one")
    }
  }

  private static func image(_ text: String) throws -> String {
    let name: ImageName
    do throws(ImageNameMistake) { name = try ImageName(text) } catch { throw ValidationError("\(error)") }
    switch name {
    case .file(let path): return "file:" + Takeover.absolute(path)
    case .qcow2(let location): return location.mapPaths { Takeover.absolute($0) }.text
    case .rbd(let location): return location.mapPaths { Takeover.absolute($0) }.text
    case .nbd(let location):
      guard !location.hasRelativePath else {
        throw ValidationError("\(printable(text)): the server runs in another folder, so give absolute paths")
      }
      return text
    }
  }

  private static func value(_ word: ServeDisk.Word, _ text: String) throws -> Value {
    switch word {
    // The server runs in another folder.
    case .blkFile, .socketPath: return .text(Takeover.absolute(text))
    case .image: return .text(try image(text))
    case .readOnly, .noLock, .breakLock, .serverKeepsWrites:
      guard let flag = Bool(text) else { throw ValidationError("\(word.rawValue)=\(printable(text)): use true or false") }
      return .flag(flag)
    case .numQueues, .queueSizeMax, .threads, .pollUs, .reconnectTimeout:
      guard let number = Int(text) else { throw ValidationError("\(word.rawValue)=\(printable(text)): use a whole number") }
      return .number(number)
    case .inject: return .list([text])
    case .zoned:
      let parts = text.split(separator: ",", omittingEmptySubsequences: false).map { part in
        part.hasPrefix("file=") ? "file=" + Takeover.absolute(String(part.dropFirst(5))) : String(part)
      }
      return .text(parts.joined(separator: ","))
    case .format, .logicalBlockSize, .serial, .engine, .direct, .pinCPUs, .waiting, .notify, .uring, .onError, .latencies,
      .limit, .features, .noFeature, .config:
      return .text(text)
    }
  }
}

struct CtlRemove: CtlVerb {
  static let configuration = CommandConfiguration(
    commandName: "remove", abstract: "Drain a disk and close it.", usage: CtlTarget.usage("remove <disk>"),
    discussion: "Requests in flight are completed, the front-end is disconnected, and the socket and the image are closed.")

  @ParentCommand var ctl: CtlCommand
  @OptionGroup var target: CtlTarget

  @Argument(help: "The disk.")
  var disk: String

  func run() throws {
    try withServer { server in
      _ = try server.ask(Operator.Request(request: .remove, disk: CtlDisk.absolute(disk)))
      server.say("removed \(printable(disk))")
    }
  }
}

struct CtlReload: CtlVerb {
  static let configuration = CommandConfiguration(
    commandName: "reload", abstract: "Read the list of disks again, as SIGHUP does.", usage: CtlTarget.usage("reload"),
    discussion: """
      Disks that are new in the list are added, disks that it no longer has are drained and closed, and the others are untouched. \
      If the list has a mistake, nothing changes.
      """)

  @ParentCommand var ctl: CtlCommand
  @OptionGroup var target: CtlTarget

  func run() throws {
    try withServer { server in
      let change = try server.ask(Operator.Request(request: .reload), Operator.Reloaded.self)
      for disk in change.added { server.say("added \(printable(disk))") }
      for disk in change.removed { server.say("removed \(printable(disk))") }
      server.say("\(DiskChange(added: change.added, removed: change.removed, untouched: change.untouched))")
    }
  }
}

/// A verb for one disk or for all.
protocol CtlDiskVerb: CtlVerb {
  static var verb: Operator.Verb { get }
  static var done: String { get }
  var which: CtlDisk { get }
  var all: Bool { get }
}

extension CtlDiskVerb {
  func run() throws {
    guard !all || which.disk == nil else { throw ValidationError("--all means every disk: leave out '\(which.disk ?? "")'") }
    try withServer { server in
      guard all else {
        _ = try server.ask(Operator.Request(request: Self.verb, disk: which.name))
        return server.say("\(Self.done)\(which.disk.map { " " + printable($0) } ?? "")")
      }
      var refusals = 0
      for disk in try server.ask(Operator.Request(request: .list), Operator.Disks.self).disks where disk.state != .draining {
        do {
          _ = try server.ask(Operator.Request(request: Self.verb, disk: disk.disk))
          server.say("\(Self.done) \(printable(disk.disk))")
        } catch CtlFailure.refused(let reason) {
          refusals += 1
          People.error.write("\(printable(disk.disk)): \(printable(reason))")
        }
      }
      if refusals > 0 { throw CtlFailure.someRefused(refusals) }
    }
  }
}

struct CtlFlush: CtlDiskVerb {
  static let configuration = CommandConfiguration(
    commandName: "flush", abstract: "Make all written data stable.", usage: CtlTarget.usage("flush [<disk> | --all]"),
    discussion:
      "The command returns when the medium has the data. Writes that are in flight at that time may be included or not.")
  static let verb = Operator.Verb.flush
  static let done = "flushed"

  @ParentCommand var ctl: CtlCommand
  @OptionGroup var target: CtlTarget
  @OptionGroup var which: CtlDisk
  @Flag(help: "Every disk of the server.")
  var all = false
}

struct CtlPause: CtlDiskVerb {
  static let configuration = CommandConfiguration(
    commandName: "pause", abstract: "Pause a disk; its requests wait.", usage: CtlTarget.usage("pause [<disk> | --all]"),
    discussion: """
      The command returns when nothing is in flight, and nothing will be until 'resume', so the image can be copied. The guest \
      sees a delay but no error, unless its own timeouts expire.
      """)
  static let verb = Operator.Verb.pause
  static let done = "paused"

  @ParentCommand var ctl: CtlCommand
  @OptionGroup var target: CtlTarget
  @OptionGroup var which: CtlDisk
  @Flag(help: "Every disk of the server.")
  var all = false
}

struct CtlResume: CtlDiskVerb {
  static let configuration = CommandConfiguration(
    commandName: "resume", abstract: "Resume a disk that was paused or has stalled.",
    usage: CtlTarget.usage("resume [<disk> | --all]"),
    discussion: """
      A disk that is served with --on-error stop stalls when its image fails a request; the failed requests are retried.
      """)
  static let verb = Operator.Verb.resume
  static let done = "resumed"

  @ParentCommand var ctl: CtlCommand
  @OptionGroup var target: CtlTarget
  @OptionGroup var which: CtlDisk
  @Flag(help: "Every disk of the server.")
  var all = false
}

struct CtlResize: CtlVerb {
  static let configuration = CommandConfiguration(
    commandName: "resize", abstract: "Adapt a disk to the size of its image, or resize both.",
    usage: CtlTarget.usage("resize [<disk>] [<size> [--shrink]]"),
    discussion: """
      The driver is notified of the new size; Linux adopts it at once. Without a size, the disk takes the present size of its \
      image file or block device. With a size, the image file is resized first. A single word that can be a size is one.
      """)

  @ParentCommand var ctl: CtlCommand
  @OptionGroup var target: CtlTarget
  @OptionGroup var which: CtlDisk

  @Argument(help: "The new size.")
  var size: ByteCount?

  @Flag(help: "Allow the disk to become smaller: everything beyond the new end is lost.")
  var shrink = false

  mutating func validate() throws { size = which.next(size) }

  func run() throws {
    try withServer { server in
      let request = Operator.Request(request: .resize, disk: which.name, size: size?.bytes, shrink: shrink ? true : nil)
      let size = try server.ask(request, Operator.Resized.self).size
      server.say("\(which.disk.map { printable($0) } ?? "the disk") has \(ByteSize.describe(size)) (\(size) bytes)")
    }
  }
}

struct CtlLimit: CtlVerb {
  static let configuration = CommandConfiguration(
    commandName: "limit", abstract: "Show or change the limits of a disk.",
    usage: [
      "limit [<disk>]", "limit [<disk>] <word=rate[/burst],...>", "limit [<disk>] none",
    ].map(CtlTarget.usage).joined(separator: "\n"),
    discussion: """
      The limits are \(LimitWord.allCases.map(\.rawValue).joined(separator: ", ")), each per second. A limit that is not named \
      stays as it is; 'none' instead of a rate lifts one limit, and 'none' alone lifts all. Changes take effect at once. The \
      burst is how much may run at once after a quiet time, by default a tenth of the rate.

        vmm-blk ctl limit a.sock iops=2000,write-bytes=50M/100M
        vmm-blk ctl limit a.sock iops=none
      """)

  @ParentCommand var ctl: CtlCommand
  @OptionGroup var target: CtlTarget

  @OptionGroup var which: CtlDisk

  @Argument(help: .init("The limits to change.", valueName: "word=rate[/burst],..."))
  var change: LimitChange?

  mutating func validate() throws { change = which.next(change) }

  func run() throws {
    try withServer { server in
      let request = Operator.Request(request: .limit, disk: which.name, limits: change.map { Operator.limits($0) })
      let limits = try server.ask(request, Operator.Limits.self)
      server.say(limits.words)
    }
  }
}

struct CtlLogLevel: CtlVerb {
  static let configuration = CommandConfiguration(
    commandName: "log-level", abstract: "Show or change the log level.", usage: CtlTarget.usage("log-level [<level>]"))

  @ParentCommand var ctl: CtlCommand
  @OptionGroup var target: CtlTarget

  @Argument(help: "The lowest level to log: trace, debug, info, notice, warning, error or critical.")
  var level: Logger.Level?

  func run() throws {
    try withServer { server in
      let answer = try server.ask(Operator.Request(request: .logLevel, level: level?.rawValue), Operator.Level.self)
      server.say(answer.level)
    }
  }
}

struct CtlDrain: CtlVerb {
  static let configuration = CommandConfiguration(
    commandName: "drain", abstract: "Complete what is in flight and end the server, as SIGTERM does.",
    usage: CtlTarget.usage("drain"))

  @ParentCommand var ctl: CtlCommand
  @OptionGroup var target: CtlTarget

  func run() throws {
    try withServer { server in
      _ = try server.ask(Operator.Request(request: .drain))
      server.say("the server is shutting down")
    }
  }
}
