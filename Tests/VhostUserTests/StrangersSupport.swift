/// Hostile peers: a file that never answers, a ring that is never empty; and two disks of one process to use them on.
import CLinux
import Foundation
import Glibc
import Synchronization
import SystemPackage
import TestSupport
import Testing
import VirtioCore

@testable import VhostUser

/// Another program, which inherits no descriptors except those it is given. It does not outlive its owner.
final class Child {
  let identifier: pid_t
  private var status: Int32?

  /// - Parameters:
  ///   - arguments: the program, which is looked for in PATH, and its arguments.
  ///   - standard: its standard input, output and error.
  init(_ arguments: [String], standard: [Int32]) throws {
    var actions = unsafe posix_spawn_file_actions_t()
    unsafe posix_spawn_file_actions_init(&actions)
    defer { unsafe posix_spawn_file_actions_destroy(&actions) }
    for (number, descriptor) in standard.enumerated() {
      unsafe posix_spawn_file_actions_adddup2(&actions, descriptor, Int32(number))
    }
    for name in try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd") {
      guard let number = Int32(name), number >= standard.count else { continue }
      unsafe posix_spawn_file_actions_addclose(&actions, number)
    }
    // The test run's threads block signals, and a child would inherit that.
    var attributes = posix_spawnattr_t()
    unsafe posix_spawnattr_init(&attributes)
    defer { unsafe posix_spawnattr_destroy(&attributes) }
    var none = sigset_t()
    unsafe sigemptyset(&none)
    unsafe posix_spawnattr_setsigmask(&attributes, &none)
    // Signals that the test run ignores would stay ignored, whatever the program does about them.
    var all = sigset_t()
    unsafe sigfillset(&all)
    unsafe posix_spawnattr_setsigdefault(&attributes, &all)
    unsafe posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))
    var words = unsafe arguments.map { unsafe strdup($0) } + [nil]
    defer { for index in unsafe words.indices { unsafe free(words[index]) } }
    var child: pid_t = 0
    let result = unsafe posix_spawnp(&child, arguments[0], &actions, &attributes, &words, unsafe Glibc.environ)
    guard result == 0 else { throw Errno(rawValue: result) }
    identifier = child
  }

  deinit {
    guard status == nil else { return }
    kill(identifier, SIGKILL)
    _ = wait()
  }

  /// It has ended, or only a thread is left that the kernel keeps in a system call.
  var isOver: Bool {
    guard let text = try? String(contentsOfFile: "/proc/\(identifier)/stat", encoding: .utf8) else { return true }
    // The name in parentheses may contain anything.
    let state = text.split(separator: ")").last?.split(separator: " ").first
    return state == "Z" || state == "X"
  }

  /// Waits for it to end. - Returns: the exit code, or 128 plus the signal's number.
  func wait() -> Int32 {
    if let status { return status }
    var word: Int32 = 0
    while unsafe waitpid(identifier, &word, 0) < 0 && errno == EINTR {}
    let code = word & 0x7f == 0 ? word >> 8 & 0xff : 128 + word & 0x7f
    status = code
    return code
  }
}

/// A pipe whose ends no child inherits.
func pipeEnds() throws -> (reading: OwnedDescriptor, writing: OwnedDescriptor) {
  var ends: [Int32] = [-1, -1]
  guard unsafe pipe2(&ends, O_CLOEXEC) == 0 else { throw Errno(rawValue: errno) }
  return (OwnedDescriptor(ends[0]), OwnedDescriptor(ends[1]))
}

/// A file of Tests/Programs/silent-fuse.py.
///
/// A process that has it open and closes it while `flush` is held waits until `end`, and so does any program started in the
/// meantime. That is why files are opened in separate processes (exit tests) and closed after `end`.
final class SilentFile {
  let path: String
  private let child: Child
  private let said: OwnedDescriptor
  private var tell: OwnedDescriptor?

  /// - Parameter pageCache: the file can be mapped shared; otherwise each read and write reaches the file system.
  init(size: Int, pageCache: Bool = false) throws {
    let program = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .appendingPathComponent("Programs/silent-fuse.py").path
    let (input, output) = (try pipeEnds(), try pipeEnds())
    child = try Child(
      ["python3", program, "\(size)"] + (pageCache ? ["--page-cache"] : []),
      standard: [input.reading.rawValue, output.writing.rawValue, 2])
    (tell, said) = (input.writing, output.reading)
    withExtendedLifetime((input, output)) {}
    let line = try Self.line(said)
    guard line.hasPrefix("ready ") else { throw WaitedInVain(description: line) }
    path = String(line.dropFirst("ready ".count))
  }

