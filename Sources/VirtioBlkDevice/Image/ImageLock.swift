/// Who may write to an image, and who may still have something in flight in it: locks on parts of the file that no disk has.
internal import CLinux
internal import Glibc

/// Open-file-description locks: each belongs to an open file, is shared by all threads and processes that have it, and goes
/// with its last reference. A request of io_uring or AIO holds one, too, so that a lock on the description through which
/// requests go outlives a process that is killed for as long as the kernel executes what that one had submitted.
///
/// A server that takes over gets the description that holds the claim and uses one of its own for its requests; that one
/// carries marks.
enum ImageLock {
  /// One writer, or any number of readers. It goes from server to server.
  private static let claim = Part(start: 0, count: .max - 1)
  /// Shared by all descriptions through which a writer's requests go: while one is there, nobody gets a claim.
  private static let writer = Part(start: .max - 1, count: 1)
  /// Of a server that takes over, from before it may begin until it knows that the previous one is over with the disk.
  private static let taker = Part(start: .max, count: 1)

  /// QEMU's, one byte for each right: a shared lock here belongs to a process that may write. Ours of readers lie over it, but
  /// QEMU begins to write only where nobody has any.
  private static let foreignWriter = Part(start: 101, count: 1)

  /// Bytes of the file.
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

    /// Another description has a lock that is in the way of such a one.
    func isHeld(against type: Int32, _ descriptor: Int32) -> Bool { holder(against: type, descriptor) != nil }

    /// - Returns: where such a lock begins, if there is one.
    func holder(against type: Int32, _ descriptor: Int32) -> off_t? {
      var lock = lock(type)
      guard unsafe clinux_fcntl_lock(descriptor, clinux_ofd_getlk, &lock) == 0, lock.l_type != Int16(F_UNLCK) else {
        return nil
      }
      return lock.l_start
    }
  }

  /// Another claim is in the way, or requests in flight of a writer that is gone, or a reader would see others write.
  static func isBusy(_ descriptor: Int32, isReadOnly: Bool) -> Bool {
    claim.isHeld(against: isReadOnly ? F_RDLCK : F_WRLCK, descriptor) || writer.isHeld(against: F_WRLCK, descriptor)
      || isReadOnly && isWrittenToByOthers(descriptor)
  }

  /// A program that locks as QEMU does may write: what is read would change, and cached tables would go stale. Checked after the claim
  /// was taken, so that the later of the two sees the other. A claim of ours begins at 0.
  private static func isWrittenToByOthers(_ descriptor: Int32) -> Bool {
    foreignWriter.holder(against: F_WRLCK, descriptor).map { $0 > claim.start } ?? false
  }

  /// - Returns: false where there are no locks.
  /// - Throws: somebody else has the image.
  static func take(_ descriptor: Int32, path: String, isReadOnly: Bool) throws(ImageError) -> Bool {
    switch claim.set(isReadOnly ? F_RDLCK : F_WRLCK, descriptor) {
    case 0: break
    case EAGAIN, EACCES: throw .locked(path: path)
    // A file system without locks (some network ones) is no reason to refuse; only a holder is.
    default: return false
    }
    // Who has the claim is the only one who makes new marks, or lets a taker make them: what is free now stays free.
    guard !writer.isHeld(against: F_WRLCK, descriptor), !isReadOnly || !isWrittenToByOthers(descriptor) else {
      release(descriptor)
      throw .locked(path: path)
    }
    if !isReadOnly { _ = writer.set(F_RDLCK, descriptor) }
    return true
  }

  /// The claim is another description's, and this one is for the requests of a server that takes over. Where the old server has
  /// locked these parts as well, as the first version did, there are no marks.
  static func markTaker(_ descriptor: Int32, isReadOnly: Bool) {
    if !isReadOnly { _ = writer.set(F_RDLCK, descriptor) }
    _ = taker.set(F_RDLCK, descriptor)
  }

  static func unmarkTaker(_ descriptor: Int32) { _ = taker.set(F_UNLCK, descriptor) }

  /// A server that took over may have begun, or what it had in flight may not have ended.
  static func hasTaker(_ descriptor: Int32) -> Bool { taker.isHeld(against: F_WRLCK, descriptor) }

  /// Releases everything that the description has.
  static func release(_ descriptor: Int32) { _ = Part(start: 0, count: 0).set(F_UNLCK, descriptor) }
}
