/// A disk of qcow2 images, shared by all its queues: the chain, and reading through it. Its only state is the tables that
/// have been read; those of the topmost image change if it is written to, and only its writer changes them.
internal import CLinux
internal import Glibc
internal import Qcow2
internal import Synchronization
internal import VirtioCore

final class Qcow2Disk: Sendable, MediumCalls {
  /// From the top down; at least one.
  let layers: [Qcow2Layer]
  /// Every file of the chain is in memory, so that no call blocks.
  let isInMemory: Bool
  /// The mappings of the images' data files, in the same order; `nil`: that file is not mapped.
  let mappings: [Qcow2Mapping?]
  /// The writer of the topmost image; `nil`: it is read-only.
  let writer: Qcow2Writer?
  /// Clusters may be shared with backing files or snapshots: a write that copies one waits for the medium.
  private let sharesClusters: Bool
  /// The cluster that was decompressed last: compressed images are usually read sequentially.
  private let decompressed = Mutex<DecompressedCluster?>(nil)

  init(
    _ layers: [Qcow2Layer], isInMemory: Bool, mappings: [Qcow2Mapping?] = [], writer: Qcow2Writer? = nil,
    hasSnapshots: Bool = false
  ) {
    self.mappings = mappings.isEmpty ? layers.map { _ in nil } : mappings
    sharesClusters = layers.count > 1 || hasSnapshots
    self.layers = layers
    self.isInMemory = isInMemory
    self.writer = writer
  }

  /// The last reference may be released by a thread that must not truncate a file.
  deinit { writer?.finish(mayCut: false) }

  /// Bytes.
  var size: UInt64 { layers[0].size }

  // MARK: Operations

  /// Whether an operation only stores into the page cache and waits for nothing, judged by its first cluster.
  func onlyStores(_ operation: IOOperation) -> Bool {
    guard let writer, !sharesClusters, !operation.isDurable else { return false }
    return switch operation.kind {
    case .read, .flush: false
    case .write, .punchHole, .zeroRange, .allocate, .blockDiscard:
      layers[0].isWrittenAtOnce(at: operation.offset, firstEnd: writer.firstEnd)
    }
  }

  /// Pages of the page cache have been reclaimed: what is known about the mappings is forgotten.
  func forgetPages() { for mapping in mappings { mapping?.forgetPages() } }

  /// Whether parts of a mapping that are not known, or known to lack pages, can be copied after all.
  func comesToBeData(_ index: Int, _ place: UInt64, _ length: UInt64) -> Bool {
    mappings[index]?.comesToBeData(place, length) ?? false
  }

  /// A mapping was lost. Until then, faults are those of others.
  var hasLostMapping: Bool { mappings.contains { $0?.isLost ?? false } }

  /// Performs an operation, waiting for the medium if necessary.
  func perform(_ operation: IOOperation) -> Int32 { performAtOnce(operation, mayWait: true) ?? -EIO }

  /// - Parameter mayWait: otherwise only the page cache is read.
  /// - Returns: the same as `perform`; `nil`: it would have to wait.
  func performAtOnce(_ operation: IOOperation, mayWait: Bool) -> Int32? {
    switch operation.kind {
    case .read: return read(operation, mayWait: mayWait)
    case .flush:
      guard let writer else { return 0 }
      guard mayWait else { return nil }
      return mappings[0]?.isWhole() ?? true ? writer.flush() : -EIO
    case .write, .punchHole, .zeroRange, .allocate, .blockDiscard:
      guard let writer else { return -EROFS }
      return mayWait ? change(operation, writer) : nil
    }
  }

  private func read(_ operation: IOOperation, mayWait: Bool) -> Int32? {
    guard let segments = unsafe operation.segments else { return 0 }
    // Without NOWAIT if it may wait: then it also waits for pages that are being read.
    let flags = mayWait ? 0 : clinux_rwf_nowait
    var target = unsafe SegmentCursor(segments, count: operation.segmentCount)
    var done: UInt64 = 0
    while done < operation.length {
      let (index, piece) = find(operation.offset &+ done, limit: operation.length &- done, mayWait: mayWait)
      let layer = layers[index]
      switch piece.kind {
      case .notLoaded: return nil
      case .failed, .absent: return -EIO
      case .zero: target.zero(Int(piece.count))
      case .data(let place):
        // All of it is contiguous, as nearly always.
        if done == 0, piece.count == operation.length, operation.segmentCount > 1 {
          let vectors = unsafe UnsafeRawPointer(segments).assumingMemoryBound(to: iovec.self)
          let got = unsafe preadv2(
            layer.dataFile.rawValue, vectors, Int32(operation.segmentCount), off_t(place), flags)
          if got == Int(operation.length) { return Int32(truncatingIfNeeded: got) }
        }
        let result = target.read(layer, at: place, count: Int(piece.count), flags: flags)
        if result == -EAGAIN || result == -EOPNOTSUPP, !mayWait { return nil }
        guard result == 0 else { return result }
      case .compressed(let place, let count):
        guard mayWait else { return nil }
        let cluster = layer.clusterSize
        guard let content = decompress(layer, place, count) else { return -EIO }
        let inside = (operation.offset &+ done) & (cluster &- 1)
        target.copy(content.bytes, from: Int(inside), count: Int(piece.count))
      }
      done &+= piece.count
    }
    return Int32(truncatingIfNeeded: done)
  }

  /// The disk's contents at an offset, from whichever image has them; reads tables if necessary.
  func piece(at offset: UInt64, limit: UInt64) -> Qcow2Piece { find(offset, limit: limit, mayWait: true).1 }

  /// The topmost image that has contents at an offset, and what they are.
  ///
  /// - Parameter first: images above this one are skipped.
  func find(_ offset: UInt64, limit: UInt64, mayWait: Bool, from first: Int = 0) -> (layer: Int, Qcow2Piece) {
    var limit = limit
    for index in first..<layers.count {
      let piece = layers[index].look(at: offset, limit: limit, mayWait: mayWait)
      guard piece.kind == .absent else { return (index, piece) }
      limit = min(limit, piece.count)
    }
    return (0, Qcow2Piece(kind: .zero, count: limit))
  }

  // MARK: Compressed clusters

  private final class DecompressedCluster: Sendable {
    let layer: ObjectIdentifier
    let place: UInt64
    let bytes: [UInt8]

    init(_ layer: Qcow2Layer, _ place: UInt64, _ bytes: [UInt8]) {
      self.layer = ObjectIdentifier(layer)
      self.place = place
      self.bytes = bytes
    }
  }

  /// - Returns: a whole cluster; `nil` if it cannot be read.
  private func decompress(_ layer: Qcow2Layer, _ place: UInt64, _ count: Int) -> DecompressedCluster? {
    if let last = decompressed.withLock({ $0 }), last.layer == ObjectIdentifier(layer), last.place == place { return last }
    // The last sectors may extend beyond the end of the file: the bytes that exist have to suffice.
    guard let decompressor = layer.decompressor, let source = try? FileSource(layer.file.rawValue),
      let packed = try? source.read(at: place, count: count), !packed.isEmpty
    else { return nil }
    var isWhole = false
    let size = Int(layer.clusterSize)
    let bytes = unsafe [UInt8](unsafeUninitializedCapacity: size) { buffer, filled in
      isWhole = unsafe decompressor.decompress(packed, into: UnsafeMutableRawBufferPointer(buffer))
      filled = isWhole ? size : 0
    }
    guard isWhole else { return nil }
    let cluster = DecompressedCluster(layer, place, bytes)
    decompressed.withLock { $0 = cluster }
    return cluster
  }
}
