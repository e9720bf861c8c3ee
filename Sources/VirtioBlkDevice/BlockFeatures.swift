/// The feature bits of a block device (virtio 5.2.3).
public import VirtioCore

extension FeatureSet {
  /// SIZE_MAX: a data segment has at most `size_max` bytes.
  public static let blockSizeMax = FeatureSet(bit: 1)
  /// SEG_MAX: a request has at most `seg_max` data segments.
  public static let blockSegMax = FeatureSet(bit: 2)
  /// GEOMETRY: cylinders, heads and sectors, for old partition tools.
  public static let blockGeometry = FeatureSet(bit: 4)
  /// RO: the disk cannot be written.
  public static let blockReadOnly = FeatureSet(bit: 5)
  /// BLK_SIZE: requests are multiples of `blk_size` bytes.
  public static let blockSize = FeatureSet(bit: 6)
  /// FLUSH: there is a write cache, and a request that empties it.
  public static let blockFlush = FeatureSet(bit: 9)
  /// TOPOLOGY: sizes and alignments that the medium prefers.
  public static let blockTopology = FeatureSet(bit: 10)
  /// CONFIG_WCE: the driver can turn the write cache off and on (`writeback`).
  public static let blockConfigWCE = FeatureSet(bit: 11)
  /// MQ: there are `num_queues` queues.
  public static let blockMultiQueue = FeatureSet(bit: 12)
  /// DISCARD: ranges can be discarded.
  public static let blockDiscard = FeatureSet(bit: 13)
  /// WRITE_ZEROES: ranges can be filled with zeroes without sending them.
  public static let blockWriteZeroes = FeatureSet(bit: 14)
  /// LIFETIME: the medium's wear can be queried.
  public static let blockLifetime = FeatureSet(bit: 15)
  /// SECURE_ERASE: ranges can be erased so that nothing is left of them.
  public static let blockSecureErase = FeatureSet(bit: 16)
  /// ZONED: the disk has zones, or states that it has none.
  public static let blockZoned = FeatureSet(bit: 17)
}