  deinit { end() }

  /// From now on these operations are never answered.
  func hold(_ operations: String) throws {
    let line = "hold \(operations)\n"
    let count = unsafe write(tell?.rawValue ?? -1, line, line.utf8.count)
    guard count == line.utf8.count else { throw Errno(rawValue: errno) }
    while try Self.line(said) + "\n" != line {}
  }

  /// Waits until one of these operations is being held.
  func waitUntilHeld(_ operation: String) throws {
    while try Self.line(said) != "held \(operation)" {}
  }

  /// Fails the operations that are held.
  func end() {
    tell = nil
    _ = child.wait()
  }

  private static func line(_ descriptor: OwnedDescriptor) throws -> String {
    var line: [UInt8] = []
    var byte: [UInt8] = [0]
    while true {
      var entry = pollfd(fd: descriptor.rawValue, events: Int16(POLLIN), revents: 0)
      let ready = unsafe poll(&entry, 1, Int32(clamping: Int(Patience.limit / .milliseconds(1))))
      if ready < 0 && errno == EINTR { continue }
      guard ready == 1 else { throw WaitedInVain(description: "the silent file system's program prints nothing") }
      guard unsafe read(descriptor.rawValue, &byte, 1) == 1 else {
        throw WaitedInVain(description: "the silent file system has ended")
      }
      if byte[0] == UInt8(ascii: "\n") { return String(decoding: line, as: UTF8.self) }
      line.append(byte[0])
    }
  }

  /// Determined once.
  static let isPossible = (try? SilentFile(size: 4096)) != nil
  static let needs: Comment = "a file system that does not answer needs root, /dev/fuse and python3"
}

/// One `vmm-blk serve` with two disks: A, whose front-ends and media misbehave, and B, an ordinary one.
final class TwoDisks {
  static let sizeOfB = 1 << 20
  let a: String
  let b: String
  private let directory: String
  private let silent: SilentFile?
  private let child: Child
  private var kept: [OwnedDescriptor] = []

  /// - Parameters:
  ///   - a: members of disk A's entry, without its socket.
  ///   - silent: has to end before the process can.
  ///   - drainTimeout: seconds.
  init(_ directory: String, a entry: [String: String], silent: SilentFile? = nil, drainTimeout: Int = 3600) throws {
    self.directory = directory
    self.silent = silent
    (a, b) = (directory + "/a.sock", directory + "/b.sock")
    try Data((0..<Self.sizeOfB).map(Self.byteOfB)).write(to: URL(fileURLWithPath: directory + "/b"))
    var first = entry
    first["socket-path"] = a
    let entries = [first, ["blk-file": directory + "/b", "socket-path": b, "engine": "sync"]]
    try JSONSerialization.data(withJSONObject: entries).write(to: URL(fileURLWithPath: directory + "/list"))
    let log = unsafe open(directory + "/log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600)
    guard log >= 0 else { throw Errno(rawValue: errno) }
    let output = OwnedDescriptor(log)
    let nothing = OwnedDescriptor(unsafe open("/dev/null", O_RDONLY | O_CLOEXEC))
    child = try Child(
      [
        Program.path.path, "serve", "--disks", directory + "/list", "--num-queues", "1", "--drain-timeout", "\(drainTimeout)",
      ], standard: [nothing.rawValue, output.rawValue, output.rawValue])
    withExtendedLifetime((output, nothing)) {}
    try waitForLog("Serving 2 disks")
  }

  deinit {
    // Until its medium fails, a process that waits for it cannot be killed.
    silent?.end()
  }

  /// A sparse image in the disks' folder. - Returns: its path.
  static func image(_ directory: String, size: Int) throws -> String {
    let path = directory + "/a"
    try Data().write(to: URL(fileURLWithPath: path))
    guard unsafe truncate(path, off_t(size)) == 0 else { throw Errno(rawValue: errno) }
    return path
  }

  static func byteOfB(_ offset: Int) -> UInt8 { UInt8(truncatingIfNeeded: offset &* 7 &+ offset >> 9) }

  var log: String { (try? String(contentsOfFile: directory + "/log", encoding: .utf8)) ?? "" }

  func waitForLog(_ text: String) throws {
    try wait(until: "the log says \"\(text)\"; it says: \(log)") { log.contains(text) || child.isOver }
    guard log.contains(text) else { throw WaitedInVain(description: "the process ended without saying \"\(text)\": \(log)") }
  }

  /// Keeps a descriptor open until closing it can no longer block.
  func keep(_ descriptor: OwnedDescriptor) { kept.append(descriptor) }

  func terminate() { kill(child.identifier, SIGTERM) }

  /// Waits until the program has ended. - Returns: its status.
  func waitForEnd() throws -> Int32 {
    try wait(until: "the process has ended; its log: \(log)") { child.isOver }
    silent?.end()
    return child.wait()
  }

  /// Two front-ends of disk B, one after the other, are served.
  func expectOtherDiskIsServed() throws { try expectServed(b, byte: Self.byteOfB) }

  /// Twice: a front-end connects, is answered, starts a ring, reads, stops the ring, and disconnects.
  func expectServed(_ path: String, byte: (Int) -> UInt8 = { _ in 0 }) throws {
    for _ in 0..<2 {
      let disk = try HandDisk(path)
      #expect(try disk.frontend.features().contains(.version1))
      for sector in [0, 3] {
        let data = try disk.read(sector: sector)
        #expect(data == (0..<512).map { byte(sector * 512 + $0) })
      }
      #expect(try disk.stop() == 2)
      #expect(try disk.frontend.features().contains(.version1))
    }
  }
}

/// A front-end with one ring in its own memory. Every descriptor of the ring leads to the same request.
final class HandDisk: @unchecked Sendable {
  static let memorySize = 8 << 20
  private static let ringSize: UInt16 = 128
  private static let (table, header, status, payload, data) = (0x1_0000, 0x1_1000, 0x1_1010, 0x1_2000, 4 << 20)
  /// The longest segment that the device accepts (SIZE_MAX).
  static let segmentSize = 4 << 20

