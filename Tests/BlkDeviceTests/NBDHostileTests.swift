/// Servers that break the protocol cause an error or a new connection, never a trap, a hang, or foreign data.
import Foundation
import Glibc
import GuestDriver
import Synchronization
import Testing
import VirtioCore

@testable import VirtioBlkDevice

/// A small NBD server that can be told to lie.
private final class LyingServer: Sendable {
  enum Lie: String, CaseIterable, Sendable {
    case none
    // In the handshake.
    case wrongMagic, oldMagic, endsAtOnce, hugeOptionReply, optionReplyWithWrongMagic, sizeBeyondAll, endsAfterHandshake
    // In answers.
    case wrongReplyMagic, wrongCookie, endsInTheMiddle, unknownError, structuredUnasked, hugeChunk, chunkOutOfBounds,
      answersTwice
    case saysShutdown

    var isInHandshake: Bool {
      switch self {
      case .wrongMagic, .oldMagic, .endsAtOnce, .hugeOptionReply, .optionReplyWithWrongMagic, .sizeBeyondAll: true
      default: false
      }
    }
    var speaksStructured: Bool { self == .hugeChunk || self == .chunkOutOfBounds }
  }

  /// Where it listens. Only a client from elsewhere asks for structured replies.
  enum Place: String, CaseIterable, Sendable { case unix, internet }

  static let size: UInt64 = 1 << 20
  /// For clients.
  let uri: String
  private let scratch: ScratchBox
  private let listener: Int32
  private let lie = Mutex(Lie.none)
  private let isOver = Atomic(false)
  /// A client has asked for structured replies.
  let wasAskedForStructure = Atomic(false)
  private let open = Mutex<Set<Int32>>([])
  private let threads = DispatchGroup()

  private final class ScratchBox: @unchecked Sendable {
    let scratch: Scratch
    init() throws { scratch = try Scratch() }
  }

