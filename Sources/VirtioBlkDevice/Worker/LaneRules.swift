/// The negotiated features that matter to a queue.
internal import VirtioCore

/// When a write has to be on stable storage (virtio 5.2.6.2).
enum Durability {
  /// At the next FLUSH. It comes first so that it is recognized with one comparison.
  case byFlush
  /// When it completes: the driver negotiated nothing that could commit it later.
  case always
  /// Depends on the configuration's `writeback` byte, which the driver sets.
  case byConfiguration
}

struct LaneRules {
  let durability: Durability
  /// Whether FLUSH_OUT is a valid request (virtio 5.2.6.3).
  let isLegacy: Bool
  let hasDiscard: Bool
  let hasWriteZeroes: Bool
  let hasSecureErase: Bool
  let hasLifetime: Bool
  /// Whether the driver has accepted ZONED.
  let hasZones: Bool
  /// The most segments of a transfer: what SEG_MAX allows, plus what splitting at the borders of memory regions adds.
  let segments: Int
  /// The most bytes of one of its segments.
  let segmentBytes: Int
  /// The most bytes of a request.
  let requestBytes: UInt64

  /// The most bytes of a transfer that is submitted without further checks: no operation of the medium, and no segment, is
  /// longer.
  var plainBytes: UInt64 { min(MediumFacts.leastStepBytes, UInt64(segmentBytes)) }

  /// - Parameter regions: of the guest's memory; `nil`: an IOMMU may split it into any number of pieces.
  init(_ features: FeatureSet, _ limits: BlockLimits, regions: Int?) {
    let knowsSegments = features.contains(.blockSegMax)
    let knowsSize = features.contains(.blockSizeMax)
    durability =
      features.contains(.blockConfigWCE) ? .byConfiguration : features.contains(.blockFlush) ? .byFlush : .always
    isLegacy = !features.contains(.version1)
    hasDiscard = features.contains(.blockDiscard)
    hasWriteZeroes = features.contains(.blockWriteZeroes)
    hasLifetime = features.contains(.blockLifetime)
    hasSecureErase = features.contains(.blockSecureErase)
    hasZones = features.contains(.blockZoned)
    segments = knowsSegments && regions != nil ? limits.pieces(regions: regions ?? 0) : RequestSlab.segmentsPerSlot
    segmentBytes = knowsSize ? limits.segmentBytes : .max
    requestBytes = knowsSegments && knowsSize ? limits.requestBytes : BlockLimits.requestBytes
  }
}
