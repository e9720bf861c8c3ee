/// The state that an earlier version handed over, recorded from the wire: this version continues from it.
import CLinux
import Foundation
import Glibc
import Synchronization
import TestSupport
import Testing
import VirtioCore

@testable import Sockets
@testable import VhostUser

@Suite struct GoldenTakeoverTests {
  /// One line, in version 1 of the format.
  static let line: Data = {
    let file = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("Golden/takeover-1.json")
    return (try? Data(contentsOf: file)) ?? Data()
  }()

  private struct Disk: Decodable { var server: ServerState }

  /// The descriptors that came with it, in order.
  static func descriptors(_ image: OwnedDescriptor) -> [OwnedDescriptor] {
    let memory = memoryFile(64 << 20)
    let records = memoryFile(4096)
    let (connection, channel) = (socketPair(), socketPair())
    let listener = OwnedDescriptor(socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0))
    return [
      listener, connection.0, channel.0, memory, records, eventCounter(), eventCounter(), eventCounter(), image,
    ]
  }

  private static func memoryFile(_ size: Int) -> OwnedDescriptor {
    let file = OwnedDescriptor(unsafe memfd_create("test", UInt32(MFD_CLOEXEC)))
    precondition(ftruncate(file.rawValue, size) == 0)
    return file
  }

  @Test func everyMemberIsUnderstood() throws {
    let state = try JSONDecoder().decode(Disk.self, from: Self.line).server
    let whole = try #require(try JSONSerialization.jsonObject(with: Self.line) as? [String: Any])
    let server = try #require(whole["server"] as? NSDictionary)
    let again = try JSONSerialization.jsonObject(with: JSONEncoder().encode(state)) as? NSDictionary
    #expect(again == server)

    let image = eventCounter()
    let list = DescriptorList(Self.descriptors(image))
    let device = BackendSession.DeviceDescription(
      features: FeatureSet(rawValue: state.device.features), queueCount: 2, maximumQueueSize: 1024, publishesInOrder: true)
    let connection = try #require(state.connection)
    let session = try SessionRestoration(state: connection, list: list, device: device, table: MemoryTable()).carryOut()
    #expect(session.features?.rawValue == 5_100_306_006)
    #expect(session.table.memory.regions.count == 1)
    #expect(session.inflight?.queueSize == 128)
    #expect(session.rings[0].isReady)
    #expect(session.rings[0].position == QueuePosition(available: 2571, used: 2571))
    #expect(!session.rings[1].isStarted)
    // And the other way round: this session would hand over the same state.
    var state2 = connection
    var list2 = DescriptorList()
    session.fill(&state2, &list2, running: [0])
    #expect(state2.rings[0].address == connection.rings[0].address)
    #expect(state2.memory.map(\.userAddress) == connection.memory.map(\.userAddress))
  }

  /// The state with a partly received message, and the unsent rest of a reply.
  private static func line(unread: [UInt8], unsent: [UInt8]) throws -> Data {
    var disk = try #require(try JSONSerialization.jsonObject(with: Self.line) as? [String: Any])
    var server = try #require(disk["server"] as? [String: Any])
    var connection = try #require(server["connection"] as? [String: Any])
    connection["unread"] = ["bytes": unread.map { Int($0) }, "descriptors": [Int]()]
    connection["unsent"] = [["bytes": unsent.map { Int($0) }, "descriptors": [Int]()]]
    server["connection"] = connection
    disk["server"] = server
    return try JSONSerialization.data(withJSONObject: disk) + [10]
  }

  /// The program takes over from a server that sends version 1 of the state, and serves its front-end.
  ///
  /// - Parameter parted: that server stopped in the middle of a message and of a reply.
  @Test(arguments: [false, true]) func theProgramGoesOnFromIt(parted: Bool) throws {
    // GET_QUEUE_NUM.
    let request = Message(.getQueueCount).bytes
    let (come, unsent) = (Array(request.prefix(parted ? 7 : 0)), parted ? [UInt8](1...50) : [])
    let line = parted ? try Self.line(unread: come, unsent: unsent) : Self.line
    try withDirectory { directory in
      let path = directory + "/disk.img"
      try Data().write(to: URL(fileURLWithPath: path))
      let image = OwnedDescriptor(unsafe open(path, O_RDWR | O_CLOEXEC))
      #expect(ftruncate(image.rawValue, 64 << 20) == 0)
      let memory = Self.memoryFile(64 << 20)
      let connection = socketPair()
      var descriptors = Self.descriptors(image)
      descriptors[0] = try UnixSocket.listen(at: directory + "/disk.sock")
      descriptors[1] = connection.0
      descriptors[3] = memory
      let control = try UnixSocket.listen(at: directory + "/control")
      let taker = try Program([
        "serve", "--take-over", directory + "/control", "--blk-file", path, "--num-queues", "2", "--engine", "sync",
        "--no-lock",
      ])
      let socket = try #require(Self.accepted(control), "the taker did not connect")
      let greeting =
        #"{"disks":[{"disk":"\#(directory)/disk.sock","image":"disk.img"}],"program":"vmm-blk","transport":"vhost-user","version":1}"#
      for (verb, answer, brought) in [
        ("take-over", Data(greeting.utf8 + [10]), []), ("describe", line, descriptors), ("pause", line, descriptors),
        ("commit", Data("{}\n".utf8), []), ("served", Data("{}\n".utf8), []),
      ] {
        let request = Self.readLine(socket.rawValue)
        #expect(request.contains("\"request\":\"\(verb)\""), "\(request)")
        let bytes = Array(answer)
        let numbers = brought.map(\.rawValue)
        #expect(unsafe clinux_send_with_fds(socket.rawValue, bytes, bytes.count, numbers, numbers.count) == bytes.count)
      }
      #expect(taker.firstLine().hasPrefix("Serving "))
      // On the connection that was handed over.
      #expect(Self.read(connection.1.rawValue, unsent.count) == unsent)
      let rest = Array(request[come.count...])
      #expect(unsafe clinux_send_with_fds(connection.1.rawValue, rest, rest.count, nil, 0) == rest.count)
      #expect(Self.read(connection.1.rawValue, MessageHeader.size + 8)?.suffix(8).first == 2)
      taker.process.terminate()
      let end = taker.finish()
      #expect(end.status == 0, "\(end.errors)")
    }
  }

  private static func accepted(_ listener: OwnedDescriptor) -> OwnedDescriptor? {
    var socket: OwnedDescriptor?
    _ = eventually {
      socket = try? UnixSocket.accept(listener.rawValue)
      return socket != nil
    }
    return socket
  }

  private static func readLine(_ socket: Int32) -> String {
    var line: [UInt8] = []
    while let byte = read(socket, 1)?.first, byte != UInt8(ascii: "\n") { line.append(byte) }
    return String(decoding: line, as: UTF8.self)
  }

  private static func read(_ socket: Int32, _ count: Int) -> [UInt8]? {
    var bytes: [UInt8] = []
    while bytes.count < count {
      var entry = pollfd(fd: socket, events: Int16(POLLIN), revents: 0)
      guard unsafe poll(&entry, 1, Int32(Patience.limit / .milliseconds(1))) == 1 else { return nil }
      var byte: UInt8 = 0
      guard unsafe Glibc.read(socket, &byte, 1) == 1 else { return nil }
      bytes.append(byte)
    }
    return bytes
  }
}