  init(_ place: Place) throws {
    scratch = try ScratchBox()
    switch place {
    case .unix:
      let path = scratch.scratch.path + "/nbd"
      uri = "nbd+unix:///?socket=\(path)"
      listener = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
      var address = sockaddr_un()
      address.sun_family = sa_family_t(AF_UNIX)
      let bytes = Array(path.utf8)
      unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: bytes) }
      try Self.bind(listener, &address)
    case .internet:
      listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
      var address = sockaddr_in()
      address.sin_family = sa_family_t(AF_INET)
      address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
      // Any free port.
      try Self.bind(listener, &address)
      var length = socklen_t(MemoryLayout<sockaddr_in>.size)
      let listener = listener
      let result = unsafe withUnsafeMutableBytes(of: &address) {
        unsafe getsockname(listener, $0.baseAddress!.assumingMemoryBound(to: sockaddr.self), &length)
      }
      try #require(result == 0)
      uri = "nbd://127.0.0.1:\(UInt16(bigEndian: address.sin_port))"
    }
    try #require(listen(listener, 64) == 0)
    threads.enter()
    Thread.detachNewThread { [self] in
      accept()
      threads.leave()
    }
  }

  private static func bind<Address: BitwiseCopyable>(_ listener: Int32, _ address: inout Address) throws {
    let result = unsafe withUnsafeBytes(of: &address) {
      unsafe Glibc.bind(listener, $0.baseAddress!.assumingMemoryBound(to: sockaddr.self), socklen_t($0.count))
    }
    try #require(result == 0)
  }

  /// Tells this lie from now on, also on open connections.
  func tell(_ lie: Lie) { self.lie.withLock { $0 = lie } }

  /// Closes all open connections.
  func hangUp() { open.withLock { for socket in $0 { shutdown(socket, Int32(SHUT_RDWR)) } } }

  func end() {
    isOver.store(true, ordering: .relaxed)
    shutdown(listener, Int32(SHUT_RDWR))
    open.withLock { for socket in $0 { shutdown(socket, Int32(SHUT_RDWR)) } }
    threads.wait()
    close(listener)
  }

  private func accept() {
    while !isOver.load(ordering: .relaxed) {
      let socket = Glibc.accept(listener, nil, nil)
      guard socket >= 0 else {
        usleep(1000)
        continue
      }
      open.withLock { _ = $0.insert(socket) }
      if isOver.load(ordering: .relaxed) { shutdown(socket, Int32(SHUT_RDWR)) }
      threads.enter()
      Thread.detachNewThread { [self] in
        let asked = { [self] in wasAskedForStructure.store(true, ordering: .relaxed) }
        Conversation(socket, { [self] in lie.withLock { $0 } }, asked: asked).run()
        open.withLock { _ = $0.remove(socket) }
        close(socket)
        threads.leave()
      }
    }
  }

  private struct Conversation {
    struct Over: Error {}
    let socket: Int32
    let lie: () -> Lie
    /// It was asked for structured replies.
    let asked: () -> Void

    init(_ socket: Int32, _ lie: @escaping () -> Lie, asked: @escaping () -> Void) {
      (self.socket, self.lie, self.asked) = (socket, lie, asked)
    }

    func run() {
      guard (try? handshake()) != nil, lie() != .endsAfterHandshake else { return }
      while (try? answer()) != nil {}
    }

    private func send(_ bytes: [UInt8]) throws {
      var sent = 0
      while sent < bytes.count {
        let count = unsafe bytes.withUnsafeBytes {
          unsafe Glibc.send(socket, $0.baseAddress! + sent, bytes.count - sent, Int32(MSG_NOSIGNAL))
        }
        guard count > 0 else { throw Over() }
        sent += count
      }
    }

    private func receive(_ count: Int) throws -> [UInt8] {
      var bytes = [UInt8](repeating: 0, count: count)
      var received = 0
      while received < count {
        let some = unsafe bytes.withUnsafeMutableBytes { unsafe recv(socket, $0.baseAddress! + received, count - received, 0) }
        guard some > 0 else { throw Over() }
        received += some
      }
      return bytes
    }

    private func number(_ bytes: some Collection<UInt8>) -> UInt64 { bytes.reduce(0) { $0 << 8 | UInt64($1) } }
    private func big<Value: FixedWidthInteger>(_ value: Value) -> [UInt8] {
      (0..<Value.bitWidth / 8).reversed().map { UInt8(truncatingIfNeeded: value >> Value($0 * 8)) }
    }

    private func handshake() throws {
      let lie = lie()
      if lie == .endsAtOnce { throw Over() }
      try send(Array((lie == .wrongMagic ? "NBDMAGIK" : "NBDMAGIC").utf8))
      try send(lie == .oldMagic ? big(0x0042_0281_8612_53 as UInt64) : Array("IHAVEOPT".utf8))
      try send(big(3 as UInt16))
      _ = try receive(4)
      while true {
        let header = try receive(16)
        let (option, length) = (UInt32(number(header[8..<12])), Int(number(header[12..<16])))
        guard length < 8192 else { throw Over() }
        _ = try receive(length)
        if option == 8 { asked() }
        func reply(_ type: UInt32, _ data: [UInt8], length: UInt32? = nil) throws {
          let magic: UInt64 = lie == .optionReplyWithWrongMagic ? 1 : 0x3_e889_0455_65a9
          try send(big(magic) + big(option) + big(type) + big(length ?? UInt32(data.count)) + data)
        }
        switch option {
        case 7:
          if lie == .hugeOptionReply { try reply(3, [], length: .max) }
          let size = lie == .sizeBeyondAll ? UInt64.max : LyingServer.size
          // HAS_FLAGS, SEND_FLUSH, SEND_FUA, CAN_MULTI_CONN.
          try reply(3, big(0 as UInt16) + big(size) + big((1 | 1 << 2 | 1 << 3 | 1 << 8) as UInt16))
          return try reply(1, [])
        case 8 where lie.speaksStructured: try reply(1, [])
        case 2: throw Over()
        default: try reply(1 << 31 | 1, [])
        }
      }
    }

    private func answer() throws {
      let request = try receive(28)
      let (type, cookie) = (number(request[6..<8]), Array(request[8..<16]))
      let length = Int(number(request[24..<28]))
      if type == 2 { throw Over() }
      if type == 1 { _ = try receive(length) }
      let data = type == 0 ? [UInt8](repeating: 0x5a, count: length) : []
      let simple: UInt32 = 0x6744_6698
      let structured: UInt32 = 0x668e_33ef
      switch lie() {
      case .wrongReplyMagic: try send(big(0xdead_beef as UInt32) + big(0 as UInt32) + cookie + data)
      case .wrongCookie: try send(big(simple) + big(0 as UInt32) + big(UInt64.max) + data)
      case .endsInTheMiddle:
        try send(big(simple) + big(0 as UInt32) + cookie + data.prefix(100))
        throw Over()
      case .unknownError: try send(big(simple) + big(0x7fff_ffff as UInt32) + cookie)
      case .structuredUnasked: try send(big(structured) + big(1 as UInt16) + big(0 as UInt16) + cookie + big(0 as UInt32))
      case .hugeChunk: try send(big(structured) + big(1 as UInt16) + big(1 as UInt16) + cookie + big(UInt32.max))
      case .chunkOutOfBounds:
        try send(
          big(structured) + big(1 as UInt16) + big(1 as UInt16) + cookie + big(UInt32(data.count + 8)) + big(UInt64.max - 4096)
            + data)
      case .answersTwice:
        try send(big(simple) + big(0 as UInt32) + cookie + data)
        try send(big(simple) + big(0 as UInt32) + cookie + data)
      case .saysShutdown: try send(big(simple) + big(108 as UInt32) + cookie)
      default:
        if lie().speaksStructured { throw Over() }
        try send(big(simple) + big(0 as UInt32) + cookie + data)
      }
    }
  }
}

