/// Threads, doorbells and log lines: nothing waits for what may never happen.
import CLinux
import Dispatch
import Glibc
import Synchronization
import SystemPackage
import Testing
import VirtioCore

/// Waits until the condition holds. - Returns: whether it did in time.
private func eventually(_ condition: () -> Bool) -> Bool {
  let end = ContinuousClock.now + Patience.limit
  while !condition() {
    guard ContinuousClock.now < end else { return false }
    usleep(1000)
  }
  return true
}

@Suite struct SystemThreadTests {
  /// On a pool's threads no signal is blocked; on this project's threads signals must be.
  @Test func noSignalReachesAThreadWhereverItIsMade() async throws {
    final class Answer: Sendable { let value = Mutex<[Int32: Bool]>([:]) }
    let answer = Answer()
    let thread = try await withCheckedContinuation { (done: CheckedContinuation<Result<SystemThread, any Error>, Never>) in
      DispatchQueue.global().async {
        done.resume(
          returning: Result {
            try SystemThread(name: "signals") {
              var blocked = sigset_t()
              _ = unsafe pthread_sigmask(SIG_BLOCK, nil, &blocked)
              for number in [SIGTERM, SIGPIPE, SIGXFSZ, SIGBUS, SIGSEGV] {
                let isBlocked = unsafe sigismember(&blocked, number) == 1
                answer.value.withLock { $0[number] = isBlocked }
              }
            }
          })
      }
    }.get()
    thread.join()
    #expect(thread.hasFinished)
    thread.join()
    #expect(
      answer.value.withLock { $0 } == [SIGTERM: true, SIGPIPE: true, SIGXFSZ: true, SIGBUS: false, SIGSEGV: false])
  }

  @Test(arguments: [("queue 17", "queue 17"), ("a name that is too long", "a name that is "), ("äääääääää", "äääääää")])
  func aNameIsCutToWhatTheKernelTakes(name: String, expected: String) throws {
    final class Answer: Sendable { let value = Mutex("") }
    let answer = Answer()
    let thread = try SystemThread(name: name) {
      var bytes = [CChar](repeating: 0, count: 16)
      _ = unsafe pthread_getname_np(pthread_self(), &bytes, bytes.count)
      let text = String(decoding: bytes.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
      answer.value.withLock { $0 = text }
    }
    thread.join()
    #expect(answer.value.withLock { $0 } == expected)
  }
}

@Suite struct DoorbellWatchTests {
  private struct Bell {
    let file: OwnedDescriptor
    let mapping: Mapping
    let doorbell: Doorbell

    init() throws {
      let number = unsafe memfd_create("bell", UInt32(MFD_CLOEXEC))
      try #require(number >= 0)
      file = OwnedDescriptor(number)
      try #require(ftruncate(number, off_t(PageSize.bytes)) == 0)
      mapping = try Mapping(descriptor: number, count: PageSize.bytes)
      doorbell = unsafe Doorbell(SharedCell(mapping.base))
    }
  }

  private static func waits(for watch: DoorbellWatch) -> Bool {
    var entry = pollfd(fd: watch.rung.rawValue, events: Int16(POLLIN), revents: 0)
    return unsafe poll(&entry, 1, Int32(Patience.limit / .milliseconds(1))) == 1
  }

  @Test func everyRingArrives() throws {
    let bell = try Bell()
    let watch = try DoorbellWatch(bell.doorbell)
    for _ in 0..<200 {
      try #require(Self.waits(for: watch))
      EventCounter.drain(watch.rung.rawValue)
      bell.doorbell.ring()
    }
    watch.stop()
    watch.stop()
  }

  /// A thread that sleeps on a page of the file cannot be woken through the page that replaced it.
  @Test func aWatchEndsAlthoughThePageOfItsDoorbellIsGone() throws {
    for touches in [false, true] {
      let bell = try Bell()
      let watch = try DoorbellWatch(bell.doorbell)
      try #require(Self.waits(for: watch))
      // Time to fall asleep; if it does not, the test is easier to pass.
      usleep(20_000)
      try #require(ftruncate(bell.file.rawValue, 0) == 0)
      if touches { #expect(bell.doorbell.counter.loadAcquire() == 0) }
      let thread = try SystemThread(name: "stop") { watch.stop() }
      try #require(eventually { thread.hasFinished }, "the watch does not end")
      thread.join()
      withExtendedLifetime(bell) {}
    }
  }
}

@Suite struct LineWriterTests {
  private struct Pipe {
    let reading: OwnedDescriptor
    let writing: OwnedDescriptor

