/// One `vmm-blk run` takes over from another with the same memory file: whatever goes wrong on the way, the guest
/// works at each step and every byte is right.
import Foundation
import Glibc
import MemoryFile
import Synchronization
import TestSupport
import Testing
import VirtioBlkDevice
import VirtioCore
import VirtioRegisters

@Suite(.serialized) struct TakeoverTests {
  let rig: TakeoverRig

  init() throws { rig = try TakeoverRig() }

  @Test(
    "a guest is served by one process after the other", arguments: [["uring"], ["sync", "mapped"], ["cached", "threads"]])
  func oneAfterTheOther(_ engines: [String]) throws {
    var server = try rig.serve(engine: engines[0])
    try rig.underLoad { guestWorks in
      for number in 1...10 {
        try guestWorks()
        server = try rig.replace(server, engine: engines[number % engines.count])
      }
      try guestWorks()
    }
    #expect(try MemoryFileSnapshot(path: rig.memory).deviceEpoch == 11)
    rig.terminate(server)
  }

  @Test("with any register interface", arguments: RegisterInterface.allCases)
  func registers(_ interface: RegisterInterface) throws {
    var server = try rig.serve(engine: "sync", registers: interface.name)
    try rig.underLoad { guestWorks in
      for _ in 1...2 {
        try guestWorks()
        server = try rig.replace(server, engine: "sync")
      }
      try guestWorks()
    }
    #expect(try MemoryFileSnapshot(path: rig.memory).deviceEpoch == 3)
    rig.terminate(server)
  }

  // MARK: what goes wrong

  @Test(
    "a taker whose configuration does not match is refused, and the guest goes on",
    arguments: [
      (["--blk-file", "DIR/other.img"], "is not the image that the running server has open"),
      (["--memory", "DIR/other.mem"], "is not the one at DIR/other.mem"),
      (["--num-queues", "1"], "number of queues"),
      (["--queue-size-max", "64"], "largest ring size"),
      (["--read-only"], "set of features"),
      (["--logical-block-size", "4096"], "configuration space"),
      (["--record", "DIR/record"], "cannot be combined with --take-over"),
      (["--create", "1M"], "leave out --create"),
      (["--once"], "leave out --once"),
      (["--engine", "warp"], "warp"),
    ])
  func whatDoesNotFitIsRefused(_ options: [String], _ sentence: String) throws {
    let server = try rig.serve(engine: "sync")
    let folder = rig.directory.path
    try Data(count: 8 << 20).write(to: URL(fileURLWithPath: folder + "/other.img"))
    _ = try MemoryFile.create(path: folder + "/other.mem", memorySize: 16 << 20, maximumQueues: 2)
    try rig.underLoad { guestWorks in
      try guestWorks()
      let end = try rig.taker(engine: "sync", options.map { $0.replacingOccurrences(of: "DIR", with: folder) }).finish()
      #expect(end.status != 0)
      #expect(end.output.isEmpty)
      #expect(end.errors.contains(sentence.replacingOccurrences(of: "DIR", with: folder)), "\(end.errors)")
      try guestWorks()
    }
    rig.terminate(server)
  }

  @Test("a suspended device can be taken over only after its driver has resumed it")
  func suspended() throws {
    let features = ["--features", "default,suspend"]
    let server = try rig.serve(engine: "sync", features)
    let driver = try MemoryFileDriver.open(path: rig.memory)
    try driver.bringUp(features: [.version1, .suspend], queues: 2)
    try driver.write(.status, 31)
    #expect(try driver.read(.status) == 27)
    let end = try rig.taker(engine: "sync", features).finish()
    #expect(end.status != 0 && end.output.isEmpty)
    #expect(end.errors.contains("has suspended the device: take it over after the driver has resumed it"), "\(end.errors)")
    #expect(try driver.read(.status) == 27)
    try driver.write(.status, 15)
    #expect(try driver.read(.status) == 15)
    let next = try rig.taker(engine: "sync", features)
    try #require(next.firstLine().hasPrefix("Serving "), "\(next.finish().errors)")
    #expect(server.finish().status == 0)
    #expect(try driver.read(.status) == 15)
    rig.terminate(next)
  }

