/// The status byte of a block request (virtio 5.2.6).
enum BlockStatus: UInt8 {
  case ok = 0
  case ioError = 1
  case unsupported = 2
  // Of zoned disks.
  case zoneInvalid = 3
  case zoneUnaligned = 4
  case zoneOpenResource = 5
  case zoneActiveResource = 6
}
