/// What a request may ask for: fixed numbers, copied into every lane so that a check costs a compare.
internal import VirtioCore

struct BlockLimits {
  /// Logical block size − 1, bytes: requests start and end on its multiples.
  var blockMask: UInt64
  var isReadOnly: Bool
  /// Data segments of one request, and bytes of one of them, as they are offered (SEG_MAX, SIZE_MAX).
  var segments: Int
  var segmentBytes: Int

  /// Most bytes of one DISCARD or WRITE_ZEROES segment, in sectors: 1 GiB.
  static let rangeSectors: UInt32 = 1 << 21
  /// Most segments of one DISCARD or WRITE_ZEROES request.
  static let ranges = 32
  /// Most bytes of one request of a driver that knows no SIZE_MAX or no SEG_MAX.
  static let requestBytes: UInt64 = 1 << 30
  /// Bytes of data that a queue takes in one turn; then it is another's.
  static let turnBytes = 4 << 20
  /// What a request counts as in a turn besides its data, bytes.
  static let requestCost = 4096

  /// Most bytes of one request of a driver that knows both limits.
  var requestBytes: UInt64 { UInt64(segments) &* UInt64(segmentBytes) }

  /// Most pieces that a transfer may come to: the border of two memory regions makes two pieces of one segment.
  func pieces(regions: Int) -> Int { min(RequestSlab.segmentsPerSlot, segments + 2 * max(0, regions - 1)) }
}
