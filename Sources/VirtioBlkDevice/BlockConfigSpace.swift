/// The configuration space of a block device (virtio 5.2.4), as bytes.
internal import VirtioCore

/// Everything in it but `writeback` and what follows from the size is fixed when the device is made.
struct BlockConfigSpace {
  /// `struct virtio_blk_config` of virtio 1.3 and later; what belongs to features that are not offered is zero.
  static let size = 96
  static let writebackOffset = 32

  private var bytes = [UInt8](repeating: 0, count: size)

  private let hasGeometry: Bool

  init(image: ImageFile, features: FeatureSet, options: BlockDeviceOptions) {
    hasGeometry = features.contains(.blockGeometry)
    resize(to: image.size)
    if features.contains(.blockSizeMax) { set(8, BlockDeviceOptions.maximumSegmentSize) }
    if features.contains(.blockSegMax) { set(12, UInt32(options.segmentLimit)) }
    if features.contains(.blockSize) { set(20, UInt32(image.logicalBlockSize)) }
    if features.contains(.blockTopology) {
      let blocks = image.physicalBlockSize / image.logicalBlockSize
      bytes[24] = UInt8(blocks.trailingZeroBitCount)  // physical_block_exp
      bytes[25] = 0  // alignment_offset
      set(26, UInt16(blocks))  // min_io_size, logical blocks
      set(28, UInt32(0))  // opt_io_size: no wish
    }
    if features.contains(.blockConfigWCE) { bytes[Self.writebackOffset] = 1 }
    if features.contains(.blockMultiQueue) { set(34, UInt16(options.queueCount)) }
    let alignment = UInt32(image.physicalBlockSize / 512)
    if features.contains(.blockDiscard) {
      set(36, BlockLimits.rangeSectors)
      set(40, UInt32(BlockLimits.ranges))
      set(44, alignment)
    }
    if features.contains(.blockWriteZeroes) {
      set(48, BlockLimits.rangeSectors)
      set(52, UInt32(BlockLimits.ranges))
      bytes[56] = image.canDiscard ? 1 : 0
    }
  }

  /// - Parameter size: bytes.
  mutating func resize(to size: UInt64) {
    let sectors = size / 512
    set(0, sectors)
    guard hasGeometry else { return }
    // The geometry that firmware makes up for disks without one.
    let heads: UInt64 = 16
    let perTrack: UInt64 = 63
    set(16, UInt16(min(sectors / (heads * perTrack), 65535)))
    bytes[18] = UInt8(heads)
    bytes[19] = UInt8(perTrack)
  }

  private mutating func set<Value: FixedWidthInteger>(_ offset: Int, _ value: Value) {
    for index in 0..<(Value.bitWidth / 8) {
      bytes[offset + index] = UInt8(truncatingIfNeeded: value >> Value(index * 8))
    }
  }

  var writeback: UInt8 {
    get { bytes[Self.writebackOffset] }
    set { bytes[Self.writebackOffset] = newValue }
  }

  /// Zero where there is nothing, whatever the offset and count.
  func read(at offset: Int, count: Int) -> [UInt8] {
    guard count > 0 else { return [] }
    return (0..<count).map { index in
      let (place, overflow) = offset.addingReportingOverflow(index)
      return !overflow && bytes.indices.contains(place) ? bytes[place] : 0
    }
  }

  /// What `writeback` becomes by a driver's write; `nil` when the write is not a write to it. A wider access is fine as long
  /// as it changes nothing else.
  func writeback(writing new: [UInt8], at offset: Int) -> UInt8? {
    let index = Self.writebackOffset.subtractingReportingOverflow(offset)
    guard !index.overflow, new.indices.contains(index.partialValue), new.count <= Self.size else { return nil }
    let value = new[index.partialValue]
    var unchanged = new
    unchanged[index.partialValue] = writeback
    guard value <= 1, unchanged == read(at: offset, count: new.count) else { return nil }
    return value
  }
}
