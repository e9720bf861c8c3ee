/// `vmm-blk trace`: what happens to the requests of a running server, for a viewer and as a table.
internal import ArgumentParser
internal import FoundationEssentials
internal import Glibc
internal import OperatorWords
internal import Sockets
internal import TraceReport
internal import VirtioBlkDevice
internal import VirtioCore

struct TraceCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "trace", abstract: "Record where the requests of a running server spend their time.",
    usage: "vmm-blk trace --control <path> [--output <file>] [<options>]",
    discussion: """
      The server is a 'vmm-blk serve' or 'vmm-blk run' with --control <path>; VMM_BLK_CONTROL in the environment stands for it. \
      Until the time is over, or until SIGINT, each of its threads records every request: when it was popped from its ring, when it \
      was passed to the medium and completed there, and when the answer was written and published; and when the thread polled, \
      slept, noticed a kick and sent a call. A thread that has written 2048 records within a tenth of a second records nothing until the \
      next tenth, so that a trace costs little; --all records everything. Each thread keeps its latest records, in memory of a \
      fixed size. --output writes them as JSON for the viewers of Chrome (chrome://tracing) and Perfetto (ui.perfetto.dev), and \
      --picture draws the first few requests as SVG.

      The table shows how long requests waited on average for a limit, for the medium, for earlier answers (if they are \
      published in order), and for their batch to be published; and how much of its time each thread worked, polled and slept.

        vmm-blk trace --control /run/disks.ctl --disk a.sock --output trace.json

      Docs/tracing.md explains each column and what a trace costs. A server with --trace-file can also be traced by a signal.
      """)

  @Option(help: .init("The control socket of the server.", valueName: "path"))
  var control: String?

  @Option(help: .init("The disk. (default: all)", valueName: "text"))
  var disk: String?

  @Option(help: .init("How long to trace.", valueName: "n"))
  var seconds = 1.0

  @Option(help: .init("How many records each thread keeps, of 64 bytes each; the oldest are overwritten.", valueName: "n"))
  var records = 65536

  @Option(help: .init("Where to write the events, as JSON.", valueName: "file"))
  var output: String?

  @Option(help: .init("Where to draw the first requests, as SVG.", valueName: "file"))
  var picture: String?

  @Option(help: .init("How many requests to draw.", valueName: "n"))
  var pictureRequests = 12

  @Flag(help: "Record every request, whatever it costs. (default: up to 2048 records per tenth of a second)")
  var all = false

  /// How many records a thread writes within a tenth of a second; they take a few thousandths of its time.
  private static let budget = 2048

  @Flag(
    help: .init(
      "Record the kernel's own trace points of io_uring and of block devices as well, and write them into --output beside the rest. "
        + "Needs root and tracefs."))
  var kernel = false

  @Flag(help: "End and drop a trace that somebody else has started, and record nothing.")
  var abandon = false

  func validate() throws {
    guard (0.001...3600).contains(seconds) else {
      throw ValidationError("--seconds \(seconds) is not from 0.001 to 3600.")
    }
    guard (16...1 << 22).contains(records) else { throw ValidationError("--records \(records) is not from 16 to \(1 << 22).") }
    guard (1...10000).contains(pictureRequests) else {
      throw ValidationError("--picture-requests \(pictureRequests) is not from 1 to 10000.")
    }
  }

  func run() throws {
    // Before any other thread.
    let signals = try TerminationSignals([SIGTERM, SIGINT])
    let server = try CtlSession(try CtlTarget.path(control), patience: .seconds(60), printsJSON: false)
    let names = try disk.map { [CtlDisk.absolute($0)] } ?? allDisks(server)
    guard !abandon else {
      for name in names { _ = try server.ask(request(.drop, name)) }
      return
    }
    let (disks, inKernel) = try traced(server, names, signals)
    if let output { try write(TraceEvents.json(disks, kernel: inKernel), to: output) }
    if let picture, let first = disks.first(where: { !$0.requests.isEmpty }) ?? disks.first {
      try write(TracePicture.svg(first, requests: pictureRequests), to: picture)
    }
    for line in TraceTable.lines(disks) + (inKernel?.lines ?? []) { print(printable(line)) }
  }

  private func allDisks(_ server: CtlSession) throws -> [String] {
    let disks = try server.ask(Operator.Request(request: .list), Operator.Disks.self).disks.filter { $0.state != .draining }
    guard !disks.isEmpty else { throw TraceFailure.noDisk }
    return disks.map(\.disk)
  }

  private func request(_ action: Operator.TraceAction, _ disk: String) -> Operator.Request {
    var request = Operator.Request(request: .trace, disk: disk)
    request.action = action
    return request
  }

  /// Traces all of them at the same time. Whatever fails on the way, no trace is left running.
  private func traced(
    _ server: CtlSession, _ names: [String], _ signals: TerminationSignals
  ) throws -> ([TracedDisk], KernelTrace?) {
    // Before anything is traced, so that what is missing is reported at once.
    let process = kernel ? try server.ask(Operator.Request(request: .status), Operator.Service.self).process : 0
    let kernelTracing = kernel ? try KernelTracing(process: process) : nil
    var begun: [String] = []
    defer { for name in begun { _ = try? server.ask(request(.drop, name)) } }
    for name in names {
      var start = request(.start, name)
      // If we do not end it, it ends by itself a little later.
      start.milliseconds = min(Int(seconds * 1000) + 5000, 3_600_000)
      start.records = records
      start.budget = all ? nil : Self.budget
      _ = try server.ask(start)
      begun.append(name)
    }
    try kernelTracing?.start()
    var entry = pollfd(fd: signals.descriptor, events: Int16(POLLIN), revents: 0)
    _ = unsafe poll(&entry, 1, Int32(seconds * 1000))
    // All are stopped first, so that reading one does not appear in another. A disk that is gone by now does not affect the
    // others.
    let ends = try attempts(names) { try server.ask(request(.stop, $0), Operator.Trace.self) }
    let inKernel = try kernelTracing?.finish()
    return (try attempts(ends) { try disk($0, server) }, inKernel)
  }

  /// The outcome for each disk; failures are reported, and are an error if all fail.
  private func attempts<Each, Result>(_ list: [Each], _ attempt: (Each) throws -> Result) throws -> [Result] {
    var results: [Result] = []
    for (index, each) in list.enumerated() {
      do { results.append(try attempt(each)) } catch {
        guard !results.isEmpty || index + 1 < list.count else { throw error }
        BenchOutput.note("vmm-blk: \(error)\n")
      }
    }
    return results
  }

  /// Fetches the records of a disk.
  private func disk(_ trace: Operator.Trace, _ server: CtlSession) throws -> TracedDisk {
    guard trace.format == TraceRecord.format else { throw TraceFailure.otherFormat(trace.format) }
    var disk = TracedDisk(name: trace.disk, engine: trace.engine, start: trace.start, end: trace.end)
    for thread in trace.threads {
      var records: [TraceRecord] = []
      var fetched = 0
      while fetched < thread.records {
        var ask = request(.read, trace.disk)
        (ask.thread, ask.from) = (thread.thread, fetched)
        let text = try server.ask(ask, Operator.TraceRecords.self).records
        let bytes = Data(base64Encoded: text).map { Array($0) } ?? []
        guard !bytes.isEmpty, bytes.count % TraceRecord.size == 0 else { throw TraceFailure.notUnderstood(trace.disk) }
        records += stride(from: 0, to: bytes.count, by: TraceRecord.size).compactMap { TraceRecord(bytes, at: $0) }
        fetched += bytes.count / TraceRecord.size
      }
      disk.add(thread: thread.thread, records, overwritten: thread.overwritten)
    }
    disk.silent = trace.silent
    return disk
  }

  private func write(_ text: String, to path: String) throws {
    do { try Data(text.utf8).write(to: URL(fileURLWithPath: path)) } catch { throw TraceFailure.notWritten(path, "\(error)") }
  }
}

/// Why there is no trace: one sentence.
private enum TraceFailure: Error, CustomStringConvertible, ErrorWithStatus {
  case noDisk
  case otherFormat(Int)
  case notUnderstood(String)
  case notWritten(String, String)

  var description: String {
    switch self {
    case .noDisk: "the server has no disk to trace"
    case .otherFormat(let format):
      "the server writes traces in format \(format), and this program reads \(TraceRecord.format): use the server's own version"
    case .notUnderstood(let disk): "the server's answer about the trace of \(printable(disk)) is invalid"
    case .notWritten(let path, let why): "\(printable(path)) cannot be written: \(why)"
    }
  }

  var status: ExitStatus { .failure }
}
