/// Resizing an image while it is open.
internal import CLinux
internal import Glibc
internal import SystemPackage

extension ImageFile {
  /// Queries the present size of the medium. It waits for the medium, so it is for a helper thread.
  ///
  /// - Returns: bytes, in whole logical blocks.
  /// - Throws: if it cannot be determined, or no whole block is left.
  public func measure() throws(ImageError) -> UInt64 {
    // Its zones were made for this size.
    guard zones == nil else { return size }
    var bytes: UInt64 = 0
    if let export {
      bytes = try measure(export)
    } else if let rbd {
      do throws(RBDFailure) { bytes = try rbd.measure() } catch { throw .rbd(error) }
    } else if let chain {
      bytes = chain.size
    } else if isBlockDevice {
      guard unsafe clinux_block_size64(descriptor, &bytes) == 0 else { throw .cannotOpen(path: path, Errno(rawValue: errno)) }
    } else {
      var info = stat()
      guard unsafe fstat(descriptor, &info) == 0 else { throw .cannotOpen(path: path, Errno(rawValue: errno)) }
      bytes = UInt64(max(info.st_size, 0))
    }
    bytes -= bytes % UInt64(logicalBlockSize)
    guard bytes > 0 else { throw .empty(path: path) }
    return bytes
  }

  /// Extends a file, with a hole, or truncates it. Waits for the medium. The disk does not change before its `resize` is
  /// called.
  ///
  /// - Parameter size: bytes; a multiple of the logical block size.
  public func setLength(_ size: UInt64) throws(ImageError) {
    guard export == nil, rbd == nil, chain == nil, zones == nil else { throw .cannotResize(path: path, .notSupported) }
    guard let length = Int(exactly: size), !isBlockDevice else { throw .cannotResize(path: path, .invalidArgument) }
    while ftruncate(descriptor, length) < 0 {
      let error = Errno(rawValue: errno)
      guard error == .interrupted else { throw .cannotResize(path: path, error) }
    }
  }
}
