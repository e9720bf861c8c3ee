/// Copies of guest memory, for tools that only read: nothing is mapped, so nothing can change under a reader or fault if the
/// file is truncated.
internal import CLinux
internal import Glibc
internal import SystemPackage
public import VirtioCore

/// Guest memory as a range of an open file.
public struct GuestBytes: Sendable {
  private let descriptor: OwnedDescriptor
  /// Where guest memory begins in the file, bytes.
  private let offset: UInt64
  /// The guest-physical address of its first byte.
  public let base: GuestAddress
  /// Bytes.
  public let size: UInt64

  /// - Parameter offset: offset + size is at most 2^63 − 1.
  init(descriptor: OwnedDescriptor, offset: UInt64, base: GuestAddress, size: UInt64) {
    self.descriptor = descriptor
    self.offset = offset
    self.base = base
    self.size = size
  }

  /// Opens a file that consists of guest memory only.
  ///
  /// - Parameter base: the guest-physical address of its first byte.
  public init(rawFile path: String, base: GuestAddress) throws(MemoryFileError) {
    let number = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC, 0)
    guard number >= 0 else { throw .system(path: path, action: "open", Errno(rawValue: errno)) }
    let descriptor = OwnedDescriptor(number)
    var status = stat()
    guard unsafe fstat(number, &status) == 0 else {
      throw .system(path: path, action: "examine", Errno(rawValue: errno))
    }
    self.init(descriptor: descriptor, offset: 0, base: base, size: UInt64(max(status.st_size, 0)))
  }

  /// Whether the whole range is guest memory.
  public func contains(_ address: GuestAddress, count: UInt64) -> Bool {
    let distance = address.rawValue &- base.rawValue
    return distance < size && count <= size - distance
  }

  /// A copy of `count` bytes, or `nil` if they are not all there.
  ///
  /// - Parameter count: at most 16 MiB; a drawing needs no more at a time.
  public func bytes(at address: GuestAddress, count: Int) -> [UInt8]? {
    // An empty range is valid at any address, even at one that no file position can represent.
    guard count != 0 else { return [] }
    guard count > 0, count <= 16 << 20, contains(address, count: UInt64(count)) else { return nil }
    var copy = [UInt8](repeating: 0, count: count)
    let position = offset + (address.rawValue &- base.rawValue)
    let got = unsafe copy.withUnsafeMutableBytes {
      unsafe pread(descriptor.rawValue, $0.baseAddress, $0.count, off_t(position))
    }
    return got == count ? copy : nil
  }
}
