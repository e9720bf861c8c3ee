/// The configuration space of a block device (virtio 5.2.4), as bytes.
internal import VirtioCore

/// Everything in it except `writeback` and the fields that follow from the size is fixed when the device is made.
struct BlockConfigSpace {
  /// `struct virtio_blk_config` of virtio 1.3 and later; the fields of features that are not offered are zero.
  static let size = 96
  static let writebackOffset = 32

  private var bytes = [UInt8](repeating: 0, count: size)

  private let hasGeometry: Bool

  init(image: ImageFile, features: FeatureSet, limits: BlockLimits, queueCount: Int) {
    hasGeometry = features.contains(.blockGeometry)
    resize(to: image.size)
    if features.contains(.blockSizeMax) { set(8, UInt32(limits.segmentBytes)) }
    if features.contains(.blockSegMax) { set(12, UInt32(limits.segments)) }
    if features.contains(.blockSize) { set(20, UInt32(image.logicalBlockSize)) }
    if features.contains(.blockTopology) {
      bytes[24] = limits.topology.physicalExponent
      bytes[25] = limits.topology.alignmentOffset
      set(26, limits.topology.minimum)
      set(28, limits.topology.optimal)
    }
    if features.contains(.blockConfigWCE) { bytes[Self.writebackOffset] = 1 }
    if features.contains(.blockMultiQueue) { set(34, UInt16(queueCount)) }
    if features.contains(.blockDiscard) {
      set(36, limits.discard.sectors)
      set(40, limits.discard.ranges)
      set(44, limits.discard.alignment)
    }
    if features.contains(.blockWriteZeroes) {
      set(48, limits.zero.sectors)
      set(52, limits.zero.ranges)
      bytes[56] = image.canDiscard ? 1 : 0
    }
    if features.contains(.blockSecureErase) {
      set(60, limits.erase.sectors)
      set(64, limits.erase.ranges)
      set(68, limits.erase.alignment)
    }
    if let zones = image.zones?.geometry, features.contains(.blockZoned) {
      set(72, UInt32(zones.zoneSectors))
      set(76, zones.maximumOpen)
      set(80, zones.maximumActive)
      set(84, zones.maximumAppend)
      set(88, zones.granularity * 512)
      // Host-managed.
      bytes[92] = 1
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

  /// Bytes outside it read as zero, whatever the offset and count.
  func read(at offset: Int, count: Int) -> [UInt8] {
    guard count > 0 else { return [] }
    return (0..<count).map { index in
      let (place, overflow) = offset.addingReportingOverflow(index)
      return !overflow && bytes.indices.contains(place) ? bytes[place] : 0
    }
  }

  /// The new value of `writeback` after a driver's write; `nil` if the write does not set it. A wider access is accepted if it
  /// changes nothing else.
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
