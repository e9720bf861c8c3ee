/// Hostile peers hold up nobody else: whatever the front-end or the medium of one disk does, other disks of the same process
/// continue, and SIGTERM ends the process.
import CLinux
import Foundation
import Glibc
import SystemPackage
import TestSupport
import Testing
import VirtioCore

@testable import VhostUser

/// All tests here use a real program with two disks. Nothing is timed: whatever waited for the hostile peer would wait
/// forever.
@Suite(.serialized) struct StrangersTests {
  // MARK: Calls

  /// Whether the dead descriptor is there from the start or replaces another one while the ring runs.
  private static let moments = [false, true]

  @Test(arguments: moments) func aFullPipeAsCallKeepsNobody(whileItRuns: Bool) throws {
    let (reading, writing) = try pipeEnds()
    let chunk = [UInt8](repeating: 0, count: 4096)
    _ = clinux_fcntl_int(writing.rawValue, F_SETFL, O_NONBLOCK)
    while unsafe write(writing.rawValue, chunk, chunk.count) > 0 {}
    _ = clinux_fcntl_int(writing.rawValue, F_SETFL, 0)
    try expectNobodyIsKept(by: writing, whileItRuns)
    withExtendedLifetime(reading) {}
  }

  @Test(arguments: moments) func aPipeThatNobodyReadsAsCallEndsNothing(whileItRuns: Bool) throws {
    // The reading end is closed at once.
    try expectNobodyIsKept(by: pipeEnds().writing, whileItRuns)
  }

  @Test(arguments: moments) func aFullEventCounterAsCallKeepsNobody(whileItRuns: Bool) throws {
    let counter = OwnedDescriptor(eventfd(0, Int32(EFD_CLOEXEC)))
    var most: UInt64 = .max - 1
    try #require(unsafe write(counter.rawValue, &most, 8) == 8)
    try expectNobodyIsKept(by: counter, whileItRuns)
  }

  /// A queue's thread has the replaced call closed by a helper, which inherits the thread's restricted rights. It must not be
  /// the helper that inspects other descriptors.
  @Test func callsThatAreReplacedWhileTheRingRunsEndNothing() throws {
    try withDirectory { directory in
      let disks = try TwoDisks(directory, a: ["blk-file": TwoDisks.image(directory, size: 1 << 20), "engine": "sync"])
      let stranger = try HandDisk(disks.a)
      let calls = (0..<4).map { _ in OwnedDescriptor(eventfd(0, Int32(EFD_CLOEXEC))) }
      for number in 0..<5000 {
        try stranger.frontend.send(
          Message(
            number % 3 == 0 ? .setVringError : .setVringCall, needReply: false, payload: Rig.word(0),
            descriptors: [calls[number % 4]]))
      }
      #expect(try stranger.read(sector: 0) == [UInt8](repeating: 0, count: 512))
      try disks.expectOtherDiskIsServed()
      disks.terminate()
      #expect(try disks.waitForEnd() == 0, "\(disks.log)")
    }
  }

