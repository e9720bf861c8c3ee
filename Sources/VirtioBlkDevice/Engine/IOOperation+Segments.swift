/// What is left of an operation, as its pieces are transferred.
internal import VirtioCore

extension IOOperation {
  /// Takes bytes of the segments off the front; the offset and the length are the caller's.
  @inline(__always)
  mutating func skip(_ bytes: Int) {
    guard let first = unsafe segments, unsafe first.pointee.count == bytes else { return skipPieces(bytes) }
    unsafe segments = first + 1
    segmentCount &-= 1
  }

  @inline(never)
  private mutating func skipPieces(_ bytes: Int) {
    var bytes = bytes
    while segmentCount > 0, let first = unsafe segments {
      let count = unsafe first.pointee.count
      if bytes < count {
        unsafe first.pointee.base += bytes
        unsafe first.pointee.count = count &- bytes
        return
      }
      bytes &-= count
      unsafe segments = first + 1
      segmentCount &-= 1
    }
  }

  /// Takes bytes that were transferred off the front.
  mutating func advance(_ bytes: Int) {
    skip(bytes)
    offset &+= UInt64(bytes)
    length &-= UInt64(bytes)
  }

  /// Whether some piece that is left is not aligned. - Parameter mask: alignment − 1.
  @inline(__always)
  func isMisaligned(_ mask: UInt) -> Bool {
    guard let segments = unsafe segments else { return false }
    guard segmentCount == 1 else { return unsafe Self.isMisaligned(segments, segmentCount, mask) }
    return unsafe (UInt(bitPattern: segments.pointee.base) | UInt(bitPattern: segments.pointee.count)) & mask != 0
  }

  @inline(never)
  private static func isMisaligned(_ segments: UnsafeMutablePointer<MemorySegment>, _ count: Int, _ mask: UInt) -> Bool {
    var bits: UInt = 0
    for index in 0..<count {
      bits |= unsafe UInt(bitPattern: segments[index].base) | UInt(bitPattern: segments[index].count)
    }
    return bits & mask != 0
  }

  /// Fills what is left with zeroes: it lies past the end of the file.
  func fillWithZeroes() {
    guard let segments = unsafe segments else { return }
    for index in 0..<segmentCount {
      unsafe segments[index].base.initializeMemory(as: UInt8.self, repeating: 0, count: segments[index].count)
    }
  }
}
