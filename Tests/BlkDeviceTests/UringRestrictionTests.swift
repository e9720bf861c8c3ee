/// What an attacker with access to a queue's ring could do: transfers on the image, waits, and nothing else.
import CLinux
import Foundation
import Glibc
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct UringRestrictionTests {
  /// Submits one entry, and waits for its result.
  private static func result(
    _ ring: UnsafeMutablePointer<io_uring>, _ prepare: (UnsafeMutablePointer<io_uring_sqe>) -> Void
  ) throws -> Int32 {
    let entry = try unsafe #require(io_uring_get_sqe(ring))
    unsafe prepare(entry)
    unsafe entry.pointee.user_data = 77
    #expect(unsafe io_uring_submit_and_wait(ring, 1) >= 0)
    while true {
      var (data, result, flags): (UInt64, Int32, UInt32) = (0, 0, 0)
      guard unsafe clinux_take_cqe(ring, &data, &result, &flags) != 0 else {
        #expect(unsafe io_uring_submit_and_wait(ring, 1) >= 0)
        continue
      }
      if data == 77 { return result }
    }
  }

  @Test(arguments: [UringSetup.Completion.deferred, .cooperative, .plain])
  func aRingIsForTransfersAndWaitsOnly(completion: UringSetup.Completion) throws {
    guard (try? UringEngine.probe()) != nil else { return }
    let scratch = try Scratch()
    let image = unsafe try OwnedDescriptor(clinux_open(scratch.image(), O_RDWR | O_CLOEXEC, 0))
    let mailbox = try OwnedDescriptor.eventCounter()
    var setup = UringSetup()
    setup.completion = completion
    let engine = try UringEngine(descriptor: image.rawValue, mailbox: mailbox.rawValue, depth: 8, setup: setup)
    let ring = unsafe engine.ring
    guard unsafe ring.pointee.flags & UInt32(IORING_SETUP_R_DISABLED) != 0 else { return }

    let room = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 4096)
    defer { unsafe room.deallocate() }
    // The image is file 0.
    #expect(
      unsafe try Self.result(ring) { entry in
        unsafe io_uring_prep_read(entry, 0, room, 4096, 0)
        unsafe entry.pointee.flags = UInt8(clinux_sqe_fixed_file)
      } == 4096)
    #expect(unsafe try Self.result(ring) { unsafe io_uring_prep_nop($0) } == 0)

    // Whether an operation is permitted is checked before its arguments are.
    let forbidden: [(name: String, operation: UInt32, flags: UInt8)] = [
      ("openat", IORING_OP_OPENAT.rawValue, 0), ("close", IORING_OP_CLOSE.rawValue, 0),
      ("connect", IORING_OP_CONNECT.rawValue, 0), ("socket", IORING_OP_SOCKET.rawValue, 0),
      ("send", IORING_OP_SEND.rawValue, 0), ("sendmsg", IORING_OP_SENDMSG.rawValue, 0),
      ("unlinkat", IORING_OP_UNLINKAT.rawValue, 0), ("splice", IORING_OP_SPLICE.rawValue, 0),
      ("madvise", IORING_OP_MADVISE.rawValue, 0), ("epoll_ctl", IORING_OP_EPOLL_CTL.rawValue, 0),
      ("uring_cmd", IORING_OP_URING_CMD.rawValue, 0), ("linked nop", IORING_OP_NOP.rawValue, 1 << 2),
    ]
    for (name, operation, flags) in forbidden {
      let result = unsafe try Self.result(ring) { entry in
        unsafe io_uring_prep_nop(entry)
        unsafe entry.pointee.opcode = UInt8(operation)
        unsafe entry.pointee.flags = flags
      }
      #expect(result == -EACCES, "\(name)")
    }
    // Other files cannot be registered, either.
    var other = mailbox.rawValue
    #expect(unsafe io_uring_register_files_update(ring, 0, &other, 1) < 0)
    withExtendedLifetime(engine) {}
  }
}
