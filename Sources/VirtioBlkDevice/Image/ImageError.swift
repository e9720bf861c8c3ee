public import SystemPackage
internal import VirtioCore

/// Why an image cannot be used: one sentence each that says what to do.
public enum ImageError: Error, Hashable, CustomStringConvertible {
  /// It does not exist, or the system refuses it.
  case cannotOpen(path: String, Errno)
  /// It can be read but not written, and read-only was not requested.
  case notWritable(path: String, Errno)
  /// It is neither a regular file nor a block device.
  case notAFile(path: String)
  /// The name has a NUL in it.
  case notAPath(path: String)
  /// It has no bytes.
  case empty(path: String)
  /// The logical block size, bytes, is not a power of two from 512 to 65536.
  case badBlockSize(Int)
  /// Its size is not a multiple of the logical block size; bytes.
  case oddSize(path: String, size: UInt64, blockSize: Int)
  /// Another process writes to it.
  case locked(path: String)
  /// The image that is taken over is another file.
  case notTheSame(path: String)
  /// The block device is in use. - holder: by whom, as in "it is mounted on /mnt".
  case held(path: String, holder: String)
  /// It cannot be resized.
  case cannotResize(path: String, Errno)
  /// Its file system cannot bypass the page cache (O_DIRECT), which was requested.
  case noDirect(path: String)
  /// Bypassing the page cache needs requests in multiples of more than a logical block; bytes.
  case directNeedsLargerBlocks(path: String, alignment: Int, blockSize: Int)
  /// It looks like an image of another format. - format: its name, as in "a qcow2 image".
  case foreign(path: String, format: String)
  /// A failure of an NBD export.
  case nbd(NBDFailure)
  /// A failure of an image of a Ceph cluster.
  case rbd(RBDFailure)
  /// A failure of a qcow2 image.
  case qcow2(Qcow2Failure)
  /// A failure of the zones that it is to have.
  case zones(ZoneFailure)

  /// One sentence for a person: what happened, with what, and what to do.
  public var description: String {
    switch self {
    case .cannotOpen(let path, .noSuchFileOrDirectory):
      "there is no image \(printable(path)): make one with 'truncate -s 1G \(printable(path))' or name another"
    case .cannotOpen(let path, let error): "the image \(printable(path)) cannot be opened: \(error)"
    case .notWritable(let path, let error):
      "the image \(printable(path)) cannot be opened for writing (\(error)): make it writable or serve it with --read-only"
    case .notAFile(let path): "\(printable(path)) is neither a regular file nor a block device: name a raw disk image"
    case .notAPath(let path): "'\(printable(path))' is not a path, because it contains a NUL: name a raw disk image"
    case .empty(let path):
      "the image \(printable(path)) has size 0: give it one, for example with 'truncate -s 1G \(printable(path))'"
    case .badBlockSize(let size): "a logical block size of \(size) is not a power of two from 512 to 65536"
    case .oddSize(let path, let size, let blockSize):
      "the image \(printable(path)) has \(size) bytes, which is not a multiple of the logical block size \(blockSize): extend it "
        + "with 'truncate -s %\(blockSize) \(printable(path))'"
    case .locked(let path):
      "the image \(printable(path)) is in use by \(LockHolder.words(path, stranger: "another process")), or use --no-lock if you are "
        + "sure"
    case .notTheSame(let path):
      "\(printable(path)) is not the image that the running server has open: name that one"
    case .held(let path, let holder):
      "the device \(printable(path)) is in use: \(holder); free it, serve it with --read-only, or use --no-lock if you are sure"
    case .cannotResize(let path, let error): "the image \(printable(path)) cannot be resized: \(error)"
    case .noDirect(let path): "the file system of \(printable(path)) cannot do direct I/O: use --direct off"
    case .directNeedsLargerBlocks(let path, let alignment, let blockSize):
      "direct I/O on \(printable(path)) needs requests in multiples of \(alignment) bytes, but the logical block size is "
        + "\(blockSize): use --logical-block-size \(alignment), or --direct off"
    case .foreign(let path, let format):
      "\(printable(path)) looks like \(format), not like a raw disk: "
        + (format == "a qcow2 image" ? "serve it with --format qcow2, " : "")
        + "convert it with 'qemu-img convert -O raw', or use --format raw if it is a raw disk whose guest wrote that"
    case .nbd(let failure): "\(failure)"
    case .rbd(let failure): "\(failure)"
    case .qcow2(let failure): "\(failure)"
    case .zones(let failure): "\(failure)"
    }
  }
}
