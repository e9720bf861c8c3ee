/// One front-end waits, and no other has to: whatever one disk waits for does not hold up another one.
import CLinux
import Foundation
import Glibc
import Synchronization
import TestSupport
import Testing
import VirtioCore

@testable import Sockets
@testable import VhostUser

@Suite struct WaitingTests {
  private let memory = TestMemory.file("vhost-waiting", size: Int(Rig.memorySize))

  /// Two disks in one loop: `stuck` does not answer a stop until it is told to.
  private func withTwoDisks(_ body: (FakeDevice, FakeDevice, RunningServer, String) throws -> Void) throws {
    try withDirectory { directory in
      let (stuck, other) = (FakeDevice(), FakeDevice())
      let server = RunningServer { loop, log in
        try [(stuck, "/stuck.sock"), (other, "/other.sock")].map { device, name in
          BackendServer(device: device, on: .listening(try Listener(path: directory + name)), in: loop) { log.append($0) }
        }
      }
      defer { server.close() }
      // Runs before the server is closed, whatever has happened.
      defer { for queue in 0..<4 { stuck.finishStop(queue) } }
      stuck.holdStops()
      try body(stuck, other, server, directory)
    }
  }

  private func bringUp(_ frontend: Frontend, queues: Int = 1) throws {
    frontend.patience = Patience.limit
    let offer = try frontend.handshake()
    try frontend.setFeatures(offer.features)
    try frontend.setMemory([FrontendRegion(Rig.region(), descriptor: memory)])
    for index in 0..<queues {
      let address = Rig.address(UInt32(index))
      try frontend.start(
        FrontendQueue(
          index: UInt8(index), size: 128, descriptorTable: address.descriptorTable, availableRing: address.availableRing,
          usedRing: address.usedRing, base: 0, kick: eventCounter(), call: eventCounter(), error: nil))
    }
  }

  /// Another front-end connects, is served and disconnects, while the first one provably still waits.
  private func expectOtherIsServed(_ other: FakeDevice, _ directory: String) throws {
    do {
      let frontend = try Frontend(connectingTo: directory + "/other.sock")
      try bringUp(frontend, queues: 4)
      #expect(other.running == [0, 1, 2, 3])
      #expect(try frontend.stop(queue: 0) == 1)
      #expect(try frontend.features().contains(.version1))
    }
    #expect(eventually { other.running.isEmpty })
  }

  @Test func theOtherDiskIsServedWhileAQueueDoesNotStop() throws {
    try withTwoDisks { stuck, other, _, directory in
      let frontend = try Frontend(connectingTo: directory + "/stuck.sock")
      try bringUp(frontend)
      try frontend.send(Message(.getVringBase, payload: Rig.state(0, 0)))
      #expect(eventually { stuck.deeds.contains("stop 0") })
      try expectOtherIsServed(other, directory)
      #expect(stuck.running == [0])
      stuck.finishStop(0)
      #expect(try frontend.receive(after: .getVringBase).payload == Rig.state(0, 1))
    }
  }

  @Test func aFrontEndThatGoesWhileItsQueueStopsIsNoticedAndTheNextOneWaits() throws {
    try withTwoDisks { stuck, other, server, directory in
      var frontend: Frontend? = try Frontend(connectingTo: directory + "/stuck.sock")
      try frontend.map { try bringUp($0, queues: 2) }
      try frontend?.send(Message(.getVringBase, payload: Rig.state(0, 0)))
      #expect(eventually { stuck.deeds.contains("stop 0") })
      frontend = nil
      // The end of the connection is noticed although nothing is read: the second queue is asked to stop, the first one not
      // again.
      #expect(eventually { stuck.deeds.contains("stop 1") })
      #expect(stuck.deeds.filter { $0 == "stop 0" }.count == 1)
      let next = try Frontend(connectingTo: directory + "/stuck.sock")
      next.patience = Patience.limit
      try next.send(Message(.getFeatures))
      try expectOtherIsServed(other, directory)
      stuck.finishStop(0)
      #expect(stuck.running == [1])
      stuck.finishStop(1)
      #expect(try next.receive(after: .getFeatures).payload.count == 8)
      #expect(!server.log.contains { if case .connectionFailed = $0 { true } else { false } })
    }
  }

  /// Memory changes under a queue that does not stop.
  @Test func theOtherDiskIsServedWhileMemoryWaitsForAQueue() throws {
    try withTwoDisks { stuck, other, _, directory in
      let frontend = try Frontend(connectingTo: directory + "/stuck.sock")
      try bringUp(frontend)
      try frontend.send(
        Message(
          .setMemoryTable, payload: MemoryRegion.encode(table: [Rig.region()]),
          descriptors: [TestMemory.duplicate(memory)]))
      try frontend.send(Message(.getStatus))
      #expect(eventually { stuck.deeds.contains("stop 0") })
      try expectOtherIsServed(other, directory)
      stuck.finishStop(0)
      #expect(try frontend.receive(after: .getStatus).payload.count == 8)
      #expect(stuck.deeds == ["start 0 at 0", "stop 0", "start 0 at 1"])
    }
  }

