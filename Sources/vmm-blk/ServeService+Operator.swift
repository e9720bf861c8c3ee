/// What a server does for its operator: it adds and removes disks. Whatever may wait for a medium runs on helper threads.
internal import Control
internal import FoundationEssentials
internal import OperatorWords
internal import Sockets
internal import VhostUser
internal import VirtioBlkDevice
internal import VirtioCore

extension ServedDisk: OperatedDisk {
  var isDriven: Bool { server.hasFrontend }

  var driver: Operator.Driver? {
    server.frontend.map { frontend in
      Operator.Driver(
        process: frontend.peer?.process, user: frontend.peer?.user, features: frontend.features.map { Operator.names(of: $0) },
        protocolFeatures: frontend.protocolFeatures.nameList, memory: frontend.memory,
        rings: frontend.rings.map { ring in
          Operator.Ring(
            queue: ring.queue, size: ring.size, state: ring.hasFailed ? .failed : ring.isRunning ? .running : .stopped)
        })
    }
  }
}

extension ServeService: OperatedService {
  var transport: Takeover.Transport { .vhostUser }
  var disks: [any OperatedDisk] { served }
  var leavingDisks: [any OperatedDisk] { leaving }

  func drain() { end() }

  /// A disk is served by another process from now on.
  func handedOver(_ name: String) {
    guard let disk = served.first(where: { $0.name == name }) else { return }
    forget(disk)
    guard served.isEmpty else { return }
    log.note("everything is served by another process, so this one ends")
    loop.stop()
  }

  // MARK: Adding a disk

  /// How many helper threads may wait for media at the same time.
  private static let openingLimit = 16

  func add(_ entry: ControlLine, then: @escaping (Result<String, OperatorRefusal>) -> Void) {
    let disk: ServeDisk
    do {
      disk = try JSONDecoder().decode(EntryLine.self, from: Data(entry.text), configuration: command.disk).disk
    } catch let refusal as OperatorRefusal {
      return then(.failure(refusal))
    } catch { return then(.failure(OperatorRefusal("the disk cannot be served: \(error)"))) }
    let work = Parcel(disk)
    let openOne = {
      @Sendable [access = command.socketAccess, hint = openingHint, servers = serverPermission]
      (patience: OpeningPatience) throws -> [OpenedDisk] in
      try work.take().map { [try OpenedDisk($0, access: access, hint: hint, servers: servers, patience: patience)] } ?? []
    }
    open(openOne) { [self] result in
      switch result {
      case .failure(let error): then(.failure(OperatorRefusal("the disk cannot be served: \(error)")))
      case .success(let opened): then(begin(zip([disk], opened)).map { $0[0] })
      }
    }
  }

  private struct EntryLine: DecodableWithConfiguration {
    let disk: ServeDisk

    init(from decoder: any Decoder, configuration defaults: DeviceOptions) throws {
      let values = try decoder.container(keyedBy: Operator.EntryKey.self)
      guard values.contains(.entry) else { throw OperatorRefusal("\"entry\" is missing: it says what the disk is") }
      disk = try values.decode(ServeDisk.self, forKey: .entry, configuration: defaults)
    }
  }

  /// Opens disks on a helper thread, within the time allowed to a medium, or to an image with limits of its own.
  ///
  /// - Parameters:
  ///   - work: runs on the helper thread.
  ///   - then: called once, on the loop's thread.
  private func open<Opened>(
    _ work: @escaping @Sendable (OpeningPatience) throws -> Opened, then: @escaping (Result<Opened, OperatorRefusal>) -> Void
  ) {
    guard opening < Self.openingLimit else {
      return then(.failure(OperatorRefusal("\(opening) others wait for their media: try again when these answer")))
    }
    opening += 1
    let attempt = Attempt(then)
    let patience = OpeningPatience()
    patiences.append(patience)
    giveUp(attempt, patience, after: limit)
    loop.perform(on: ErrandQueue()) { () -> Parcel<Result<Opened, OperatorRefusal>> in
      do { return Parcel(.success(try work(patience))) } catch { return Parcel(.failure(OperatorRefusal("\(error)"))) }
    } then: { [self] result in
      opening -= 1
      patiences.removeAll { $0 === patience }
      guard let then = attempt.take() else {
        // The result is no longer needed, and closing it waits for the same medium.
        return ErrandQueue().run { _ = result.take() }
      }
      if let result = result.take() { then(result) }
    }
  }

  private func giveUp<Opened>(
    _ attempt: Attempt<Result<Opened, OperatorRefusal>>, _ patience: OpeningPatience, after delay: Duration
  ) {
    loop.after(delay) { [self] in
      guard attempt.isOpen else { return }
      let extra = patience.extraTime
      // The attempt itself reports what did not answer.
      guard extra == 0 || isEnding else { return giveUp(attempt, patience, after: .nanoseconds(extra) + .seconds(1)) }
      patience.giveUp()
      attempt.take()?(.failure(OperatorRefusal("the medium has not answered for \(limit), so the attempt is given up")))
    }
  }

  /// A callback that is called at most once.
  private final class Attempt<Value> {
    private var then: ((Value) -> Void)?
    init(_ then: @escaping (Value) -> Void) { self.then = then }
    var isOpen: Bool { then != nil }
    func take() -> ((Value) -> Void)? {
      defer { then = nil }
      return then
    }
  }

