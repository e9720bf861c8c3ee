/// A trial read that checks whether a medium really accepts buffers with the alignment that it reports.
internal import CLinux
internal import Glibc

/// zram with blocks of one page reports that a buffer need only be aligned to 512 bytes, and then writes whole pages, over what
/// lies before the buffer: the guest's memory, or ours. So the alignment of every direct medium is tried once, in memory where
/// no harm can be done. The trial only reads from the medium.
enum DirectTrial {
  /// Bytes around the buffer that is read into, and the largest read.
  private static let margin = 2 * DirectAlignment.page
  private static let most = 2 * DirectAlignment.page

  /// - Parameters:
  ///   - descriptor: opened for direct I/O.
  ///   - size: of the image, bytes.
  /// - Returns: the claim; with buffers aligned to pages if the medium did not keep to it, or if it has whole pages as blocks
  ///   and there is no data yet that could be read.
  static func tried(_ claim: DirectAlignment, _ descriptor: Int32, size: UInt64) -> DirectAlignment {
    let page = DirectAlignment.page
    guard claim.memory < page, claim.offset <= most, UInt64(claim.offset) <= size else { return claim }
    let careful = DirectAlignment(memory: page, offset: claim.offset)
    // A read of a hole never reaches the medium.
    let data = lseek(descriptor, 0, SEEK_DATA)
    if data < 0, errno == ENXIO { return claim.offset < page ? claim : careful }
    let begin = max(data, 0) / claim.offset * claim.offset
    // One block, and a length that crosses page boundaries.
    let lengths = Set([claim.offset, most].filter { $0 % claim.offset == 0 && UInt64($0) + UInt64(begin) <= size })
    let step = max(claim.memory, 1)
    let places = Set([step, 512, 2048, page - max(step, 512), page - step].map { ($0 + step - 1) / step * step }).filter {
      $0 > 0 && $0 < page
    }
    let total = 2 * margin + page + most
    var room: UnsafeMutableRawPointer? = nil
    guard unsafe posix_memalign(&room, page, total + most) == 0, let room = unsafe room else { return careful }
    defer { unsafe free(room) }
    let reference = unsafe room + total
    for length in lengths {
      guard unsafe pread(descriptor, reference, length, begin) == length else { return careful }
      for place in places {
        // With two patterns: the data that is read may look like one of them.
        for fill: UInt8 in [0xa5, 0x5a] {
          let start = margin + place
          unsafe memset(room, Int32(fill), total)
          guard unsafe pread(descriptor, room + start, length, begin) == length,
            unsafe memcmp(room + start, reference, length) == 0,
            unsafe isFilled(room, start, fill), unsafe isFilled(room + start + length, total - start - length, fill)
          else { return careful }
        }
      }
    }
    return claim
  }

  private static func isFilled(_ bytes: UnsafeMutableRawPointer, _ count: Int, _ fill: UInt8) -> Bool {
    unsafe UnsafeRawBufferPointer(start: bytes, count: count).allSatisfy { $0 == fill }
  }
}
