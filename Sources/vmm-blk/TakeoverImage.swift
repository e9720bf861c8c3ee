/// Whether another process can continue with an image, and whether both processes mean the same one.
internal import Glibc
internal import OperatorWords
internal import SystemPackage
internal import VhostUser
internal import VirtioBlkDevice
internal import VirtioCore

extension Takeover {
  /// Why no other process can continue with an image; `nil`: one can. Both processes check what they have opened, because the
  /// export of a server may differ on a new connection.
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

  /// How the running server's image differs from ours; `nil` if it does not. - Parameter theirs: as that server describes it.
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
    // A name is unique only within its cluster, and may have been given to another image since.
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

  /// The name of an image on a server, the same for both processes however each of them connects; `nil` for other images.
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
