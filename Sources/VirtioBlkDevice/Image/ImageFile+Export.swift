/// An image that is an export of an NBD server.
internal import Glibc
internal import SystemPackage
internal import VirtioCore

extension ImageFile {
  /// The description of a disk on an export. - Throws: why the export cannot be used.
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
    // Pieces of a transfer become separate commands, and have to be whole blocks for the server.
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

  /// For an export that another process still serves, and that is about to be taken over here: what that process wrote may not
  /// be stable. To be called before a queue is prepared.
  public func inheritExport() { export?.inheritWrites() }

  /// For an export: another process may have served it since the queues were stopped, and is gone. What it acknowledged may be
  /// lost, so the next FLUSH of each queue fails. To be called before a queue is started again.
  public func resumeExport() { export?.resume() }

  /// Flushes on a separate connection, which covers the others only if the server says so.
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

  /// The size that a new connection reports, bytes.
  func measure(_ export: NBDExport) throws(ImageError) -> UInt64 {
    do throws(NBDFailure) { return try export.connect().facts.size } catch { throw .nbd(error) }
  }
}

extension BlockDevice {
  /// For each thread, whether it still has to tell its queues that the export's server may have lost writes; `nil`: none has.
  public var owesWordOfLoss: [Bool]? { image.export?.owing(workers: threadCount) }

  /// Whether everything written to its export is stable; `false` also if it has no export.
  public var isExportStable: Bool { image.export?.isStable ?? false }

  /// To be called after `inheritExport`, when the process that served the export has stopped, and before a queue is started.
  ///
  /// - Parameters:
  ///   - isStable: that process's `isExportStable`.
  ///   - owing: that process's `owesWordOfLoss`.
  public func continueExport(isStable: Bool, owing: [Bool]?) {
    image.export?.inherit(isStable: isStable, owing: owing, workers: threadCount)
  }
}
