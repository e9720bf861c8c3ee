/// Writing to a disk of qcow2 images: in place if the disk has a cluster to itself, otherwise to a new cluster.
internal import CLinux
internal import Glibc
internal import Qcow2
internal import VirtioCore

extension Qcow2Disk {
  /// How many clusters are allocated together, with one wait for all.
  private static let batch: UInt64 = 16

  /// - Returns: the same as `perform`.
  func change(_ operation: IOOperation, _ writer: Qcow2Writer) -> Int32 {
    var result: Int32
    // A read may have detected that the image is damaged.
    guard !layers[0].contradictsItself else {
      writer.markCorrupt()
      return -EIO
    }
    switch operation.kind {
    case .write: result = write(operation, writer)
    case .blockDiscard: result = zero(operation, writer, mayUnmap: true, isAdvice: true)
    case .punchHole: result = zero(operation, writer, mayUnmap: true)
    case .zeroRange: result = zero(operation, writer, mayUnmap: false)
    // Preallocated zeroes were zeroed before, so there is nothing to preserve.
    case .allocate, .read, .flush: result = 0
    }
    if result < 0, layers[0].contradictsItself { writer.markCorrupt() }
    if result >= 0, operation.isDurable {
      let synced = writer.flush()
      if synced < 0 { result = synced }
    }
    return result
  }

  private func write(_ operation: IOOperation, _ writer: Qcow2Writer) -> Int32 {
    guard let segments = unsafe operation.segments else { return 0 }
    let first = layers[0].look(at: operation.offset, limit: operation.length, mayWait: true)
    // All of it is contiguous, as nearly always.
    if case .data(let place) = first.kind, first.isOwn, first.count == operation.length {
      let vectors = unsafe UnsafeRawPointer(segments).assumingMemoryBound(to: iovec.self)
      let done = unsafe writer.calls.write(vectors, operation.segmentCount, at: place)
      if done != 0, done != -Int(EINTR) { return Int32(truncatingIfNeeded: done) }
    }
    var source = unsafe SegmentCursor(segments, count: operation.segmentCount)
    var done: UInt64 = 0
    while done < operation.length {
      let offset = operation.offset &+ done
      let left = operation.length &- done
      let piece = layers[0].look(at: offset, limit: left, mayWait: true)
      var count = piece.count
      let result: Int32
      switch piece.kind {
      case .notLoaded, .failed: result = -EIO
      case .data(let place) where piece.isOwn: result = source.write(writer.calls, at: place, count: Int(count))
      case .absent, .zero, .data, .compressed:
        // Up to the end of this batch of clusters, whatever comes after it.
        let size = layers[0].clusterSize
        let end = (offset / size &+ Self.batch) &* size
        count = min(left, end &- offset)
        result = allocate(offset..<offset &+ count, writer, &source)
      }
      guard result == 0 else { return result }
      done &+= count
    }
    return Int32(truncatingIfNeeded: done)
  }

  // MARK: Allocation

  /// A cluster that is being allocated.
  private struct Pending {
    let number: UInt64
    let old: ClusterEntry
    let change: ClusterChange
    let place: UInt64
  }

  /// Writes to clusters of which some cannot be written in place.
  ///
  /// - Parameter range: of the disk, bytes, in at most `batch` clusters.
  /// - Returns: 0, or a negative errno.
  private func allocate(_ range: Range<UInt64>, _ writer: Qcow2Writer, _ source: inout SegmentCursor) -> Int32 {
    let size = layers[0].clusterSize
    return writer.withClusters(range.lowerBound / size..<(range.upperBound &- 1) / size &+ 1) {
      var pending: [Pending] = []
      var mustSync = false
      var result: Int32 = 0
      var offset = range.lowerBound
      while offset < range.upperBound, result == 0 {
        let number = offset / size
        let end = min(range.upperBound, (number &+ 1) &* size)
        result = fill(offset..<end, number, writer, &source, &pending, &mustSync)
        offset = end
      }
      // Unacknowledged data may or may not be there, so whatever can be mapped is mapped.
      if result == 0, mustSync { result = writer.sync() }
      for entry in pending {
        let base = entry.number &* size
        let (word, bitmap) = entry.change.entry(entry.place)
        if result == 0 {
          result = writer.publish(
            at: base, word, bitmap, old: entry.old, drops: entry.change.ownPlace == nil && entry.old.dropped != nil)
          if result == 0 { continue }
        }
        abandon(entry.place, of: entry.change, entry.number, writer)
      }
      return result
    }
  }

