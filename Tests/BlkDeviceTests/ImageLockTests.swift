/// Locks of an image that one server hands to the next: who may open it, and until when.
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

  /// The next server holds marks until it knows that the previous one has finished with the image, or has ended with everything
  /// that it had in flight.
  @Test(arguments: [false, true]) func aTakerIsSeenUntilItIsGone(isReadOnly: Bool) throws {
    let first = try ImageFile(ImageOptions(path: path, isReadOnly: isReadOnly))
    #expect(!first.isBeingTaken)
    do {
      let second = try taken(from: first, isReadOnly: isReadOnly)
      #expect(first.isBeingTaken)
      // It does not see itself.
      #expect(!second.isBeingTaken)
    }
    #expect(!first.isBeingTaken, "it gave the image back")
    let second = try taken(from: first, isReadOnly: isReadOnly)
    second.endTaking()
    #expect(!first.isBeingTaken)
    // The same with the next server, whatever the first one still holds.
    let third = try taken(from: second, isReadOnly: isReadOnly)
    #expect(second.isBeingTaken)
    third.endTaking()
    #expect(!second.isBeingTaken)
    withExtendedLifetime((first, second, third)) {}
  }

  /// The server was killed after a takeover: none of its locks was released by hand, and the claim is not its own.
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

  /// A reader that has ended blocks nobody.
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

  /// One server after the other releases its own marks, and the claim stays with the last one.
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

  /// QEMU locks a byte for each right that it uses, from 100 on, and one for each that it denies to others, from 200 on; all
  /// locks are shared.
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
      // The refused open leaves no lock.
      #expect(!isLocked())
    }
    #expect(try ImageLock.take(first.rawValue, path: path, isReadOnly: true))
    #expect(try ImageLock.take(second.rawValue, path: path, isReadOnly: true), "readers are in nobody's way")
    withExtendedLifetime((other, first, second)) {}
  }

  /// Programs that do not know these byte ranges lock the whole file.
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

  /// The error names the holder by process ID and name, and what it does only as far as its lock tells.
  @Test(.enabled(if: Host.hasPython, "python3 is not there; 'Scripts/setup.sh counts' installs it"), arguments: [false, true])
  func theHolderIsNamed(isReadOnly: Bool) throws {
    let nobody = "another process that writes to it: stop it"
    #expect(LockHolder.words(path, stranger: "another process") == nobody)
    // A descriptor without a lock, which has to be ignored.
    let number = unsafe clinux_open(path, O_RDWR | O_CLOEXEC, 0)
    try #require(number >= 0)
    let file = OwnedDescriptor(number)
    try #require(flock(number, LOCK_EX) == 0)
    #expect(LockHolder.words(path, stranger: "another process") == nobody)
    // F_OFD_SETLK on all of it.
    let script = """
      import fcntl, struct, sys, time
      file = open(sys.argv[1], "r+b")
      kind = fcntl.F_RDLCK if sys.argv[2] == "true" else fcntl.F_WRLCK
      fcntl.fcntl(file, 37, struct.pack("hhqqi4x", kind, 0, 0, 0, 0))
      print("locked", flush=True)
      time.sleep(3600)
      """
    let other = try ChildProgram(["/usr/bin/env", "python3", "-c", script, path, "\(isReadOnly)"])
    defer { _ = other.end(SIGKILL) }
    try waitUntil("it has the lock: \(other.output)") { other.output.contains("locked") }
    let error = try #require(throws: ImageError.self) { try ImageFile(ImageOptions(path: path)) }
    let deed = isReadOnly ? "has it open" : "writes to it"
    #expect("\(error)".contains("is in use by another process that \(deed) (process "))
    #expect("\(error)".contains(", python3): stop it, or use --no-lock"), "\(error)")
    withExtendedLifetime(file) {}
  }

  /// Two disks of one server use the same image: the disk that has it is named, and no process is to be stopped.
  @Test(arguments: [false, true], ["/run/first.sock", nil] as [String?]) func aDiskOfThisProcessIsNamed(
    isReadOnly: Bool, user: String?
  ) throws {
    var options = ImageOptions(path: path, isReadOnly: isReadOnly)
    options.user = user
    var image: ImageFile? = try ImageFile(options)
    let who = user.map { "another disk of this process (\($0))" } ?? "this process itself"
    let deed = isReadOnly ? "has it open" : "writes to it"
    #expect { try ImageFile(ImageOptions(path: path)) } throws: {
      "\($0)".contains("is in use by \(who), which \(deed): give each disk an image of its own, or use --no-lock")
    }
    #expect(image != nil)
    image = nil
    #expect(LockHolder.words(path, stranger: "a process").hasPrefix("a process that"), "nobody has it any more")
  }

  /// A golden image that one disk reads and another one is about to write to.
  @Test func aFileUnderADiskOfThisProcessIsNamed() throws {
    let base = try scratch.image("base", size: 1 << 20)
    let top = scratch.path + "/top.qcow2"
    let made = try ChildProgram([
      ChildProgram.vmmBlk, "image", "create", top, "--backing", base, "--backing-format", "raw",
    ]).wait()
    try #require(made.status == 0, "\(made.output)")
    var options = ImageOptions(path: top)
    options.qcow2 = try Qcow2Location("qcow2:\(top)?backing=raw:\(base)")
    options.user = "top.sock"
    let image = try ImageFile(options)
    #expect { try ImageFile(ImageOptions(path: base)) } throws: {
      "\($0)".contains("another disk of this process (top.sock), which has it open")
    }
    withExtendedLifetime(image) {}
  }
}
