/// What a request may ask for: fixed numbers, copied into every lane so that a check costs a compare.
internal import VirtioCore

struct BlockLimits {
  /// 512-byte sectors, the unit of every address in the protocol (virtio 5.2.4).
  var capacity: UInt64
  /// Logical block size − 1, bytes: requests start and end on its multiples.
  var blockMask: UInt64
  var isReadOnly: Bool
  /// Buffer alignment − 1 that the medium needs, bytes; 0 where anything goes.
  var memoryMask: UInt
  /// The medium transfers whole blocks only.
  var isDirect: Bool
  /// Holes can be punched in the image.
  var canDiscard: Bool

  /// Most bytes of one DISCARD or WRITE_ZEROES segment, in sectors: 1 GiB.
  static let rangeSectors: UInt32 = 1 << 21
  /// Most segments of one DISCARD or WRITE_ZEROES request.
  static let ranges = 32
}
