/// The locks of an image that goes from one server to the next: who may open it, and until when.
import CLinux
import Foundation
import Glibc
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct ImageLockTests {
  private let scratch: Scratch
  private let path: String

  init() throws {
    scratch = try Scratch()
    path = try scratch.image()
  }

  private func isLocked(isReadOnly: Bool = false) -> Bool {
    do {
      _ = try ImageFile(ImageOptions(path: path, isReadOnly: isReadOnly))
      return false
    } catch { return error == .locked(path: path) }
  }

  private func taken(from image: ImageFile, isReadOnly: Bool = false) throws -> ImageFile {
    var options = ImageOptions(path: path, isReadOnly: isReadOnly)
    options.lock = image.lock
    return try ImageFile(options)
  }

  /// The one after holds marks until it knows that the previous one is over with the image, or is gone with all that it had
  /// in flight.
  @Test(arguments: [false, true]) func aTakerIsSeenUntilItIsGone(isReadOnly: Bool) throws {
    let first = try ImageFile(ImageOptions(path: path, isReadOnly: isReadOnly))
    #expect(!first.isBeingTaken)
    do {
      let second = try taken(from: first, isReadOnly: isReadOnly)
      #expect(first.isBeingTaken)
      // Who does not see itself.
      #expect(!second.isBeingTaken)
    }
    #expect(!first.isBeingTaken, "it gave the image back")
    let second = try taken(from: first, isReadOnly: isReadOnly)
    second.endTaking()
    #expect(!first.isBeingTaken)
    // And so with the next, whatever the first still holds.
    let third = try taken(from: second, isReadOnly: isReadOnly)
    #expect(second.isBeingTaken)
    third.endTaking()
    #expect(!second.isBeingTaken)
    withExtendedLifetime((first, second, third)) {}
  }

  /// Killed after it took over: nothing of its locks is released by hand, and the claim is not its own.
  @Test func theRequestsOfADeadTakerKeepTheImage() throws {
    var first: ImageFile? = try ImageFile(ImageOptions(path: path))
    let mark: OwnedDescriptor
    do {
      let number = unsafe clinux_open(path, O_RDWR | O_CLOEXEC, 0)
      try #require(number >= 0)
      mark = OwnedDescriptor(number)
      ImageLock.markTaker(number, isReadOnly: false)
    }
    first = nil
    #expect(first == nil && isLocked() && isLocked(isReadOnly: true))
    ImageLock.release(mark.rawValue)
    #expect(!isLocked() && !isLocked(isReadOnly: true))
  }

  /// A reader of an image is in nobody's way once it is gone.
  @Test func aDeadReaderKeepsNothing() throws {
    var first: ImageFile? = try ImageFile(ImageOptions(path: path, isReadOnly: true))
    let number = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC, 0)
    try #require(number >= 0)
    let mark = OwnedDescriptor(number)
    ImageLock.markTaker(number, isReadOnly: true)
    #expect(isLocked() && !isLocked(isReadOnly: true))
    first = nil
    #expect(first == nil && !isLocked())
    withExtendedLifetime(mark) {}
  }

  /// One server after the other releases its own marks, and the claim stays with the last.
  @Test func theClaimIsTheLastOnes() throws {
    var server = try ImageFile(ImageOptions(path: path))
    for _ in 0..<3 {
      let next = try taken(from: server)
      server.leaveLock()
      next.ownLock()
      next.endTaking()
      server = next
      #expect(isLocked() && isLocked(isReadOnly: true))
    }
    do { _ = consume server }
    #expect(!isLocked())
  }

  /// QEMU has a byte for each right, from 100 on, and one for each that it leaves to nobody else, from 200 on; all locks are
  /// shared.
  @Test(
    arguments: [([100], false), ([100, 201], false), ([100, 101, 103, 201, 203], true), ([101], true)] as [([off_t], Bool)])
  func aWriterThatLocksAsQEMUDoesIsSeen(bytes: [off_t], isWriter: Bool) throws {
    func opened() throws -> OwnedDescriptor {
      let number = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC, 0)
      try #require(number >= 0)
      return OwnedDescriptor(number)
    }
    let (other, first, second) = (try opened(), try opened(), try opened())
    for byte in bytes {
      var lock = flock()
      (lock.l_type, lock.l_whence, lock.l_start, lock.l_len) = (Int16(F_RDLCK), Int16(SEEK_SET), byte, 1)
      try #require(unsafe clinux_fcntl_lock(other.rawValue, clinux_ofd_setlk, &lock) == 0)
    }
    if isWriter {
      #expect(throws: ImageError.locked(path: path)) { try ImageLock.take(first.rawValue, path: path, isReadOnly: true) }
      #expect(throws: ImageError.locked(path: path), "a raw disk, too") {
        try ImageFile(ImageOptions(path: path, isReadOnly: true))
      }
      ImageLock.release(other.rawValue)
      // Nothing is left of the one that was refused.
      #expect(!isLocked())
    }
    #expect(try ImageLock.take(first.rawValue, path: path, isReadOnly: true))
    #expect(try ImageLock.take(second.rawValue, path: path, isReadOnly: true), "readers are in nobody's way")
    withExtendedLifetime((other, first, second)) {}
  }

  /// Programs that know nothing of the parts lock the whole file.
  @Test func aLockOnTheWholeFileIsInTheWay() throws {
    let number = unsafe clinux_open(path, O_RDWR | O_CLOEXEC, 0)
    try #require(number >= 0)
    let other = OwnedDescriptor(number)
    var lock = flock()
    lock.l_type = Int16(F_WRLCK)
    lock.l_whence = Int16(SEEK_SET)
    #expect(unsafe clinux_fcntl_lock(other.rawValue, clinux_ofd_setlk, &lock) == 0)
    #expect(isLocked() && isLocked(isReadOnly: true))
    lock.l_type = Int16(F_UNLCK)
    #expect(unsafe clinux_fcntl_lock(other.rawValue, clinux_ofd_setlk, &lock) == 0)
    let image = try ImageFile(ImageOptions(path: path))
    lock.l_type = Int16(F_WRLCK)
    #expect(unsafe clinux_fcntl_lock(other.rawValue, clinux_ofd_setlk, &lock) != 0)
    withExtendedLifetime(image) {}
  }

  /// Who is in the way is told by number and name, and what it does only as far as its lock says that.
  @Test(arguments: [false, true]) func theHolderIsNamed(isReadOnly: Bool) throws {
    let scratch = try Scratch()
    let path = try scratch.image(size: 1 << 20)
    #expect(LockHolder.words(path) == " that writes to it")
    // What has nothing to do with the lock.
    let number = unsafe clinux_open(path, O_RDWR | O_CLOEXEC, 0)
    try #require(number >= 0)
    let other = OwnedDescriptor(number)
    try #require(flock(number, LOCK_EX) == 0)
    #expect(LockHolder.words(path) == " that writes to it")
    let image = try ImageFile(ImageOptions(path: path, isReadOnly: isReadOnly))
    let name = try String(contentsOfFile: "/proc/self/comm", encoding: .utf8).split(separator: "\n")[0]
    let words = " that \(isReadOnly ? "has it open" : "writes to it") (process \(getpid()), \(name))"
    #expect(LockHolder.words(path) == words)
    #expect { try ImageFile(ImageOptions(path: path)) } throws: { "\($0)".contains("by another process\(words): stop") }
    withExtendedLifetime((image, other)) {}
  }
}