    init() throws {
      var ends: [Int32] = [0, 0]
      try #require(unsafe pipe2(&ends, O_CLOEXEC) == 0)
      (reading, writing) = (OwnedDescriptor(ends[0]), OwnedDescriptor(ends[1]))
      // The smallest possible, so that little fills it.
      _ = clinux_fcntl_int(writing.rawValue, F_SETPIPE_SZ, Int32(PageSize.bytes))
    }

    /// Reads lines until there are enough of them, or until one does not arrive in time.
    func lines(until isEnough: ([String]) -> Bool) -> [String] {
      var text: [UInt8] = []
      var lines: [String] = []
      var room = [UInt8](repeating: 0, count: 4096)
      while !isEnough(lines) {
        var entry = pollfd(fd: reading.rawValue, events: Int16(POLLIN), revents: 0)
        guard unsafe poll(&entry, 1, Int32(Patience.limit / .milliseconds(1))) == 1 else { break }
        let count = unsafe room.withUnsafeMutableBytes { unsafe read(reading.rawValue, $0.baseAddress, $0.count) }
        guard count > 0 else { break }
        text += room[..<count]
        while let end = text.firstIndex(of: 10) {
          lines.append(String(decoding: text[..<end], as: UTF8.self))
          text.removeFirst(end + 1)
        }
      }
      return lines
    }
  }

  @Test func linesArriveInTheirOrder() throws {
    let pipe = try Pipe()
    let writer = LineWriter(descriptor: pipe.writing.rawValue)
    for number in 0..<100 { writer.write("line \(number)") }
    #expect(pipe.lines { $0.count >= 100 } == (0..<100).map { "line \($0)" })
    #expect(writer.flush(within: Patience.limit))
  }

  @Test func whatNobodyReadsIsCountedAndNobodyWaits() throws {
    let pipe = try Pipe()
    let writer = LineWriter(descriptor: pipe.writing.rawValue, room: 2000) { "\($0) dropped" }
    let line = String(repeating: "x", count: 99)
    // Empty lines, until no other line fits.
    let own = unsafe clinux_open("/proc/self/fd/\(pipe.writing.rawValue)", O_WRONLY | O_NONBLOCK | O_CLOEXEC, 0)
    try #require(own >= 0)
    let block = [UInt8](repeating: 10, count: 4096)
    while unsafe write(own, block, block.count) > 0 {}
    while unsafe write(own, block, 1) > 0 {}
    close(own)
    for _ in 0..<1000 { writer.write(line) }
    #expect(!writer.flush(within: .milliseconds(1)))
    func dropped(_ lines: [String]) -> Int {
      lines.reduce(0) { $0 + ($1.hasSuffix(" dropped") ? Int($1.prefix { $0 != " " }) ?? 0 : 0) }
    }
    func written(_ lines: [String]) -> Int { lines.count { $0 == line } }
    let lines = pipe.lines { written($0) + dropped($0) >= 1000 }
    #expect(written(lines) + dropped(lines) == 1000)
    #expect(dropped(lines) > 0)
    // Then it writes again.
    writer.write("again")
    #expect(pipe.lines { $0.contains("again") } == ["again"])
  }

  @Test func aReaderThatWentCostsItsLines() throws {
    var pipe: Pipe? = try Pipe()
    let number = try #require(pipe).writing.rawValue
    let writing = OwnedDescriptor(dup(number))
    pipe = nil
    let writer = LineWriter(descriptor: writing.rawValue)
    for round in 0..<10 { writer.write("nobody reads \(round)") }
    #expect(writer.flush(within: Patience.limit))
  }
}

@Suite(.serialized) struct ThreadRoleTests {
  /// A closure stored directly in a lock is wrapped once more on each access: a disk whose queues had been started several
  /// thousand times ended with its stack exhausted.
  @Test func theThousandthThreadBeginsLikeTheFirst() throws {
    final class Seen: Sendable { let depths = Mutex<Set<Int>>([]) }
    let seen = Seen()
    let thread = try SystemThread(name: "roles") {
      let mine = pthread_self()
      ThreadRole.whenOneBegins { _ in
        // Other tests' threads start as well.
        guard pthread_self() == mine else { return }
        var here = 0
        let depth = unsafe withUnsafeMutablePointer(to: &here) { Int(bitPattern: $0) }
        seen.depths.withLock { _ = $0.insert(depth) }
      }
      for _ in 0..<1000 { ThreadRole.pool.begin() }
    }
    thread.join()
    #expect(seen.depths.withLock { $0.count } == 1)
  }
}
