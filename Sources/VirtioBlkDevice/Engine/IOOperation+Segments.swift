/// Helpers for the segments of an operation.
internal import VirtioCore

extension IOOperation {
  /// Removes bytes from the front of the segments; the caller adjusts the offset and the length.
  @inline(__always)
  mutating func skip(_ bytes: Int) {
    guard let first = unsafe segments else { return }
    if unsafe first.pointee.count == bytes {
      unsafe segments = first + 1
      segmentCount &-= 1
    } else {
      let pieces = unsafe Self.skip(bytes, first, segmentCount)
      unsafe segments = first + pieces
      segmentCount &-= pieces
    }
  }

  /// - Returns: how many pieces are gone; the one after them is shorter.
  @inline(never)
  private static func skip(_ bytes: Int, _ segments: UnsafeMutablePointer<MemorySegment>, _ count: Int) -> Int {
    var bytes = bytes
    for index in 0..<count {
      let size = unsafe segments[index].count
      if bytes < size {
        unsafe segments[index].removeFirst(bytes)
        return index
      }
      bytes &-= size
    }
    return count
  }

  /// Whether any remaining piece is misaligned. - Parameter mask: alignment − 1.
  @inline(__always)
  func isMisaligned(_ mask: UInt) -> Bool {
    unsafe Self.isMisaligned(segments.unsafelyUnwrapped, segmentCount, mask)
  }

  /// Whether any piece is misaligned. - Parameter mask: alignment − 1.
  @inline(__always)
  static func isMisaligned(_ segments: UnsafeMutablePointer<MemorySegment>, _ count: Int, _ mask: UInt) -> Bool {
    guard count == 1 else { return unsafe isAnyMisaligned(segments, count, mask) }
    return unsafe (UInt(bitPattern: segments.pointee.base) | UInt(bitPattern: segments.pointee.count)) & mask != 0
  }

  @inline(never)
  private static func isAnyMisaligned(_ segments: UnsafeMutablePointer<MemorySegment>, _ count: Int, _ mask: UInt) -> Bool {
    var bits: UInt = 0
    for index in 0..<count {
      bits |= unsafe UInt(bitPattern: segments[index].base) | UInt(bitPattern: segments[index].count)
    }
    return bits & mask != 0
  }

  /// Whether no piece is longer than this, bytes.
  func hasSegments(ofAtMost bytes: Int) -> Bool {
    guard let segments = unsafe segments else { return true }
    for index in 0..<segmentCount where unsafe segments[index].count > bytes { return false }
    return true
  }

  /// Whether all of its memory is there, and always was. Touches every page, so that a lost one is found; the queue then stops
  /// for that, as always.
  @inline(never)
  func isMemoryThere() -> Bool {
    guard let segments = unsafe segments else { return true }
    for index in 0..<segmentCount {
      let (base, count) = unsafe (segments[index].base, segments[index].count)
      guard count > 0 else { continue }
      for offset in stride(from: 0, to: count, by: PageSize.bytes) { _ = unsafe SharedCell<UInt8>(base + offset).loadRelaxed() }
      _ = unsafe SharedCell<UInt8>(base + (count - 1)).loadRelaxed()
      guard unsafe FaultGuard.count(at: base) == 0 else { return false }
    }
    return true
  }
}