  /// Serves open disks, all of them or none.
  private func begin(_ opened: some Sequence<(ServeDisk, OpenedDisk)>) -> Result<[String], OperatorRefusal> {
    guard !isEnding else { return .failure(OperatorRefusal("this process is about to end")) }
    var begun: [ServedDisk] = []
    do {
      for (description, open) in opened {
        let disk = serve(description, open)
        begun.append(disk)
        try disk.server.open()
      }
    } catch {
      for disk in begun { close(disk) {} }
      return .failure(OperatorRefusal("the disk cannot be served: \(error)"))
    }
    served += begun
    manager.note(state)
    log.noteEngines(of: begun.map(\.device))
    return .success(begun.map(\.name))
  }

  // MARK: Removing a disk

  func remove(_ name: String, then: @escaping (Result<Void, OperatorRefusal>) -> Void) {
    guard let disk = served.first(where: { $0.name == name }) else {
      return then(.failure(OperatorRefusal("there is no disk \(name) here")))
    }
    let attempt = Attempt(then)
    loop.after(limit) { [limit] in
      attempt.take()?(
        .failure(
          OperatorRefusal(
            "\(name) is no longer served, but its medium does not answer: requests are still in flight after \(limit)")))
    }
    close(disk) { attempt.take()?(.success(())) }
  }

  // MARK: The list

  func reload(then: @escaping (Result<DiskChange, OperatorRefusal>) -> Void) {
    guard let file = command.disks else {
      return then(.failure(OperatorRefusal("this server has no list of disks: it was started without --disks")))
    }
    guard !isReloading else { return then(.failure(OperatorRefusal("the list is being read already"))) }
    guard !isEnding, control?.giver.isBusy != true else {
      return then(
        .failure(OperatorRefusal("no disk can be changed now: this process is about to end, or another one is taking over")))
    }
    isReloading = true
    manager.reloading()
    let isDone = { [self] (result: Result<DiskChange, OperatorRefusal>) in
      manager.reloaded(state)
      then(result)
    }
    let work = Parcel((defaults: command.disk, present: served.map { (name: $0.name, options: $0.options) }))
    let read = {
      @Sendable [access = command.socketAccess, hint = openingHint, servers = serverPermission]
      (patience: OpeningPatience) throws -> ReadList in
      try ReadList(file, work, access, hint, servers, patience)
    }
    open(read) { [self] result in
      isReloading = false
      switch result {
      case .failure(let refusal): isDone(.failure(refusal))
      case .success(let list): carryOut(list, isDone)
      }
    }
  }

  private func carryOut(_ list: ReadList, _ then: @escaping (Result<DiskChange, OperatorRefusal>) -> Void) {
    guard control?.giver.isBusy != true else { return then(.failure(OperatorRefusal("another process is taking over"))) }
    var change = DiskChange(removed: list.removed, untouched: list.untouched)
    switch begin(list.opened) {
    case .success(let names): change.added = names
    case .failure(let refusal): return then(.failure(refusal))
    }
    for (name, options) in list.limited {
      guard let disk = served.first(where: { $0.name == name }) else { continue }
      disk.options = options
      disk.device.setLimits(options.limit?.limits ?? RateLimits())
      log.note("the limits of \(name) are now \(disk.device.limits.words)")
    }
    let attempt = Attempt(then)
    var waiting = list.removed.count
    func isDone(_ result: Result<Void, OperatorRefusal>) {
      waiting -= 1
      if case .failure(let refusal) = result { log.warn("\(refusal)") }
      if waiting <= 0 { attempt.take()?(.success(change)) }
    }
    for name in list.removed { remove(name, then: isDone) }
    if list.removed.isEmpty { isDone(.success(())) }
  }
}

/// A list that was read again, compared with what is served, and the disks that have been opened for it.
private struct ReadList {
  let opened: [(ServeDisk, OpenedDisk)]
  /// Names of disks that are not listed any more.
  let removed: [String]
  let untouched: Int
  /// Served disks whose limits have changed.
  let limited: [(name: String, options: DeviceOptions)]

  /// Waits for media. Errors are sentences for the user.
  ///
  /// - Parameters:
  ///   - work: the command line's options, and what is served now.
  ///   - access: the permissions of new sockets.
  ///   - hint: for errors, where images may be.
  ///   - servers: the image servers that may be connected to.
  ///   - patience: how long the caller waits for the disks.
  init(
    _ file: String, _ work: Parcel<(defaults: DeviceOptions, present: [(name: String, options: DeviceOptions)])>,
    _ access: SocketAccess, _ hint: String?, _ servers: ServerPermission?, _ patience: OpeningPatience
  ) throws {
    guard let (defaults, present) = work.take() else { preconditionFailure("a list is read once") }
    let list = try ServeDiskList(file: file, defaults: defaults, mayBeEmpty: true)
    let known = Dictionary(present, uniquingKeysWith: { first, _ in first })
    var opened: [(ServeDisk, OpenedDisk)] = []
    var listed: Set<String> = []
    var limited: [(name: String, options: DeviceOptions)] = []
    for (index, disk) in list.disks.enumerated() {
      let name = Takeover.absolute(disk.socketPath)
      listed.insert(name)
      if let options = known[name] {
        var changed = disk.options.differences(from: options)
        if changed.contains(ServeDisk.Word.limit.rawValue) {
          changed.removeAll { $0 == ServeDisk.Word.limit.rawValue }
          limited.append((name, disk.options))
        }
        guard changed.isEmpty else {
          throw list.error(
            index,
            "it is served with other values of \(changed.joined(separator: ", ")): remove it from the list first, or start "
              + "a new server with --take-over")
        }
      } else {
        do {
          opened.append((disk, try OpenedDisk(disk, access: access, hint: hint, servers: servers, patience: patience)))
        } catch {
          throw list.error(index, "\(error)", ExitStatus(error))
        }
      }
    }
    self.opened = opened
    self.limited = limited
    removed = present.map(\.name).filter { !listed.contains($0) }
    untouched = present.count - removed.count
  }
}
