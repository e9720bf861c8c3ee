/// Notifications are sent or dropped, whatever the descriptor is and whatever its other owners do with it; nothing waits.
import CLinux
import Foundation
import Glibc
import SystemPackage
import Testing
import VirtioCore

@Suite struct CallSinkTests {
  /// The device's end of a call descriptor, and the driver's.
  private struct Line {
    let theirs: OwnedDescriptor
    /// The end that the test reads; `nil` if it is closed.
    var ours: OwnedDescriptor?
  }

  enum Kind: CaseIterable, CustomStringConvertible {
    case eventCounter, blockingEventCounter, pipe, streamSocket, packetSocket

    var description: String {
      switch self {
      case .eventCounter: "an eventfd"
      case .blockingEventCounter: "a blocking eventfd"
      case .pipe: "a blocking pipe"
      case .streamSocket: "a blocking stream socket"
      case .packetSocket: "a blocking packet socket"
      }
    }
  }

  enum State: CaseIterable { case empty, full, closed }

  private static func make(_ kind: Kind) throws -> Line {
    var ends: [Int32] = [0, 0]
    switch kind {
    case .eventCounter, .blockingEventCounter:
      let flags = kind == .eventCounter ? EFD_CLOEXEC | EFD_NONBLOCK : EFD_CLOEXEC
      let number = eventfd(0, Int32(flags))
      try #require(number >= 0)
      return Line(theirs: OwnedDescriptor(number), ours: OwnedDescriptor(dup(number)))
    case .pipe:
      try #require(unsafe pipe2(&ends, O_CLOEXEC) == 0)
      return Line(theirs: OwnedDescriptor(ends[1]), ours: OwnedDescriptor(ends[0]))
    case .streamSocket, .packetSocket:
      let type = kind == .streamSocket ? SOCK_STREAM : SOCK_SEQPACKET
      try #require(unsafe socketpair(AF_UNIX, Int32(type.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0, &ends) == 0)
      return Line(theirs: OwnedDescriptor(ends[1]), ours: OwnedDescriptor(ends[0]))
    }
  }

  /// Writes as much as fits without waiting.
  private static func fill(_ line: Line, _ kind: Kind) {
    switch kind {
    case .eventCounter, .blockingEventCounter:
      var most = UInt64.max - 1
      _ = unsafe write(line.theirs.rawValue, &most, 8)
    case .pipe:
      let own = unsafe clinux_open("/proc/self/fd/\(line.theirs.rawValue)", O_WRONLY | O_NONBLOCK | O_CLOEXEC, 0)
      let block = [UInt8](repeating: 1, count: 4096)
      while unsafe write(own, block, block.count) > 0 {}
      while unsafe write(own, block, 1) > 0 {}
      close(own)
    case .streamSocket, .packetSocket:
      let block = [UInt8](repeating: 1, count: 1024)
      while unsafe send(line.theirs.rawValue, block, block.count, Int32(MSG_DONTWAIT)) > 0 {}
      while unsafe send(line.theirs.rawValue, block, 1, Int32(MSG_DONTWAIT)) > 0 {}
    }
  }

  @Test(arguments: Kind.allCases, State.allCases)
  func aNotificationNeverWaits(_ kind: Kind, _ state: State) throws {
    var line = try Self.make(kind)
    if state == .full { Self.fill(line, kind) }
    let sink = try CallSink(descriptor: line.theirs)
    if state == .closed { line.ours = nil }
    // On a thread like a queue's: SIGPIPE does not reach it.
    let thread = try SystemThread(name: "signals") { for _ in 0..<3 { sink.signal() } }
    let end = ContinuousClock.now + Patience.limit
    while !thread.hasFinished, ContinuousClock.now < end { usleep(1000) }
    try #require(thread.hasFinished, "a notification waits for \(kind)")
    thread.join()
    guard state == .empty, let ours = line.ours else { return }
    // User-mode Linux reads eight bytes at a time from a pipe.
    var words = [UInt64](repeating: 0, count: 8)
    let count = unsafe words.withUnsafeMutableBytes { unsafe read(ours.rawValue, $0.baseAddress, $0.count) }
    switch kind {
    case .eventCounter, .blockingEventCounter:
      #expect(count == 8)
      #expect(words[0] == 3)
    case .pipe, .streamSocket:
      #expect(count == 24)
      #expect(words[..<3] == [1, 1, 1])
    case .packetSocket:
      #expect(count == 8)
      #expect(words[0] == 1)
    }
  }

  @Test func flagsOfADescriptionThatOthersShareStayAsTheyAre() throws {
    for kind in Kind.allCases {
      let line = try Self.make(kind)
      let before = clinux_fcntl_int(line.theirs.rawValue, F_GETFL, 0)
      let sink = try CallSink(descriptor: line.theirs)
      sink.signal()
      #expect(clinux_fcntl_int(line.theirs.rawValue, F_GETFL, 0) == before, "\(kind)")
    }
  }

  @Test func whatIsNoLineIsRefusedWithASentence() throws {
    let folder = FileManager.default.temporaryDirectory.path + "/call-sink-\(UUID().uuidString)"
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: folder) }
    func descriptor(_ number: Int32) throws -> OwnedDescriptor {
      try #require(number >= 0)
      return OwnedDescriptor(number)
    }
    var ends: [Int32] = [0, 0]
    try #require(unsafe pipe2(&ends, O_CLOEXEC) == 0)
    let (reading, writing) = (OwnedDescriptor(ends[0]), OwnedDescriptor(ends[1]))
    let file = folder + "/anon_inode:[eventfd]"
    let cases: [(OwnedDescriptor, String)] = [
      (try descriptor(unsafe clinux_open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)), "the file \(file)"),
      (try descriptor(unsafe clinux_open("/dev/null", O_RDWR | O_CLOEXEC, 0)), "the file /dev/null"),
      (try descriptor(unsafe memfd_create("guest", UInt32(MFD_CLOEXEC))), "/memfd:guest"),
      (try descriptor(epoll_create1(Int32(EPOLL_CLOEXEC))), "[eventpoll]"),
      (try descriptor(timerfd_create(CLOCK_MONOTONIC, Int32(TFD_CLOEXEC))), "[timerfd]"),
      (reading, "a pipe that is open for reading only"),
    ]
    for (descriptor, words) in cases {
      do {
        _ = try CallSink(descriptor: descriptor)
        Issue.record("\(words) was taken")
      } catch { #expect("\(error)".contains(words), "\(error)") }
    }
    _ = writing
  }
}
