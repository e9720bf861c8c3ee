public import Qcow2
public import SystemPackage
internal import VirtioCore

/// Why a qcow2 image, or a file of its chain, cannot be served: one sentence each.
public enum Qcow2Failure: Error, Hashable, CustomStringConvertible {
  /// The text, and why it does not name a qcow2 image.
  case badName(String, _ reason: String)
  /// The image is damaged, or of a kind that cannot be served.
  case fault(path: String, Qcow2Fault)
  /// A file of the chain cannot be opened.
  case cannotOpen(path: String, Errno)
  /// A file of the chain is neither a regular file nor a block device.
  case notAFile(path: String)
  /// No file of the chain has this name.
  case noImage(path: String)
  /// Another process writes to a file of the chain.
  case locked(path: String)
  /// It cannot be written to, but perhaps read.
  case notWritable(path: String, Qcow2Fault)
  /// A snapshot was named, and read-only was not requested.
  case snapshotsAreOnlyRead(path: String)
  /// The image is on a block device, where it cannot grow, and read-only was not requested.
  case devicesAreOnlyRead(path: String)
  /// O_DIRECT was requested; qcow2 images go through the page cache.
  case notDirect(path: String)
  /// Its disk has no bytes.
  case empty(path: String)
  /// The disk's size is not a multiple of the logical block size; bytes.
  case oddSize(path: String, size: UInt64, blockSize: Int)
  /// The image names a file that was not allowed.
  case notAllowed(path: String, name: String)
  /// The image names a different backing file than the user.
  case otherName(path: String, name: String, given: String)
  /// The user names a backing file, and the image has none.
  case nothingUnder(path: String, given: String)
  /// Neither the image nor the user says which format the backing file has.
  case noFormat(path: String, name: String)
  /// The image says that its backing file is neither raw nor qcow2.
  case otherFormat(path: String, name: String, format: String)
  /// What the image names is not the path of a file.
  case noPath(path: String, name: String)
  /// What the image names is not below the folder that the user allowed, or only through a link.
  case outside(path: String, name: String, folder: String)
  /// The file is in the chain twice.
  case loop(path: String)
  /// The chain has more images than `Qcow2Location.depth`.
  case tooDeep(path: String, limit: Int)
  /// The user names an external data file, and the image has none.
  case noDataFile(path: String)
  /// The image names an external data file, and the user did not allow it.
  case dataNotAllowed(path: String, name: String)

  /// One sentence for a person: what happened, with what, and what to do.
  public var description: String {
    switch self {
    case .badName(let text, let reason):
      "'\(printable(text))' does not name a qcow2 image: \(printable(reason)); "
        + "use qcow2:PATH or qcow2:PATH?backing=FORMAT:PATH, with '%', '?' and '&' in names as %25, %3f and %26"
    case .fault(let path, let fault):
      "the image \(printable(path)) cannot be served: \(fault) (see 'vmm-blk image check \(printable(path))')"
    case .cannotOpen(let path, let error): "\(printable(path)), which belongs to a qcow2 image, cannot be opened: \(error)"
    case .noImage(let path):
      "there is no image \(printable(path)): make one with 'vmm-blk image create --size 1G \(printable(path))' or name another"
    case .notAFile(let path): "\(printable(path)) is neither a regular file nor a block device: name an image"
    case .locked(let path):
      "\(printable(path)), which belongs to a qcow2 image, is in use by \(LockHolder.words(path, stranger: "a process")), or use "
        + "--no-lock if you are sure"
    case .notWritable(let path, let fault):
      "the image \(printable(path)) cannot be served for writing: \(fault) (or serve it with --read-only)"
    case .snapshotsAreOnlyRead(let path):
      "a snapshot of \(printable(path)) cannot be written to: serve it with --read-only"
    case .devicesAreOnlyRead(let path):
      "\(printable(path)) is a block device, and a qcow2 image on one cannot grow: serve it with --read-only, or convert it with "
        + "'qemu-img convert -O raw'"
    case .notDirect(let path): "\(printable(path)) is a qcow2 image, which is read through the page cache: leave --direct out"
    case .empty(let path):
      "the disk in \(printable(path)) has size 0: give it one, for example with 'qemu-img resize -f qcow2 \(printable(path)) 1G'"
    case .oddSize(let path, let size, let blockSize):
      "the disk in \(printable(path)) has \(size) bytes, which is not a multiple of the logical block size \(blockSize): "
        + (size % 512 == 0 ? "use a smaller --logical-block-size" : "convert it with 'qemu-img convert'")
    case .notAllowed(let path, let name):
      "\(printable(path)) names a backing file, '\(printable(name))', and a file is not opened merely because an image names it: if you "
        + "trust it, name it with ?backing=FORMAT:PATH, or its folder with ?backing-folder=PATH"
    case .otherName(let path, let name, let given):
      "\(printable(path)) names '\(printable(name))', and \(printable(given)) is another file: name that one, or change the image with "
        + "'qemu-img rebase -u'"
    case .nothingUnder(let path, let given):
      "\(printable(path)) names no backing file, but \(printable(given)) was given as one: leave it out"
    case .noFormat(let path, let name):
      "\(printable(path)) does not say which format '\(printable(name))' has, and formats are never guessed: use ?backing=FORMAT:PATH"
    case .otherFormat(let path, let name, let format):
      "\(printable(path)) says that '\(printable(name))' is of the format '\(printable(format))', and only raw and qcow2 images "
        + "can be in a chain: convert it"
    case .noPath(let path, let name):
      "\(printable(path)) names '\(printable(name))', which is not the path of a file: use ?backing=FORMAT:PATH"
    case .outside(let path, let name, let folder):
      "\(printable(path)) names '\(printable(name))', which is not below \(printable(folder)), or only through a link: use "
        + "?backing=FORMAT:PATH if you trust it"
    case .loop(let path): "\(printable(path)) is in the chain of images twice: correct the names that lead to it"
    case .tooDeep(let path, let limit): "the chain of \(printable(path)) has more than \(limit) images: make it shorter"
    case .noDataFile(let path): "\(printable(path)) has no external data file: leave data-file out"
    case .dataNotAllowed(let path, let name):
      "\(printable(path)) has its data in another file, '\(printable(name))': if you trust it, name it with ?data-file=PATH, or its folder "
        + "with ?backing-folder=PATH"
    }
  }
}