  let frontend: Frontend
  private let memory = TestMemory.file("vhost-strangers", size: memorySize)
  private let mapping: Mapping
  private let kick = eventCounter()
  private var offered: UInt16 = 0
  private var taken: UInt16 = 0

  /// One segment of a request.
  private struct Segment {
    var address: Int
    var count: Int
    var isWritten: Bool
  }

  /// Connects and starts the ring.
  init(_ path: String, call: OwnedDescriptor = eventCounter()) throws {
    frontend = try Frontend(connectingTo: path)
    mapping = try Mapping(descriptor: memory.rawValue, count: Self.memorySize)
    let offer = try frontend.handshake()
    // Without these features there is a kick and a call for every request.
    try frontend.setFeatures(offer.features.subtracting([.eventIndex, .packedRing]))
    try frontend.setMemory([FrontendRegion(Rig.region(size: UInt64(Self.memorySize)), descriptor: memory)])
    for index in 0..<Int(Self.ringSize) {
      store(descriptor: index, in: 0, Segment(address: Self.table, count: 0, isWritten: false))
    }
    try start(at: 0, call: call)
  }

  func start(at base: UInt32, call: OwnedDescriptor = eventCounter()) throws {
    let address = Rig.address(0)
    try frontend.start(
      FrontendQueue(
        index: 0, size: Self.ringSize, descriptorTable: address.descriptorTable, availableRing: address.availableRing,
        usedRing: address.usedRing, base: base, kick: kick, call: call))
    EventCounter.signal(kick.rawValue)
  }

  /// - Returns: the available index at which it stopped.
  func stop() throws -> UInt32 { try frontend.stop(queue: 0) }

  // MARK: The request

  /// Reads one sector, and waits for it.
  func read(sector: Int, into buffer: UInt64 = UInt64(data)) throws -> [UInt8] {
    prepareRead(sector: sector, into: buffer)
    offer([0])
    try waitUntilAnswered()
    #expect(status == 0)
    return (0..<512).map { unsafe mapping.base.load(fromByteOffset: Self.data + $0, as: UInt8.self) }
  }

  /// - Parameter buffer: a guest address.
  func prepareRead(sector: Int, into buffer: UInt64 = UInt64(data)) {
    prepare(type: 0, sector, [Segment(address: Int(buffer), count: 512, isWritten: true)])
  }

  /// A read with segments of the greatest length.
  func prepareLargeRead(segments: Int) {
    let segment = Segment(address: Self.data, count: Self.segmentSize, isWritten: true)
    prepare(type: 0, 0, Array(repeating: segment, count: segments))
  }

  /// The largest WRITE_ZEROES: 32 ranges of 1 GiB, one after the other, with unmap.
  static let largestZeroes = 32 << 30
  func prepareLargestZeroes() {
    let sectors: UInt32 = 1 << 21
    for index in 0..<32 {
      let range = Self.payload + 16 * index
      store(UInt64(index) * UInt64(sectors), range)
      store(sectors, range + 8)
      store(UInt32(1), range + 12)
    }
    prepare(type: 13, 0, [Segment(address: Self.payload, count: 512, isWritten: false)])
  }

