/// Restricts which files a process may open from now on (Landlock, Linux 5.13). Open files stay open.
internal import CLinux
internal import Glibc
internal import SystemPackage

/// A file, or a folder with everything below it, and its purpose.
public struct AllowedPlace: Hashable, Sendable {
  public enum Purpose: Hashable, Sendable {
    /// Files are read and folders are listed.
    case reading
    /// Disk images: they are read, written and truncated, and block devices get ioctls.
    case images
    /// Sockets are created there, and their files are removed.
    case sockets
  }

  public let path: String
  public let purpose: Purpose

  public init(_ path: String, for purpose: Purpose) {
    self.path = path
    self.purpose = purpose
  }

  /// Whether anything is at this path.
  public static func exists(_ path: String) -> Bool { unsafe access(path, F_OK) == 0 }

  /// The target of a path when all links are followed; `nil`: there is none.
  public static func target(of path: String) -> String? {
    guard let target = unsafe realpath(path, nil) else { return nil }
    defer { unsafe free(target) }
    return unsafe String(cString: target)
  }
}

/// Rights as the kernel numbers them (LANDLOCK_ACCESS_FS_*).
private struct FileRights: OptionSet {
  let rawValue: UInt64

  static let writeFile = FileRights(rawValue: 1 << 1)
  static let readFile = FileRights(rawValue: 1 << 2)
  static let readFolder = FileRights(rawValue: 1 << 3)
  static let removeFile = FileRights(rawValue: 1 << 5)
  static let makeSocket = FileRights(rawValue: 1 << 9)
  static let truncate = FileRights(rawValue: 1 << 14)
  static let deviceControl = FileRights(rawValue: 1 << 15)

  /// All rights that a version knows. A process that handles a right has it only where a rule grants it.
  static func all(version: Int) -> FileRights {
    let count =
      switch version {
      case 1: 13
      case 2: 14
      case 3, 4: 15
      default: 16
      }
    return FileRights(rawValue: (1 << count) - 1)
  }

  /// The rights that apply to files; the others are for folders.
  static let ofFiles: FileRights = [FileRights(rawValue: 1), .writeFile, .readFile, .truncate, .deviceControl]
}

extension AllowedPlace {
  fileprivate var rights: FileRights {
    switch purpose {
    case .reading: [.readFile, .readFolder]
    case .images: [.readFile, .writeFile, .readFolder, .truncate, .deviceControl]
    case .sockets: [.makeSocket, .removeFile]
    }
  }
}

enum FileAccess {
  /// The Landlock version of the running kernel, from 1 on. - Throws: why there is none.
  static func version() throws(Errno) -> Int {
    let version = clinux_landlock_version()
    guard version > 0 else { throw version == 0 ? .noFunction : Errno(rawValue: -version) }
    return Int(version)
  }

  /// Restricts the calling thread, and all threads that it creates from now on, to these places. TCP connections are neither
  /// made nor accepted on new ports (version 4), and signals cannot reach other processes (version 6). This cannot be undone.
  ///
  /// - Parameters:
  ///   - places: the allowed places; those that do not exist are left out.
  ///   - listens: TCP ports may be bound.
  ///   - connects: TCP connections may be made.
  static func restrict(to places: [AllowedPlace], listens: Bool, connects: Bool) throws(Errno) {
    let version = try version()
    let handled = FileRights.all(version: version)
    // Rights for TCP bind and connect, and the scope of signals.
    let words: (ports: UInt64, scopes: UInt64) = (
      version >= 4 ? (listens ? 0 : 1) | (connects ? 0 : 2) : 0, version >= 6 ? 2 : 0
    )
    let size = version >= 6 ? 24 : version >= 4 ? 16 : 8
    let ruleset = clinux_landlock_ruleset(handled.rawValue, words.ports, words.scopes, size)
    guard ruleset >= 0 else { throw Errno(rawValue: -ruleset) }
    defer { close(ruleset) }
    for place in places {
      let descriptor = unsafe clinux_open(place.path, clinux_o_path | O_CLOEXEC, 0)
      guard descriptor >= 0 else { continue }
      defer { close(descriptor) }
      var rights = place.rights.intersection(handled)
      var info = stat()
      guard unsafe fstat(descriptor, &info) == 0 else { continue }
      if info.st_mode & S_IFMT != S_IFDIR { rights.formIntersection(.ofFiles) }
      guard !rights.isEmpty else { continue }
      let result = clinux_landlock_allow(ruleset, descriptor, rights.rawValue)
      guard result >= 0 else { throw Errno(rawValue: -result) }
    }
    let result = clinux_landlock_restrict(ruleset)
    guard result >= 0 else { throw Errno(rawValue: -result) }
  }
}
