/// Walks through the memory of a transfer from the beginning to the end.
internal import CLinux
internal import Glibc
internal import VirtioCore

/// A position in the segments of a transfer that advances as they are filled or stored.
@safe
struct SegmentCursor {
  private var segment: UnsafeMutablePointer<MemorySegment>
  private var left: Int
  /// Bytes of the first segment that are done.
  private var used = 0

  init(_ segments: UnsafeMutablePointer<MemorySegment>, count: Int) {
    unsafe segment = segments
    left = count
  }

  /// The next piece of memory, of at most this many bytes; it counts as filled.
  mutating func next(_ limit: Int) -> MemorySegment? {
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

  /// - Parameter start: the offset in `bytes`, which has enough bytes from there on.
  mutating func copy(_ bytes: [UInt8], from start: Int, count: Int) {
    var done = 0
    unsafe bytes.withUnsafeBytes { bytes in
      while done < count, let piece = next(count - done) {
        unsafe memcpy(piece.base, bytes.baseAddress! + start + done, piece.count)
        done += piece.count
      }
    }
  }

  /// Reads from a layer's data file. If the file ended inside a cluster when it was opened, the rest of the cluster is
  /// zeroes, as in QEMU. A cluster entirely beyond that end is an error, and so is a file that was truncated since.
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
          // Either data that existed when the file was opened has been truncated, or a cluster starts beyond the end.
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

  /// Stores the next bytes. - Returns: 0, or a negative errno.
  mutating func write(_ calls: Qcow2Calls, at place: UInt64, count: Int) -> Int32 {
    var (place, rest) = (place, count)
    while rest > 0 {
      var vectors: [iovec] = unsafe []
      var bytes = 0
      while bytes < rest, unsafe vectors.count < Self.vectors, let piece = next(rest - bytes) {
        unsafe vectors.append(iovec(iov_base: piece.base, iov_len: piece.count))
        bytes += piece.count
      }
      guard bytes > 0 else { return -EIO }
      rest -= bytes
      var first = 0
      while bytes > 0 {
        let done = unsafe vectors.withUnsafeBufferPointer { buffer in
          unsafe calls.write(buffer.baseAddress! + first, buffer.count - first, at: place)
        }
        if done == -Int(EINTR) { continue }
        guard done > 0 else { return done < 0 ? Int32(truncatingIfNeeded: done) : -EIO }
        place &+= UInt64(done)
        bytes -= done
        var gone = done
        while gone > 0 {
          let length = unsafe vectors[first].iov_len
          guard gone < length else {
            gone -= length
            first += 1
            continue
          }
          unsafe vectors[first].iov_base += gone
          unsafe vectors[first].iov_len -= gone
          gone = 0
        }
      }
    }
    return 0
  }

  /// The most pieces of one call.
  private static let vectors = 64
}
