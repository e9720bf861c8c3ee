/// A disk of qcow2 images for all its queues: the chain, and reading through it. It has no state of its own but tables of images that
/// were read, which never change.
internal import CLinux
internal import Glibc
internal import Qcow2
internal import Synchronization
internal import VirtioCore

final class Qcow2Disk: Sendable, MediumCalls {
  /// From the top down; at least one.
  let layers: [Qcow2Layer]
  /// Every file of the chain is memory, so that no call waits.
  let isInMemory: Bool
  /// The cluster that was decompressed last: who reads a compressed image reads it from the beginning to the end.
  private let decompressed = Mutex<DecompressedCluster?>(nil)

  init(_ layers: [Qcow2Layer], isInMemory: Bool) {
    self.layers = layers
    self.isInMemory = isInMemory
  }

  /// Bytes.
  var size: UInt64 { layers[0].size }

  // MARK: Operations

  /// Waits for the medium where it has to.
  func perform(_ operation: IOOperation) -> Int32 { performAtOnce(operation, mayWait: true) ?? -EIO }

  /// - Parameter mayWait: else only what the page cache has.
  /// - Returns: as `perform`; `nil`: it would have to wait.
  func performAtOnce(_ operation: IOOperation, mayWait: Bool) -> Int32? {
    switch operation.kind {
    case .read: return read(operation, mayWait: mayWait)
    // Nothing is ever written.
    case .flush: return 0
    case .write, .punchHole, .zeroRange, .allocate, .blockDiscard: return -EROFS
    }
  }

  private func read(_ operation: IOOperation, mayWait: Bool) -> Int32? {
    guard let segments = unsafe operation.segments else { return 0 }
    // Not at all where it may wait: what is on its way to the page cache is waited for.
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
        // All of it lies together, as nearly always.
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

  /// What is there, whichever image says so; tables are read for it.
  func piece(at offset: UInt64, limit: UInt64) -> Qcow2Piece { find(offset, limit: limit, mayWait: true).1 }

  /// The uppermost image that says something of a place, and what.
  private func find(_ offset: UInt64, limit: UInt64, mayWait: Bool) -> (layer: Int, Qcow2Piece) {
    var limit = limit
    for index in layers.indices {
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

  /// - Returns: a whole cluster; `nil` when it cannot be read.
  private func decompress(_ layer: Qcow2Layer, _ place: UInt64, _ count: Int) -> DecompressedCluster? {
    if let last = decompressed.withLock({ $0 }), last.layer == ObjectIdentifier(layer), last.place == place { return last }
    // The last sectors may be said to be longer than the file: what is there has to suffice.
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

/// A place in a transfer's segments that goes on as they are filled.
@safe
private struct SegmentCursor {
  private var segment: UnsafeMutablePointer<MemorySegment>
  private var left: Int
  /// Bytes of the first segment that are full.
  private var used = 0

  init(_ segments: UnsafeMutablePointer<MemorySegment>, count: Int) {
    unsafe segment = segments
    left = count
  }

  /// The next piece of memory, of at most so many bytes; it counts as filled.
  private mutating func next(_ limit: Int) -> MemorySegment? {
    while left > 0 {
      let current = unsafe segment.pointee
      let room = current.count - used
      guard room > 0 else {
        unsafe segment += 1
        left -= 1
        used = 0
        continue
      }
      let count = min(room, limit)
      let piece = unsafe MemorySegment(base: current.base + used, count: count)
      used += count
      return piece
    }
    return nil
  }

  mutating func zero(_ count: Int) {
    var rest = count
    while rest > 0, let piece = next(rest) {
      unsafe memset(piece.base, 0, piece.count)
      rest -= piece.count
    }
  }

  /// - Parameter start: in the bytes, which have as many from there on.
  mutating func copy(_ bytes: [UInt8], from start: Int, count: Int) {
    var done = 0
    unsafe bytes.withUnsafeBytes { bytes in
      while done < count, let piece = next(count - done) {
        unsafe memcpy(piece.base, bytes.baseAddress! + start + done, piece.count)
        done += piece.count
      }
    }
  }

  /// Reads from a layer's data file. Where that ended within a cluster when it was opened there are zeroes, as QEMU has it; a cluster
  /// that is wholly behind that end is an error, and so is a file that was cut since.
  ///
  /// - Returns: 0, or a negative errno.
  mutating func read(_ layer: Qcow2Layer, at place: UInt64, count: Int, flags: Int32) -> Int32 {
    var (place, rest) = (place, count)
    while rest > 0, var piece = next(rest) {
      rest -= piece.count
      while piece.count > 0 {
        var vector = unsafe iovec(iov_base: piece.base, iov_len: piece.count)
        let got = unsafe preadv2(layer.dataFile.rawValue, &vector, 1, off_t(place), flags)
        if got < 0 {
          if errno == EINTR { continue }
          return -errno
        }
        guard got > 0 else {
          // What was there when the file was opened has been cut off, or a cluster begins where nothing ever was.
          let start = place & ~(layer.clusterSize &- 1)
          guard place >= layer.dataEnd, start < layer.dataEnd else { return -EIO }
          let count = min(piece.count, Int(start &+ layer.clusterSize &- place))
          unsafe memset(piece.base, 0, count)
          place &+= UInt64(count)
          piece.removeFirst(count)
          continue
        }
        place &+= UInt64(got)
        piece.removeFirst(got)
      }
    }
    return 0
  }
}
