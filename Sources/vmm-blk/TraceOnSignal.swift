/// A trace that SIGUSR2 starts and ends, written to a file that was opened at the start: for servers without a control socket,
/// and for those who have a shell on the host and nothing else.
internal import ArgumentParser
internal import Glibc
internal import OperatorWords
internal import Sockets
internal import SystemPackage
internal import TraceReport
internal import VirtioBlkDevice
internal import VirtioCore

struct TraceFileOptions: ParsableArguments {
  @Option(
    help: .init(
      "SIGUSR2 starts a trace of all disks, and the next SIGUSR2 ends it and writes it to this file, as JSON for the viewers of "
        + "Chrome and Perfetto.", valueName: "file"))
  var traceFile: String?

  /// Opens the file, if one was given. Its contents stay until the first trace is written.
  ///
  /// Call it before other threads start, which inherit the blocked signal, and before the sandbox is entered.
  func open() throws -> TraceFile? { try traceFile.map { try TraceFile($0) } }
}

/// The file, and the signal that asks for it.
struct TraceFile {
  let path: String
  let file: FileDescriptor
  let signals: TerminationSignals

  init(_ path: String) throws {
    self.path = path
    do {
      // A pipe that nobody reads must not block anything.
      file = try FileDescriptor.open(
        FilePath(path), .writeOnly, options: [.create, .closeOnExec, .nonBlocking], permissions: .init(rawValue: 0o644))
      _ = try file.seek(offset: 0, from: .start)
    } catch let error as Errno {
      throw ValidationError("--trace-file \(printable(path)) cannot be written: \(error). Name a regular file.")
    }
    signals = try TerminationSignals([SIGUSR2])
  }
}

/// Used on the loop's thread. A helper thread formats and writes the text, because the file's medium may take arbitrarily long.
final class TraceOnSignal {
  /// Records that each thread keeps, the default of `vmm-blk trace`.
  private static let records = 65536
  /// Records that each thread writes within a tenth of a second.
  static let budget = 2048
  /// How long to wait for threads that do not respond.
  private static let patience = Duration.seconds(5)

  private enum State {
    case idle
    case running([Begun])
    /// Threads are stopping, or the file is being written.
    case ending
  }

  /// A disk may be removed in the meantime, and its name given to another.
  private struct Begun {
    let name: String
    weak var device: BlockDevice?
    let number: UInt64
  }

  private let output: TraceFile
  private unowned let service: any OperatedService
  private let loop: EventLoop
  private let log: ServeLog
  private var state = State.idle

  init(_ output: TraceFile, of service: any OperatedService, in loop: EventLoop, log: ServeLog) throws(Errno) {
    self.output = output
    self.service = service
    self.loop = loop
    self.log = log
    _ = try loop.add(output.signals.descriptor) { [self] _ in
      guard output.signals.take() != nil else { return }
      switch state {
      case .idle: start()
      case .running(let begun): stop(begun)
      case .ending: log.warn("SIGUSR2: the previous trace is still being written; send the signal again when it is done")
      }
    }
  }

  private func start() {
    var begun: [Begun] = []
    for disk in service.disks {
      guard disk.device.trace.map({ $0.end != nil }) ?? true else {
        log.warn("\(disk.name) is already being traced, so this trace leaves it out")
        continue
      }
      let others = service.disks.reduce(0) { $1.name == disk.name ? $0 : $0 + $1.device.traceMemory }
      guard others + disk.device.memoryOfTrace(records: Self.records) <= OperatorTracing.memoryLimit else {
        let limit = ByteSize.describe(UInt64(OperatorTracing.memoryLimit))
        log.warn(
          "\(disk.name) is left out of the trace: traces may use \(limit) together; take fewer with 'vmm-blk trace --records'")
        continue
      }
      do throws(Errno) { try disk.device.startTrace(records: Self.records, budget: Self.budget) } catch {
        log.warn("there is no memory to trace \(disk.name): \(error)")
        continue
      }
      if let trace = disk.device.trace { begun.append(Begun(name: disk.name, device: disk.device, number: trace.number)) }
    }
    guard !begun.isEmpty else { return log.warn("SIGUSR2: there is no disk to trace") }
    state = .running(begun)
    log.note("SIGUSR2: tracing \(Self.disks(begun.count)); the next SIGUSR2 ends the trace and writes \(output.path)")
  }

  private static func disks(_ count: Int) -> String { count == 1 ? "1 disk" : "\(count) disks" }

  private func stop(_ begun: [Begun]) {
    state = .ending
    for each in begun where each.device?.trace?.number == each.number { each.device?.stopTrace() }
    collect(begun, until: ContinuousClock.now + Self.patience)
  }

  /// Passes the records to the helper thread once every thread has confirmed that it writes no more.
  private func collect(_ begun: [Begun], until end: ContinuousClock.Instant) {
    let traces = begun.compactMap { each -> (name: String, device: BlockDevice, trace: DeviceTrace)? in
      guard let device = each.device, let trace = device.trace, trace.number == each.number else { return nil }
      return (each.name, device, trace)
    }
    guard traces.allSatisfy({ $0.trace.isComplete }) || ContinuousClock.now >= end else {
      return loop.after(.milliseconds(5)) { [self] in collect(begun, until: end) }
    }
    let disks = traces.compactMap { name, device, trace -> Recorded? in
      guard let last = trace.end else { return nil }
      return Recorded(
        name: name, engine: device.engine.rawValue, start: trace.start, end: last,
        threads: trace.threads.map { ($0.number, $0.buffer) })
    }
    for each in traces { each.device.dropTrace() }
    guard !disks.isEmpty else {
      state = .idle
      return log.warn("the traced disks are gone, so nothing is written")
    }
    let file = output.file
    loop.perform(on: ErrandQueue()) {
      Self.write(disks, to: file)
    } then: { [self] error in
      state = .idle
      if let error { return log.warn("the trace cannot be written to \(output.path): \(error)") }
      log.note("the trace of \(Self.disks(disks.count)) is in \(output.path)")
    }
  }

  /// The trace of one disk, used only by the helper thread.
  private struct Recorded: Sendable {
    let name: String
    let engine: String
    let start: TraceMoment
    let end: TraceMoment
    let threads: [(number: Int, buffer: TraceBuffer)]

    /// What one thread did, so that the records of only one thread are decoded at a time.
    func disk(_ thread: (number: Int, buffer: TraceBuffer)) -> TracedDisk {
      var disk = TracedDisk(name: name, engine: engine, start: start, end: end)
      let bytes = thread.buffer.bytes(from: 0, limit: thread.buffer.count)
      let records = stride(from: 0, to: bytes.count, by: TraceRecord.size).compactMap { TraceRecord(bytes, at: $0) }
      disk.add(thread: thread.number, records, overwritten: thread.buffer.overwritten)
      return disk
    }

    /// Without its threads.
    var head: TracedDisk { TracedDisk(name: name, engine: engine, start: start, end: end) }
  }

  private static func write(_ disks: [Recorded], to file: FileDescriptor) -> Errno? {
    do {
      try file.resize(to: 0)
      var offset: Int64 = 0
      var writer = TraceEvents.Writer { text in
        let count = try file.writeAll(toAbsoluteOffset: offset, text.utf8)
        offset += Int64(count)
      }
      for (index, recorded) in disks.enumerated() {
        try writer.add(recorded.head, process: index + 1)
        for thread in recorded.threads { try writer.add(recorded.disk(thread), process: index + 1, isNamed: false) }
      }
      try writer.finish()
      return nil
    } catch { return error as? Errno ?? .ioError }
  }
}
