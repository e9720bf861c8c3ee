/// The verbs of `vmm-blk ctl` that change something.
internal import ArgumentParser
internal import Logging
internal import OperatorWords
internal import VirtioBlkDevice
internal import VirtioCore

struct CtlAdd: CtlVerb {
  static let configuration = CommandConfiguration(
    commandName: "add", abstract: "Serve one more disk.", usage: CtlTarget.usage("add blk-file=<path> socket-path=<path> ..."),
    discussion: """
      The words are those of a description file ('vmm-blk serve --help'), with the value behind an equals sign: \
      read-only=true, engine=uring, num-queues=4. What is not said is as the server's own command line says.
      """)

  @ParentCommand var ctl: CtlCommand
  @OptionGroup var target: CtlTarget

  @Argument(help: .init("What the disk is.", valueName: "word=value"))
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
        throw ValidationError("'\(printable(word))' is no word of a disk: write it as in read-only=true")
      }
      guard let name = ServeDisk.Word(rawValue: sides[0]) else {
        throw ValidationError("\(ServeDiskMistake.unknownWord(sides[0]))")
      }
      let value = try Self.value(name, sides[1])
      if name == .inject, case .list(let rules)? = values[name.rawValue], case .list(let more) = value {
        values[name.rawValue] = .list(rules + more)
      } else if values.updateValue(value, forKey: name.rawValue) != nil {
        throw ValidationError("\(name.rawValue) is said twice: say it once")
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
    case .nbd(let location):
      guard !location.hasRelativePath else {
        throw ValidationError("\(printable(text)): the server's folder is another one, so write the socket's whole path")
      }
      return text
    }
  }

  private static func value(_ word: ServeDisk.Word, _ text: String) throws -> Value {
    switch word {
    // The server's folder is another one.
    case .blkFile, .socketPath: return .text(Takeover.absolute(text))
    case .image: return .text(try image(text))
    case .readOnly, .noLock, .serverKeepsWrites:
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
    discussion: "What is in flight is finished, the front-end is disconnected, and the socket and the image are let go of.")

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
      Disks that the list has and the server has not are added, those that it has no more are drained and closed, and the rest is \
      untouched. A mistake anywhere in the list changes nothing.
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

/// A verb that can be said of one disk or of all.
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
    commandName: "flush", abstract: "Make stable what was written.", usage: CtlTarget.usage("flush [<disk> | --all]"),
    discussion: "The answer comes when the medium has it. Writes that are in flight meanwhile may be part of it or not.")
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
    commandName: "pause", abstract: "Let a disk take no more requests.", usage: CtlTarget.usage("pause [<disk> | --all]"),
    discussion: """
      The answer comes when nothing is in flight any more, and nothing will be before 'resume': the image can be copied. The guest \
      sees delay and no error, for as long as its own patience lasts.
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
    commandName: "resume", abstract: "Let a disk go on that was paused, or that stalls.",
    usage: CtlTarget.usage("resume [<disk> | --all]"),
    discussion: """
      A disk stalls when its image fails a request and it is served with --on-error stop: what failed is tried again.
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
    commandName: "resize", abstract: "Make a disk as large as its image is now, or both as large as is said.",
    usage: CtlTarget.usage("resize <disk> [<size> [--shrink]]"),
    discussion: """
      The driver is notified, and sees the new size: Linux does at once. Without a size, for an image that has been made longer or \
      shorter by other means, or a block device. With one, the image file is made so long first.
      """)

  @ParentCommand var ctl: CtlCommand
  @OptionGroup var target: CtlTarget

  @Argument(help: "The disk.")
  var disk: String

  @Argument(help: "What it is to have.")
  var size: ByteCount?

  @Flag(help: "Also if it becomes smaller: what lies beyond the new end is lost.")
  var shrink = false

  func run() throws {
    try withServer { server in
      let request = Operator.Request(
        request: .resize, disk: CtlDisk.absolute(disk), size: size?.bytes, shrink: shrink ? true : nil)
      let size = try server.ask(request, Operator.Resized.self).size
      server.say("\(printable(disk)) has \(ByteSize.describe(size)) (\(size) bytes)")
    }
  }
}

struct CtlLimit: CtlVerb {
  static let configuration = CommandConfiguration(
    commandName: "limit", abstract: "Show or change what a disk may do in a second.",
    usage: CtlTarget.usage("limit <disk> [<word=rate[/burst],...> | none]"),
    discussion: """
      The words are \(LimitWord.allCases.map(\.rawValue).joined(separator: ", ")). A limit that is not named stays as it is; \
      'none' instead of a rate lifts one, and alone it lifts all. Changes hold at once. The burst, what may go at once after a \
      pause, is a tenth of the rate unless it is said.

        vmm-blk ctl limit a.sock iops=2000,write-bytes=50M/100M
        vmm-blk ctl limit a.sock iops=none
      """)

  @ParentCommand var ctl: CtlCommand
  @OptionGroup var target: CtlTarget

  @Argument(help: "The disk.")
  var disk: String

  @Argument(help: .init("What is to change.", valueName: "word=rate[/burst],..."))
  var change: LimitChange?

  func run() throws {
    try withServer { server in
      let request = Operator.Request(
        request: .limit, disk: CtlDisk.absolute(disk), limits: change.map { Operator.limits($0) })
      let limits = try server.ask(request, Operator.Limits.self)
      server.say(limits.words)
    }
  }
}

struct CtlLogLevel: CtlVerb {
  static let configuration = CommandConfiguration(
    commandName: "log-level", abstract: "Show or change which lines are logged.", usage: CtlTarget.usage("log-level [<level>]"))

  @ParentCommand var ctl: CtlCommand
  @OptionGroup var target: CtlTarget

  @Argument(help: "The least important lines: trace, debug, info, notice, warning, error or critical.")
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
    commandName: "drain", abstract: "Finish what is in flight and end the server, as SIGTERM does.",
    usage: CtlTarget.usage("drain"))

  @ParentCommand var ctl: CtlCommand
  @OptionGroup var target: CtlTarget

  func run() throws {
    try withServer { server in
      _ = try server.ask(Operator.Request(request: .drain))
      server.say("the server ends")
    }
  }
}
