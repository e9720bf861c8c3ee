/// A server that takes over from another one: what it asks on that one's control socket.
internal import Control
internal import Glibc
internal import Sockets
internal import SystemPackage
internal import VhostUser
internal import VirtioBlkDevice
internal import VirtioCore

/// Everything that is slow or can fail is done while the other server still serves; then one disk after the other changes hands.
final class ServeTakeover {
  /// A disk that is to be served here.
  struct Disk {
    /// As the other server calls it.
    let name: String
    let device: BlockDevice
    let server: BackendServer
    let socket: ServerSocket
    let place: String
    let errands: ErrandQueue
  }

  /// How a disk is made here, with the image's lock from there.
  typealias Maker = (_ lock: OwnedDescriptor?) throws -> BlockDevice

  /// Answers that do not depend on a medium.
  private static let patience = Duration.seconds(30)

  private let path: String
  private let loop: EventLoop
  private let log: ServeLog
  private let client: ControlClient
  private let wantsControl: Bool
  private(set) var disks: [Disk] = []
  /// Disks that are served here.
  private var taken: Set<Int> = []
  /// The other server's control socket, where it was wanted.
  private(set) var control: OwnedDescriptor?
  private var isWaiting = false
  /// What kept a disk from changing hands.
  private(set) var failures: [TakeoverFailure] = []

  /// - Parameters:
  ///   - path: of the other server's control socket.
  ///   - wantsControl: to go on with that socket, too.
  init(_ path: String, wantsControl: Bool, in loop: EventLoop, log: ServeLog) throws {
    self.path = path
    self.loop = loop
    self.log = log
    self.wantsControl = wantsControl
    client = try ControlClient(path: path, in: loop)
  }

  // MARK: While the other server serves

  /// The names of the disks that it serves.
  func greet() throws -> [String] {
    let line = try ask(
      Takeover.Request(request: .takeOver, version: Takeover.version, wantsControl: wantsControl), errands: nil)
    let greeting = try line.decode(Takeover.Greeting.self)
    guard greeting.version == Takeover.version else { throw TakeoverFailure.version(path, greeting.version) }
    guard greeting.transport == "vhost-user" else { throw TakeoverFailure.transport(path, greeting.transport) }
    log.note("taking over from \(greeting.program)")
    return greeting.disks.map(\.disk)
  }

  /// Makes a disk ready.
  ///
  /// - Parameters:
  ///   - name: one of `greet`.
  ///   - socketPath: where its socket is, so that its file can be removed one day; `nil`: that is not ours to do.
  ///   - makeServer: a server for the device and its socket.
  func prepare(
    _ name: String, socketPath: String?, place: String, make: Maker,
    makeServer: (BlockDevice, ServerSocket) -> BackendServer
  ) throws {
    let errands = ErrandQueue()
    let line = try ask(Takeover.Request(request: .describe, disk: name), errands: errands)
    let state = try line.decode(Takeover.Disk.self)
    let list = DescriptorList(line.descriptors)
    let device = try make(try state.image.lock.map { try list.descriptor($0) })
    guard device.image.size == state.image.size else {
      throw TakeoverFailure.disk(
        name,
        "\(TakeoverError.notTheSame("image", theirs: "\(state.image.size) bytes long", ours: "\(device.image.size) bytes long"))"
      )
    }
    let socket = try self.socket(state.server, list, path: socketPath)
    let disk = Disk(
      name: name, device: device, server: makeServer(device, socket), socket: socket, place: place, errands: errands)
    var answer: TakeoverError??
    disk.server.prepare(state.server, list, errands: errands) { [self] error in
      answer = .some(error)
      stopWaiting()
    }
    try wait { answer != nil }
    if let error = answer ?? nil { throw TakeoverFailure.disk(name, "\(error)") }
    disks.append(disk)
  }

  private func socket(_ state: ServerState, _ list: DescriptorList, path: String?) throws -> ServerSocket {
    if let listener = state.listener {
      return .listening(try Listener(takingOver: try list.descriptor(listener), path: path))
    }
    guard let connection = state.connection else { throw TakeoverError.overtaken }
    return .connected(try list.descriptor(connection.socket))
  }

  /// Asks and waits; nobody is served here yet.
  private func ask(_ request: Takeover.Request, errands: ErrandQueue?) throws -> ControlLine {
    var answer: Result<ControlLine, ControlError>?
    client.disposer = errands
    client.ask(ControlLine(request)) { [self] result in
      answer = result
      stopWaiting()
    }
    try wait { answer != nil }
    guard let answer else { throw TakeoverFailure.silent(path) }
    do {
      let line = try answer.get()
      if let reason = try? line.decode(Takeover.Answer.self).error { throw TakeoverFailure.refused(path, reason) }
      return line
    } catch let error as ControlError { throw TakeoverFailure.control(path, error) }
  }