  /// The last queue stops, its GET_VRING_BASE is answered, and that completes the pause for a takeover: exactly one of the two
  /// servers sends the reply.
  @Test func aReplyThatIsDueAtTheStandstillIsSentOnce() throws {
    final class Outcome: Sendable { let unsent = Mutex<Int?>(nil) }
    try withDirectory { directory in
      let device = FakeDevice()
      device.holdStops()
      let (pausing, begun, outcome) = (eventCounter(), eventCounter(), Outcome())
      let server = RunningServer { loop, log in
        let server = BackendServer(
          device: device, on: .listening(try Listener(path: directory + "/disk.sock")), in: loop
        ) { log.append($0) }
        _ = try loop.add(pausing.rawValue) { _ in
          EventCounter.drain(pausing.rawValue)
          server.pause { result in
            outcome.unsent.withLock { $0 = (try? result.get())?.0.connection?.unsent.count ?? -1 }
            loop.after(.zero) { server.goOn() }
          }
          EventCounter.signal(begun.rawValue)
        }
        return [server]
      }
      defer { server.close() }
      defer { device.finishStop(0) }
      let frontend = try Frontend(connectingTo: directory + "/disk.sock")
      try bringUp(frontend, queues: 1)
      try frontend.send(Message(.getVringBase, payload: Rig.state(0, 0)))
      try wait(until: "the queue is being stopped") { device.deeds.contains("stop 0") }
      EventCounter.signal(pausing.rawValue)
      try wait(until: "the server pauses") { EventCounter.drain(begun.rawValue) > 0 }
      #expect(outcome.unsent.withLock(\.self) == nil, "the pause does not wait for the queue")
      device.finishStop(0)
      #expect(try frontend.receive(after: .getVringBase).request == FrontendRequest.getVringBase.rawValue)
      try wait(until: "the pause is complete") { outcome.unsent.withLock(\.self) != nil }
      #expect(outcome.unsent.withLock(\.self) == 0, "the next server sends the reply as well")
      #expect(try frontend.queueCount() == 4)
    }
  }

  /// Closing a server does not wait for a stop that never completes.
  @Test func whatDoesNotStopIsLeftAndSaid() throws {
    try withDirectory { directory in
      let device = FakeDevice()
      device.holdStops()
      let stop = eventCounter()
      let isReady = Mutex(false)
      let side = SideThread { () throws -> (left: [Int], saidThatItIsClosed: Bool) in
        let loop = try EventLoop()
        let server = BackendServer(
          device: device, on: .listening(try Listener(path: directory + "/disk.sock")), in: loop
        ) { _ in }
        try server.open()
        var isClosed = false
        _ = try loop.add(stop.rawValue) { _ in
          EventCounter.drain(stop.rawValue)
          server.close { isClosed = true }
          loop.stop()
        }
        isReady.withLock { $0 = true }
        try loop.run()
        return (server.abandon(), isClosed)
      }
      try wait(until: "the server listens") { isReady.withLock { $0 } || side.isOver }
      let frontend = try Frontend(connectingTo: directory + "/disk.sock")
      try bringUp(frontend, queues: 3)
      EventCounter.signal(stop.rawValue)
      let end = try side.end()
      #expect(end.left == [0, 1, 2])
      #expect(!end.saidThatItIsClosed)
      #expect(device.leftQueues == [0, 1, 2])
    }
  }

  /// If the server held the front-end's own end of the connection, the connection would outlast the front-end.
  @Test(arguments: [FrontendRequest.setVringKick, .setVringCall, .setVringError, .setBackendRequestDescriptor])
  func aFrontEndsOwnEndOfItsConnectionIsRefused(request: FrontendRequest) throws {
    try withDirectory { directory in
      let device = FakeDevice()
      let server = RunningServer(device, path: directory + "/disk.sock")
      defer { server.close() }
      do {
        let frontend = try Frontend(connectingTo: directory + "/disk.sock")
        _ = try frontend.handshake()
        let payload = request == .setBackendRequestDescriptor ? [] : Rig.word(0)
        let own = OwnedDescriptor(dup(frontend.descriptor))
        try frontend.send(Message(request, needReply: true, payload: payload, descriptors: [own]))
        #expect(try frontend.receive(after: request).payload == Rig.number(1))
      }
      let next = try Frontend(connectingTo: directory + "/disk.sock", patience: Patience.limit)
      #expect(try next.handshake().queueCount == 4)
    }
  }

  private static let knowsPeers = {
    let (one, other) = socketPair()
    return withExtendedLifetime(other) { PeerInode.ask(one.rawValue) } != nil
  }()

