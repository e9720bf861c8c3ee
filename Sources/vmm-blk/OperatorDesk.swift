/// Answers an operator's requests.
internal import Control
internal import Glibc
internal import Logging
internal import OperatorWords
internal import Sandbox
internal import Sockets
internal import VirtioBlkDevice
internal import VirtioCore

/// Takes one line at a time from each connection, and answers each line once. Whatever waits for a medium runs on a helper
/// thread.
final class OperatorDesk {
  private let service: any OperatedService
  private let giver: TakeoverGiver
  private let loop: EventLoop
  private let log: ServeLog
  private let figures: OperatorFigures
  private let tracing: OperatorTracing
  /// The number of flushes that media have not answered yet.
  private var flushes = 0

  init(
    of service: any OperatedService, _ figures: OperatorFigures, _ giver: TakeoverGiver, in loop: EventLoop, log: ServeLog
  ) {
    self.service = service
    self.figures = figures
    self.giver = giver
    self.loop = loop
    self.log = log
    tracing = OperatorTracing(of: service, in: loop, log: log)
  }

  /// A line that came over the control socket.
  func take(_ line: ControlLine, from connection: ControlConnection) {
    let verb: String
    do throws(ControlError) { verb = try line.decode(AnyRequest.self).request } catch { return refuse(connection, "\(error)") }
    // Operators and takeovers share a verb. From a client that has begun a takeover, it belongs to the takeover.
    if giver.isTaker(connection) || Operator.Verb(rawValue: verb) == nil && Takeover.Request.Verb(rawValue: verb) != nil {
      return giver.take(line, from: connection)
    }
    guard Operator.Verb(rawValue: verb) != nil else { return refuse(connection, Self.unknown(verb)) }
    do throws(ControlError) { answer(try line.decode(Operator.Request.self), line, connection) } catch {
      refuse(connection, "\(error)")
    }
  }

  private struct AnyRequest: Decodable { var request: String }

  private static func unknown(_ verb: String) -> String {
    let verbs = Operator.Verb.allCases.map(\.rawValue)
    return "there is no \"\(printable(verb))\" here"
      + (CloseWord.find(to: verb, among: verbs).map { "; did you mean \"\($0)\"?" }
        ?? ": use one of " + verbs.joined(separator: ", "))
  }

  private func refuse(_ connection: ControlConnection, _ reason: String) {
    connection.answer(ControlLine(Operator.Answer(error: reason)))
  }

  private func answer(_ request: Operator.Request, _ line: ControlLine, _ connection: ControlConnection) {
    switch request.request {
    case .list: connection.answer(ControlLine(Operator.Disks(disks: summaries)))
    case .status:
      guard request.disk != nil else {
        connection.answer(ControlLine(status))
        return
      }
      with(request, connection) { connection.answer(ControlLine(status(of: $0))) }
    case .add:
      change(connection, by: "adds a disk") {
        service.add(line, then: $0)
      } answer: {
        Operator.Added(disk: $0)
      }
    case .remove:
      with(request, connection) { disk in
        change(connection, by: "removes \(disk.name)") {
          service.remove(disk.name, then: $0)
        } answer: {
          Operator.Answer()
        }
      }
    case .reload:
      change(connection, by: "has the list of disks read again") {
        service.reload(then: $0)
      } answer: {
        Operator.Reloaded(added: $0.added, removed: $0.removed, untouched: $0.untouched)
      }
    case .flush: with(request, connection) { flush($0, connection) }
    case .pause: with(request, connection) { pause($0, connection) }
    case .resume:
      with(request, connection) { disk in
        log.note("\(connection.peer) resumes \(disk.name)")
        disk.device.resume()
        connection.answer(ControlLine(Operator.Answer()))
      }
    case .metrics:
      guard request.disk != nil else {
        connection.answer(ControlLine(figures.all))
        return
      }
      with(request, connection) { connection.answer(ControlLine(figures.of([($0, $0.state)]))) }
    case .limit: with(request, connection) { limit($0, request, connection) }
    case .resize:
      guard !giver.isBusy else { return refuse(connection, Self.takenOver) }
      with(request, connection) { service.resizing.resize($0, request, connection) }
    case .trace: with(request, connection) { tracing.trace($0, request, connection) }
    case .logLevel: logLevel(request, connection)
    case .drain:
      guard !giver.isBusy else { return refuse(connection, Self.takenOver) }
      log.note("\(connection.peer) ends this process")
      connection.answer(ControlLine(Operator.Answer()))
      service.drain()
    }
  }

  private static let takenOver = "another process is taking over: try again when that is over"

  // MARK: Which disk

  private func with(_ request: Operator.Request, _ connection: ControlConnection, _ act: (any OperatedDisk) -> Void) {
    let disks = service.disks
    guard let name = request.disk else {
      guard let disk = disks.first else { return refuse(connection, "no disk is served here") }
      guard disks.count == 1 else { return refuse(connection, "\(disks.count) disks are served here: name one of them") }
      return act(disk)
    }
    if let disk = disks.first(where: { $0.name == name }) { return act(disk) }
    let alike = disks.filter { Self.lastComponent($0.name) == name || $0.device.image.path == name }
    guard alike.count < 2 else {
      return refuse(connection, "\(alike.count) disks are called \(printable(name)): give the whole path")
    }
    guard let disk = alike.first else {
      let close = CloseWord.find(to: name, among: disks.map(\.name))
      return refuse(
        connection, "there is no disk \(printable(name)) here" + (close.map { "; did you mean \(printable($0))?" } ?? ""))
    }
    act(disk)
  }

