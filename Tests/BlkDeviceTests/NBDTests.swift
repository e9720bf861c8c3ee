/// Disks on exports of real NBD servers: all request types, servers with and without each capability, and errors.
import Foundation
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite(.serialized, .enabled(if: Host.hasNBD, "nbdkit or libnbd is not installed")) struct NBDTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var words: [String]
    var queues = 1
    var blockSize = 512
    var note: String
    var testDescription: String { note }

    init(_ note: String, _ words: [String], queues: Int = 1, blockSize: Int = 512) {
      (self.note, self.words, self.queues, self.blockSize) = (note, words, queues, blockSize)
    }
  }

  @Test(arguments: [
    Case("memory", ["memory", "8M"]),
    Case("memory, four connections", ["memory", "8M"], queues: 4),
    Case("one connection for three queues", ["--filter=multi-conn", "memory", "8M", "multi-conn-mode=disable"], queues: 3),
    Case(
      "blocks of 4096",
      [
        "--filter=blocksize-policy", "memory", "8M", "blocksize-minimum=4096", "blocksize-preferred=64K",
        "blocksize-maximum=4M", "blocksize-error-policy=error",
      ], queues: 2, blockSize: 4096),
    Case(
      "small transfers",
      [
        "--filter=blocksize-policy", "memory", "8M", "blocksize-minimum=512", "blocksize-preferred=4K",
        "blocksize-maximum=16K", "blocksize-error-policy=error",
      ]),
    Case("no stable writes", ["--filter=fua", "memory", "8M"]),
    Case("stable writes by flushes", ["--filter=fua", "memory", "8M", "fuamode=emulate"]),
    Case("no zeroing", ["--filter=nozero", "memory", "8M"]),
    Case("slow answers out of order", ["--filter=delay", "memory", "8M", "rdelay=1ms", "wdelay=0"], queues: 2),
  ]) func everyAcknowledgedWriteIsThere(test: Case) throws {
    try Self.verify(NBDServer(test.words), queues: test.queues, blockSize: test.blockSize)
  }

  @Test(.enabled(if: Host.hasQemuNBD, "qemu-nbd is not installed"), arguments: [1, 3])
  func qemuServesOneConnectionOrSeveral(shared: Int) throws {
    let server = try NBDServer(qemu: ["--shared", "\(shared)", "--discard", "unmap", "--detect-zeroes", "off"], size: 8 << 20)
    try Self.verify(server, queues: 3, blockSize: 512)
  }

  static func verify(_ server: NBDServer, queues: Int, blockSize: Int) throws {
    var options = RigOptions()
    options.nbd = try server.options()
    options.blockSize = blockSize
    options.device.queueCount = queues
    let rig = try Rig(options)
    #expect(rig.device.engine == .nbd)
    rig.client.depth = 16
    var verifier = try Verifier(
      rig.client, VerifyOptions(seed: .random(in: 0 ... .max), limit: .bytes(2 << 20), cuts: .all))
    _ = try verifier.run()
    #expect(rig.device.counters.failures == 0)
  }

  /// The content tells where it belongs, so a read from the wrong offset is noticed.
  @Test func readsComeFromTheirPlace() throws {
    let server = try NBDServer(["pattern", "1G"])
    var options = RigOptions()
    (options.nbd, options.isReadOnly) = (try server.options(), true)
    let rig = try Rig(options)
    for sector in [0, 7, 1 << 20, 2 * (1 << 20) - 64] as [UInt64] {
      let outcome = try rig.expect(.read(sector: sector, bytes: 32768))
      let expected = (0..<4096).flatMap { word in withBytes(of: (sector * 512 + UInt64(word) * 8).bigEndian) }
      #expect(firstDifference(outcome.answer, expected) == nil, "sector \(sector)")
    }
    try rig.expect(.write(sector: 0, pattern(512)), .ioError)
  }

  private func withBytes(of word: UInt64) -> [UInt8] { unsafe withUnsafeBytes(of: word) { unsafe Array($0) } }

  // MARK: Exports that are refused

  @Test(arguments: [
    (["pattern", "1M"], false, 512, "--read-only"),
    (["memory", "1000"], false, 512, "multiple of the logical block size"),
    (["memory", "0"], false, 512, "size 0"),
    (
      [
        "--filter=blocksize-policy", "memory", "1M", "blocksize-minimum=4096", "blocksize-preferred=4096",
        "blocksize-maximum=1M",
      ],
      false, 512, "--logical-block-size 4096"
    ),
  ]) func whatCannotBeServed(words: [String], isReadOnly: Bool, blockSize: Int, sentence: String) throws {
    let server = try NBDServer(words)
    var options = ImageOptions(path: "", isReadOnly: isReadOnly, logicalBlockSize: blockSize)
    options.nbd = try server.options()
    #expect { try ImageFile(options) } throws: { "\($0)".contains(sentence) }
  }

  @Test func nobodyIsThere() throws {
    let server = try NBDServer(["memory", "1M"], starts: false)
    var options = ImageOptions(path: "")
    options.nbd = try server.options()
    #expect { try ImageFile(options) } throws: { "\($0)".contains("does not answer") && "\($0)".contains("No such file") }
  }

  @Test func severalThreadsNeedSeveralConnections() throws {
    let server = try NBDServer(["--filter=multi-conn", "memory", "1M", "multi-conn-mode=disable"])
    var options = RigOptions()
    options.nbd = try server.options()
    options.device.queueCount = 2
    options.device.threads = 2
    #expect(throws: EngineError.oneConnection(uri: try server.location.text, threads: 2)) { try Rig(options) }
  }

  @Test(arguments: [EngineKind.uring, .aio, .sync, .threads, .mapped, .cached]) func enginesOfFilesAreForFiles(
    engine: EngineKind
  ) throws {
    let server = try NBDServer(["memory", "1M"])
    var options = RigOptions()
    (options.nbd, options.engine) = (try server.options(), engine)
    #expect(throws: EngineError.notForExports(engine, uri: try server.location.text)) { try Rig(options) }
  }

  // MARK: Errors

  struct Failing: Sendable, CustomTestStringConvertible {
    var kind: String
    var request: BlockRequest
    var testDescription: String { kind }
  }

  /// An error of the server fails its request, and no other.
  @Test(arguments: [
    Failing(kind: "pread", request: .read(sector: 8, bytes: 4096)),
    Failing(kind: "pwrite", request: .write(sector: 8, pattern(4096))),
  ]) func whatTheServerFailsIsAnError(test: Failing) throws {
    let server = try NBDServer([
      "--filter=error", "memory", "4M", "error=ENOSPC", "error-\(test.kind)-rate=100%", "error-file=DIR/fails",
    ])
    var options = RigOptions()
    options.nbd = try server.options()
    let rig = try Rig(options)
    try rig.expect(test.request)
    try Data().write(to: URL(fileURLWithPath: server.scratch.path + "/fails"))
    try rig.expect(test.request, .ioError)
    try FileManager.default.removeItem(atPath: server.scratch.path + "/fails")
    try rig.expect(test.request)
    try rig.expect(.flush)
  }

  /// ENOSPC for every write, after which reads still work.
  @Test func aFullServer() throws {
    let server = try NBDServer(["full", "4M"])
    var options = RigOptions()
    options.nbd = try server.options()
    let rig = try Rig(options)
    try rig.expect(.write(sector: 0, pattern(4096)), .ioError)
    let outcome = try rig.expect(.read(sector: 0, bytes: 4096))
    #expect(outcome.answer == zeroes(4096))
  }

  /// Fault injection works around this engine, too.
  @Test func faultsOnPurpose() throws {
    let server = try NBDServer(["memory", "4M"])
    var options = RigOptions()
    options.nbd = try server.options()
    options.device.faults = [try #require(FaultRule("write:eio:count=1"))]
    let rig = try Rig(options)
    try rig.expect(.write(sector: 0, pattern(4096)), .ioError)
    try rig.expect(.write(sector: 0, pattern(4096)))
    try rig.expect(.discard([BlockRange(sector: 0, sectors: 8)]))
  }

  // MARK: Stable writes

  /// Without a write cache each write is stable when it is answered: by FUA, or by a flush after it.
  @Test(arguments: [false, true]) func stableWrites(hasFlag: Bool) throws {
    let server = try NBDServer(
      ["--filter=log"] + (hasFlag ? [] : ["--filter=fua"]) + ["file", "DIR/disk", "logfile=DIR/log"], starts: false)
    _ = try server.scratch.image(size: 1 << 20)
    try server.start()
    var options = RigOptions()
    options.nbd = try server.options()
    let rig = try Rig(options)
    func flags() throws -> (writes: Int, stable: Int, flushes: Int) {
      let log = try String(contentsOfFile: server.scratch.path + "/log", encoding: .utf8)
      let lines = log.split(separator: "\n")
      let writes = lines.filter { $0.contains(" Write id=") }
      return (writes.count, writes.count { $0.contains("fua=1") }, lines.count { $0.contains(" Flush id=") })
    }
    try rig.expect(.write(sector: 0, pattern(4096)))
    #expect(try flags() == (1, 0, 0))
    #expect(rig.device.writeConfiguration(at: 32, [0]))
    try rig.expect(.write(sector: 8, pattern(4096)))
    #expect(try flags() == (hasFlag ? (2, 1, 0) : (2, 0, 1)))
  }

  /// A flush that the server failed may have lost what it covers, and no later flush can tell.
  @Test func aFlushThatFailedStaysFailed() throws {
    let server = try NBDServer([
      "eval", "get_size=echo 1048576", "pread=head -c $3 /dev/zero", "pwrite=cat >/dev/null", "can_write=exit 0",
      "can_flush=exit 0",
      "flush=if [ -e DIR/fails ]; then echo EIO it fails >&2; exit 1; fi",
    ])
    var options = RigOptions()
    options.nbd = try server.options()
    let rig = try Rig(options)
    try rig.expect(.write(sector: 0, pattern(4096)))
    try Data().write(to: URL(fileURLWithPath: server.scratch.path + "/fails"))
    try rig.expect(.flush, .ioError)
    try FileManager.default.removeItem(atPath: server.scratch.path + "/fails")
    try rig.expect(.flush, .ioError)
  }

  // MARK: Operator commands

  @Test func anExportThatHasGrownIsMeasured() throws {
    let server = try NBDServer(["file", "DIR/disk"], starts: false)
    _ = try server.scratch.image(size: 1 << 20)
    try server.start()
    var options = RigOptions()
    options.nbd = try server.options()
    let rig = try Rig(options)
    #expect(rig.device.image.flush() == nil)
    try #require(unsafe truncate(server.scratch.path + "/disk", 2 << 20) == 0)
    #expect(try rig.device.image.measure() == 2 << 20)
    #expect(throws: ImageError.self) { try rig.device.image.setLength(4 << 20) }
  }
}
