/// The sandbox of a server: what it still needs while it serves its disks.
internal import CLinux
internal import Glibc
internal import MetricsExport
internal import OperatorWords
internal import Qcow2
internal import Sandbox
internal import Sockets
internal import SystemPackage
internal import VirtioBlkDevice
internal import VirtioCore

extension ServeService {
  /// Enters the sandbox. Threads that are made from now on inherit it.
  func enterSandbox() {
    // No library can be loaded later.
    if mayAddDisks { Qcow2Decompressor.load() }
    if command.allowNBD, let missing = NBDSupport.load() { log.warn("\(missing)") }
    if command.allowRBD, let missing = RBDSupport.load() { log.warn("\(missing)") }
    sandbox = command.protection.enter(sandboxPlan, log: log)
  }

  private var sandboxPlan: SandboxPlan {
    var plan = SandboxPlan(command.protection.sandbox)
    var folders = Folders()
    for case .listening(let listener) in served.map(\.socket) { folders.add(parentOf: listener.path, for: .sockets) }
    folders.add(parentOf: command.takeover.control, for: .sockets)
    switch command.figures.metrics {
    case .path(let path): folders.add(parentOf: path, for: .sockets)
    case .internet: plan.usesInternet = true
    case nil: break
    }
    plan.connects = served.contains { $0.options.imageServer?.isInternet == true } || command.allowNBD
    servers = ServerPermission(
      nbd: command.allowNBD || served.contains { $0.options.imageServer != nil }, internet: plan.connects,
      clusters: command.allowRBD || served.contains { $0.options.imageInCluster != nil })
    // Credentials are read each time a connection is made.
    for disk in served { for path in disk.options.credentials { folders.add(path, for: .reading) } }
    if mayAddDisks, servers.clusters {
      // Opening another RBD image reads the cluster's configuration, and connects.
      plan.connects = true
      folders.add("/etc/ceph", for: .reading)
      for disk in served { folders.add(parentOf: disk.options.imageInCluster?.configuration, for: .reading) }
    }
    if mayAddDisks {
      // The list may be replaced by another file of the same name.
      folders.add(parentOf: command.disks, for: .reading)
      for disk in served {
        folders.add(image: disk.options.imagePath, isBlockDevice: disk.device.image.description.isBlockDevice)
        // Another disk may have the same images below it.
        guard let chain = disk.options.imageChain else { continue }
        for path in chain.paths { folders.add(image: path, isBlockDevice: Self.isBlockDevice(path)) }
        if let folder = chain.folder { folders.add(folder, for: .images) }
      }
      for path in command.allowPath {
        folders.add(path, for: .images)
        folders.add(path, for: .sockets)
      }
      plan.opensForOthers = true
    }
    plan.places = folders.places
    openable = folders.places.filter { $0.purpose == .images }.map(\.path)
    return plan
  }

  private static func isBlockDevice(_ path: String) -> Bool {
    var info = stat()
    return unsafe stat(path, &info) == 0 && info.st_mode & S_IFMT == S_IFBLK
  }

  /// Disks can be added while the server runs: by the operator, or with the list.
  private var mayAddDisks: Bool { command.takeover.control != nil || command.disks != nil }

  /// `nil` if nothing was given up.
  var serverPermission: ServerPermission? { sandbox.mode == .off ? nil : servers }

  /// For the message about a refused disk: where images may be; `nil` if the sandbox does not restrict that.
  var openingHint: String? {
    guard sandbox.fileAccess != nil else { return nil }
    let places = openable.isEmpty ? "nothing" : "what is below " + openable.map(printable).joined(separator: ", ")
    return "the sandbox lets this server open \(places): start it with --allow-path for more"
  }
}

/// Which image servers a disk may connect to that is added in the sandbox.
struct ServerPermission: Sendable {
  var nbd = true
  /// NBD servers over TCP.
  var internet = true
  var clusters = true

  /// - Throws: this disk's server is not one of them.
  func check(_ options: DeviceOptions) throws(ServerRefusal) {
    if let server = options.imageServer {
      guard server.isInternet ? internet : nbd else { throw .nbd }
    }
    guard clusters || options.imageInCluster == nil else { throw .cluster }
  }
}

enum ServerRefusal: Error, CustomStringConvertible {
  case nbd, cluster

  var description: String {
    switch self {
    case .nbd:
      "the sandbox lets this server connect to no such NBD server, because none of its first disks has one: start it with --allow-nbd"
    case .cluster:
      "the sandbox lets this server connect to no Ceph cluster, because none of its first disks is in one: start it with --allow-rbd"
    }
  }
}

/// Places, each once.
private struct Folders {
  private(set) var places: [AllowedPlace] = []

  mutating func add(_ path: String, for purpose: AllowedPlace.Purpose) {
    let place = AllowedPlace(Takeover.absolute(path), for: purpose)
    if !places.contains(place) { places.append(place) }
  }

  mutating func add(parentOf path: String?, for purpose: AllowedPlace.Purpose) {
    guard let path else { return }
    add(FilePath(Takeover.absolute(path)).removingLastComponent().string, for: purpose)
  }

  /// Other images in the folder of a served image may be served, too. That does not apply to block devices, whose folder holds
  /// everybody's devices.
  mutating func add(image path: String?, isBlockDevice: Bool) {
    guard let path else { return }
    guard !isBlockDevice else { return add(path, for: .images) }
    add(parentOf: path, for: .images)
    // What counts is the target of a symbolic link at the time it is opened.
    if let target = AllowedPlace.target(of: path), target != path { add(parentOf: target, for: .images) }
  }
}
