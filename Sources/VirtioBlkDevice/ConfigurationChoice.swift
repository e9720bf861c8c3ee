/// Fields of the configuration space (virtio 5.2.4) that can be chosen for a disk, by their names there.
public enum ConfigurationField: String, CaseIterable, Sendable {
  /// Bytes of a data segment.
  case sizeMax = "size_max"
  /// Data segments of a request.
  case segMax = "seg_max"
  /// log2 of the logical blocks in a physical one.
  case physicalBlockExponent = "physical_block_exp"
  /// Logical blocks before the first one that begins a physical one.
  case alignmentOffset = "alignment_offset"
  /// The smallest efficient transfer, logical blocks.
  case minimumIO = "min_io_size"
  /// The best transfer size, logical blocks; 0: unknown.
  case optimalIO = "opt_io_size"
  /// 512-byte sectors of a range of DISCARD.
  case discardSectors = "max_discard_sectors"
  /// Ranges of a DISCARD request.
  case discardRanges = "max_discard_seg"
  /// The alignment of ranges of DISCARD, 512-byte sectors; advisory.
  case discardAlignment = "discard_sector_alignment"
  /// 512-byte sectors of a range of WRITE_ZEROES.
  case zeroSectors = "max_write_zeroes_sectors"
  /// Ranges of a WRITE_ZEROES request.
  case zeroRanges = "max_write_zeroes_seg"
  /// 512-byte sectors of a range of SECURE_ERASE.
  case eraseSectors = "max_secure_erase_sectors"
  /// Ranges of a SECURE_ERASE request.
  case eraseRanges = "max_secure_erase_seg"
  /// The alignment of ranges of SECURE_ERASE, 512-byte sectors; enforced.
  case eraseAlignment = "secure_erase_sector_alignment"
}

/// Fields of the configuration space that were chosen for a disk. The others follow from the image and from what this device
/// supports.
public struct ConfigurationChoice: Equatable, Sendable {
  private var values: [ConfigurationField: UInt32] = [:]

  /// Nothing is chosen.
  public init() {}

  /// Nothing was chosen.
  public var isEmpty: Bool { values.isEmpty }

  /// The value chosen for a field, in the field's unit; `nil`: none. Whether a device supports it is checked when one is made.
  public subscript(_ field: ConfigurationField) -> UInt32? {
    get { values[field] }
    set { values[field] = newValue }
  }

  /// In the specification's words, separated by commas: `seg_max=62,max_discard_seg=1`.
  public var words: String {
    ConfigurationField.allCases.compactMap { field in self[field].map { "\(field.rawValue)=\($0)" } }.joined(separator: ",")
  }

  /// The limits of a disk with this choice.
  ///
  /// - Parameter isTranslated: an IOMMU may make each page a separate piece, and a request of the largest size has to fit even
  ///   then.
  /// - Throws: `EngineError.badConfiguration`, for a value that this device does not support on this image.
  func limits(of image: ImageFile, queueSize: UInt16, isTranslated: Bool) throws(EngineError) -> BlockLimits {
    let sectors = UInt32(image.logicalBlockSize / 512)
    var most = max(1, min(BlockDeviceOptions.maximumSegments, Int(queueSize) - 2))
    if isTranslated { most = min(most, BlockLimits.translatedSegments(block: image.logicalBlockSize)) }
    func value(_ field: ConfigurationField, _ usual: UInt32, _ range: ClosedRange<UInt32>) throws(EngineError) -> UInt32 {
      guard let chosen = self[field] else { return usual }
      guard range.contains(chosen) else {
        throw .badConfiguration(field, "use \(range.lowerBound) to \(range.upperBound)")
      }
      return chosen
    }
    // Sectors that make whole blocks.
    func blocks(_ field: ConfigurationField, _ usual: UInt32, _ range: ClosedRange<UInt32>) throws(EngineError) -> UInt32 {
      let chosen = try value(field, usual, range)
      guard chosen % sectors == 0 else {
        throw .badConfiguration(field, "the logical block is \(sectors) sectors: use a multiple of that")
      }
      return chosen
    }
    let segments = Int(try value(.segMax, UInt32(most), 1...UInt32(most)))
    let largest =
      isTranslated
      ? BlockLimits.translatedSegmentBytes(segments: segments, block: image.logicalBlockSize)
      : BlockDeviceOptions.maximumSegmentSize
    var limits = BlockLimits(
      blockMask: UInt64(image.logicalBlockSize - 1), isReadOnly: image.isReadOnly, segments: segments,
      segmentBytes: Int(try value(.sizeMax, largest, UInt32(max(4096, image.logicalBlockSize))...largest)))
    guard limits.segmentBytes % image.logicalBlockSize == 0 else {
      throw .badConfiguration(.sizeMax, "the logical block is \(image.logicalBlockSize) bytes: use a multiple of that")
    }
    let range = sectors...BlockLimits.rangeSectors
    let ranges: ClosedRange<UInt32> = 1...UInt32(BlockLimits.ranges)
    let usual = RangeLimits()
    limits.discard.sectors = try blocks(.discardSectors, usual.sectors, range)
    limits.discard.ranges = try value(.discardRanges, usual.ranges, ranges)
    limits.discard.alignment = try blocks(.discardAlignment, UInt32(image.description.discardAlignment / 512), range)
    limits.zero.sectors = try blocks(.zeroSectors, usual.sectors, range)
    // In a zone, zeroes are written, and a request is one write.
    limits.zero.ranges = try value(.zeroRanges, image.zones == nil ? usual.ranges : 1, image.zones == nil ? ranges : 1...1)
    if let append = image.zones?.geometry.maximumAppend, UInt64(append) * 512 > limits.requestBytes {
      throw .badConfiguration(.segMax, "an append to a zoned disk is one request of \(UInt64(append) * 512) bytes: use more")
    }
    limits.erase.sectors = try blocks(.eraseSectors, usual.sectors, range)
    limits.erase.ranges = try value(.eraseRanges, usual.ranges, ranges)
    limits.erase.alignment = try blocks(.eraseAlignment, sectors, range)
    guard limits.erase.sectors % limits.erase.alignment == 0 else {
      throw .badConfiguration(
        .eraseSectors, "ranges to erase are multiples of \(limits.erase.alignment) sectors: use a multiple of that")
    }
    let topology = image.description.topology
    limits.topology.physicalExponent = UInt8(
      try value(.physicalBlockExponent, UInt32(topology.physicalExponent), 0...16))
    limits.topology.alignmentOffset = UInt8(try value(.alignmentOffset, UInt32(topology.alignmentOffset), 0...255))
    limits.topology.minimum = UInt16(try value(.minimumIO, UInt32(topology.minimum), 0...65535))
    limits.topology.optimal = try value(.optimalIO, topology.optimal, 0...(.max))
    return limits
  }
}
