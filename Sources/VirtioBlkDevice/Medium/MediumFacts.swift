/// What the layer between virtio and an engine knows about a medium.
internal import VirtioCore

/// Copied into every worker; what it points to lives as long as the device.
@safe
struct MediumFacts: @unchecked Sendable {
  /// For the few calls that no engine supports, and for checks of the file's length; −1 if the disk is not a raw one.
  let descriptor: Int32
  /// Bytes when it was opened. Access beyond the present end of a truncated file is an error.
  let size: UInt64
  /// Logical block size − 1, bytes: transfers begin and end on its multiples.
  let blockMask: UInt64
  /// Buffer alignment − 1 that direct transfers need, bytes; 0: any alignment will do.
  let memoryMask: UInt
  /// The page cache is bypassed: the kernel holds no data that a failed flush could lose.
  let isDirect: Bool
  let isBlockDevice: Bool
  /// Holes can be punched.
  let canDiscard: Bool
  /// Not 0 once a flush or a stable write failed on an image in the page cache: that data is lost for good, although the kernel
  /// reports it only once. The word belongs to the image and is shared by all queues.
  let flushFailed: SharedCell<UInt32>
  /// Flushes and stable writes of all queues, if the kernel may report an error to only one of them; `nil`: it cannot.
  let syncs: SyncLedger?
  /// `zeroChunk` bytes of zeroes.
  let zeroes: UnsafeMutableRawPointer
  /// The zones of a zoned disk.
  let zones: ZonedDisk?

  static let zeroChunk = 1 << 20
  /// The largest transfer that is submitted at once, bytes, unless the engine takes less. A larger one is split into steps of
  /// this size, with other work between them.
  static let stepBytes: UInt64 = 4 << 20
  /// The same for the engines that take the least.
  static let leastStepBytes: UInt64 = 1 << 20

  init(image: ImageFile, zeroes: UnsafeMutableRawPointer) {
    // The length of a qcow2 file is not that of its disk, and no call with an offset of the disk may reach the file.
    descriptor = image.chain == nil ? image.descriptor : -1
    size = image.size
    blockMask = UInt64(image.logicalBlockSize - 1)
    memoryMask = UInt(image.memoryAlignment - 1)
    isDirect = image.isDirect
    isBlockDevice = image.isBlockDevice
    canDiscard = image.canDiscard
    flushFailed = image.state.flushFailed
    syncs = image.isDirect || image.isInMemory || image.description.isRemote ? nil : image.state.syncs
    unsafe self.zeroes = zeroes
    zones = image.zones
  }
}
