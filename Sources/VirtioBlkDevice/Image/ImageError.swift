public import SystemPackage
internal import VirtioCore

/// Why an image cannot be used: one sentence each, saying what to do.
public enum ImageError: Error, Hashable, CustomStringConvertible {
  case cannotOpen(path: String, Errno)
  case notWritable(path: String, Errno)
  case notAFile(path: String)
  case notAPath(path: String)
  case empty(path: String)
  case badBlockSize(Int)
  case oddSize(path: String, size: UInt64, blockSize: Int)
  case locked(path: String)
  /// The one that is taken over is another file.
  case notTheSame(path: String)
  /// - holder: who has the device, as in "it is mounted on /mnt".
  case held(path: String, holder: String)
  case cannotResize(path: String, Errno)
  case noDirect(path: String)
  case directNeedsLargerBlocks(path: String, alignment: Int, blockSize: Int)
  /// - format: its name, as in "a qcow2 image".
  case foreign(path: String, format: String)
  case nbd(NBDFailure)
  case rbd(RBDFailure)
  case qcow2(Qcow2Failure)
  case zones(ZoneFailure)

  public var description: String {
    switch self {
    case .cannotOpen(let path, .noSuchFileOrDirectory):
      "there is no image \(printable(path)): make one with 'truncate -s 1G \(printable(path))' or name another"
    case .cannotOpen(let path, let error): "the image \(printable(path)) cannot be opened: \(error)"
    case .notWritable(let path, let error):
      "the image \(printable(path)) cannot be opened for writing (\(error)): make it writable or serve it with --read-only"
    case .notAFile(let path): "\(printable(path)) is neither a regular file nor a block device: name a raw disk image"
    case .notAPath(let path): "'\(printable(path))' is not a path, for it has a NUL in it: name a raw disk image"
    case .empty(let path):
      "the image \(printable(path)) has size 0: give it one, for example with 'truncate -s 1G \(printable(path))'"
    case .badBlockSize(let size): "a logical block size of \(size) is not a power of two from 512 to 65536"
    case .oddSize(let path, let size, let blockSize):
      "the image \(printable(path)) has \(size) bytes, which is not a multiple of the logical block size \(blockSize): extend it "
        + "with 'truncate -s %\(blockSize) \(printable(path))'"
    case .locked(let path):
      "the image \(printable(path)) is in use by another process\(LockHolder.words(path)): stop that one, or say "
        + "--no-lock if you are sure"
    case .notTheSame(let path):
      "\(printable(path)) is another file than the image that the running server has open: name that one"
    case .held(let path, let holder):
      "the device \(printable(path)) is in use: \(holder); free it, serve it with --read-only, or say --no-lock if you are sure"
    case .cannotResize(let path, let error): "the image \(printable(path)) cannot be made longer or shorter: \(error)"
    case .noDirect(let path): "the file system of \(printable(path)) cannot do direct I/O: use --direct off"
    case .directNeedsLargerBlocks(let path, let alignment, let blockSize):
      "direct I/O on \(printable(path)) needs requests in multiples of \(alignment) bytes, but the logical block size is "
        + "\(blockSize): use --logical-block-size \(alignment), or --direct off"
    case .foreign(let path, let format):
      "\(printable(path)) looks like \(format), not like a raw disk: "
        + (format == "a qcow2 image" ? "serve it with --format qcow2, " : "")
        + "convert it with 'qemu-img convert -O raw', or say --format raw if it is a raw disk whose guest wrote that"
    case .nbd(let failure): "\(failure)"
    case .rbd(let failure): "\(failure)"
    case .qcow2(let failure): "\(failure)"
    case .zones(let failure): "\(failure)"
    }
  }
}
