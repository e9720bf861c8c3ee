/// The wire format of a block request (virtio 5.2.6), as private copies.
internal import CLinux
internal import VirtioCore

/// The request types that this device executes.
enum RequestType: UInt32 {
  case read = 0
  case write = 1
  case flush = 4
  /// Legacy drivers may say FLUSH_OUT (virtio 5.2.6.3).
  case flushOut = 5
  case getID = 8
  case getLifetime = 10
  case discard = 11
  case writeZeroes = 13
  case secureErase = 14
}

/// The first 16 readable bytes.
struct RequestHeader {
  static let size = 16

  let type: UInt32
  let sector: UInt64

  /// Copies the header out of guest memory, once. - Parameter pointer: 16 readable bytes.
  @inline(__always)
  init(copying pointer: UnsafeMutableRawPointer) {
    // It may have any alignment.
    let low = unsafe clinux_load_once(pointer)
    let high = unsafe clinux_load_once(pointer + 8)
    type = UInt32(truncatingIfNeeded: UInt64(littleEndian: low))
    sector = UInt64(littleEndian: high)
  }
}

/// One range of a DISCARD, WRITE_ZEROES or SECURE_ERASE request, as the driver wrote it.
struct RequestRange {
  static let size = 16
  static let unmap: UInt32 = 1

  var sector: UInt64
  var sectorCount: UInt32
  var flags: UInt32
}