  private func wait(until isDone: () -> Bool) throws {
    let end = ContinuousClock.now + Self.patience
    loop.after(Self.patience) { [weak self] in self?.stopWaiting() }
    while !isDone() {
      guard ContinuousClock.now < end else { throw TakeoverFailure.silent(path) }
      isWaiting = true
      defer { isWaiting = false }
      try loop.run()
    }
  }

  /// The loop is stopped for this wait alone, not for those who run it afterwards.
  private func stopWaiting() { if isWaiting { loop.stop() } }

  // MARK: One disk after the other

  /// Takes every disk that was made ready. What cannot be taken stays with the other server.
  ///
  /// - Parameter then: called once when none is left to be taken.
  func takeAll(then: @escaping () -> Void) { take(0, then) }

  private func take(_ index: Int, _ then: @escaping () -> Void) {
    guard disks.indices.contains(index) else {
      client.close()
      return then()
    }
    let disk = disks[index]
    client.disposer = disk.errands
    ask(.pause, disk) { line throws in
      let state = try line.decode(Takeover.Disk.self)
      let list = DescriptorList(line.descriptors)
      disk.server.adopt(state.server, list, errands: disk.errands) { [self] error in
        if let error { return giveBack(index, "\(error)", then) }
        commit(index, state, then)
      }
    } otherwise: { [self] reason in
      failed(index, reason)
      take(index + 1, then)
    }
  }

  private func commit(_ index: Int, _ state: Takeover.Disk, _ then: @escaping () -> Void) {
    let disk = disks[index]
    ask(.commit, disk) { [self] _ in
      disk.device.image.ownLock()
      if state.image.flushFailed { disk.device.image.state.flushFailed.storeRelaxed(1) }
      disk.server.release()
      taken.insert(index)
      if let since = state.stillSince { tell(disk, since) }
      ask(.served, disk) { line throws in
        let answer = try line.decode(Takeover.Answer.self)
        if let place = answer.control { self.control = try DescriptorList(line.descriptors).descriptor(place) }
        self.take(index + 1, then)
      } otherwise: { reason in
        self.log.warn("\(disk.place) is served here, and the server before cannot be told: \(reason)")
        self.take(index + 1, then)
      }
    } otherwise: { [self] reason in
      disk.server.giveBack()
      failed(index, reason)
      take(index + 1, then)
    }
  }

  private func tell(_ disk: Disk, _ since: UInt64) {
    let microseconds = (Clock.now &- since) / 1000
    log.note("took over \(disk.place); its queues stood still for \(microseconds / 1000).\(microseconds % 1000 / 100) ms")
  }

  private func giveBack(_ index: Int, _ reason: String, _ then: @escaping () -> Void) {
    let disk = disks[index]
    disk.server.giveBack()
    failed(index, reason)
    client.ask(ControlLine(Takeover.Request(request: .resume, disk: disk.name, reason: reason))) { [self] _ in
      take(index + 1, then)
    }
  }

  private func failed(_ index: Int, _ reason: String) {
    failures.append(.disk(disks[index].name, reason))
    log.warn("\(disks[index].place) stays with the server before: \(reason)")
  }

  private func ask(
    _ verb: Takeover.Request.Verb, _ disk: Disk, then answered: @escaping (ControlLine) throws -> Void,
    otherwise failed: @escaping (String) -> Void
  ) {
    client.ask(ControlLine(Takeover.Request(request: verb, disk: disk.name))) { result in
      do {
        let line = try result.get()
        if let reason = try? line.decode(Takeover.Answer.self).error { return failed(reason) }
        try answered(line)
      } catch { failed("\(error)") }
    }
  }

  /// Some disk is served here.
  var hasAny: Bool { !taken.isEmpty }
}

/// Why a server cannot be taken over from: one sentence.
enum TakeoverFailure: Error, CustomStringConvertible {
  case silent(String)
  case refused(String, String)
  case control(String, ControlError)
  case version(String, Int)
  case transport(String, String)
  case disk(String, String)
  case otherDisks(String)
  case nothingTaken(String)

  var description: String {
    switch self {
    case .silent(let path): "the server at \(printable(path)) does not answer; it goes on as before"
    case .refused(let path, let reason): "the server at \(printable(path)) refuses: \(printable(reason))"
    case .control(let path, let error): "the server at \(printable(path)) cannot be taken over from: \(error)"
    case .version(let path, let version):
      "the server at \(printable(path)) speaks version \(version) of taking over, and this program \(Takeover.version)"
    case .transport(let path, let transport):
      "the server at \(printable(path)) serves a \(printable(transport)): take that over with 'vmm-blk run'"
    case .disk(let disk, let reason): "\(printable(disk)) cannot be taken over: \(printable(reason))"
    case .otherDisks(let sentence): sentence
    case .nothingTaken(let reason): reason
    }
  }
}

extension TakeoverFailure: ErrorWithStatus {
  var status: ExitStatus {
    switch self {
    case .otherDisks: .usage
    default: .unavailable
    }
  }
}

extension TakeoverError: ErrorWithStatus {
  var status: ExitStatus { .unavailable }
}

extension ControlError: ErrorWithStatus {
  var status: ExitStatus { .unavailable }
}