@Suite(.serialized, .enabled(if: Host.hasNBD, "libnbd is not installed")) struct NBDHostileTests {
  private static func options(_ server: LyingServer) throws -> NBDOptions {
    var options = NBDOptions(try NBDLocation(server.uri))
    options.reconnectTimeout = 1
    return options
  }

  /// It lies from the beginning.
  @Test(arguments: LyingServer.Lie.allCases.filter(\.isInHandshake)) fileprivate func aHandshakeThatIsNone(
    lie: LyingServer.Lie
  ) throws {
    let server = try LyingServer(.unix)
    defer { server.end() }
    server.tell(lie)
    var options = ImageOptions(path: "")
    options.nbd = try Self.options(server)
    #expect(throws: ImageError.self) { try ImageFile(options) }
  }

  /// It lies after a good handshake: each request is answered all the same, and once it behaves again, the disk works again.
  @Test(arguments: LyingServer.Lie.allCases, LyingServer.Place.allCases) fileprivate func answersThatAreNone(
    lie: LyingServer.Lie, place: LyingServer.Place
  ) throws {
    let server = try LyingServer(place)
    defer { server.end() }
    var options = RigOptions()
    options.nbd = try Self.options(server)
    let rig = try Rig(options)
    var outcome = try rig.expect(.read(sector: 0, bytes: 4096))
    #expect(outcome.answer == [UInt8](repeating: 0x5a, count: 4096))
    let wasAsked = server.wasAskedForStructure.load(ordering: .relaxed)
    #expect(wasAsked == (place == .internet), "structured replies are for servers elsewhere")
    server.tell(lie)
    if lie.isInHandshake || lie.speaksStructured {
      // The client has to reconnect to see the lie.
      server.hangUp()
    }
    let requests: [BlockRequest] = [.read(sector: 8, bytes: 8192), .write(sector: 8, pattern(4096)), .flush]
    for request in requests {
      let status = try rig.perform(request).status
      #expect(status == .ok || status == .ioError && lie != .none, "\(request)")
    }
    server.tell(.none)
    server.hangUp()
    var looks = 0
    try waitUntil("it is served again") {
      if try rig.perform(.read(sector: 0, bytes: 4096)).status == .ok { return true }
      looks += 1
      // A connection made in between may still be lying. Not on every look: a new connection takes a while.
      if looks % 10_000 == 0 { server.hangUp() }
      return false
    }
    outcome = try rig.expect(.read(sector: 0, bytes: 4096))
    #expect(outcome.answer == [UInt8](repeating: 0x5a, count: 4096))
  }
}