  @Test("a process that serves sockets does not take over a memory file")
  func otherTransport() throws {
    let server = try rig.serve(engine: "sync")
    let end = try Program(["serve", "--take-over", rig.control, "--blk-file", rig.disk]).finish()
    #expect(end.status == 69 && end.errors.contains("take it over with 'vmm-blk run'"), "\(end.errors)")
    rig.terminate(server)
  }

  /// The steps at which a taker can stop, or die, named after the last line it has sent.
  enum Step: String, CaseIterable {
    case greeted = "take-over"
    case described = "describe"
    case paused = "pause"
    case committed = "commit"
  }

  @Test("a taker that dies leaves the guest as it was, whatever it had sent", arguments: Step.allCases)
  func aTakerThatDies(at step: Step) throws {
    let server = try rig.serve(engine: "uring")
    try rig.underLoad { guestWorks in
      for _ in 1...3 {
        try guestWorks()
        let taker = try Taker(rig.control)
        for next in Step.allCases {
          let answer = try taker.ask(next.rawValue, disk: rig.memory)
          #expect(!answer.contains("error"), "\(answer)")
          if next == step { break }
        }
        taker.close()
        try guestWorks()
      }
      // The next taker is accepted.
      let taker = try Taker(rig.control)
      #expect(try taker.ask("take-over", disk: "").contains("\"memory-file\""))
      taker.close()
    }
    rig.terminate(server)
  }

