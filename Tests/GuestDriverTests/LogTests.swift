/// What the log of `vmm-blk serve` says when a guest or a front-end breaks a rule: one line with the queue or the
/// message and the reason, and no flood.
import Foundation
import Testing
import VhostUser
import VirtioCore

@testable import GuestDriver

@Suite(.enabled(if: vmmBlk != nil, "the program vmm-blk was not built beside the tests"))
struct LogTests {
  /// A program that serves a disk of 1 MiB with two queues, and its driver.
  final class Served {
    private let directory: String
    private let server: ChildProcess
    let transport: VhostUserTransport

    init() throws {
      directory = try unsafe String(
        cString: #require(unsafe mkdtemp(strdup(NSTemporaryDirectory() + "guest-driver-XXXXXX"))))
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
      let socket = directory + "/sock"
      server = try ChildProcess(
        [#require(vmmBlk), "serve", "--blk-file", directory + "/disk", "--socket-path", socket, "--num-queues", "2"],
        output: directory + "/log")
      do {
        transport = try VhostUserTransport(
          Self.connect(to: socket), memory: DriverMemory(anonymous: [(GuestAddress(0), 1 << 20)]))
      } catch {
        try? FileManager.default.removeItem(atPath: directory)
        throw error
      }
    }

    /// The socket's file exists a moment before the server listens on it.
    private static func connect(to socket: String) throws -> Frontend {
      let end = ContinuousClock.now + Patience.limit
      while true {
        do { return try Frontend(connectingTo: socket) } catch {
          guard .now < end else { throw error }
          usleep(2000)
        }
      }
    }

    /// Ends the program. - Returns: the warnings that it logged.
    func warnings() throws -> [String] {
      server.end()
      let text = try String(contentsOfFile: directory + "/log", encoding: .utf8)
      return text.split(separator: "\n").map(String.init).filter { $0.contains(" warning ") }
    }

    deinit {
      server.end()
      try? FileManager.default.removeItem(atPath: directory)
    }
  }

  /// A chain or an index that stops the queue, and the log's words for it.
  enum BadRing: String, CaseIterable, Sendable {
    case jump = "the available index went from 0 to 17, more than the 16 entries of the queue"
    case headOutside = "descriptor head 16 is outside the table"
    case nextOutside = "a chain continues at descriptor 99, outside the table"
    case loop = "the chain at head 8 is longer than its table: it loops"
    case tooLarge = "the chain at head 8 describes more than 2^32 bytes"
    case indirectLength = "the chain at head 8 has an indirect table of 17 bytes"
    case indirectUnmapped = "the chain at head 8 has an indirect table at 0x10000000000, outside guest memory"
    case nestedIndirect = "the chain at head 8 has an indirect table inside an indirect table"
    case indirectWithNext = "the chain at head 8 continues after an indirect descriptor"
    case readableAfterWritable = "the chain at head 8 has a readable descriptor after a writable one"
    case nothingWritable = "the chain at head 8 has no writable byte for an answer"
    case statusUnmapped = "the chain at head 8 has its last writable byte outside guest memory"

    func offer(on ring: RawRing, _ buffer: GuestBuffer) {
      let address = buffer.address.rawValue
      let nowhere: UInt64 = 1 << 40
      func descriptor(
        _ address: UInt64, _ length: UInt32, _ flags: RawDescriptor.Flags = [], next: UInt16 = 0
      ) -> RawDescriptor { RawDescriptor(address: address, length: length, flags: flags, next: next) }
      let chain: [RawDescriptor] =
        switch self {
        case .jump, .headOutside: []
        case .nextOutside: [descriptor(address, 16, .next, next: 99)]
        case .loop: [descriptor(address, 16, .next, next: 9), descriptor(address, 16, .next, next: 8)]
        case .tooLarge: [descriptor(address, .max, [.write, .next], next: 9), descriptor(address, .max, .write)]
        case .indirectLength: [descriptor(address, 17, .indirect)]
        case .indirectUnmapped: [descriptor(nowhere, 48, .indirect)]
        case .nestedIndirect: [descriptor(address, 16, .indirect)]
        case .indirectWithNext: [descriptor(address, 16, [.indirect, .next], next: 9)]
        case .readableAfterWritable: [descriptor(address, 16, [.write, .next], next: 9), descriptor(address, 16)]
        case .nothingWritable: [descriptor(address, 16)]
        case .statusUnmapped: [descriptor(address, 16, .next, next: 9), descriptor(nowhere, 1, .write)]
        }
      if self == .nestedIndirect {
        buffer.store(descriptor(address, 16, .indirect).bytes(.split), at: 0)
      }
      for (place, descriptor) in chain.enumerated() { ring.setDescriptor(8 + UInt16(place), descriptor) }
      switch self {
      case .jump: ring.availableIndex.storeRelease(17)
      case .headOutside: ring.offer(16)
      default: ring.offer(8)
      }
    }
  }

  @Test("a bad ring is one line", arguments: BadRing.allCases) func badRing(bad: BadRing) throws {
    let served = try Served()
    let client = try BlockClient(
      served.transport, options: DriverOptions(features: BlockFeature.understood, queueSize: 16))
    bad.offer(on: client.queues[1].ring.ring, try served.transport.memory.allocate(64, alignment: 16))
    client.session.queues[1].lines.kick()
    #expect(try served.transport.waitForFailure(queue: 1, milliseconds: patientMilliseconds))
    // The worker signals; the control thread learns of it a moment later, and writes the line before it answers.
    try waitUntil("the device sets NEEDS_RESET") { try served.transport.status().contains(.needsReset) }
    let warnings = try served.warnings()
    #expect(warnings.count == 1 && warnings[0].contains("queue 1 is stopped: \(bad.rawValue)"), "\(warnings)")
  }

  /// A message that is refused, and the log's words for it.
  struct BadMessage: Sendable, CustomTestStringConvertible {
    let testDescription: String
    let send: @Sendable (Frontend) throws -> Void

    init(_ line: String, _ send: @escaping @Sendable (Frontend) throws -> Void) {
      testDescription = line
      self.send = send
    }

    private static func state(_ queue: UInt32, _ number: UInt32) -> [UInt8] {
      queue.littleEndianBytes + number.littleEndianBytes
    }

    static let all: [BadMessage] = [
      .init("SET_VRING_NUM was refused: there is no queue 9, only 2 of them") { try $0.tell(.setVringSize, state(9, 16)) },
      .init("SET_VRING_NUM was refused: queue size 3 is not a power of two") { try $0.tell(.setVringSize, state(1, 3)) },
      .init("SET_VRING_NUM was refused: 7 bytes are not the length of this message") {
        try $0.tell(.setVringSize, Array(repeating: 0, count: 7))
      },
      .init("SET_VRING_BASE was refused: 65536 is not an index of a split ring") {
        try $0.tell(.setVringBase, state(1, 65536))
      },
      .init("SET_VRING_ENABLE was refused: 2 is neither 0 nor 1") { try $0.tell(.setVringEnable, state(1, 2)) },
      .init("SET_VRING_KICK was refused: 0 descriptors came instead of 1") {
        try $0.tell(.setVringKick, (1 as UInt64).littleEndianBytes)
      },
      .init("SET_FEATURES was refused: features 0x2000000 were not offered") {
        try $0.tell(.setFeatures, (1 << 25 as UInt64).littleEndianBytes)
      },
      .init("SET_CONFIG was refused: the 4 bytes at offset 0 of the configuration space cannot be written by a driver") {
        try $0.setConfiguration(at: 0, [1, 2, 3, 4])
      },
    ]
  }

  @Test("a bad message is one line", arguments: BadMessage.all) func badMessage(bad: BadMessage) throws {
    let served = try Served()
    #expect(throws: FrontendError.self) { try bad.send(served.transport.frontend) }
    let warnings = try served.warnings()
    #expect(warnings.count == 1 && warnings[0].contains(bad.testDescription), "\(warnings)")
  }

  @Test("a flood of bad messages is a burst of lines") func flood() throws {
    let served = try Served()
    for _ in 0..<2000 { #expect(throws: FrontendError.self) { try BadMessage.all[0].send(served.transport.frontend) } }
    let warnings = try served.warnings()
    // Ten at once, and one more for every five seconds that a slow machine takes.
    #expect((10..<100).contains(warnings.count), "\(warnings.count) lines")
    #expect(warnings.allSatisfy { $0.contains("SET_VRING_NUM was refused") || $0.contains("left out") })
  }
}
