/// What the layer between virtio and an engine knows of a medium.
internal import VirtioCore

/// Copied into every worker; what its words point at lives as long as the device.
@safe
struct MediumFacts: @unchecked Sendable {
  /// For the few calls that no engine has, and for looks at a file's length; −1 where the disk is no raw one.
  let descriptor: Int32
  /// Bytes when it was opened. What lies beyond the present end of a file that was cut is an error.
  let size: UInt64
  /// Logical block size − 1, bytes: transfers begin and end on its multiples.
  let blockMask: UInt64
  /// Buffer alignment − 1 that direct transfers need, bytes; 0 where anything goes.
  let memoryMask: UInt
  /// The page cache is bypassed: nothing that the kernel still holds can be lost by a failed flush.
  let isDirect: Bool
  let isBlockDevice: Bool
  /// Holes can be punched.
  let canDiscard: Bool
  /// Not 0 once a flush or a stable write failed on an image in the page cache: what was lost then stays lost, although the
  /// kernel says so only once. The image's own word, shared by all queues.
  let flushFailed: SharedCell<UInt32>
  /// Flushes and stable writes of all queues, where the kernel tells an error to one of them only; `nil` where it cannot.
  let syncs: SyncLedger?
  /// `zeroChunk` bytes of zeroes.
  let zeroes: UnsafeMutableRawPointer
  /// Of a disk with zones.
  let zones: ZonedDisk?

  static let zeroChunk = 1 << 20
  /// Bytes of the largest transfer that is handed over at once, unless the engine takes less; a larger one goes in steps of this,
  /// and other work comes between them.
  static let stepBytes: UInt64 = 4 << 20
  /// The same of the engines that take least.
  static let leastStepBytes: UInt64 = 1 << 20

  init(image: ImageFile, zeroes: UnsafeMutableRawPointer) {
    // The length of a qcow2 image is none of its disk's, and no call of a disk's offsets may reach its file.
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
