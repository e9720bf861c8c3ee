/// Which image is continued by another process: whether it can be, and whether both processes mean the same one.
internal import Glibc
internal import OperatorWords
internal import SystemPackage
internal import VhostUser
internal import VirtioBlkDevice
internal import VirtioCore

extension Takeover {
  /// Why no other process can continue with an image; `nil`: one can. Both processes ask, each of what it has opened: the export of a
  /// server may be another thing on a new connection.
  static func obstacle(_ image: ImageFile) -> String? {
    let remedy = "stop the running server, then start the other one"
    if image.keepsTables { return "it is a qcow2 image that is written to, and no other process can take it over: \(remedy)" }
    if image.isHeldAtCluster {
      return "it is an image of a Ceph cluster, where the client that writes to it cannot hand its lock over: \(remedy)"
    }
    if image.isForOneConnection {
      return
        "it is an export whose server does not say that connections see each other's writes (CAN_MULTI_CONN): \(remedy)"
    }
    return nil
  }

  /// The running server's image is another one. - Parameter theirs: as it describes it.
  static func difference(_ theirs: Image, _ image: ImageFile) -> TakeoverError? {
    guard image.size == theirs.size else {
      return .notTheSame("image", theirs: "\(theirs.size) bytes long", ours: "\(image.size) bytes long")
    }
    // A file is compared with what its lock is on.
    let (before, now) = (
      theirs.lock == nil ? remoteImage(theirs.path) : nil, image.isOnServer ? remoteImage(image.path) : nil
    )
    guard before == now else {
      return .notTheSame("image", theirs: printable(before ?? theirs.path), ours: printable(now ?? image.path))
    }
    // Names are one cluster's, and may have been given to another image since.
    guard let identity = theirs.identity, let ours = image.identityInCluster, identity != ours else { return nil }
    return .notTheSame("image", theirs: inCluster(theirs.path, identity), ours: inCluster(now ?? image.path, ours))
  }

  private static func inCluster(_ name: String, _ identity: String) -> String {
    let words = identity.split(separator: " ").map { printable(String($0)) }
    return "\(printable(name)) (\(words.dropFirst().joined(separator: " "))) of the cluster \(words.first ?? "")"
  }

  /// A path that means the same to both processes.
  static func absolute(_ path: String) -> String {
    let path = FilePath(path)
    guard path.isRelative, let folder = workingFolder else { return path.lexicallyNormalized().string }
    return FilePath(folder).appending(path.components).lexicallyNormalized().string
  }

  /// What names an image on a server for both processes, however each of them connects to it; `nil`: it is no such image.
  static func remoteImage(_ path: String) -> String? {
    switch try? ImageName(path) {
    case .nbd(let location)?: location.common { absolute($0) }
    case .rbd(let location)?: "rbd:" + location.name
    default: nil
    }
  }

  private static var workingFolder: String? {
    guard let path = unsafe getcwd(nil, 0) else { return nil }
    defer { unsafe free(path) }
    return unsafe String(cString: path)
  }
}