  /// Writes to one cluster, which the caller has locked. If it cannot be written in place, a new cluster is prepared, and
  /// nothing refers to it yet.
  private func fill(
    _ range: Range<UInt64>, _ number: UInt64, _ writer: Qcow2Writer, _ source: inout SegmentCursor,
    _ pending: inout [Pending], _ mustSync: inout Bool
  ) -> Int32 {
    let layer = layers[0]
    let base = number &* layer.clusterSize
    let count = UInt64(range.count)
    // Another thread may have been here first.
    let piece = layer.look(at: range.lowerBound, limit: count, mayWait: true)
    if case .data(let place) = piece.kind, piece.isOwn, piece.count == count {
      return source.write(writer.calls, at: place, count: Int(count))
    }
    guard let old = layer.entry(at: base) else { return -EIO }
    let asked = range.lowerBound &- base..<range.upperBound &- base
    let change = ClusterChange(old, writing: asked, layer.geometry)
    // Beyond the end of the disk there is nothing to copy.
    let limit = min(layer.size &- base, layer.clusterSize)
    let stored = change.stored.lowerBound..<max(asked.upperBound, min(change.stored.upperBound, limit))
    var (place, isFresh) = (change.ownPlace ?? 0, false)
    if change.ownPlace == nil {
      do throws(Qcow2Writer.Failure) { (place, isFresh) = try writer.claim(for: number) } catch { return error.result }
    }
    func failed(_ result: Int32) -> Int32 {
      abandon(place, of: change, number, writer)
      return result
    }
    // Everything beyond the end that the file had when it was opened is ours, and was a hole before.
    let wasHole = isFresh || change.ownPlace != nil && writer.isHole(place, for: number)
    if !wasHole || !isZero(base &+ stored.lowerBound..<base &+ stored.upperBound, orOwn: change.ownPlace != nil) {
      mustSync = true
    }
    for rest in [stored.lowerBound..<asked.lowerBound, asked.upperBound..<stored.upperBound] where !rest.isEmpty {
      let result = copy(base &+ rest.lowerBound..<base &+ rest.upperBound, to: place &+ rest.lowerBound, writer, isFresh)
      guard result == 0 else { return failed(result) }
    }
    // In a cluster that had other contents, the part beyond the end of the disk must not keep them.
    if !wasHole, stored.upperBound < change.stored.upperBound {
      let result = writer.calls.zero(
        place &+ stored.upperBound, change.stored.upperBound &- stored.upperBound, mayUnmap: true)
      guard result == 0 else { return failed(result) }
    }
    let result = source.write(writer.calls, at: place &+ asked.lowerBound, count: Int(count))
    guard result == 0 else { return failed(result) }
    pending.append(Pending(number: number, old: old, change: change, place: place))
    return 0
  }

  /// Nothing refers to what was written. It must not reappear later, when it has long been overwritten or zeroed.
  private func abandon(_ place: UInt64, of change: ClusterChange, _ number: UInt64, _ writer: Qcow2Writer) {
    if change.ownPlace == nil { writer.keep(place, for: number) } else { writer.spoil(number) }
  }

  /// Whether the images say that the disk has only zeroes there.
  ///
  /// - Parameter orOwn: or data that stays in place.
  private func isZero(_ range: Range<UInt64>, orOwn: Bool) -> Bool {
    var offset = range.lowerBound
    while offset < range.upperBound {
      let (layer, piece) = find(offset, limit: range.upperBound &- offset, mayWait: true)
      switch piece.kind {
      case .zero: break
      case .data where orOwn && layer == 0 && piece.isOwn: break
      case .data, .compressed, .absent, .notLoaded, .failed: return false
      }
      offset &+= piece.count
    }
    return true
  }

  /// Copies the disk's present contents to the new cluster.
  ///
  /// - Parameter isFresh: the new cluster is a hole.
  private func copy(_ range: Range<UInt64>, to place: UInt64, _ writer: Qcow2Writer, _ isFresh: Bool) -> Int32 {
    var offset = range.lowerBound
    while offset < range.upperBound {
      let piece = find(offset, limit: range.upperBound &- offset, mayWait: true).1
      let target = place &+ (offset &- range.lowerBound)
      if piece.kind == .zero {
        if !isFresh {
          let result = writer.calls.zero(target, piece.count, mayUnmap: true)
          guard result == 0 else { return result }
        }
      } else {
        guard let bytes = content(offset, Int(piece.count)) else { return -EIO }
        let result = writer.calls.put(bytes, at: target)
        guard result == 0 else { return result }
      }
      offset &+= piece.count
    }
    return 0
  }

