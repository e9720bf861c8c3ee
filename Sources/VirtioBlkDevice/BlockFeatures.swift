/// The feature bits of a block device (virtio 5.2.3).
public import VirtioCore

extension FeatureSet {
  public static let blockSizeMax = FeatureSet(bit: 1)
  public static let blockSegMax = FeatureSet(bit: 2)
  public static let blockGeometry = FeatureSet(bit: 4)
  public static let blockReadOnly = FeatureSet(bit: 5)
  public static let blockSize = FeatureSet(bit: 6)
  public static let blockFlush = FeatureSet(bit: 9)
  public static let blockTopology = FeatureSet(bit: 10)
  public static let blockConfigWCE = FeatureSet(bit: 11)
  public static let blockMultiQueue = FeatureSet(bit: 12)
  public static let blockDiscard = FeatureSet(bit: 13)
  public static let blockWriteZeroes = FeatureSet(bit: 14)
  public static let blockLifetime = FeatureSet(bit: 15)
  public static let blockSecureErase = FeatureSet(bit: 16)
  public static let blockZoned = FeatureSet(bit: 17)
}