  private static func lastComponent(_ path: String) -> String { path.split(separator: "/").last.map { String($0) } ?? path }

  // MARK: Verbs that only read

  private var summaries: [Operator.Summary] {
    service.disks.map { summary($0, $0.state) } + service.leavingDisks.map { summary($0, .draining) }
  }

  private func summary(_ disk: any OperatedDisk, _ state: Operator.State) -> Operator.Summary {
    Operator.Summary(disk: disk.name, image: disk.device.image.path, size: disk.device.image.size, state: state)
  }

  private var status: Operator.Service {
    Operator.Service(
      program: Version.text, process: getpid(), transport: service.transport.rawValue,
      uptime: figures.uptime, logLevel: log.level.now.rawValue, sandbox: service.sandbox.parts,
      disks: summaries)
  }

  private func status(of disk: any OperatedDisk) -> Operator.Disk {
    let (device, image) = (disk.device, disk.device.image)
    return Operator.Disk(
      disk: disk.name, image: image.path, size: image.size, state: disk.state, readOnly: image.isReadOnly,
      logicalBlockSize: image.logicalBlockSize, direct: image.isDirect, serial: device.serial, engine: device.engine.rawValue,
      engineReason: device.engineReason, engineWarning: device.engineWarning,
      flushFailed: image.state.flushFailed.loadRelaxed() != 0, queues: device.queueCount,
      maximumQueueSize: Int(device.maximumQueueSize), features: Operator.names(of: device.features), driver: disk.driver,
      limits: Operator.limits(device.limits),
      counters: Operator.Counters(device.counters))
  }

  // MARK: Verbs that change something

  /// - Parameters:
  ///   - action: for the log, after the operator's name.
  ///   - act: calls back once.
  private func change<Result, Answer: Encodable>(
    _ connection: ControlConnection, by action: String,
    _ act: (@escaping (Swift.Result<Result, OperatorRefusal>) -> Void) -> Void, answer: @escaping (Result) -> Answer
  ) {
    guard !giver.isBusy else { return refuse(connection, Self.takenOver) }
    guard !service.isEnding else { return refuse(connection, "this process is about to end") }
    log.note("\(connection.peer) \(action)")
    act { [log] result in
      switch result {
      case .success(let done): connection.answer(ControlLine(answer(done)))
      case .failure(let reason):
        log.warn("a request of \(connection.peer) failed: \(reason)")
        connection.answer(ControlLine(Operator.Answer(error: "\(reason)")))
      }
    }
  }

  /// Each flush occupies a thread until its medium answers.
  private static let flushLimit = 16

  private func flush(_ disk: any OperatedDisk, _ connection: ControlConnection) {
    guard flushes < Self.flushLimit else {
      return refuse(connection, "\(flushes) flushes wait for their media: try again when these answer")
    }
    flushes += 1
    let image = disk.device.image
    loop.perform(on: ErrandQueue()) {
      image.flush()
    } then: { [self] error in
      flushes -= 1
      let reason = error.map { "the image \(image.path) cannot be flushed: \($0)" }
      connection.answer(ControlLine(Operator.Answer(error: reason)))
    }
  }

  private func pause(_ disk: any OperatedDisk, _ connection: ControlConnection) {
    guard !giver.isBusy else { return refuse(connection, Self.takenOver) }
    log.note("\(connection.peer) pauses \(disk.name)")
    disk.device.pause()
    waitForRest(disk, connection, until: ContinuousClock.now + Self.restLimit)
  }

  /// How long to wait for requests in flight before the operator is told that they are not done.
  private static let restLimit = Duration.seconds(30)

  private func waitForRest(_ disk: any OperatedDisk, _ connection: ControlConnection, until end: ContinuousClock.Instant) {
    guard !disk.device.isAtRest else {
      connection.answer(ControlLine(Operator.Answer()))
      return
    }
    guard disk.device.isPaused else { return refuse(connection, "another client has resumed \(disk.name) in the meantime") }
    guard ContinuousClock.now < end else {
      return refuse(connection, "\(disk.name) takes no more requests, but some are still in flight after \(Self.restLimit)")
    }
    loop.after(.milliseconds(5)) { [self] in waitForRest(disk, connection, until: end) }
  }

  private func limit(_ disk: any OperatedDisk, _ request: Operator.Request, _ connection: ControlConnection) {
    var limits = disk.device.limits
    if let wanted = request.limits {
      do throws(OperatorRefusal) { try Operator.change(wanted).apply(to: &limits) } catch {
        return refuse(connection, "\(error)")
      }
      log.note("\(connection.peer) limits \(disk.name): \(limits.words)")
      disk.device.setLimits(limits)
    }
    connection.answer(ControlLine(Operator.Limits(limits: Operator.limits(limits))))
  }

  private func logLevel(_ request: Operator.Request, _ connection: ControlConnection) {
    if let word = request.level {
      guard let level = Logger.Level(rawValue: word) else {
        let levels = Logger.Level.allCases.map(\.rawValue).joined(separator: ", ")
        return refuse(connection, "there is no level \"\(printable(word))\": use one of \(levels)")
      }
      log.level.now = level
    }
    connection.answer(ControlLine(Operator.Level(level: log.level.now.rawValue)))
  }
}
