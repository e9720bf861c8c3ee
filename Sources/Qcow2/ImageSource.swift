/// The sources of an image's bytes. Nothing in this module does I/O except `FileSource`.
internal import CLinux
internal import Glibc
public import SystemPackage

public protocol ImageSource {
  /// The length of the file, bytes.
  var byteCount: UInt64 { get }

  /// - Parameters:
  ///   - offset: below 2^63.
  ///   - count: bytes.
  /// - Returns: the bytes that the file has there, at most `count`.
  func read(at offset: UInt64, count: Int) throws(Errno) -> [UInt8]
}

extension ImageSource {
  /// Reads exactly `count` bytes.
  /// - Throws: `cannotRead`, or `pastEnd` with the part.
  func need(_ part: Qcow2Fault.Part, at offset: UInt64, count: Int) throws(Qcow2Fault) -> [UInt8] {
    let bytes: [UInt8]
    do throws(Errno) { bytes = try read(at: offset, count: count) } catch { throw .cannotRead(error) }
    guard bytes.count == count else { throw .pastEnd(part, offset: offset) }
    return bytes
  }
}

/// An open file.
public struct FileSource: ImageSource {
  /// Not owned: the caller keeps it open.
  public let descriptor: Int32
  public let byteCount: UInt64

  /// - Throws: its length cannot be determined.
  public init(_ descriptor: Int32) throws(Errno) {
    self.descriptor = descriptor
    var info = stat()
    guard unsafe fstat(descriptor, &info) == 0 else { throw Errno(rawValue: errno) }
    var size = UInt64(max(info.st_size, 0))
    if info.st_mode & S_IFMT == S_IFBLK, unsafe clinux_block_size64(descriptor, &size) != 0 { throw Errno(rawValue: errno) }
    byteCount = size
  }

  public func read(at offset: UInt64, count: Int) throws(Errno) -> [UInt8] {
    var failure: Errno? = nil
    let bytes = unsafe [UInt8](unsafeUninitializedCapacity: count) { buffer, done in
      let raw = UnsafeMutableRawBufferPointer(buffer)
      do throws(Errno) { done = try unsafe read(at: offset, into: raw) } catch { failure = error }
    }
    if let failure { throw failure }
    return bytes
  }

  /// - Returns: how many bytes were read; fewer than there is room for at the end of the file.
  public func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(Errno) -> Int {
    // No file has anything at an offset that does not fit into off_t.
    guard let start = off_t(exactly: offset), start <= off_t.max - off_t(buffer.count) else { return 0 }
    var done = 0
    while done < buffer.count {
      let got = unsafe pread(descriptor, buffer.baseAddress! + done, buffer.count - done, start + off_t(done))
      if got == 0 { break }
      if got < 0 {
        if errno == EINTR { continue }
        throw Errno(rawValue: errno)
      }
      done += got
    }
    return done
  }
}

/// Bytes that are in memory already.
public struct MemorySource: ImageSource {
  public var bytes: [UInt8]
  public var byteCount: UInt64 { UInt64(bytes.count) }

  public init(_ bytes: [UInt8]) { self.bytes = bytes }

  public func read(at offset: UInt64, count: Int) throws(Errno) -> [UInt8] {
    guard offset < byteCount else { return [] }
    return Array(bytes[Int(offset)..<min(bytes.count, Int(offset) + count)])
  }
}
