/// Where io_uring is forbidden, as in many containers, the program warns once and works, or refuses in one sentence.
import Foundation
import GuestDriver
import Testing
import VirtioBlkDevice
import VirtioCore

@Suite(.enabled(if: Host.hasPython, "python3 is not there; 'Scripts/setup.sh counts' installs it"))
struct ForbiddenUringTests {
  /// Runs a program with a seccomp filter that makes a system call fail with an errno.
  private static let wrapper = """
    import ctypes, os, struct, sys
    libc = ctypes.CDLL(None, use_errno=True)
    load, equal, answer = 0x20, 0x15, 0x06
    code = struct.pack("HBBI", load, 0, 0, 0) + struct.pack("HBBI", equal, 0, 1, int(sys.argv[2]))
    code += struct.pack("HBBI", answer, 0, 0, 0x00050000 | int(sys.argv[1])) + struct.pack("HBBI", answer, 0, 0, 0x7fff0000)
    buffer = ctypes.create_string_buffer(code)
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())
    os.execv(sys.argv[3], sys.argv[3:])
    """

  private static func serve(_ scratch: Scratch, errno: Int32, call: Int = 425, _ options: String...) throws -> ChildProgram {
    let image = try scratch.image()
    return try ChildProgram(
      [
        "/usr/bin/env", "python3", "-c", wrapper, "\(errno)", "\(call)", ChildProgram.vmmBlk, "serve", "--blk-file", image,
        "--socket-path", scratch.path + "/s",
      ] + options)
  }

  @Test(arguments: [
    // io_uring_setup, and io_uring_enter: a ring that can be created but not entered is useless.
    (errno: EPERM, call: 425, direct: "off", engine: "sync"), (ENOSYS, 425, "off", "sync"), (EPERM, 425, "auto", "aio"),
    (EPERM, 426, "off", "sync"), (EACCES, 426, "auto", "aio"),
  ])
  func oneWarningAndAWorkingDisk(errno: Int32, call: Int, direct: String, engine: String) throws {
    let scratch = try Scratch()
    let program = try Self.serve(scratch, errno: errno, call: call, "--direct", direct)
    try program.waitForSocket(scratch.path + "/s")
    let transport = try VhostUserTransport(path: scratch.path + "/s", memory: DriverMemory(size: 16 << 20))
    let client = try BlockClient(transport)
    var verifier = try Verifier(client, VerifyOptions(seed: 1, limit: .bytes(256 << 10)))
    _ = try verifier.run()
    try client.shutDown()
    let (status, output) = program.end()
    #expect(status == 0)
    let warnings = output.split(separator: "\n").filter { $0.contains("io_uring cannot be used here") }
    #expect(warnings.count == 1, "\(output)")
    let reason = errno == ENOSYS ? "not implemented" : errno == EACCES ? "denied" : "not permitted"
    #expect(warnings.first?.contains(reason) == true, "\(output)")
    #expect(warnings.first?.contains("--engine \(engine)") == true, "\(output)")
    #expect(!FileManager.default.fileExists(atPath: scratch.path + "/s"))
  }

  @Test func theEngineThatWasNamedIsRefused() throws {
    let scratch = try Scratch()
    let program = try Self.serve(scratch, errno: EPERM, "--engine", "uring")
    let (status, output) = program.wait()
    #expect(status != 0 && status < 128)
    let errors = output.split(separator: "\n").filter { $0.hasPrefix("Error: ") }
    #expect(errors.count == 1, "\(output)")
    #expect(errors.first?.contains("io_uring cannot be used here") == true, "\(output)")
    #expect(errors.first?.contains("--engine auto") == true, "\(output)")
    #expect(!FileManager.default.fileExists(atPath: scratch.path + "/s"))
  }
}
