/// How a server gets its disks: it opens them, or takes them over from the old server.
internal import OperatorWords
internal import Sockets
internal import SystemPackage
internal import VhostUser
internal import VirtioBlkDevice
internal import VirtioCore

extension ServeService {
  /// The default number of queues: as many as front-ends ask for by default, which is one for each virtual CPU, because a
  /// front-end that asks for more than there are fails. A queue that is not started costs nothing.
  static let queues = 16

  /// - Parameter list: of many disks; `nil`: the command line describes the only one.
  func open(_ list: ServeDiskList?) throws -> [ServedDisk] {
    guard let list else { return [try openOne()] }
    // All or none: if a disk cannot be opened, those before it are closed again, and their sockets are removed.
    try ServeFileLimit.check(list.disks.map(\.options), limit: openFiles, log)
    return try list.disks.enumerated().map { index, disk in
      do { return serve(disk, try OpenedDisk(disk, access: command.socketAccess, patience: patience)) } catch {
        throw list.error(index, "\(error)", ExitStatus(error))
      }
    }
  }

  private func openOne() throws -> ServedDisk {
    let device = try command.disk.makeDevice(
      on: .vhostUser, queues: Self.queues, place: command.socketPath, patience: patience)
    let (socket, place): (ServerSocket, String)
    if let fd = command.fd {
      (socket, place) = (try ServerSocket.adopt(fd), "descriptor \(fd)")
    } else if let socketPath = command.socketPath {
      (socket, place) = (
        .listening(try Activation.listener(at: socketPath) ?? Listener(path: socketPath, access: command.socketAccess)),
        socketPath
      )
    } else {
      (socket, place) = try Activation.onlySocket()
    }
    return disk(command.disk, device, socket, place, log)
  }

  /// Adds an open disk to this server; it serves nobody before its server is opened.
  func serve(_ disk: ServeDisk, _ opened: OpenedDisk) -> ServedDisk {
    self.disk(disk.options, opened.device, .listening(opened.listener), disk.socketPath, log.about(disk.socketPath))
  }

  private func disk(
    _ options: DeviceOptions, _ device: BlockDevice, _ socket: ServerSocket, _ place: String, _ log: ServeLog
  ) -> ServedDisk {
    let server = BackendServer(
      device: checks?.watch(device, name: place) ?? device, on: socket, in: loop, memoryBudget: command.memoryBudget.bytes,
      publishesInOrder: command.publishInOrder == .on, protocolFeatures: options.featureWords.protocolFeatures
    ) { log.event($0) }
    return ServedDisk(options, device: device, socket: socket, place: place, server: server)
  }

  // MARK: Taking over

  /// Prepares every disk that the old server serves. The list has to name the same disks.
  func prepare(_ taker: TakeoverTaker, _ list: ServeDiskList?) throws -> [ServedDisk] {
    let names = try taker.greet()
    guard let list else {
      guard let name = names.first, names.count == 1 else {
        throw TakeoverFailure.otherDisks("The running server serves \(names.count) disks: describe them with --disks.")
      }
      if let socketPath = command.socketPath, Takeover.absolute(socketPath) != name {
        throw TakeoverFailure.otherDisks("The running server serves its disk on \(printable(name)), not on \(socketPath).")
      }
      let place = command.socketPath ?? name
      return [try prepare(taker, name, command.disk, place: place, socketPath: name.hasPrefix("/") ? place : nil)]
    }
    let wanted = list.disks.map { Takeover.absolute($0.socketPath) }
    if let missing = names.first(where: { !wanted.contains($0) }) {
      throw TakeoverFailure.otherDisks(
        "The running server serves a disk on \(printable(missing)), which \(list.file) does not list.")
    }
    // The workers of the first disk start before the last disk is made.
    let shared = list.disks.first?.options.tuning.sharedWorkers.workers
    shared?.expect(list.disks.count)
    defer { shared?.expect(0) }
    return try list.disks.enumerated().map { index, disk in
      guard names.contains(wanted[index]) else {
        throw list.error(index, "the running server does not serve it: list the disks that are served, and no others")
      }
      let path = disk.socketPath
      do { return try prepare(taker, wanted[index], disk.options, place: path, socketPath: path) } catch {
        throw list.error(index, "\(error)", ExitStatus(error))
      }
    }
  }

  /// - Parameter socketPath: the path of its socket, so that the file can be removed at the end; `nil` if this process must not
  ///   remove it.
  private func prepare(
    _ taker: TakeoverTaker, _ name: String, _ options: DeviceOptions, place: String, socketPath: String?
  ) throws -> ServedDisk {
    var prepared: ServedDisk?
    try taker.prepare(name) { [self] state, list, errands in
      let device = try options.makeDevice(
        on: .vhostUser, queues: Self.queues, lock: try state.image.lock.map { try list.descriptor($0) },
        serial: state.image.serial, place: place, patience: patience)
      let socket = try ServeTakenDisk.socket(state, list, path: socketPath)
      let disk = disk(options, device, socket, place, command.disks == nil ? log : log.about(place))
      prepared = disk
      return ServeTakenDisk(name: name, disk: disk, errands: errands)
    }
    guard let prepared else { preconditionFailure("a disk that was prepared was made") }
    return prepared
  }
}

/// An open image and an open socket without an owner yet: on release, both are closed and the socket's file is removed.
struct OpenedDisk {
  let device: BlockDevice
  let listener: Listener

  /// Waits for the medium. Errors are sentences for the user.
  ///
  /// - Parameter hint: added to the message if the system denies a file to this process.
  ///   - servers: those that a sandboxed process may connect to; `nil`: it is not sandboxed yet.
  ///   - patience: how long the caller waits for the disk.
  init(
    _ disk: ServeDisk, access: SocketAccess, hint: String? = nil, servers: ServerPermission? = nil, patience: OpeningPatience
  ) throws {
    do {
      try servers?.check(disk.options)
      device = try disk.options.makeDevice(
        on: .vhostUser, queues: ServeService.queues, isConfined: servers != nil, place: disk.socketPath, patience: patience)
      listener = try Activation.listener(at: disk.socketPath) ?? Listener(path: disk.socketPath, access: access)
    } catch {
      guard let hint, Self.isForbidden(error) else { throw error }
      throw ForbiddenError(error: error, hint: hint)
    }
  }

  private static func isForbidden(_ error: any Error) -> Bool {
    switch error {
    case ImageError.cannotOpen(_, let code), ImageError.notWritable(_, let code): code == .permissionDenied
    case ImageError.nbd(.noCredentials(_, _, let code)): code == .permissionDenied
    case SocketError.notWritable: true
    default: false
    }
  }
}

/// A file that is denied to this process, perhaps by its sandbox.
private struct ForbiddenError: ErrorWithStatus, CustomStringConvertible {
  let error: any Error
  let hint: String

  var status: ExitStatus { ExitStatus(error) }
  var description: String { "\(error) (\(hint))" }
}
