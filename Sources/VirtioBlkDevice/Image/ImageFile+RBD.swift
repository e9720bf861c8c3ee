/// An image that is in a Ceph cluster.
internal import Glibc
internal import SystemPackage
internal import VirtioCore

extension ImageFile {
  /// What distinguishes an image of a Ceph cluster from the images of all clusters: the identifiers of the cluster, the pool
  /// and the image; `nil`: it is not in a cluster, or the cluster does not report them. A new image of the same name has a
  /// different one.
  public var identityInCluster: String? {
    rbd.flatMap { $0.facts.identity.hasPrefix(" ") ? nil : $0.facts.identity }
  }

  /// The description of a disk on an image. - Throws: why the image cannot be used.
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
