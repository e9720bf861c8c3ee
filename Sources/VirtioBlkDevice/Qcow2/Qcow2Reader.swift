/// A disk of qcow2 images for a program that reads it sequentially.
internal import Glibc
public import SystemPackage
internal import VirtioCore

/// A disk of qcow2 images, for reading from its beginning to its end.
///
/// It stays open, and locked against writers, for as long as this object exists.
public final class Qcow2Reader {
  private let image: ImageFile
  private let disk: Qcow2Disk

  /// - Parameter isLocked: whether to hold locks on all files.
  /// - Throws: why it cannot be read as a disk, and what to do.
  public init(_ location: Qcow2Location, isLocked: Bool = true) throws(ImageError) {
    var options = ImageOptions(path: location.path, isReadOnly: true, direct: .off, isLocked: isLocked)
    options.qcow2 = location
    image = try ImageFile(options)
    guard let chain = image.chain else { preconditionFailure("an image that was opened as a chain has one") }
    disk = chain
  }

  /// Bytes; a multiple of 512.
  public var size: UInt64 { disk.size }

  /// Whether the images say that there are zeroes, without reading data.
  ///
  /// - Parameters:
  ///   - offset: bytes, before the end.
  ///   - limit: bytes, at least 1, not past the end.
  /// - Returns: the answer, and for how many of these bytes it is valid.
  public func extent(at offset: UInt64, limit: UInt64) -> (isZero: Bool, count: UInt64) {
    let piece = disk.piece(at: offset, limit: limit)
    return (piece.kind == .zero, piece.count)
  }

  /// Reads bytes of the disk.
  ///
  /// - Parameters:
  ///   - offset: bytes.
  ///   - count: bytes, 1 … 2^30, not past the end.
  /// - Throws: EIO if an image contradicts itself or cannot be read.
  public func read(at offset: UInt64, count: Int) throws(Errno) -> [UInt8] {
    var result: Int32 = 0
    let bytes = unsafe [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
      var segment = unsafe MemorySegment(base: UnsafeMutableRawPointer(buffer.baseAddress!), count: count)
      var operation = unsafe IOOperation(kind: .read)
      (operation.offset, operation.length, operation.segmentCount) = (offset, UInt64(count), 1)
      result = unsafe withUnsafeMutablePointer(to: &segment) { segment in
        unsafe operation.segments = segment
        return disk.perform(operation)
      }
      filled = result == Int32(count) ? count : 0
    }
    guard result == Int32(count) else { throw result < 0 ? Errno(rawValue: -result) : .ioError }
    return bytes
  }
}
