/// An image that is an export of an NBD server.
internal import Glibc
internal import SystemPackage
internal import VirtioCore

extension ImageFile {
  /// What a disk on an export is. - Throws: why it can be none.
  static func description(of export: NBDExport, _ options: ImageOptions) throws(NBDFailure) -> ImageDescription {
    let (facts, uri, blockSize) = (export.facts, export.uri, options.logicalBlockSize)
    guard facts.size > 0 else { throw .empty(uri: uri) }
    let block = UInt64(blockSize)
    guard block % facts.minimumBlock == 0, facts.largestTransfer >= block else {
      throw .needsLargerBlocks(uri: uri, minimum: max(facts.minimumBlock, 1), blockSize: blockSize)
    }
    guard facts.size % block == 0 else { throw .oddSize(uri: uri, size: facts.size, blockSize: blockSize) }
    guard options.isReadOnly || !facts.isReadOnly else { throw .isReadOnly(uri: uri) }
    let liked = facts.preferredBlock
    let physical = (512...65536).contains(liked) && liked & (liked - 1) == 0 ? Int(liked) : 4096
    var description = ImageDescription(
      size: facts.size, logicalBlockSize: blockSize, physicalBlockSize: max(blockSize, physical))
    description.isReadOnly = options.isReadOnly
    description.isRemote = true
    // Nothing of it is in this machine's page cache.
    description.isDirect = true
    // Pieces of a transfer become commands of their own, and have to be whole blocks for the server.
    description.memoryAlignment = Int(facts.minimumBlock)
    description.offsetAlignment = Int(facts.minimumBlock)
    description.canDiscard = !options.isReadOnly && facts.canTrim
    description.topology = BlockTopology(
      logicalBlock: blockSize, physicalBlock: description.physicalBlockSize, device: nil)
    description.discardAlignment = description.physicalBlockSize
    description.takesSeveralWorkers = facts.canMultiConn
    let name = export.options.location.export.split(separator: "/").last ?? "nbd"
    description.serial = ImageIdentity.serial(name: name, identity: export.options.location.identity)
    return description
  }

  /// Another process served it before, and what that one wrote may not be stable. Before the first request.
  ///
  /// - Parameter mayHaveLost: its server went away, and that process has not told all queues yet.
  public func continueExport(mayHaveLost: Bool) { export?.inherit(mayHaveLost: mayHaveLost) }

  /// On a connection of its own, which covers the others only where the server says so.
  func flush(_ export: NBDExport) -> Errno? {
    guard export.facts.canMultiConn, export.facts.canFlush else { return .notSupported }
    do throws(NBDFailure) {
      let written = export.written
      let error = try export.connect().flush(until: Clock.now &+ NBDExport.connectTimeout)
      guard error == 0 else { return Errno(rawValue: error) }
      export.noteFlush(written)
      return nil
    } catch { return Errno.socketNotConnected }
  }

  /// Bytes, as a new connection reports.
  func measure(_ export: NBDExport) throws(ImageError) -> UInt64 {
    do throws(NBDFailure) { return try export.connect().facts.size } catch { throw .nbd(error) }
  }
}

extension BlockDevice {
  /// The server of its image went away and may have lost writes, and not all queues have been told with a flush.
  public var owesWordOfLoss: Bool { image.export?.owesWord(workers: threadCount) ?? false }
}
