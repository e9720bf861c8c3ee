/// An image that is in a Ceph cluster.
internal import Glibc
internal import SystemPackage
internal import VirtioCore

extension ImageFile {
  /// What tells an image of a Ceph cluster from those of all clusters: the cluster's identifier, the pool, and the image's; `nil`:
  /// it is in none, or the cluster does not say. Another image of the same name has another one.
  public var identityInCluster: String? {
    rbd.flatMap { $0.facts.identity.hasPrefix(" ") ? nil : $0.facts.identity }
  }

  /// What a disk on an image is. - Throws: why it can be none.
  static func description(of rbd: RBDImage, _ options: ImageOptions) throws(RBDFailure) -> ImageDescription {
    let (facts, uri, blockSize) = (rbd.facts, rbd.uri, options.logicalBlockSize)
    guard facts.size > 0 else { throw .empty(uri: uri) }
    guard facts.size % UInt64(blockSize) == 0 else { throw .oddSize(uri: uri, size: facts.size, blockSize: blockSize) }
    var description = ImageDescription(
      size: facts.size, logicalBlockSize: blockSize, physicalBlockSize: max(blockSize, 4096))
    description.isReadOnly = options.isReadOnly
    description.isRemote = true
    // Nothing of it is in this machine's page cache.
    description.isDirect = true
    description.canDiscard = !options.isReadOnly
    description.topology = BlockTopology(
      logicalBlock: blockSize, physicalBlock: description.physicalBlockSize, device: nil)
    let granularity = facts.discardGranularity
    let isUseful = granularity <= 1 << 30 && granularity % UInt64(blockSize) == 0
    description.discardAlignment = max(description.physicalBlockSize, isUseful ? Int(granularity) : 0)
    description.serial = ImageIdentity.serial(name: rbd.options.location.image, identity: facts.identity)
    return description
  }
}
