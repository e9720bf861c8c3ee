/// What a disk offers, and what of that can be left out.
public import VirtioCore

extension BlockDevice {
  /// What a disk on this image offers unless something else is said. What the image can do is offered, no more (virtio 2.2.2).
  public static func features(of image: ImageFile) -> FeatureSet {
    var features: FeatureSet = [
      .blockSizeMax, .blockSegMax, .blockGeometry, .blockSize, .blockFlush, .blockTopology, .blockConfigWCE,
      .blockMultiQueue, .indirectDescriptors, .eventIndex, .version1, .anyLayout, .packedRing,
    ]
    if image.lifetime != nil { features.insert(.blockLifetime) }
    if image.isReadOnly {
      features.insert(.blockReadOnly)
    } else {
      features.insert(.blockWriteZeroes)
      // Zones that are written in sequence are emptied by a reset: a host-managed disk has no use for DISCARD (virtio 5.2.5.1).
      if image.canDiscard, image.zones == nil { features.insert(.blockDiscard) }
    }
    if image.zones != nil { features.insert(.blockZoned) }
    return features
  }

  /// What a disk on this image can offer besides, and offers only where that is requested
  /// (`BlockDeviceOptions.requestedFeatures`).
  ///
  /// - IN_ORDER (virtio 6.1): a driver that takes it has a slow request hold up all that come after it.
  /// - ORDER_PLATFORM (virtio 6.1): the rings' fences order memory for every CPU of the machine, so that the barriers of a
  ///   platform are as good as those between CPUs; they cost a driver more and give it nothing.
  /// - SECURE_ERASE (virtio 5.2.6): the range is overwritten with zeroes, which takes as long as writing it, and promises no
  ///   more than the image's medium does.
  /// - ACCESS_PLATFORM (virtio 6.1) is for drivers behind an IOMMU, and needs a transport with translations. Drivers take it where it
  /// is offered, and VMMs without an IOMMU, or without vhost-user's messages for one, then have a disk that waits for ever.
  /// - RING_RESET (virtio 2.6.1) and NOTIFICATION_DATA (virtio 2.7.23) need a transport that knows of them, too.
  public static func featuresOnRequest(of image: ImageFile) -> FeatureSet {
    var features: FeatureSet = [.accessPlatform, .inOrder, .orderPlatform, .ringReset, .notificationData, .suspend]
    // A qcow2 image writes to new clusters and leaves the old contents in clusters that are shared or freed. Snapshots and clones of an
    // image in a cluster keep them, too.
    if !image.isReadOnly, image.zones == nil, !image.keepsTables, image.rbd == nil { features.insert(.blockSecureErase) }
    return features
  }

  /// What cannot be left out: a driver has to know that it may only read, and how large the blocks are that it has to keep to
  /// (virtio 5.2.5), and that zones are written in sequence; and there is no other device here than one of version 1.
  public static func requiredFeatures(of image: ImageFile) -> FeatureSet {
    var features: FeatureSet = [.version1]
    if image.isReadOnly { features.insert(.blockReadOnly) }
    if image.logicalBlockSize > 512 { features.insert(.blockSize) }
    if image.zones != nil { features.insert(.blockZoned) }
    return features
  }

  /// Nothing in the offer needs anything else in it (virtio 2.2.2), but that packed rings are none of a legacy device's
  /// (virtio 6.1), and that a host-managed disk is none for a driver without ZONED (virtio 5.2.5.2).
  public func accepts(_ features: FeatureSet) -> Bool {
    features.isSubset(of: self.features) && (image.zones == nil || features.contains(.blockZoned))
      && (features.contains(.version1) || !features.contains(.packedRing))
  }
}