  @Test("if a taker dies before it is told that everything is its own, the old process still ends properly")
  func aTakerThatDoesNotHear() throws {
    let server = try rig.serve(engine: "sync")
    let taker = try Taker(rig.control)
    for step in Step.allCases { #expect(!(try taker.ask(step.rawValue, disk: rig.memory)).contains("error")) }
    // The old process is stopped meanwhile, so that it finds the message and the end of the connection at the same time.
    kill(server.process.processIdentifier, SIGSTOP)
    try taker.say(#"{"request":"served","version":1,"disk":"\#(rig.memory)"}"#)
    taker.close()
    kill(server.process.processIdentifier, SIGCONT)
    let end = server.finish()
    #expect(end.status == 0, "\(end.errors)")
  }

  @Test("if takers give up, the guest goes on, again and again")
  func aTakerThatRefuses() throws {
    let server = try rig.serve(engine: "mapped")
    try rig.underLoad { guestWorks in
      let taker = try Taker(rig.control)
      _ = try taker.ask("take-over", disk: "")
      for _ in 1...5 {
        #expect(try taker.ask("pause", disk: rig.memory).contains("stillSince"))
        #expect(try taker.ask("resume", disk: rig.memory).contains("error") == false)
        try guestWorks()
      }
      taker.close()
    }
    rig.terminate(server)
  }

  @Test("after a real taker is killed at any moment, the guest works, served by either of the two or by the next")
  func aTakerThatIsKilled() throws {
    var current = try rig.serve(engine: "sync")
    try rig.underLoad { guestWorks in
      // How long a takeover takes on this machine, so that the moments are spread over it and a little beyond.
      let start = ContinuousClock.now
      current = try rig.replace(current, engine: "sync")
      let moment = (ContinuousClock.now - start) / .microseconds(10)
      for round in 0..<12 {
        try guestWorks()
        let before = current
        let taker = try rig.taker(engine: "sync")
        usleep(useconds_t(round) * useconds_t(min(moment, 100_000)))
        kill(taker.process.processIdentifier, SIGKILL)
        taker.process.waitUntilExit()
        try wait(until: "the previous process has ended, or goes on") {
          guard before.process.isRunning else { return true }
          guard let next = try? Taker(rig.control) else { return false }
          defer { next.close() }
          return (try? next.ask("take-over", disk: ""))?.contains("\"disks\"") == true
        }
        guard !before.process.isRunning else { continue }
        // It had handed over, and the taker was killed after that.
        let end = before.finish()
        #expect(end.status == 0, "\(end.errors)")
        let words = ["--blk-file", rig.disk, "--memory", rig.memory, "--control", rig.control, "--engine", "sync"]
        let next = try Program(["run"] + words)
        try #require(next.firstLine().hasPrefix("Serving "), "\(next.finish().errors)")
        current = next
      }
      try guestWorks()
    }
    rig.terminate(current)
  }

  @Test("a process that is told to end during a takeover ends, and no taker begins")
  func endInTheMiddle() throws {
    let first = try rig.serve(engine: "sync")
    var last: Program?
    try rig.underLoad { guestWorks in
      try guestWorks()
      let taker = try Taker(rig.control)
      _ = try taker.ask("take-over", disk: "")
      #expect(try taker.ask("pause", disk: rig.memory).contains("stillSince"))
      first.process.terminate()
      let end = first.finish()
      #expect(end.status == 0, "\(end.errors)")
      #expect(try taker.send(#"{"request":"commit","disk":"\#(rig.memory)"}"#) == nil)
      taker.close()
      let words = ["--blk-file", rig.disk, "--memory", rig.memory, "--control", rig.control]
      let next = try Program(["run"] + words)
      try #require(next.firstLine().hasPrefix("Serving "), "\(next.finish().errors)")
      last = next
      try guestWorks()
    }
    rig.terminate(try #require(last))
  }

  @Test("the image's lock and the device's role on the memory file are held at every moment")
  func locksStay() throws {
    var server = try rig.serve(engine: "sync")
    let watch = Watch(image: rig.disk, memory: rig.memory)
    for _ in 1...4 {
      try watch.lookOnce()
      server = try rig.replace(server, engine: "sync")
    }
    try watch.lookOnce()
    #expect(watch.end() == [])
    rig.terminate(server)
    #expect(Watch.free(image: rig.disk, memory: rig.memory) == ["image", "role"])
  }
}

/// A thread that keeps checking whether another process could lock an image or a memory file.
private final class Watch: Sendable {
  private let isEnding = Atomic<Bool>(false)
  private let looks = Atomic<Int>(0)
  private let found = Mutex<Set<String>>([])
  private let done = DispatchSemaphore(value: 0)

  init(image: String, memory: String) {
    Thread.detachNewThread { [self] in
      while !isEnding.load(ordering: .relaxed) {
        let free = Self.free(image: image, memory: memory)
        found.withLock { $0.formUnion(free) }
        looks.add(1, ordering: .relaxed)
        usleep(200)
      }
      done.signal()
    }
  }

  deinit { isEnding.store(true, ordering: .relaxed) }

  func lookOnce() throws {
    let before = looks.load(ordering: .relaxed)
    try wait(until: "the locks have been checked") { looks.load(ordering: .relaxed) > before + 1 }
  }

  /// - Returns: what was unlocked at some moment.
  func end() -> Set<String> {
    isEnding.store(true, ordering: .relaxed)
    done.wait()
    return found.withLock { $0 }
  }

  /// - Returns: which of the two another process could lock.
  static func free(image: String, memory: String) -> Set<String> {
    var free: Set<String> = []
    do {
      _ = try ImageFile(ImageOptions(path: image))
      free.insert("image")
    } catch ImageError.locked {} catch { free.insert("\(error)") }
    do {
      _ = try MemoryFileDevice(file: try MemoryFile.open(path: memory), device: try FakeDevice())
      free.insert("role")
    } catch MemoryFileError.deviceAlreadyThere {} catch { free.insert("\(error)") }
    return free
  }
}
