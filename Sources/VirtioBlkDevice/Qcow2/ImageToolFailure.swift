public import Qcow2
public import SystemPackage
internal import VirtioCore

/// Why a program that needs exclusive access to an image cannot change it: one sentence each.
public enum ImageToolFailure: Error, Hashable, CustomStringConvertible {
  /// The system refuses to open it for writing.
  case cannotOpen(path: String, Errno)
  /// It is not a regular file.
  case notAFile(path: String)
  /// Another program has its lock.
  case inUse(path: String)
  /// The file system has no locks, so it is unknown whether the image is in use.
  case noLocks(path: String)
  /// The image is damaged, or of a kind that cannot be changed.
  case fault(path: String, Qcow2Fault)
  /// A write to it, or its flush, failed.
  case cannotStore(path: String, Errno)
  /// Its disk cannot be read at this offset, bytes from the beginning of the disk.
  case cannotRead(path: String, offset: UInt64)
  /// It cannot be opened together with its other files.
  case image(ImageError)
  /// A commit of an image without a backing file.
  case noBacking(path: String)
  /// The file to commit to was named only by the image, not by the user.
  case baseNotNamed(path: String, name: String)
  /// The base has a different format than the overlay says.
  case otherFormat(path: String, format: String, given: String)
  /// A snapshot or a data file was named.
  case onlyTheDisk(path: String)
  /// It has internal snapshots, whose contents would change.
  case hasSnapshots(path: String)
  /// It is smaller than the disk above it, and cannot be extended.
  case baseTooSmall(path: String, Errno)

  /// One sentence for a person: what happened, with what, and what to do.
  public var description: String {
    switch self {
    case .cannotOpen(let path, let error): "\(printable(path)) cannot be opened for writing: \(error)"
    case .notAFile(let path): "\(printable(path)) is not a regular file: name an image"
    case .inUse(let path):
      "\(printable(path)) is in use by \(LockHolder.words(path, stranger: "another program", unknown: "")) first"
    case .noLocks(let path):
      "\(printable(path)) is on a file system without locks, so it is unknown whether it is in use: copy it to another one first"
    case .fault(let path, let fault): "\(printable(path)) cannot be changed: \(fault)"
    case .cannotStore(let path, let error): "\(printable(path)) cannot be written: \(error)"
    case .cannotRead(let path, let offset):
      "the disk in \(printable(path)) cannot be read at \(offset) (see 'vmm-blk image check \(printable(path))')"
    case .image(let error): "\(error)"
    case .noBacking(let path): "\(printable(path)) has no backing file, so there is nothing to write its contents to"
    case .baseNotNamed(let path, let name):
      "\(printable(path)) names '\(printable(name))' as its backing file, and no file is written merely because an image names it: give its "
        + "name with qcow2:\(printable(path))?backing=FORMAT:PATH"
    case .otherFormat(let path, let format, let given):
      "\(printable(path)) says that its backing file is of the format '\(printable(format))', and it was named as \(given): correct that, or "
        + "the image with 'vmm-blk image rebase -u'"
    case .onlyTheDisk(let path):
      "only the disk in \(printable(path)) can be committed, not a snapshot or a data file of it: leave 'snapshot' and 'data-file' out"
    case .hasSnapshots(let path):
      "\(printable(path)) has internal snapshots, whose contents would change with the backing file: delete them first"
    case .baseTooSmall(let path, let error):
      "\(printable(path)) is smaller than the disk over it and cannot be made larger: \(error)"
    }
  }
}
