/// Socket activation: listening sockets that a service manager made before it started us (sd_listen_fds(3)).
internal import CLinux
internal import Glibc
internal import OperatorWords
internal import Sockets
internal import VirtioCore

/// A disk is served on the passed socket that is bound to its path. The sockets stay open as long as the process runs, so that
/// a disk that was removed can be added again: the manager keeps the socket.
enum Activation {
  /// How many sockets were passed.
  static var count: Int { ServiceEnvironment.taken.descriptors.count }

  /// The only socket that was passed.
  ///
  /// - Returns: the socket, and its path or descriptor number for messages.
  /// - Throws: `ActivationError` if there is none, or more than one.
  static func onlySocket() throws -> (ServerSocket, place: String) {
    let descriptors = ServiceEnvironment.taken.descriptors
    guard let descriptor = descriptors.first, descriptors.count == 1 else {
      throw ActivationError.several(descriptors.count)
    }
    guard UnixSocket.isListener(descriptor) else { throw ActivationError.notListening(descriptor) }
    let path = path(of: descriptor)
    return (.listening(try listener(descriptor, path)), path ?? "descriptor \(descriptor)")
  }

  /// The socket that was passed for a path; `nil` when there is none.
  static func listener(at path: String) throws -> Listener? {
    let wanted = Takeover.absolute(path)
    for descriptor in ServiceEnvironment.taken.descriptors where self.path(of: descriptor).map(Takeover.absolute) == wanted {
      guard UnixSocket.isListener(descriptor) else { throw ActivationError.notListening(descriptor) }
      return try listener(descriptor, path)
    }
    return nil
  }

  /// The names of passed sockets on which no disk is served. A front-end that connects to one waits forever.
  ///
  /// - Parameter places: where disks are served.
  static func unused(besides places: [String]) -> [String] {
    let served = Set(places.map(Takeover.absolute))
    return ServiceEnvironment.taken.descriptors.compactMap { descriptor in
      let place = path(of: descriptor) ?? "descriptor \(descriptor)"
      return served.contains(Takeover.absolute(place)) ? nil : place
    }
  }

  /// A listener on a duplicate of the descriptor. The socket's file belongs to the service manager.
  private static func listener(_ descriptor: Int32, _ path: String?) throws -> Listener {
    let copy = clinux_fcntl_int(descriptor, F_DUPFD_CLOEXEC, 0)
    guard copy >= 0 else { throw ActivationError.notListening(descriptor) }
    return try Listener(takingOver: OwnedDescriptor(copy), path: path)
  }

  /// `nil` if the descriptor is not a UNIX socket, or the socket has no path.
  private static func path(of descriptor: Int32) -> String? {
    guard let name = UnixSocket.ownName(of: descriptor) else { return nil }
    // The path follows the address family; an abstract name begins with a zero byte.
    let path = name.dropFirst(MemoryLayout<sa_family_t>.size).prefix { $0 != 0 }
    return path.isEmpty ? nil : String(decoding: path, as: UTF8.self)
  }
}

/// Why a socket that was passed cannot be used: one sentence.
enum ActivationError: ErrorWithStatus, CustomStringConvertible {
  case notListening(Int32)
  case several(Int)

  var status: ExitStatus { .unavailable }

  var description: String {
    switch self {
    case .notListening(let descriptor):
      "descriptor \(descriptor), which was passed in LISTEN_FDS, is not a listening UNIX stream socket: write ListenStream= with a "
        + "path, and Accept=no, in the socket unit"
    case .several(let count):
      "\(count) sockets were passed in LISTEN_FDS: say with --socket-path which one the disk is served on, or serve many with "
        + "--disks"
    }
  }
}
