/// The system calls on the file of an image that is written to.
internal import CLinux
internal import Glibc
internal import VirtioCore

/// A call that changes a file, or makes it stable.
enum Qcow2Call: Sendable, Equatable {
  case store(offset: UInt64, [UInt8])
  case zero(offset: UInt64, count: UInt64)
  /// What was stored at this offset becomes stable; nothing is said about anything else.
  case stable(offset: UInt64, [UInt8])
  case sync
  case cut(length: UInt64)
}

/// Observes calls, for tests: one call at a time, in the order in which they take effect.
protocol Qcow2Witness: AnyObject, Sendable {
  /// - Parameter perform: executes it; returns bytes, 0, or a negative errno.
  /// - Returns: the result of `perform`.
  func witness(_ call: Qcow2Call, _ perform: () -> Int) -> Int
}

/// Plain system calls on one descriptor.
struct Qcow2Calls: Sendable {
  let descriptor: Int32
  var witness: (any Qcow2Witness)?
  /// What is known about a mapping of the file.
  var windows: PopulatedWindows?

  /// - Returns: bytes, or a negative errno.
  @inline(__always)
  func write(_ vectors: UnsafePointer<iovec>, _ count: Int, at offset: UInt64) -> Int {
    guard witness == nil else { return unsafe watched(vectors, count, at: offset) }
    return unsafe plain(vectors, count, at: offset)
  }

  private func plain(_ vectors: UnsafePointer<iovec>, _ count: Int, at offset: UInt64) -> Int {
    let done = unsafe pwritev(descriptor, vectors, Int32(count), off_t(offset))
    guard done >= 0 else { return -Int(errno) }
    if done > 0 { windows?.filled(offset, UInt64(done)) }
    return done
  }

  @inline(never)
  private func watched(_ vectors: UnsafePointer<iovec>, _ count: Int, at offset: UInt64) -> Int {
    var bytes: [UInt8] = []
    for index in 0..<count {
      unsafe bytes += UnsafeRawBufferPointer(start: vectors[index].iov_base, count: vectors[index].iov_len)
    }
    return witness?.witness(.store(offset: offset, bytes)) { unsafe plain(vectors, count, at: offset) } ?? -Int(EIO)
  }

  /// Stores all of it. - Returns: 0, or a negative errno.
  func put(_ bytes: [UInt8], at offset: UInt64) -> Int32 {
    unsafe bytes.withUnsafeBytes { buffer in
      var done = 0
      while done < buffer.count {
        var vector = unsafe iovec(
          iov_base: UnsafeMutableRawPointer(mutating: buffer.baseAddress! + done), iov_len: buffer.count - done)
        let count = unsafe write(&vector, 1, at: offset &+ UInt64(done))
        if count == -Int(EINTR) { continue }
        guard count > 0 else { return count < 0 ? Int32(count) : -EIO }
        done += count
      }
      return 0
    }
  }

  /// Makes what was stored before stable, and nothing else: there may be much other data in the page cache, and this does not
  /// wait for it.
  ///
  /// - Parameter bytes: those that were stored; they are stored again, because that is the way to wait for a part of a file.
  /// - Returns: 0, or a negative errno, after which it is unknown what is stable.
  func makeStable(_ bytes: [UInt8], at offset: UInt64) -> Int32 {
    perform(.stable(offset: offset, bytes)) {
      var done = 0
      while done < bytes.count {
        let count = unsafe bytes.withUnsafeBytes { buffer in
          var vector = unsafe iovec(
            iov_base: UnsafeMutableRawPointer(mutating: buffer.baseAddress! + done), iov_len: buffer.count - done)
          return unsafe pwritev2(descriptor, &vector, 1, off_t(offset) + off_t(done), clinux_rwf_dsync)
        }
        if count > 0 {
          done += count
          continue
        }
        let error = count < 0 ? errno : EIO
        if error == EINTR { continue }
        // Without this flag, the whole file has to be flushed.
        guard error == EOPNOTSUPP || error == ENOSYS || error == EINVAL else { return -Int(error) }
        return Int(plainSync())
      }
      return 0
    }
  }

  /// - Returns: 0, or a negative errno.
  func sync() -> Int32 { perform(.sync) { Int(plainSync()) } }

  private func plainSync() -> Int32 {
    while fdatasync(descriptor) < 0 {
      let error = errno
      guard error == EINTR else { return -error }
    }
    return 0
  }

  /// Makes bytes inside the file read as zeroes, in whichever way the file system supports.
  ///
  /// - Parameter mayUnmap: their space may be released.
  /// - Returns: 0, or a negative errno.
  func zero(_ offset: UInt64, _ count: UInt64, mayUnmap: Bool) -> Int32 {
    let result = perform(.zero(offset: offset, count: count)) {
      let keep = Int32(FALLOC_FL_KEEP_SIZE)
      let modes =
        mayUnmap
        ? [Int32(FALLOC_FL_PUNCH_HOLE) | keep, Int32(FALLOC_FL_ZERO_RANGE) | keep]
        : [Int32(FALLOC_FL_ZERO_RANGE) | keep, Int32(FALLOC_FL_PUNCH_HOLE) | keep]
      var error = EIO
      for mode in modes {
        if fallocate(descriptor, mode, off_t(offset), off_t(count)) == 0 {
          // Afterwards, so that whoever found data before learns that it has become a hole.
          windows?.forget(offset, count)
          return 0
        }
        error = errno
        guard error == EOPNOTSUPP || error == ENOSYS || error == EINVAL else { break }
      }
      return -Int(error)
    }
    guard result == -EOPNOTSUPP || result == -ENOSYS || result == -EINVAL else { return result }
    let zeroes = [UInt8](repeating: 0, count: Int(min(count, 1 << 20)))
    var done: UInt64 = 0
    while done < count {
      let part = min(count - done, UInt64(zeroes.count))
      let result = put(part == UInt64(zeroes.count) ? zeroes : Array(zeroes[..<Int(part)]), at: offset &+ done)
      guard result == 0 else { return result }
      done += part
    }
    return 0
  }

  /// Releases space if the file system supports that; otherwise does nothing.
  ///
  /// - Returns: 0, or a negative errno.
  func punch(_ offset: UInt64, _ count: UInt64) -> Int32 {
    let result = perform(.zero(offset: offset, count: count)) {
      let mode = Int32(FALLOC_FL_PUNCH_HOLE) | Int32(FALLOC_FL_KEEP_SIZE)
      guard fallocate(descriptor, mode, off_t(offset), off_t(count)) == 0 else { return -Int(errno) }
      windows?.forget(offset, count)
      return 0
    }
    return result == -EOPNOTSUPP || result == -ENOSYS || result == -EINVAL ? 0 : result
  }

  /// Truncates the file.
  func cut(_ length: UInt64) {
    _ = perform(.cut(length: length)) { ftruncate(descriptor, off_t(length)) == 0 ? 0 : -Int(errno) }
  }

  private func perform(_ call: Qcow2Call, _ body: () -> Int) -> Int32 {
    Int32(truncatingIfNeeded: witness?.witness(call, body) ?? body())
  }
}
