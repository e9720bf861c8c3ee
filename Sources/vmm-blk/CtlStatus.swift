/// The verbs of `vmm-blk ctl` that show something.
internal import ArgumentParser
internal import Bench
internal import MetricsExport
internal import OperatorWords
internal import TextTable
internal import VirtioCore

struct CtlList: CtlVerb {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "Show the disks.", usage: CtlTarget.usage("list [--json]"))

  @ParentCommand var ctl: CtlCommand
  @OptionGroup var target: CtlTarget

  func run() throws {
    try withServer { server in
      let disks = try server.ask(Operator.Request(request: .list), Operator.Disks.self).disks
      server.say(Self.table(disks))
    }
  }

  static func table(_ disks: [Operator.Summary]) -> String {
    guard !disks.isEmpty else { return "no disks" }
    let table = TextTable<Operator.Summary> { disk in
      [
        Column("disk" <- printable(disk.disk)), Column("image" <- printable(disk.image)),
        Column("size" <- ByteSize.describe(disk.size), align: .right), Column("state" <- disk.state.rawValue),
      ]
    }
    return CtlText.trimmed(table.string(for: disks, style: Style.simple))
  }
}

struct CtlStatus: CtlVerb {
  static let configuration = CommandConfiguration(
    commandName: "status", abstract: "Show the server, or everything about one disk.",
    usage: CtlTarget.usage("status [<disk>] [--json]"))

  @ParentCommand var ctl: CtlCommand
  @OptionGroup var target: CtlTarget
  @OptionGroup var which: CtlDisk

  func run() throws {
    try withServer { server in
      guard which.disk != nil else {
        let service = try server.ask(Operator.Request(request: .status), Operator.Service.self)
        return server.say(CtlText.service(service))
      }
      let disk = try server.ask(Operator.Request(request: .status, disk: which.name), Operator.Disk.self)
      server.say(CtlText.disk(disk))
    }
  }
}

struct CtlMetrics: CtlVerb {
  static let configuration = CommandConfiguration(
    commandName: "metrics", abstract: "Print the metrics, in the format of --metrics.",
    usage: CtlTarget.usage("metrics [<disk>] [--json]"),
    discussion: "With --json, histograms have the server's full resolution.")

  @ParentCommand var ctl: CtlCommand
  @OptionGroup var target: CtlTarget
  @OptionGroup var which: CtlDisk

  func run() throws {
    try withServer { server in
      let metrics = try server.ask(Operator.Request(request: .metrics, disk: which.name), Operator.Metrics.self)
      server.say(String(decoding: MetricsPage.page(metrics).bytes.dropLast(), as: UTF8.self))
    }
  }
}

/// Answers as text for people.
enum CtlText {
  /// The table without spaces at the ends of its lines.
  static func trimmed(_ table: String?) -> String {
    (table ?? "").split(separator: "\n").map { line in
      String(line.reversed().drop { $0 == " " }.reversed())
    }.joined(separator: "\n")
  }

  static func service(_ service: Operator.Service) -> String {
    let count = service.disks.count
    let head = """
      \(printable(service.program)), process \(service.process), on \(service.transport), up \(time(service.uptime)), \
      log level \(printable(service.logLevel)), \(service.sandbox.map { $0.isEmpty ? "sandbox off, " : "in a sandbox, " } ?? "")\(count) \(count == 1 ? "disk" : "disks")
      """
    return OutputWidth.folded(head) + "\n\n" + CtlList.table(service.disks)
  }

  /// - Parameter seconds: a duration.
  static func time(_ seconds: UInt64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60)
    if days > 0 { return "\(days) d \(hours) h" }
    if hours > 0 { return "\(hours) h \(minutes) min" }
    return minutes > 0 ? "\(minutes) min \(seconds % 60) s" : "\(seconds) s"
  }

  static func disk(_ disk: Operator.Disk) -> String {
    var lines = [
      ("disk", printable(disk.disk)),
      ("image", printable(disk.image) + (disk.readOnly ? ", read-only" : "")),
      ("size", "\(ByteSize.describe(disk.size)) (\(disk.size) bytes), blocks of \(disk.logicalBlockSize)"),
      ("serial", printable(disk.serial)),
      ("engine", "\(printable(disk.engineReason))"),
      ("page cache", disk.direct ? "bypassed" : "used"),
      ("state", disk.state.rawValue + (disk.flushFailed ? "; a flush failed, and none succeeds any more" : "")),
      ("queues", "\(disk.queues) of up to \(disk.maximumQueueSize) entries"),
      ("features", names(disk.features)),
    ]
    if let warning = disk.engineWarning { lines.append(("warning", printable(warning))) }
    if let driver = disk.driver {
      lines.append(("driver", who(driver)))
      if let features = driver.features { lines.append(("chosen", names(features))) }
      if let features = driver.protocolFeatures { lines.append(("protocol", names(features))) }
      for ring in driver.rings {
        lines.append(("ring \(ring.queue)", "\(ring.size) entries, \(ring.state.rawValue)"))
      }
    }
    lines.append(("limits", Operator.Limits(limits: disk.limits).words))
    let counters = disk.counters
    lines += [
      ("reads", "\(counters.reads) (\(ByteSize.describe(counters.bytesRead)))"),
      ("writes", "\(counters.writes) (\(ByteSize.describe(counters.bytesWritten)))"),
      ("flushes", "\(counters.flushes)"), ("discards", "\(counters.discards)"), ("zeroes", "\(counters.writeZeroes)"),
      ("others", "\(counters.others)"),
      (
        "failed",
        "\(counters.failures): \(counters.mediumFailures) by the medium, \(counters.unsupported) of unknown kinds, the rest refused"
      ),
      ("kicks", "\(counters.kicks)"), ("calls", "\(counters.calls)"),
    ]
    return lines.map { name, value in wrapped(name, value) }.joined(separator: "\n")
  }

  private static func names(_ names: [String]) -> String {
    names.isEmpty ? "none" : names.map(printable).joined(separator: " ")
  }

  private static func who(_ driver: Operator.Driver) -> String {
    var parts: [String] = []
    if let process = driver.process { parts.append("process \(process)" + (driver.user.map { " of user \($0)" } ?? "")) }
    if let memory = driver.memory { parts.append("\(ByteSize.describe(memory)) of guest memory") }
    return parts.isEmpty ? "connected" : parts.joined(separator: ", ")
  }

  /// The name and its value, in lines that fit the terminal.
  private static func wrapped(_ name: String, _ value: String) -> String {
    let indent = 12
    let lines = OutputWidth.words(value, width: max((OutputWidth.characters ?? 100) - indent, 20))
    let head = name + String(repeating: " ", count: max(indent - name.count, 1))
    return head + lines.joined(separator: "\n" + String(repeating: " ", count: indent))
  }
}