  /// The disk's present contents; `nil` if they cannot be read.
  func content(_ offset: UInt64, _ count: Int) -> [UInt8]? {
    var result: Int32 = -EIO
    let bytes = unsafe [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
      guard let base = buffer.baseAddress else { return }
      var segment = unsafe MemorySegment(base: UnsafeMutableRawPointer(base), count: count)
      var operation = unsafe IOOperation(kind: .read)
      (operation.offset, operation.length, operation.segmentCount) = (offset, UInt64(count), 1)
      result = unsafe withUnsafeMutablePointer(to: &segment) { segment in
        unsafe operation.segments = segment
        return perform(operation)
      }
      filled = result == Int32(count) ? count : 0
    }
    return result == Int32(count) ? bytes : nil
  }

  // MARK: Zeroes

  /// - Parameters:
  ///   - mayUnmap: space may be released.
  ///   - isAdvice: ranges that would need space, or zeroes to be written, are left as they are.
  private func zero(_ operation: IOOperation, _ writer: Qcow2Writer, mayUnmap: Bool, isAdvice: Bool = false) -> Int32 {
    let layer = layers[0]
    var offset = operation.offset
    let end = operation.offset &+ operation.length
    while offset < end {
      let piece = layer.look(at: offset, limit: end &- offset, mayWait: true)
      var count = piece.count
      var result: Int32 = 0
      switch piece.kind {
      case .notLoaded, .failed: result = -EIO
      case .zero: break
      case .data(let place) where piece.isOwn:
        result = isAdvice ? writer.calls.punch(place, count) : writer.calls.zero(place, count, mayUnmap: mayUnmap)
      case .absent, .data, .compressed:
        if piece.kind == .absent {
          let under = find(offset, limit: count, mayWait: true, from: 1).1
          if under.kind == .zero {
            offset &+= under.count
            continue
          }
        }
        // To the end of a cluster, or of its smallest part that the image can describe.
        let (size, unit) = (layer.clusterSize, layer.geometry.subclusterSize)
        count = min(count, size &- offset & (size &- 1))
        let whole = offset % unit == 0 ? count &- count % unit : 0
        count = whole > 0 ? whole : min(count, unit &- offset % unit)
        result = zero(offset..<offset &+ count, writer, isAdvice: isAdvice)
      }
      guard result == 0 else { return result }
      offset &+= count
    }
    return 0
  }

  /// Marks a range without contents as zeroes, so that it hides the backing file.
  ///
  /// - Parameter range: of the disk, bytes, in one cluster.
  /// - Returns: 0, or a negative errno.
  func hide(_ range: Range<UInt64>, _ writer: Qcow2Writer) -> Int32 { zero(range, writer, isAdvice: false) }

  /// Zeroes bytes of one cluster that cannot be zeroed in place.
  private func zero(_ range: Range<UInt64>, _ writer: Qcow2Writer, isAdvice: Bool) -> Int32 {
    let layer = layers[0]
    let (size, unit) = (layer.clusterSize, layer.geometry.subclusterSize)
    let number = range.lowerBound / size
    let base = number &* size
    var isSaid = false
    let result = writer.withClusters(number..<number &+ 1) {
      guard let old = layer.entry(at: base) else { return -EIO }
      // The rest of the unit beyond the end of the disk is included.
      let upper = range.upperBound == layer.size ? (range.upperBound &+ unit &- 1) & ~(unit &- 1) : range.upperBound
      let hasZeroFlag = layer.entries?.hasZeroFlag ?? false
      guard
        let (entry, bitmap, drops) = old.zeroed(
          range.lowerBound &- base..<upper &- base, layer.geometry, hasZeroFlag: hasZeroFlag), !old.isOwnData
      else { return 0 }
      isSaid = true
      return writer.publish(at: base, entry, bitmap, old: old, drops: drops)
    }
    guard result == 0, !isSaid, !isAdvice else { return result }
    // The image cannot express it: the zeroes are written as data.
    let count = range.count
    let zeroes = UnsafeMutableRawPointer.allocate(byteCount: count, alignment: 16)
    defer { unsafe zeroes.deallocate() }
    unsafe zeroes.initializeMemory(as: UInt8.self, repeating: 0, count: count)
    var segment = unsafe MemorySegment(base: zeroes, count: count)
    return unsafe withUnsafeMutablePointer(to: &segment) { segment in
      var source = unsafe SegmentCursor(segment, count: 1)
      return allocate(range, writer, &source)
    }
  }
}
