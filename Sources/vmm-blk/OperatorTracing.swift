/// Traces of disks for an operator: started, ended, and read piece by piece.
internal import Control
internal import FoundationEssentials
internal import OperatorWords
internal import Sockets
internal import SystemPackage
internal import VirtioBlkDevice
internal import VirtioCore

/// Used on the loop's thread. Nothing here waits, and everything is bounded: the memory of all traces together, how long one
/// runs, how long it is kept, and how much of it goes into one answer.
final class OperatorTracing {
  /// Bytes of all traces of the process.
  static let memoryLimit = 256 << 20
  /// How many records per thread may be requested.
  private static let recordRange = 16...1 << 22
  private static let timeRange = 1...3_600_000
  /// Records in one answer: they take this thread a few hundred microseconds.
  private static let recordsPerAnswer = 2048
  /// How long the end of a trace waits for threads that do not respond.
  private static let patience = Duration.seconds(5)
  /// How long a trace is kept if nobody fetches it.
  private static let shelfLife = Duration.seconds(60)

  private unowned let service: any OperatedService
  private let loop: EventLoop
  private let log: ServeLog
  /// When traces end, or are dropped, without a request: one timer for each device, however often traces are started. The
  /// identifier of a removed device may be reused by the next one.
  private struct End {
    weak var device: BlockDevice?
    /// Identifies the trace: a signal may have started another one in the meantime.
    var number: UInt64
    var time: ContinuousClock.Instant
  }
  private var ends: [ObjectIdentifier: End] = [:]
  private static let checkPeriod = Duration.milliseconds(100)

  init(of service: any OperatedService, in loop: EventLoop, log: ServeLog) {
    self.service = service
    self.loop = loop
    self.log = log
  }

  func trace(_ disk: any OperatedDisk, _ request: Operator.Request, _ connection: ControlConnection) {
    switch request.action {
    case .start: start(disk, request, connection)
    case .stop: stop(disk, connection)
    case .read: read(disk, request, connection)
    case .drop:
      disk.device.dropTrace()
      connection.answer(ControlLine(Operator.Answer()))
    case nil:
      let actions = Operator.TraceAction.allCases.map(\.rawValue).joined(separator: ", ")
      refuse(connection, "\"action\" is missing: use one of \(actions)")
    }
  }

  private func refuse(_ connection: ControlConnection, _ reason: String) {
    connection.answer(ControlLine(Operator.Answer(error: reason)))
  }

  private func start(_ disk: any OperatedDisk, _ request: Operator.Request, _ connection: ControlConnection) {
    let device = disk.device
    guard let time = request.milliseconds, Self.timeRange.contains(time) else {
      return refuse(connection, "\"milliseconds\" is missing, or not from 1 to \(Self.timeRange.upperBound)")
    }
    guard let records = request.records, Self.recordRange.contains(records) else {
      return refuse(
        connection, "\"records\" is missing, or not from \(Self.recordRange.lowerBound) to \(Self.recordRange.upperBound)")
    }
    guard device.trace.map({ $0.end != nil }) ?? true else {
      return refuse(connection, "\(disk.name) is being traced: wait for its end, or end it with 'vmm-blk trace --abandon'")
    }
    let others = service.disks.reduce(0) { $1.name == disk.name ? $0 : $0 + $1.device.traceMemory }
    guard others + device.memoryOfTrace(records: records) <= Self.memoryLimit else {
      return refuse(
        connection,
        "traces may use \(ByteSize.describe(UInt64(Self.memoryLimit))) together, and this one would need more: ask for fewer than "
          + "\(records) records a thread, or for one disk")
    }
    do throws(Errno) { try device.startTrace(records: records, budget: request.budget) } catch {
      return refuse(connection, "there is no memory for a trace of \(disk.name): \(error)")
    }
    log.note("\(connection.peer) traces \(disk.name)")
    // The client that started it may be gone by then.
    end(device, after: .milliseconds(time))
    connection.answer(ControlLine(Operator.Answer()))
  }

  /// Ends the trace after a time, or drops it if it has ended by then.
  private func end(_ device: BlockDevice, after time: Duration) {
    let name = ObjectIdentifier(device)
    guard let number = device.trace?.number else { return }
    let entry = End(device: device, number: number, time: ContinuousClock.now + time)
    let isWatched = ends.updateValue(entry, forKey: name) != nil
    if !isWatched { watch(name) }
  }

  private func watch(_ name: ObjectIdentifier) {
    loop.after(Self.checkPeriod) { [weak self] in
      guard let self, let end = ends[name] else { return }
      guard let device = end.device, let trace = device.trace, trace.number == end.number else {
        ends[name] = nil
        return
      }
      if ContinuousClock.now >= end.time {
        guard trace.end == nil else {
          ends[name] = nil
          return device.dropTrace()
        }
        device.stopTrace()
        ends[name]?.time = ContinuousClock.now + Self.shelfLife
      }
      watch(name)
    }
  }

  private func stop(_ disk: any OperatedDisk, _ connection: ControlConnection) {
    guard let trace = disk.device.trace else { return refuse(connection, Self.nothing(disk)) }
    disk.device.stopTrace()
    end(disk.device, after: Self.shelfLife)
    answer(disk, trace.number, connection, until: ContinuousClock.now + Self.patience)
  }

  private static func nothing(_ disk: any OperatedDisk) -> String { "there is no trace of \(disk.name), or not any more" }

  /// Reports what there is once every thread has confirmed that it writes no more.
  private func answer(
    _ disk: any OperatedDisk, _ number: UInt64, _ connection: ControlConnection, until end: ContinuousClock.Instant
  ) {
    guard let trace = disk.device.trace, trace.number == number, let last = trace.end else {
      return refuse(connection, Self.nothing(disk))
    }
    guard trace.isComplete || ContinuousClock.now >= end else {
      return loop.after(.milliseconds(5)) { [self] in answer(disk, number, connection, until: end) }
    }
    let threads = trace.threads.map {
      Operator.TraceThread(thread: $0.number, records: $0.buffer.count, overwritten: $0.buffer.overwritten)
    }
    connection.answer(
      ControlLine(
        Operator.Trace(
          disk: disk.name, image: disk.device.image.path, engine: disk.device.engine.rawValue, format: TraceRecord.format,
          start: trace.start, end: last, threads: threads, silent: trace.pending.sorted())))
  }

  private func read(_ disk: any OperatedDisk, _ request: Operator.Request, _ connection: ControlConnection) {
    guard let trace = disk.device.trace, trace.end != nil else { return refuse(connection, Self.nothing(disk)) }
    guard let thread = trace.threads.first(where: { $0.number == request.thread }) else {
      return refuse(connection, "\"thread\" is none of those that were traced")
    }
    let bytes = thread.buffer.bytes(from: request.from ?? 0, limit: Self.recordsPerAnswer)
    connection.answer(ControlLine(Operator.TraceRecords(records: Data(bytes).base64EncodedString())))
  }
}