  private func prepare(type: UInt32, _ sector: Int, _ segments: [Segment]) {
    store(type, Self.header)
    store(UInt32(0), Self.header + 4)
    store(UInt64(sector), Self.header + 8)
    store(UInt8(0xff), Self.status)
    let all =
      [Segment(address: Self.header, count: 16, isWritten: false)] + segments
      + [Segment(address: Self.status, count: 1, isWritten: true)]
    for (index, segment) in all.enumerated() {
      store(descriptor: index, in: Self.table, segment, next: index + 1 < all.count ? index + 1 : nil)
    }
    for index in 0..<Int(Self.ringSize) { store(UInt32(16 * all.count), 16 * index + 8) }
  }

  /// Stores a descriptor. One in the ring's own table (0) points to the request's indirect table.
  private func store(descriptor index: Int, in table: Int, _ segment: Segment, next: Int? = nil) {
    let (isNext, isWritten, isIndirect): (UInt16, UInt16, UInt16) = (1, 2, 4)
    let flags = table == 0 ? isIndirect : (next == nil ? 0 : isNext) | (segment.isWritten ? isWritten : 0)
    store(UInt64(segment.address), table + 16 * index)
    store(UInt32(segment.count), table + 16 * index + 8)
    store(flags, table + 16 * index + 12)
    store(UInt16(next ?? 0), table + 16 * index + 14)
  }

  private func store<Value: FixedWidthInteger & BitwiseCopyable>(_ value: Value, _ offset: Int) {
    unsafe mapping.base.storeBytes(of: value.littleEndian, toByteOffset: offset, as: Value.self)
  }

  /// The status byte that the device wrote last.
  var status: UInt8 { unsafe mapping.base.load(fromByteOffset: Self.status, as: UInt8.self) }

  // MARK: The ring

  private func part(_ address: UInt64) -> UnsafeMutableRawPointer { unsafe mapping.base + Int(address - Rig.userBase) }
  private var available: UnsafeMutableRawPointer { unsafe part(Rig.address(0).availableRing) }
  private var used: UnsafeMutableRawPointer { unsafe part(Rig.address(0).usedRing) }

  func offer(_ heads: [UInt16]) {
    for head in heads {
      unsafe available.storeBytes(of: head, toByteOffset: 4 + 2 * Int(offered % Self.ringSize), as: UInt16.self)
      offered &+= 1
    }
    unsafe SharedCell<UInt16>(available + 2).storeRelease(offered)
    EventCounter.signal(kick.rawValue)
  }

  func offerAll() { offer(Array(0..<Self.ringSize)) }

  /// Heads that were answered since the last call.
  private func take() -> [UInt16] {
    let index = unsafe SharedCell<UInt16>(used + 2).loadAcquire()
    var heads: [UInt16] = []
    while taken != index {
      let element = 4 + 8 * Int(taken % Self.ringSize)
      heads.append(UInt16(truncatingIfNeeded: unsafe used.load(fromByteOffset: element, as: UInt32.self)))
      taken &+= 1
    }
    return heads
  }

  /// All requests offered have been answered.
  var isIdle: Bool {
    _ = take()
    return taken == offered
  }

  func waitUntilAnswered() throws { try wait(until: "the device answers") { isIdle } }

  /// Keeps the ring full while the body runs.
  ///
  /// - Parameter body: receives a function that returns the number of requests answered so far.
  func keepingFull(_ body: (() -> Int) throws -> Void) throws {
    let feeder = Feeder(disk: self)
    feeder.start()
    defer { feeder.end() }
    try body { feeder.answered }
  }

  private final class Feeder: Sendable {
    private let disk: HandDisk
    private let state = Mutex((answered: 0, isOver: false))
    private let hasEnded = DispatchSemaphore(value: 0)

    init(disk: HandDisk) { self.disk = disk }

    var answered: Int { state.withLock(\.answered) }

    func start() {
      Thread.detachNewThread { [self] in
        disk.offerAll()
        while !state.withLock(\.isOver) {
          let heads = disk.take()
          if heads.isEmpty {
            usleep(100)
          } else {
            disk.offer(heads)
            state.withLock { $0.answered += heads.count }
          }
        }
        hasEnded.signal()
      }
    }

    func end() {
      state.withLock { $0.isOver = true }
      hasEnded.wait()
    }
  }
}