  private func expectNobodyIsKept(by call: OwnedDescriptor, _ whileItRuns: Bool) throws {
    /// A write to it would block, or fail because nobody reads.
    func isDead() -> Bool {
      var entry = pollfd(fd: call.rawValue, events: Int16(POLLOUT), revents: 0)
      _ = unsafe poll(&entry, 1, 0)
      return entry.revents & Int16(POLLOUT) == 0 || entry.revents & Int16(POLLERR) != 0
    }
    try withDirectory { directory in
      let disks = try TwoDisks(directory, a: ["blk-file": TwoDisks.image(directory, size: 1 << 20), "engine": "sync"])
      let stranger = whileItRuns ? try HandDisk(disks.a) : try HandDisk(disks.a, call: call)
      if whileItRuns { try stranger.frontend.setCall(queue: 0, call) }
      // Not even the front-end itself is held up.
      for _ in 0..<3 { #expect(try stranger.read(sector: 0) == [UInt8](repeating: 0, count: 512)) }
      #expect(isDead())
      try disks.expectOtherDiskIsServed()
      #expect(isDead())
      #expect(try stranger.stop() == 3)
      try stranger.start(at: 3, call: call)
      #expect(try stranger.read(sector: 0) == [UInt8](repeating: 0, count: 512))
      disks.terminate()
      #expect(try disks.waitForEnd() == 0, "\(disks.log)")
      #expect(isDead())
    }
  }

  // MARK: Descriptors of a hung file system

  /// The second region of the hostile front-end's memory.
  private static let region = Rig.region(1 << 40, size: 1 << 20, user: 1 << 41)

  /// Runs with an open file that does not answer from `hold` on. In a separate process: see `SilentFile`.
  private static func withSilentMemory(
    drainTimeout: Int = 3600, _ body: (SilentFile, TwoDisks, OwnedDescriptor, HandDisk) throws -> Void
  ) throws {
    try withDirectory { directory in
      let silent = try SilentFile(size: 1 << 20, pageCache: true)
      let disks = try TwoDisks(
        directory, a: ["blk-file": TwoDisks.image(directory, size: 1 << 20), "engine": "sync"], silent: silent,
        drainTimeout: drainTimeout)
      let descriptor = unsafe open(silent.path, O_RDWR | O_CLOEXEC)
      guard descriptor >= 0 else { throw Errno(rawValue: errno) }
      let file = OwnedDescriptor(descriptor)
      // Closing it would block, too, whatever has happened.
      defer {
        silent.end()
        withExtendedLifetime((file, disks)) {}
      }
      let stranger = try HandDisk(disks.a)
      _ = try stranger.read(sector: 0)
      try body(silent, disks, file, stranger)
    }
  }

  @Test(.enabled(if: SilentFile.isPossible, SilentFile.needs))
  func memoryWhoseFileSystemDoesNotSayWhatItIsKeepsNobody() async {
    await #expect(processExitsWith: .success) {
      try Self.withSilentMemory { silent, disks, file, stranger in
        try silent.hold("getattr")
        try stranger.frontend.send(
          Message(.addMemoryRegion, needReply: true, payload: Self.region.singleBytes, descriptors: [file]))
        try silent.waitUntilHeld("getattr")
        try disks.expectOtherDiskIsServed()
        // Its own connection is closed after a while, with a log line, and the next front-end is accepted.
        #expect(throws: FrontendError.closed(during: .addMemoryRegion)) {
          _ = try stranger.frontend.receive(after: .addMemoryRegion)
        }
        try disks.waitForLog("does not answer: its file system hangs")
        try disks.expectServed(disks.a)
        try disks.expectOtherDiskIsServed()
        disks.terminate()
        #expect(try disks.waitForEnd() == 0, "\(disks.log)")
      }
    }
  }

  /// SIGTERM while the connection waits for the answer.
  @Test(.enabled(if: SilentFile.isPossible, SilentFile.needs))
  func memoryWhoseFileSystemDoesNotSayWhatItIsDoesNotKeepTheProcess() async {
    await #expect(processExitsWith: .success) {
      try Self.withSilentMemory { silent, disks, file, stranger in
        try silent.hold("getattr")
        try stranger.frontend.send(
          Message(.addMemoryRegion, needReply: true, payload: Self.region.singleBytes, descriptors: [file]))
        try silent.waitUntilHeld("getattr")
        disks.terminate()
        #expect(try disks.waitForEnd() == 0, "\(disks.log)")
      }
    }
  }

  @Test(.enabled(if: SilentFile.isPossible, SilentFile.needs))
  func aDescriptorThatNobodyWantedKeepsNobodyWhenItIsClosed() async {
    await #expect(processExitsWith: .success) {
      try Self.withSilentMemory { silent, disks, file, stranger in
        try silent.hold("flush release")
        try stranger.frontend.send(Message(.getFeatures, descriptors: [file]))
        try silent.waitUntilHeld("flush")
        try disks.expectOtherDiskIsServed()
        disks.terminate()
        #expect(try disks.waitForEnd() == 0, "\(disks.log)")
        withExtendedLifetime(stranger) {}
      }
    }
  }

  @Test(.enabled(if: SilentFile.isPossible, SilentFile.needs))
  func memoryThatIsNeverClosedKeepsNobody() async {
    await #expect(processExitsWith: .success) {
      try Self.withSilentMemory { silent, disks, file, stranger in
        try silent.hold("flush release")
        try stranger.frontend.addMemory(FrontendRegion(Self.region, descriptor: file))
        _ = try stranger.read(sector: 0)
        try disks.expectOtherDiskIsServed()
        #expect(try stranger.stop() == 2)
        // Nothing needs the descriptor any more.
        try stranger.frontend.send(Message(.removeMemoryRegion, payload: Self.region.singleBytes))
        try silent.waitUntilHeld("flush")
        try disks.expectOtherDiskIsServed()
        disks.terminate()
        #expect(try disks.waitForEnd() == 0, "\(disks.log)")
      }
    }
  }

  /// A queue's thread waits in a page fault, and nothing can interrupt that.
  @Test(.enabled(if: SilentFile.isPossible, SilentFile.needs))
  func memoryWhosePagesDoNotComeKeepsOnlyItsOwnQueue() async {
    await #expect(processExitsWith: .success) {
      try Self.withSilentMemory(drainTimeout: 1) { silent, disks, file, stranger in
        try stranger.frontend.addMemory(FrontendRegion(Self.region, descriptor: file))
        try silent.hold("read flush release")
        stranger.prepareRead(sector: 0, into: Self.region.guestAddress.rawValue)
        stranger.offer([0])
        try silent.waitUntilHeld("read")
        try disks.expectOtherDiskIsServed()
        #expect(!stranger.isIdle)
        try Self.expectLeftBehind(disks)
      }
    }
  }

  /// SIGTERM ends the process although a queue of disk A does not stop.
  private static func expectLeftBehind(_ disks: TwoDisks) throws {
    disks.terminate()
    try disks.waitForLog("abandoned, because the medium does not answer: \(disks.a)")
    #expect(try disks.waitForEnd() == 75, "\(disks.log)")
  }

  // MARK: Hung media

  private static func withSilentMedium(
    _ engine: String, drainTimeout: Int, _ body: (TwoDisks, HandDisk) throws -> Void
  ) throws {
    try withDirectory { directory in
      let silent = try SilentFile(size: 1 << 20)
      let disks = try TwoDisks(
        directory, a: ["blk-file": silent.path, "engine": engine, "direct": "off"], silent: silent,
        drainTimeout: drainTimeout)
      defer {
        silent.end()
        withExtendedLifetime(disks) {}
      }
      let stranger = try HandDisk(disks.a)
      #expect(try stranger.read(sector: 0) == [UInt8](repeating: 0, count: 512))
      try silent.hold("getattr read write flush release fsync fallocate")
      stranger.offer([0])
      try silent.waitUntilHeld("read")
      try body(disks, stranger)
    }
  }

  @Test(
    .enabled(if: SilentFile.isPossible, SilentFile.needs),
    arguments: ["sync", "threads", "uring"])
  func aMediumThatDoesNotAnswerKeepsOnlyItsOwnDisk(engine: String) throws {
    try Self.withSilentMedium(engine, drainTimeout: 1) { disks, stranger in
      try disks.expectOtherDiskIsServed()
      // The stop is requested and does not complete.
      try stranger.frontend.send(Message(.getVringBase, payload: Rig.state(0, 0)))
      try disks.expectOtherDiskIsServed()
      #expect(!stranger.isIdle)
      try Self.expectLeftBehind(disks)
    }
  }

  @Test(
    .enabled(if: SilentFile.isPossible, SilentFile.needs),
    arguments: ["sync", "uring"])
  func aSecondSignalWaitsForNothing(engine: String) throws {
    try Self.withSilentMedium(engine, drainTimeout: 86400) { disks, stranger in
      disks.terminate()
      try disks.waitForLog("ending on signal")
      try Self.expectLeftBehind(disks)
      #expect(!stranger.isIdle)
    }
  }

  // MARK: Rings that are never empty

  /// As many segments as possible if none is copied; a quarter of them if copying takes a while.
  @Test(arguments: [("null", 126), ("mapped", 32)])
  func aRingFullOfLargeReadsKeepsNobody(engine: String, segments: Int) throws {
    try expectNobodyIsKept(engine, size: segments * HandDisk.segmentSize) { $0.prepareLargeRead(segments: segments) }
  }

  @Test(arguments: ["sync", "auto"]) func aRingFullOfTheLargestRangesKeepsNobody(engine: String) throws {
    try expectNobodyIsKept(engine, size: 2 * HandDisk.largestZeroes) { $0.prepareLargestZeroes() }
  }

  private func expectNobodyIsKept(_ engine: String, size: Int, byRequests prepare: (HandDisk) -> Void) throws {
    try withDirectory { directory in
      let disks = try TwoDisks(
        directory, a: ["blk-file": TwoDisks.image(directory, size: size), "engine": engine, "direct": "off"])
      let stranger = try HandDisk(disks.a)
      prepare(stranger)
      try stranger.keepingFull { answered in
        /// Waits for two more answers: at least one request has been executed entirely since the call.
        func waitForProgress() throws {
          let before = answered()
          try wait(until: "the ring that is never empty goes on") { answered() >= before + 2 }
        }
        try waitForProgress()
        try disks.expectOtherDiskIsServed()
        try waitForProgress()
        #expect(stranger.status == 0)
        // It can be stopped although it is full, and restarted.
        try stranger.start(at: stranger.stop())
        try waitForProgress()
        disks.terminate()
        #expect(try disks.waitForEnd() == 0, "\(disks.log)")
      }
    }
  }
}
