/// Who may write to an image, and who may still have something in flight in it: locks on parts of the file where no disk has
/// data.
internal import CLinux
internal import Glibc

/// Open-file-description locks: each belongs to an open file description, is shared by all threads and processes that have it,
/// and is released with its last reference. A request of io_uring or AIO holds a reference, too. So a lock on the description
/// that requests are submitted to outlives a killed process, for as long as the kernel executes what it had submitted.
///
/// A server that takes over receives the description that holds the claim, and uses its own description for its requests, which
/// carries marks.
enum ImageLock {
  /// One writer, or any number of readers. It is handed from server to server.
  private static let claim = Part(start: 0, count: .max - 1)
  /// Shared by all descriptions that a writer's requests are submitted to: while one exists, nobody gets a claim.
  private static let writer = Part(start: .max - 1, count: 1)
  /// The mark of a server that takes over, from before it may begin until it knows that the previous one has finished with the
  /// disk.
  private static let taker = Part(start: .max, count: 1)

  /// QEMU locks one byte for each permission: a shared lock here belongs to a process that may write. Our readers' locks cover
  /// it, but QEMU starts to write only if nobody has any.
  private static let foreignWriter = Part(start: 101, count: 1)

  /// A range of bytes of the file.
  private struct Part {
    var start: off_t
    var count: off_t

    func lock(_ type: Int32) -> flock {
      var lock = flock()
      lock.l_type = Int16(type)
      lock.l_whence = Int16(SEEK_SET)
      lock.l_start = start
      lock.l_len = count
      return lock
    }

    /// - Returns: 0, or an errno.
    func set(_ type: Int32, _ descriptor: Int32) -> Int32 {
      var lock = lock(type)
      return unsafe clinux_fcntl_lock(descriptor, clinux_ofd_setlk, &lock) == 0 ? 0 : errno
    }

    /// Whether another description has a lock that conflicts with such a lock.
    func isHeld(against type: Int32, _ descriptor: Int32) -> Bool { holder(against: type, descriptor) != nil }

    /// - Returns: where a conflicting lock begins; `nil`: there is none.
    func holder(against type: Int32, _ descriptor: Int32) -> off_t? {
      var lock = lock(type)
      guard unsafe clinux_fcntl_lock(descriptor, clinux_ofd_getlk, &lock) == 0, lock.l_type != Int16(F_UNLCK) else {
        return nil
      }
      return lock.l_start
    }
  }

  /// Whether there is another claim, a writer that is gone still has requests in flight, or a reader would see others write.
  static func isBusy(_ descriptor: Int32, isReadOnly: Bool) -> Bool {
    claim.isHeld(against: isReadOnly ? F_RDLCK : F_WRLCK, descriptor) || writer.isHeld(against: F_WRLCK, descriptor)
      || isReadOnly && isWrittenToByOthers(descriptor)
  }

  /// Whether a program that locks like QEMU may write: what is read would change, and cached tables would become stale. Checked
  /// after the claim was taken, so that the later of the two sees the other. Our own claims begin at 0.
  private static func isWrittenToByOthers(_ descriptor: Int32) -> Bool {
    foreignWriter.holder(against: F_WRLCK, descriptor).map { $0 > claim.start } ?? false
  }

  /// - Returns: false if there are no locks.
  /// - Throws: if somebody else has the image.
  static func take(_ descriptor: Int32, path: String, isReadOnly: Bool) throws(ImageError) -> Bool {
    switch claim.set(isReadOnly ? F_RDLCK : F_WRLCK, descriptor) {
    case 0: break
    case EAGAIN, EACCES: throw .locked(path: path)
    // A file system without locks (some network file systems) is not a reason to refuse; only a holder is.
    default: return false
    }
    // Only the holder of the claim makes new marks, or lets a taker make them, so what is free now stays free.
    guard !writer.isHeld(against: F_WRLCK, descriptor), !isReadOnly || !isWrittenToByOthers(descriptor) else {
      release(descriptor)
      throw .locked(path: path)
    }
    if !isReadOnly { _ = writer.set(F_RDLCK, descriptor) }
    return true
  }

  /// Marks a description for the requests of a server that takes over; the claim belongs to another one. If the old server has
  /// locked these parts as well, as the first version did, there are no marks.
  static func markTaker(_ descriptor: Int32, isReadOnly: Bool) {
    if !isReadOnly { _ = writer.set(F_RDLCK, descriptor) }
    _ = taker.set(F_RDLCK, descriptor)
  }

  static func unmarkTaker(_ descriptor: Int32) { _ = taker.set(F_UNLCK, descriptor) }

  /// Whether a server that takes over may have begun, or may still have requests in flight.
  static func hasTaker(_ descriptor: Int32) -> Bool { taker.isHeld(against: F_WRLCK, descriptor) }

  /// Releases everything that the description has.
  static func release(_ descriptor: Int32) { _ = Part(start: 0, count: 0).set(F_UNLCK, descriptor) }
}
