/// The limits of a request: fixed numbers, copied into every lane so that a check costs one comparison.
internal import VirtioCore

/// The limits of one DISCARD, WRITE_ZEROES or SECURE_ERASE request.
struct RangeLimits {
  /// 512-byte sectors of a range.
  var sectors = BlockLimits.rangeSectors
  /// Ranges of a request.
  var ranges = UInt32(BlockLimits.ranges)
  /// Ranges begin at multiples of this and are multiples of it long, 512-byte sectors. Advisory for DISCARD, enforced for
  /// SECURE_ERASE.
  var alignment: UInt32 = 1
}

/// The transfer sizes and alignment that a medium prefers (virtio 5.2.4, TOPOLOGY).
struct BlockTopology: Sendable, Equatable {
  /// log2 of the logical blocks in a physical one.
  var physicalExponent: UInt8 = 0
  /// Logical blocks before the first one that begins a physical one.
  var alignmentOffset: UInt8 = 0
  /// The smallest efficient transfer, logical blocks.
  var minimum: UInt16 = 1
  /// The best transfer size, logical blocks; 0: unknown.
  var optimal: UInt32 = 0

  init() {}

  /// - Parameters:
  ///   - logicalBlock: bytes, as the guest sees it; `physicalBlock` is a multiple of it.
  ///   - device: the block device that the image is; `nil`: it is a file, whose file system reports only its block size.
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
  /// Reported to the driver, and not used otherwise.
  var topology = BlockTopology()

  /// The most sectors of one range of DISCARD, WRITE_ZEROES or SECURE_ERASE: 1 GiB.
  static let rangeSectors: UInt32 = 1 << 21
  /// The most ranges of one such request.
  static let ranges = 32
  /// The most bytes of one request if the driver has not accepted both SIZE_MAX and SEG_MAX.
  static let requestBytes: UInt64 = 1 << 30
  /// What a request counts for in a turn in addition to its data, bytes.
  static let requestCost = 4096

  /// The most bytes of one request if the driver has accepted both limits.
  var requestBytes: UInt64 { UInt64(segments) &* UInt64(segmentBytes) }

  /// The most bytes of a segment if each of its pages may be a separate piece: all pieces of a request fit into a slot, with
  /// two for the header and two for the status.
  ///
  /// - Parameter block: the logical block, bytes: a segment is a multiple of it.
  static func translatedSegmentBytes(segments: Int, block: Int) -> UInt32 {
    // A segment that does not begin at a page boundary touches one page more.
    let pages = max((RequestSlab.segmentsPerSlot - 4) / segments - 1, 1)
    let bytes = min(pages * 4096, Int(BlockDeviceOptions.maximumSegmentSize))
    return UInt32(max(bytes - bytes % block, block))
  }

  /// The most segments of a request in that case: each has room for a block.
  static func translatedSegments(block: Int) -> Int { (RequestSlab.segmentsPerSlot - 4) / (max(block / 4096, 1) + 1) }

  /// The most pieces of a transfer: the border between two memory regions makes two pieces of one segment.
  func pieces(regions: Int) -> Int { min(RequestSlab.segmentsPerSlot, segments + 2 * max(0, regions - 1)) }
}
