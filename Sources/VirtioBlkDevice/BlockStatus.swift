/// The answer byte of a block request (virtio 5.2.6).
enum BlockStatus: UInt8 {
  case ok = 0
  case ioError = 1
  case unsupported = 2
}
