/// What is left of a request's data, as its pieces are transferred.
internal import VirtioCore

extension RequestSlot {
  /// Takes bytes off the front of what is left.
  @inline(__always)
  mutating func skip(_ bytes: Int) {
    var bytes = bytes
    while segmentCount > 0 {
      let count = unsafe segments.pointee.count
      if bytes < count {
        unsafe segments.pointee.base += bytes
        unsafe segments.pointee.count = count &- bytes
        return
      }
      bytes &-= count
      unsafe segments += 1
      segmentCount &-= 1
    }
  }

  /// Whether some piece that is left is not aligned; there is at least one. - Parameter mask: alignment − 1.
  @inline(__always)
  func isMisaligned(_ mask: UInt) -> Bool {
    var bits = unsafe UInt(bitPattern: segments.pointee.base) | UInt(bitPattern: segments.pointee.count)
    if segmentCount > 1 {
      for index in 1..<segmentCount {
        bits |= unsafe UInt(bitPattern: segments[index].base) | UInt(bitPattern: segments[index].count)
      }
    }
    return bits & mask != 0
  }

  /// Fills what is left with zeroes: it lies past the end of the file.
  mutating func fillWithZeroes() {
    for index in 0..<segmentCount {
      unsafe segments[index].base.initializeMemory(as: UInt8.self, repeating: 0, count: segments[index].count)
    }
    written &+= remaining
    segmentCount = 0
    remaining = 0
  }

  /// Counts a step that made no progress. - Returns: whether it may be tried again.
  mutating func retry() -> Bool {
    retries &+= 1
    return retries < 100
  }
}
