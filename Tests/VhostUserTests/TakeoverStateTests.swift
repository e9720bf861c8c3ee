/// What a takeover hands over besides running queues: inherited sockets, marks, partial messages, and failures.
import CLinux
import Foundation
import Glibc
import Synchronization
import TestSupport
import Testing
import VirtioCore

@testable import GuestDriver
@testable import Sockets
@testable import VhostUser

extension TakeoverTests {
  // MARK: inherited sockets

  /// Front-ends come and go on a socket of the process that started the first server; the servers do not remove its file.
  @Test func aServerOnAListeningDescriptorIsTakenOver() throws {
    try withDirectory { directory in
      let succession = Succession(engine: "sync", other: "uring")
      let path = directory + "/disk.sock"
      try Data(count: 8 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
      let listener = try Listener(path: path)
      let first = try Program(
        Self.words(directory, succession, engine: "sync") + ["--fd", "0"],
        input: FileHandle(fileDescriptor: listener.socket.rawValue, closeOnDealloc: false))
      try #require(first.firstLine().hasPrefix("Serving "))
      var before = first
      _ = try Self.underLoad(directory, succession) {
        for engine in ["uring", "sync"] {
          let after = try Self.takeOver(Self.words(directory, succession, engine: engine), directory)
          #expect(before.finish().status == 0)
          before = after
        }
      }
      // Others connect through the same socket.
      for _ in 0..<2 { #expect(try Frontend(connectingTo: path).handshake().queueCount == 4) }
      before.process.terminate()
      #expect(before.finish().status == 0)
      #expect(FileManager.default.fileExists(atPath: path))
    }
  }

  /// The one front-end of a connected socket notices nothing, and when it disconnects, the current server ends.
  @Test func aServerOnAConnectedDescriptorIsTakenOver() throws {
    try withDirectory { directory in
      let words = Self.words(directory, Succession(engine: "sync"), engine: "sync")
      let (first, connection) = try Self.serveConnection(directory)
      let transport = try VhostUserTransport(Frontend(socket: connection), memory: DriverMemory(size: 4 << 20))
      let client = try BlockClient(transport)
      var before = first
      for number in 1...3 {
        let bytes = [UInt8](repeating: UInt8(number), count: 64 << 10)
        try client.write(bytes, at: 0)
        let after = try Self.takeOver(words, directory)
        #expect(before.finish().status == 0)
        #expect(try client.read(at: 0, count: bytes.count) == bytes)
        before = after
      }
      try client.shutDown()
      // SHUT_RDWR has the same effect as the end of the front-end's process.
      shutdown(transport.frontend.descriptor, Int32(SHUT_RDWR))
      #expect(before.finish().status == 0)
    }
  }

  // MARK: the dirty log

  /// A front-end that migrates its guest finds a mark for each page that either server has written to.
  @Test func aLogOfWrittenPagesIsKeptByOneAfterTheOther() throws {
    try withDirectory { directory in
      let succession = Succession(engine: "sync")
      let size = 128 << 10
      var server = try Self.serve(directory, succession)
      let memory = try DriverMemory(size: 4 << 20, at: GuestAddress(0x10_0000))
      let transport = try VhostUserTransport(path: directory + "/disk.sock", memory: memory, logsWrites: true)
      let log = try #require(transport.writtenPages)
      let client = try BlockClient(transport)
      let usedRing = try #require(transport.queues.first).configuration.usedRing.rawValue / 4096
      /// Reads, and finds the pages of the answer before the driver clears it.
      func pagesOfRead(at sector: UInt64, _ content: UInt8) throws -> Set<UInt64> {
        let queue = client.queues[0]
        try #require(try queue.submit(.read(sector: sector, bytes: size)) != nil)
        queue.publish()
        #expect(try queue.ring.waitForUsed(milliseconds: Int(Patience.limit / .milliseconds(1))))
        let pages = memory.pages(of: content)
        #expect(try queue.reap()?.status == .ok)
        #expect(pages.count >= size / 4096, "what was read is in memory")
        return pages
      }
      func expectMarked(_ pages: Set<UInt64>, _ when: String) throws {
        let marked = try WrittenPagesTests.takeMarks(log)
        #expect(pages.isSubset(of: marked), "\(when): \(pages.subtracting(marked).sorted())")
        #expect(marked.contains(usedRing), "\(when)")
      }
      try client.write([UInt8](repeating: 0xa5, count: size), at: 0)
      try client.write([UInt8](repeating: 0x5a, count: size), at: UInt64(size))
      for engine in ["uring", "mapped", "threads", "sync"] {
        _ = try WrittenPagesTests.takeMarks(log)
        let before = try pagesOfRead(at: 0, 0xa5)
        let next = try Self.takeOver(Self.words(directory, succession, engine: engine), directory)
        #expect(server.finish().status == 0)
        server = next
        try expectMarked(before, "before \(engine)")
        try expectMarked(pagesOfRead(at: UInt64(size) / 512, 0x5a), "after \(engine)")
      }
      try client.shutDown()
      server.process.terminate()
      #expect(server.finish().status == 0)
    }
  }

  // MARK: partial messages

  /// The front-end has sent part of a message, with its descriptor; the rest arrives at another server.
  @Test(arguments: [1, 12, 20]) func aMessageThatIsHalfReadIsReadToItsEnd(parted: Int) throws {
    try withDirectory { directory in
      let server = try Self.serve(directory, Succession(engine: "sync"))
      let frontend = try Frontend(connectingTo: directory + "/disk.sock")
      try frontend.setFeatures(frontend.handshake().features.subtracting(.packedRing))
      let memory = TestMemory.file("vhost-halves", size: Int(Rig.memorySize))
      let bytes = Message(.addMemoryRegion, needReply: true, payload: Rig.region().singleBytes).bytes
      var number = memory.rawValue
      let first = Array(bytes[..<parted])
      #expect(unsafe clinux_send_with_fds(frontend.descriptor, first, first.count, &number, 1) == first.count)
      try Self.waitForState(directory, disk: directory + "/disk.sock", "part of a message has been read") { state in
        state.unread?.bytes == first && state.unread?.descriptors.count == 1
      }
      let next = try Self.takeOver(Self.words(directory, Succession(engine: "sync"), engine: "sync"), directory)
      #expect(server.finish().status == 0)
      let rest = Array(bytes[parted...])
      #expect(unsafe clinux_send_with_fds(frontend.descriptor, rest, rest.count, nil, 0) == rest.count)
      #expect(try frontend.receive(after: .addMemoryRegion).payload == Rig.number(0))
      // The memory region was added: a ring in it starts.
      let address = Rig.address(0)
      try frontend.start(
        FrontendQueue(
          index: 0, size: 128, descriptorTable: address.descriptorTable, availableRing: address.availableRing,
          usedRing: address.usedRing, kick: eventCounter(), call: eventCounter()))
      #expect(try frontend.stop(queue: 0) == 0)
      next.process.terminate()
      #expect(next.finish().status == 0)
    }
  }

  /// A front-end that does not read its replies gets all of them, in order and with their descriptors, from the next server.
  @Test func repliesThatCannotBeSentAreSentByTheNext() throws {
    try withDirectory { directory in
      // The smallest buffer that the kernel allows.
      let (server, connection) = try Self.serveConnection(directory, sendBuffer: 1)
      let frontend = Frontend(socket: connection)
      _ = try frontend.handshake()
      func size(_ number: Int) -> UInt16 { UInt16(1 + number % 1000) }
      var asked = 0
      var isStuck = false
      while !isStuck, asked < 1000 {
        let payload = InflightDescription(queueCount: 1, queueSize: size(asked)).bytes
        try frontend.send(Message(.getInflight, payload: payload))
        asked += 1
        // Two more requests arrive, to be read after the replies were sent.
        try frontend.send(
          Message(.getInflight, payload: InflightDescription(queueCount: 1, queueSize: size(asked)).bytes))
        asked += 1
        let taker = try Taker(directory + "/control")
        defer { taker.close() }
        isStuck = try Self.state(taker, "descriptor 0").unsent.count == 1
      }
      try #require(isStuck)
      let next = try Self.takeOver(Self.words(directory, Succession(engine: "sync"), engine: "sync"), directory)
      #expect(server.finish().status == 0)
      for number in 0..<asked {
        let reply = try frontend.receive(after: .getInflight)
        #expect(InflightDescription(decoding: reply.payload)?.queueSize == size(number))
        #expect(reply.descriptors.count == 1)
      }
      #expect(try frontend.queueCount() == 4)
      shutdown(connection.rawValue, Int32(SHUT_RDWR))
      #expect(next.finish().status == 0)
    }
  }

  /// The rest of a message that did not fit into the socket is sent by the next server, without its descriptors.
  @Test func aMessageThatIsHalfSentIsSentToItsEnd() throws {
    let (ours, theirs) = socketPair()
    var size: Int32 = 1
    #expect(unsafe setsockopt(ours.rawValue, SOL_SOCKET, SO_SNDBUF, &size, 4) == 0)
    let payload = (0..<8000).map { UInt8(truncatingIfNeeded: $0 / 7) }
    var writer = MessageWriter()
    for number in 0..<3 {
      writer.enqueue(Message(request: UInt32(number), payload: payload, descriptors: [eventCounter()]))
    }
    try writer.flush(ours.rawValue)
    let unsent = writer.unsent
    #expect(unsent.count == 3)
    #expect(unsent[0].bytes.count < MessageHeader.size + payload.count, "a part was sent")
    #expect(unsent.map(\.descriptors.count) == [0, 1, 1])
    var (next, reader) = (MessageWriter(unsent: unsent), MessageReader())
    var received: [Message] = []
    while received.count < 3 {
      switch try reader.read(theirs.rawValue) {
      case .message(let message): received.append(message)
      case .nothingYet:
        try #require(!next.isIdle)
        try next.flush(ours.rawValue)
      case .ended:
        Issue.record("the connection ended")
        return
      }
    }
    #expect(received.map(\.request) == [0, 1, 2])
    #expect(received.allSatisfy { $0.payload == payload && $0.descriptors.count == 1 })
  }

  // MARK: failures

  /// The kernel reports a write-back error once and then forgets it: no later server may report that a flush succeeded as long
  /// as any process has the image open.
  @Test func aFlushThatFailedStaysFailed() throws {
    try withDirectory { directory in
      let succession = Succession(engine: "sync", options: ["--direct", "off"])
      var server = try Self.serve(
        directory, Succession(engine: "sync", options: ["--direct", "off", "--inject", "flush:eio:count=1"]))
      let transport = try VhostUserTransport(path: directory + "/disk.sock", memory: DriverMemory(size: 4 << 20))
      let client = try BlockClient(transport)
      #expect(try client.perform(.flush).status == .ioError)
      for engine in ["uring", "sync", "mapped"] {
        let next = try Self.takeOver(Self.words(directory, succession, engine: engine), directory)
        #expect(server.finish().status == 0)
        server = next
        try client.write([UInt8](repeating: 7, count: 4096), at: 0)
        #expect(try client.perform(.flush).status == .ioError, "\(engine)")
      }
      try client.shutDown()
      server.process.terminate()
      #expect(server.finish().status == 0)
      // Opened again.
      server = try Self.serve(directory, succession)
      let again = try BlockClient(
        VhostUserTransport(path: directory + "/disk.sock", memory: DriverMemory(size: 4 << 20)))
      #expect(try again.perform(.flush).status == .ok)
      try again.shutDown()
      server.process.terminate()
      #expect(server.finish().status == 0)
    }
  }

  // MARK: the rig

  /// A server on one end of a socket pair. - Parameter sendBuffer: bytes (SO_SNDBUF); `nil`: the kernel's default.
  private static func serveConnection(
    _ directory: String, sendBuffer: Int32? = nil
  ) throws -> (Program, frontend: OwnedDescriptor) {
    try Data(count: 8 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
    let (ours, theirs) = socketPair()
    if var sendBuffer { #expect(unsafe setsockopt(theirs.rawValue, SOL_SOCKET, SO_SNDBUF, &sendBuffer, 4) == 0) }
    let server = try Program(
      words(directory, Succession(engine: "sync"), engine: "sync") + ["--fd", "0"],
      input: FileHandle(fileDescriptor: theirs.rawValue, closeOnDealloc: false))
    try #require(server.firstLine().hasPrefix("Serving "))
    return (server, ours)
  }

  /// Starts the next server, once the previous one has noticed that no other takes over any more.
  private static func takeOver(_ words: [String], _ directory: String) throws -> Program {
    var next: Program?
    try wait(until: "another server takes over") {
      guard let taker = try? Program(words + ["--take-over", directory + "/control"]) else { return false }
      if taker.firstLine().hasPrefix("Serving ") {
        next = taker
        return true
      }
      let end = taker.finish()
      if !end.errors.contains("is taking over already") { Issue.record("\(end.errors)") }
      return false
    }
    return try #require(next)
  }

  private struct Disk: Decodable { var server: ServerState }

  private static func state(_ taker: Taker, _ disk: String) throws -> ConnectionState {
    // The server may not have noticed yet that another one has gone.
    try wait(until: "the server can be asked") {
      (try? taker.ask("take-over", disk: ""))?.contains("\"disks\"") == true
    }
    let line = try taker.ask("describe", disk: disk)
    return try #require(try JSONDecoder().decode(Disk.self, from: Data(line.utf8)).server.connection)
  }

  private static func waitForState(
    _ directory: String, disk: String, _ what: String, _ isSo: (ConnectionState) -> Bool
  ) throws {
    let taker = try Taker(directory + "/control")
    defer { taker.close() }
    var state = try Self.state(taker, disk)
    try wait(until: "\(what): \(state)") {
      if isSo(state) { return true }
      guard let line = try? taker.ask("describe", disk: disk) else { return false }
      if let next = try? JSONDecoder().decode(Disk.self, from: Data(line.utf8)).server.connection { state = next }
      return isSo(state)
    }
  }
}

extension DriverMemory {
  /// Numbers of pages with a whole sector of this byte.
  fileprivate func pages(of byte: UInt8) -> Set<UInt64> {
    var pages: Set<UInt64> = []
    let sector = [UInt8](repeating: byte, count: 512)
    for region in regions {
      for place in stride(from: 0, to: region.size, by: 512)
      where unsafe sector.withUnsafeBytes({ unsafe memcmp($0.baseAddress!, region.host + place, 512) }) == 0 {
        pages.insert((region.start.rawValue + UInt64(place)) / 4096)
      }
    }
    return pages
  }
}
