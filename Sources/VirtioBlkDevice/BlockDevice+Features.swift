/// The features that a disk offers, and which of them can be withheld.
public import VirtioCore

extension BlockDevice {
  /// What a disk on this image offers by default: what the image supports, and no more (virtio 2.2.2).
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

  /// What a disk on this image can offer in addition, and offers only on request (`BlockDeviceOptions.requestedFeatures`).
  ///
  /// - IN_ORDER (virtio 6.1): with a driver that accepts it, a slow request delays the answers to all later ones.
  /// - ORDER_PLATFORM (virtio 6.1): the rings' fences order memory for every CPU of the machine, so that a platform's barriers
  ///   are as good as those between CPUs; they cost a driver more and gain nothing.
  /// - SECURE_ERASE (virtio 5.2.6): the range is overwritten with zeroes, which takes as long as writing it, and promises no
  ///   more than the image's medium does.
  /// - ACCESS_PLATFORM (virtio 6.1) is for drivers behind an IOMMU, and needs a transport with translations. Drivers accept it
  ///   wherever it is offered; in a VMM without an IOMMU, or without vhost-user's messages for one, the disk would then wait
  ///   forever.
  /// - RING_RESET (virtio 2.6.1) and NOTIFICATION_DATA (virtio 2.7.23) need a transport that supports them.
  public static func featuresOnRequest(of image: ImageFile) -> FeatureSet {
    var features: FeatureSet = [.accessPlatform, .inOrder, .orderPlatform, .ringReset, .notificationData, .suspend]
    // A qcow2 image writes to new clusters and leaves the old contents in clusters that are shared or freed. Snapshots and
    // clones of an image in a cluster keep them, too.
    if !image.isReadOnly, image.zones == nil, !image.keepsTables, image.rbd == nil { features.insert(.blockSecureErase) }
    return features
  }

  /// The features that cannot be withheld: a driver has to know that the disk is read-only, how large the blocks are that it
  /// has to respect (virtio 5.2.5), and that zones are written sequentially; and the device is always one of version 1.
  public static func requiredFeatures(of image: ImageFile) -> FeatureSet {
    var features: FeatureSet = [.version1]
    if image.isReadOnly { features.insert(.blockReadOnly) }
    if image.logicalBlockSize > 512 { features.insert(.blockSize) }
    if image.zones != nil { features.insert(.blockZoned) }
    return features
  }

  /// No offered feature depends on another one (virtio 2.2.2), except that a legacy device has no packed rings (virtio 6.1),
  /// and that a driver without ZONED cannot use a host-managed disk (virtio 5.2.5.2).
  public func accepts(_ features: FeatureSet) -> Bool {
    features.isSubset(of: self.features) && (image.zones == nil || features.contains(.blockZoned))
      && (features.contains(.version1) || !features.contains(.packedRing))
  }
}
