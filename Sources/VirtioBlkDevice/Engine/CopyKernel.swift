/// Copies that suit the CPU and its caches.
internal import CLinux
internal import Glibc
internal import VirtioCore

@safe
enum CopyKernel {
  /// Cache lines to prefetch; after that the CPU has recognized the pattern.
  private static let linesAhead: UInt32 = 4

  /// A piece of at least this many bytes always bypasses the caches: little of it would stay in the second level, which holds
  /// the lines of all other disks of this CPU, and it is faster.
  private static let largePiece = 256 << 10

  /// Prefetches the beginning of what is to be copied.
  @inline(__always)
  static func fetch(_ place: UnsafeMutableRawPointer) { unsafe clinux_prefetch(place, linesAhead) }

  /// Copies out of an image into a transfer's segments.
  @inline(__always)
  static func read(_ operation: IOOperation, from place: UnsafeMutableRawPointer) {
    var place = unsafe place
    for index in 0..<operation.segmentCount {
      let segment = unsafe operation.segments.unsafelyUnwrapped[index]
      if segment.count >= Self.largePiece {
        unsafe clinux_copy_around_cache(segment.base, place, segment.count)
      } else {
        unsafe segment.base.copyMemory(from: place, byteCount: segment.count)
      }
      unsafe place += segment.count
    }
  }

  /// Copies a transfer's segments into an image. - Parameter streamedFrom: a piece of at least this many bytes bypasses the
  /// caches.
  @inline(__always)
  static func write(_ operation: IOOperation, to place: UnsafeMutableRawPointer, streamedFrom: Int) {
    var place = unsafe place
    for index in 0..<operation.segmentCount {
      let segment = unsafe operation.segments.unsafelyUnwrapped[index]
      if segment.count >= streamedFrom {
        unsafe clinux_copy_around_cache(place, segment.base, segment.count)
      } else {
        unsafe place.copyMemory(from: segment.base, byteCount: segment.count)
      }
      unsafe place += segment.count
    }
  }

  /// The size, bytes, from which copies into an image of this size bypass the caches: the caches could not hold the image, and
  /// the old contents of its lines need not be fetched. For the same reason large pieces always do.
  static func streamedFrom(imageSize: UInt64) -> Int { imageSize > cacheSize ? 1024 : largePiece }

  /// The size of the last-level cache, bytes; queried once. If a processor has several, the C library adds them up, but a
  /// thread fills only one: the kernel reports the size of one.
  private static let cacheSize: UInt64 = {
    let text = SystemText.contents("/sys/devices/system/cpu/cpu0/cache/index3/size", most: 64)
    if let size = text.flatMap(cacheSize(of:)) { return size }
    let size = sysconf(Int32(_SC_LEVEL3_CACHE_SIZE))
    return size > 0 ? UInt64(size) : 32 << 20
  }()

  /// - Parameter text: the size of a cache as the kernel writes it, such as `32768K`.
  /// - Returns: bytes; `nil` if it has another form.
  static func cacheSize(of text: String) -> UInt64? {
    let units: [Character: UInt64] = ["K": 1 << 10, "M": 1 << 20, "G": 1 << 30]
    guard let word = text.split(separator: "\n").first, let unit = word.last.flatMap({ units[$0] }),
      let count = UInt64(word.dropLast())
    else { return nil }
    let (size, overflow) = count.multipliedReportingOverflow(by: unit)
    return overflow || size == 0 ? nil : size
  }
}
