/// An image that is a chain of qcow2 images.
internal import CLinux
internal import Glibc
internal import Qcow2
internal import SystemPackage
internal import VirtioCore

extension ImageFile {
  /// The description of a disk on a chain. - Throws: why the chain cannot be used.
  static func description(
    of disk: Qcow2Disk, _ options: ImageOptions, _ descriptor: Int32
  ) throws(Qcow2Failure) -> ImageDescription {
    let (path, blockSize) = (options.path, options.logicalBlockSize)
    guard disk.size > 0 else { throw .empty(path: path) }
    guard disk.size % UInt64(blockSize) == 0 else {
      throw .oddSize(path: path, size: disk.size, blockSize: blockSize)
    }
    var info = stat()
    guard unsafe fstat(descriptor, &info) == 0 else { throw .cannotOpen(path: path, Errno(rawValue: errno)) }
    var description = ImageDescription(
      size: disk.size, logicalBlockSize: blockSize, physicalBlockSize: max(blockSize, 4096))
    description.isReadOnly = options.isReadOnly
    description.canDiscard = !options.isReadOnly
    description.isInMemory = disk.isInMemory
    description.topology = BlockTopology(
      logicalBlock: blockSize, physicalBlock: description.physicalBlockSize, device: nil)
    // Ranges smaller than the image's metadata can describe are zeroed by writing zeroes.
    description.discardAlignment = Int(max(UInt64(description.physicalBlockSize), disk.layers[0].geometry.subclusterSize))
    description.serial = ImageIdentity.serial(path: path, descriptor, info, isBlockDevice: false)
    return description
  }
}