  /// The same with a socket pair without a name, which only the kernel's answer about the peer can tell. The program serves
  /// that one connection and ends with it.
  @Test(
    .enabled(if: knowsPeers, "the kernel does not tell which process the peer of a socket is"),
    arguments: [FrontendRequest.setVringKick, .setVringCall, .setVringError, .setBackendRequestDescriptor])
  func aFrontEndsOwnEndOfAPairWithoutANameIsRefused(request: FrontendRequest) throws {
    try withConnectedProgram { frontend in
      _ = try frontend.handshake()
      let payload = request == .setBackendRequestDescriptor ? [] : Rig.word(0)
      let own = OwnedDescriptor(dup(frontend.descriptor))
      try frontend.send(Message(request, needReply: true, payload: payload, descriptors: [own]))
      #expect(try frontend.receive(after: request).payload == Rig.number(1))
    }
  }

  /// Nor does an incomplete message that nobody can complete any more keep the connection.
  @Test(.enabled(if: knowsPeers, "the kernel does not tell which process the peer of a socket is"))
  func aFrontEndsOwnEndInHalfAMessageIsNotWaitedOn() throws {
    try withConnectedProgram { frontend in
      let bytes = [UInt8](repeating: 1, count: 4)
      var own = frontend.descriptor
      #expect(unsafe clinux_send_with_fds(frontend.descriptor, bytes, bytes.count, &own, 1) == bytes.count)
    }
  }

  /// `vmm-blk serve` on one end of a socket pair, whose other end is closed after the body: it has to notice.
  private func withConnectedProgram(_ body: (Frontend) throws -> Void) throws {
    try withDirectory { directory in
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/disk"))
      var ends: (ours: OwnedDescriptor, theirs: OwnedDescriptor)? = socketPair()
      let program = try Program(
        ["serve", "--blk-file", directory + "/disk", "--fd", "0"],
        input: FileHandle(fileDescriptor: ends?.theirs.rawValue ?? -1, closeOnDealloc: false))
      do {
        let frontend = try Frontend(socket: #require(ends).ours)
        ends = nil
        frontend.patience = Patience.limit
        try body(frontend)
      }
      try wait(until: "the program has seen that its front-end is gone") { !program.process.isRunning }
      #expect(program.finish().status == 0)
    }
  }

  /// User-mode Linux passes a pipe as its call; sockets work as well.
  @Test func pipesAndSocketsAreCalls() throws {
    var ends: [Int32] = [-1, -1]
    try #require(unsafe pipe2(&ends, O_CLOEXEC) == 0)
    let (reading, writing) = (OwnedDescriptor(ends[0]), OwnedDescriptor(ends[1]))
    let (one, other) = socketPair()
    for (near, far) in [(writing, reading), (one, other)] {
      var rig = Rig()
      rig.bringUp(queues: 0)
      _ = rig.takeDeeds()
      rig.send(.setVringCall, Rig.word(0), [TestMemory.duplicate(near)], needReply: true)
      #expect(rig.takeReplies().last?.payload == Rig.number(0))
      #expect(rig.deeds == ["signal"])
      var byte: [UInt8] = [0]
      #expect(unsafe read(far.rawValue, &byte, 1) == 1)
    }
  }
}

@Suite struct ErrandTests {
  /// They run one after the other, on a helper that ends when none is left.
  @Test func errandsAreDoneInOrderAndLeaveNobody() {
    let queue = ErrandQueue()
    let done = Mutex<[Int]>([])
    for round in 0..<50 {
      for number in 0..<20 { queue.run { done.withLock { $0.append(round * 20 + number) } } }
      if round % 10 == 0 { #expect(eventually { queue.backlog == 0 }) }
    }
    #expect(eventually { queue.backlog == 0 })
    #expect(done.withLock(\.self) == Array(0..<1000))
  }

  /// A descriptor is closed by the queue, not by the thread that releases it.
  @Test func lettingGoOfADescriptorWaitsForNobody() {
    let queue = ErrandQueue()
    let gate = DispatchSemaphore(value: 0)
    queue.dispose { gate.wait() }
    let file = TestMemory.file("vhost-errand", size: 1)
    do { _ = OwnedDescriptor(dup(file.rawValue), closedBy: queue) }
    #expect(TestMemory.openDescriptors(named: "vhost-errand") == 2)
    gate.signal()
    #expect(eventually { TestMemory.openDescriptors(named: "vhost-errand") == 1 })
  }

  /// An errand that never returns holds up neither the loop nor other errands.
  @Test func theLoopGoesOnWhileAnErrandDoesNotComeBack() throws {
    let loop = try EventLoop()
    let (stuck, quick) = (ErrandQueue(), ErrandQueue())
    let gate = DispatchSemaphore(value: 0)
    var order: [String] = []
    let whenStuckIsBack = {
      order.append("stuck")
      loop.stop()
    }
    let whenQuickIsBack = { (number: Int) in
      order.append("quick \(number)")
      gate.signal()
    }
    loop.perform(on: stuck, { gate.wait() }, then: whenStuckIsBack)
    loop.perform(on: quick, { 7 }, then: whenQuickIsBack)
    try loop.run()
    #expect(order == ["quick 7", "stuck"])
  }
}
