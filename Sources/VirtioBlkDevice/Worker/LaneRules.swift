/// What a driver negotiated, as its queue has to keep to it.
internal import VirtioCore

/// When a write has to be on stable storage (virtio 5.2.6.2).
enum Durability {
  /// At the next FLUSH. The first case is told apart with one look.
  case byFlush
  /// When it completes: nothing that could commit it later was negotiated.
  case always
  /// As the driver set the configuration's `writeback` byte.
  case byConfiguration
}

struct LaneRules {
  let durability: Durability
  /// FLUSH_OUT is a request (virtio 5.2.6.3).
  let isLegacy: Bool
  let hasDiscard: Bool
  let hasWriteZeroes: Bool
  let hasSecureErase: Bool
  let hasLifetime: Bool
  /// The driver knows zones.
  let hasZones: Bool
  /// Most pieces of a transfer: what SEG_MAX allows, and what the borders of memory regions make of it.
  let segments: Int
  /// Most bytes of one of its segments.
  let segmentBytes: Int
  /// Most bytes of a request.
  let requestBytes: UInt64

  /// Most bytes of a transfer that is requested without another look at it: no step of the medium's, and no segment, is longer.
  var plainBytes: UInt64 { min(MediumFacts.stepBytes, UInt64(segmentBytes)) }

  /// - Parameter regions: of the guest's memory; `nil`: an IOMMU makes any number of pieces of it.
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
