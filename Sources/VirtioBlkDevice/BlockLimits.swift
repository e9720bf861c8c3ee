/// What a request may ask for: fixed numbers, copied into every lane so that a check costs a compare.
internal import VirtioCore

/// What one DISCARD, WRITE_ZEROES or SECURE_ERASE may ask for.
struct RangeLimits {
  /// 512-byte sectors of a range.
  var sectors = BlockLimits.rangeSectors
  /// Ranges of a request.
  var ranges = UInt32(BlockLimits.ranges)
  /// 512-byte sectors: where ranges begin and how long they are. Advice for DISCARD, a rule for SECURE_ERASE.
  var alignment: UInt32 = 1
}

/// How a medium likes to be used, as virtio 5.2.4 tells it (TOPOLOGY).
struct BlockTopology: Sendable, Equatable {
  /// log2 of the logical blocks in a physical one.
  var physicalExponent: UInt8 = 0
  /// Logical blocks before the first that begins a physical one.
  var alignmentOffset: UInt8 = 0
  /// Logical blocks.
  var minimum: UInt16 = 1
  /// Logical blocks; 0: no wish.
  var optimal: UInt32 = 0

  init() {}

  /// - Parameters:
  ///   - logicalBlock: bytes, as the guest sees it; `physicalBlock` is a multiple of it.
  ///   - device: the block device that the image is; `nil`: it is a file, whose file system tells no more than its block.
  init(logicalBlock: Int, physicalBlock: Int, device: SystemDevice?) {
    let block = UInt64(logicalBlock)
    physicalExponent = UInt8((physicalBlock / logicalBlock).trailingZeroBitCount)
    let least = max(device?.queueNumber("minimum_io_size") ?? 0, UInt64(physicalBlock))
    minimum = UInt16(clamping: least / block)
    guard let device else { return }
    optimal = UInt32(clamping: device.queueNumber("optimal_io_size") / block)
    let offset = device.alignmentOffset
    if offset % block == 0 { alignmentOffset = UInt8(exactly: offset / block) ?? 0 }
  }
}

struct BlockLimits {
  /// Logical block size − 1, bytes: requests start and end on its multiples.
  var blockMask: UInt64
  var isReadOnly: Bool
  /// Data segments of one request, and bytes of one of them, as they are offered (SEG_MAX, SIZE_MAX).
  var segments: Int
  var segmentBytes: Int

  var discard = RangeLimits()
  var zero = RangeLimits()
  var erase = RangeLimits()
  /// Told to the driver, and nothing more.
  var topology = BlockTopology()

  /// Most bytes of one range of DISCARD, WRITE_ZEROES or SECURE_ERASE, in sectors: 1 GiB.
  static let rangeSectors: UInt32 = 1 << 21
  /// Most ranges of one such request.
  static let ranges = 32
  /// Most bytes of one request of a driver that knows no SIZE_MAX or no SEG_MAX.
  static let requestBytes: UInt64 = 1 << 30
  /// What a request counts as in a turn besides its data, bytes.
  static let requestCost = 4096

  /// Most bytes of one request of a driver that knows both limits.
  var requestBytes: UInt64 { UInt64(segments) &* UInt64(segmentBytes) }

  /// Most bytes of a segment where each of its pages may be a piece of its own: all of a request's pieces fit into a slot, with two for
  /// the header and two for the status.
  ///
  /// - Parameter block: the logical block, bytes: a segment is a multiple of it.
  static func translatedSegmentBytes(segments: Int, block: Int) -> UInt32 {
    // One that does not begin with a page has one page more.
    let pages = max((RequestSlab.segmentsPerSlot - 4) / segments - 1, 1)
    let bytes = min(pages * 4096, Int(BlockDeviceOptions.maximumSegmentSize))
    return UInt32(max(bytes - bytes % block, block))
  }

  /// Most segments of a request there: each has room for a block.
  static func translatedSegments(block: Int) -> Int { (RequestSlab.segmentsPerSlot - 4) / (max(block / 4096, 1) + 1) }

  /// Most pieces that a transfer may come to: the border of two memory regions makes two pieces of one segment.
  func pieces(regions: Int) -> Int { min(RequestSlab.segmentsPerSlot, segments + 2 * max(0, regions - 1)) }
}
