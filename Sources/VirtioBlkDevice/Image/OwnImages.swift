/// The locked image files of this process, and the disks that they belong to: a conflicting lock may be our own.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import VirtioCore

enum OwnImages {
  struct User: Sendable {
    /// The operator's name for the disk, if known.
    var name: String?
    /// Otherwise it has the file open only for reading.
    var isWriter: Bool
  }

  /// By descriptor; each is open for as long as it is listed here.
  private static let users = Mutex<[Int32: User]>([:])

  /// - Parameter user: the operator's name for its disk.
  static func add(_ image: ImageFile, user: String?) {
    let files = files(of: image)
    users.withLock { users in
      for (descriptor, isWriter) in files { users[descriptor] = User(name: user, isWriter: isWriter) }
    }
  }

  /// To be called before its files are closed.
  static func remove(_ image: ImageFile) {
    let files = files(of: image)
    users.withLock { users in for (descriptor, _) in files { users[descriptor] = nil } }
  }

  /// Those that are locked, and whether they are written to.
  private static func files(of image: ImageFile) -> [(descriptor: Int32, isWriter: Bool)] {
    guard image.lock != nil else { return [] }
    let under = image.chain?.layers.flatMap { [$0.file.rawValue, $0.dataFile.rawValue] } ?? []
    return under.map { ($0, false) } + [(image.descriptor, !image.isReadOnly)]
  }

  /// The disk that has this file open, a writer before a reader; `nil`: none of this process.
  static func user(of file: stat) -> User? {
    users.withLock { users in
      let found = users.filter { descriptor, _ in
        var info = stat()
        return unsafe fstat(descriptor, &info) == 0 && (info.st_dev, info.st_ino) == (file.st_dev, file.st_ino)
      }
      return found.values.first(where: \.isWriter) ?? found.values.first
    }
  }
}
