/// Both ends over real sockets.
import CLinux
import Foundation
import Synchronization
import TestSupport
import Testing
import VirtioCore

@testable import Sockets
@testable import VhostUser

extension Frontend {
  /// Sets up `queues` running rings over one memory file.
  fileprivate func bringUp(queues: Int, memory: OwnedDescriptor, base: UInt32 = 0) throws {
    let offer = try handshake()
    try setFeatures(offer.features)
    try setMemory([FrontendRegion(Rig.region(), descriptor: memory)])
    for queue in 0..<queues { try start(Self.queue(queue, base: base)) }
  }

  fileprivate static func queue(_ index: Int, base: UInt32 = 0, error: OwnedDescriptor? = nil) -> FrontendQueue {
    let address = Rig.address(UInt32(index))
    return FrontendQueue(
      index: UInt8(index), size: 128, descriptorTable: address.descriptorTable, availableRing: address.availableRing,
      usedRing: address.usedRing, base: base, kick: eventCounter(), call: eventCounter(), error: error)
  }
}

@Suite struct ServerTests {
  private let device = FakeDevice()
  private let memory = TestMemory.file("vhost-server", size: Int(Rig.memorySize))

  @Test func wholeLifeOfAConnection() throws {
    try withDirectory { directory in
      let server = RunningServer(device, path: directory + "/disk.sock")
      defer { server.close() }
      let frontend = try Frontend(connectingTo: directory + "/disk.sock")
      let offer = try frontend.handshake()
      #expect(offer.features == Rig.features)
      #expect(offer.protocolFeatures == .served)
      #expect(offer.queueCount == 4)
      #expect(offer.memorySlots == 509)
      #expect(try frontend.configuration(at: 0, count: 60) == (0..<60).map { UInt8($0) })
      try frontend.setConfiguration(at: 32, [0])
      #expect(try frontend.configuration(at: 32, count: 1) == [0])
      #expect(throws: FrontendError.refused(.setConfiguration)) { try frontend.setConfiguration(at: 0, [1]) }
      // A migration writes the unchanged configuration.
      try frontend.setConfiguration(at: 0, [0, 1, 2, 3], flags: 1)
      #expect(throws: FrontendError.refused(.getConfiguration)) { try frontend.configuration(at: 200, count: 100) }
      try frontend.setFeatures(offer.features)
      try frontend.setStatus([.acknowledge, .driver, .featuresOK, .driverOK])
      #expect(try frontend.status().rawValue == 15)
      try frontend.setMemory([FrontendRegion(Rig.region(), descriptor: memory)])
      try frontend.start(Frontend.queue(0))
      try frontend.start(Frontend.queue(3))
      #expect(device.running == [0, 3])
      #expect(try frontend.stop(queue: 0) == 1)
      #expect(device.running == [3])
      try frontend.resetDevice()
      #expect(device.running.isEmpty)
      #expect(device.deeds == ["start 0 at 0", "start 3 at 0", "stop 0", "stop 3", "reset"])
    }
  }

  /// The activation has the front-end's own eventfd, and its memory is the front-end's.
  @Test func deviceGetsWorkingKickCallAndMemory() throws {
    try withDirectory { directory in
      let server = RunningServer(device, path: directory + "/disk.sock")
      defer { server.close() }
      let frontend = try Frontend(connectingTo: directory + "/disk.sock")
      let queue = Frontend.queue(0)
      let offer = try frontend.handshake()
      try frontend.setFeatures(offer.features)
      try frontend.setMemory([FrontendRegion(Rig.region(0x4000), descriptor: memory)])
      try frontend.start(queue)
      let activation = try #require(device.state.withLock { $0.activations[0] })
      activation.call.signal()
      // One signal for the new call descriptor, one for this.
      #expect(EventCounter.drain(queue.call?.rawValue ?? -1) == 2)
      let mark: [UInt8] = [0x5a]
      _ = unsafe mark.withUnsafeBytes { unsafe pwrite(memory.rawValue, $0.baseAddress, 1, 0x100) }
      var view = activation.memory.view()
      #expect(unsafe view.contiguous(GuestAddress(0x4100), count: 1)?.base.load(as: UInt8.self) == 0x5a)
      EventCounter.signal(queue.kick?.rawValue ?? -1)
      guard case .eventCounter(let kick) = activation.kick else {
        Issue.record("the kick is not an eventfd")
        return
      }
      #expect(EventCounter.drain(kick.rawValue) == 1)
    }
  }

  /// Row 36: a front-end that disconnects leaves nothing running, and the next one finds the server ready.
  @Test func frontEndsComeAndGo() throws {
    try withDirectory { directory in
      let server = RunningServer(device, path: directory + "/disk.sock")
      defer { server.close() }
      for round in 0..<20 {
        do {
          let frontend = try Frontend(connectingTo: directory + "/disk.sock")
          try frontend.bringUp(queues: 2, memory: memory, base: UInt32(round))
          #expect(device.running == [0, 1])
        }
        #expect(eventually { device.running.isEmpty })
      }
      #expect(device.deeds.filter { $0.hasPrefix("stop") }.count == 40)
      // The same features are negotiated every time: the device was asked once, and kept its configuration.
      #expect(device.state.withLock(\.negotiations) == 1)
      #expect(eventually { server.log.events.filter { $0 == .disconnected }.count == 20 })
      // Only the test's own descriptor is left; the server has released the memory.
      #expect(eventually { TestMemory.openDescriptors(named: "vhost-server") <= 1 })
    }
  }

  /// A second front-end waits until the first is gone.
  @Test func oneFrontEndAtATime() throws {
    try withDirectory { directory in
      let server = RunningServer(device, path: directory + "/disk.sock")
      defer { server.close() }
      var first: Frontend? = try Frontend(connectingTo: directory + "/disk.sock")
      _ = try first?.handshake()
      let second = try Frontend(connectingTo: directory + "/disk.sock")
      try second.send(Message(.getFeatures))
      second.patience = .milliseconds(50)
      #expect(throws: FrontendError.timedOut(waitingFor: .getFeatures, seconds: 0.05)) {
        _ = try second.receive(after: .getFeatures)
      }
      second.patience = Patience.limit
      first = nil
      #expect(try second.receive(after: .getFeatures).payload.count == 8)
    }
  }

  @Test func bytesThatTrickleInAreAMessage() throws {
    let (ours, theirs) = socketPair()
    let server = connected(theirs)
    defer { server.close() }
    let kick = Message(.setVringKick, payload: Rig.word(0), descriptors: [eventCounter()])
    for (index, byte) in (Message(.getFeatures).bytes + kick.bytes + Message(.getStatus).bytes).enumerated() {
      let descriptors = index == MessageHeader.size ? kick.descriptors.map(\.rawValue) : []
      #expect(unsafe clinux_send_with_fds(ours.rawValue, [byte], 1, descriptors, descriptors.count) == 1)
      usleep(200)
    }
    let frontend = Frontend(socket: ours)
    #expect(try frontend.receive(after: .getFeatures).request == 1)
    #expect(try frontend.receive(after: .getStatus).request == 40)
    #expect(!server.log.contains { if case .messageRefused = $0 { true } else { false } })
  }

  /// Many messages in one write, with a descriptor for one in the middle.
  @Test func messagesInOneGo() throws {
    let (ours, theirs) = socketPair()
    let server = connected(theirs)
    defer { server.close() }
    let bytes = (0..<50).flatMap { _ in Message(.getQueueCount).bytes }
    #expect(unsafe clinux_send_with_fds(ours.rawValue, bytes, bytes.count, [], 0) == bytes.count)
    let frontend = Frontend(socket: ours)
    for _ in 0..<50 { #expect(try frontend.receive(after: .getQueueCount).payload == Rig.number(4)) }
  }

  /// A front-end that never reads its replies gets only as many as its socket buffers, and the server waits without spinning.
  @Test func repliesThatNobodyReads() throws {
    let (ours, theirs) = socketPair()
    let server = connected(theirs)
    let request = Message(.getConfiguration, payload: Recipe.configuration256).bytes
    var sent = 0
    while unsafe clinux_send_with_fds(ours.rawValue, request, request.count, [], 0) == request.count && sent < 20_000 {
      sent += 1
    }
    let frontend = Frontend(socket: ours)
    // A partly sent message would not be answered; count the answers to whole ones.
    for _ in 0..<min(sent, 500) {
      #expect(try frontend.receive(after: .getConfiguration).payload.count == 268)
    }
    server.close()
  }

  /// A front-end that is slow in the middle of a message does not delay others.
  @Test func slowSenderKeepsNobodyWaiting() throws {
    try withDirectory { directory in
      let other = FakeDevice()
      let device = device
      let server = RunningServer { loop, log in
        try [(device, "/one.sock"), (other, "/two.sock")].map { device, name in
          BackendServer(device: device, on: .listening(try Listener(path: directory + name)), in: loop) {
            log.append($0)
          }
        }
      }
      defer { server.close() }
      let slow = try Frontend(connectingTo: directory + "/one.sock")
      let half = Array(Message(.setFeatures, payload: Rig.number(0)).bytes.prefix(15))
      #expect(unsafe clinux_send_with_fds(slow.descriptor, half, half.count, [], 0) == half.count)
      let quick = try Frontend(connectingTo: directory + "/two.sock")
      try quick.bringUp(queues: 4, memory: memory)
      #expect(other.running == [0, 1, 2, 3])
    }
  }

  /// Invalid bytes end the connection, and nothing else.
  @Test(
    arguments: [
      (name: "version 2", bytes: [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]),
      (name: "version 0", bytes: [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
      (name: "a payload of 4 GiB", bytes: [5, 0, 0, 0, 1, 0, 0, 0, 255, 255, 255, 255]),
      (name: "a payload larger than any", bytes: [5, 0, 0, 0, 1, 0, 0, 0, 0xa9, 0x1f, 0, 0]),
      (name: "half a header", bytes: [1, 0, 0, 0, 1]),
    ] as [(name: String, bytes: [UInt8])])
  func nonsenseEndsTheConnection(nonsense: (name: String, bytes: [UInt8])) throws {
    try withDirectory { directory in
      let server = RunningServer(device, path: directory + "/disk.sock")
      defer { server.close() }
      do {
        let frontend = try Frontend(connectingTo: directory + "/disk.sock")
        try frontend.bringUp(queues: 1, memory: memory)
        let file = TestMemory.file("vhost-nonsense", size: 1)
        let sent = unsafe clinux_send_with_fds(
          frontend.descriptor, nonsense.bytes, nonsense.bytes.count, [file.rawValue], 1)
        #expect(sent == nonsense.bytes.count)
      }
      #expect(eventually { server.log.contains { if case .connectionFailed = $0 { true } else { false } } })
      #expect(eventually { device.running.isEmpty })
      let next = try Frontend(connectingTo: directory + "/disk.sock")
      #expect(try next.handshake().queueCount == 4)
    }
  }

  @Test func refusedMessageEndsTheConnectionWhereItCannotBeTold() throws {
    try withDirectory { directory in
      let server = RunningServer(device, path: directory + "/disk.sock")
      defer { server.close() }
      let frontend = try Frontend(connectingTo: directory + "/disk.sock")
      _ = try frontend.handshake(wanting: .configuration)
      #expect(throws: FrontendError.closed(during: .getStatus)) {
        try frontend.setMemory([FrontendRegion(Rig.region(size: 1 << 40), descriptor: memory)])
        _ = try frontend.status()
      }
      #expect(
        eventually { server.log.contains { if case .connectionEnded(request: 5, _) = $0 { true } else { false } } })
    }
  }

  /// Row 35 and similar ones over the socket: refused, reported, and the other queue is not affected.
  @Test func refusedMessageIsToldAndTheRestGoesOn() throws {
    try withDirectory { directory in
      let server = RunningServer(device, path: directory + "/disk.sock")
      defer { server.close() }
      let frontend = try Frontend(connectingTo: directory + "/disk.sock")
      try frontend.bringUp(queues: 1, memory: memory)
      #expect(throws: FrontendError.refused(.setVringSize)) { try frontend.setSize(queue: 4, 128) }
      #expect(throws: FrontendError.refused(.setVringEnable)) { try frontend.setEnabled(queue: 200, true) }
      #expect(throws: FrontendError.refused(.setMemoryTable)) {
        try frontend.setMemory([FrontendRegion(Rig.region(size: 1 << 40), descriptor: memory)])
      }
      #expect(device.running == [0])
    }
  }

  @Test func configurationChangeGoesOverTheChannel() throws {
    try withDirectory { directory in
      let server = RunningServer(device, path: directory + "/disk.sock")
      defer { server.close() }
      let frontend = try Frontend(connectingTo: directory + "/disk.sock")
      try frontend.bringUp(queues: 1, memory: memory)
      let channel = try frontend.openBackendChannel()
      #expect(try channel.next() == nil)
      device.raise(.configurationChanged)
      var said: UInt32?
      #expect(
        eventually {
          said = try? channel.next()
          return said != nil
        })
      #expect(said == BackendRequest.configurationChanged.rawValue)
      #expect(try channel.next() == nil)
    }
  }

  @Test func queueFailureIsReportedOnce() throws {
    try withDirectory { directory in
      let server = RunningServer(device, path: directory + "/disk.sock")
      defer { server.close() }
      let frontend = try Frontend(connectingTo: directory + "/disk.sock")
      try frontend.bringUp(queues: 2, memory: memory)
      device.raise(.queueFailed(queue: 1, .headOutOfRange(300)))
      #expect(eventually { server.log.contains { $0 == .queueFailed(queue: 1, .headOutOfRange(300)) } })
      #expect(try frontend.status().contains(.needsReset))
      #expect(device.running.contains(0))
    }
  }

  /// A failure that the loop learns of only after the queue was restarted does not count against the new run.
  @Test func failureBelongsToTheRunInWhichItHappened() throws {
    try withDirectory { directory in
      let server = RunningServer(device, path: directory + "/disk.sock")
      defer { server.close() }
      let frontend = try Frontend(connectingTo: directory + "/disk.sock")
      try frontend.bringUp(queues: 1, memory: memory)
      // Not noticed yet, because its eventfd is not signalled.
      device.state.withLock { $0.events.append(.queueFailed(queue: 0, .headOutOfRange(1))) }
      try frontend.setKick(queue: 0, eventCounter())
      #expect(device.running == [0])
      // The new run is not failed: it continues after a change of memory.
      try frontend.addMemory(FrontendRegion(Rig.region(1 << 32, size: 0x1000, user: 0x1000), descriptor: memory))
      #expect(device.running == [0])
      #expect(server.log.events.filter { if case .queueFailed = $0 { true } else { false } }.count == 1)
    }
  }

  /// A front-end that hot-plugs changes memory under running queues.
  @Test func memoryComesAndGoesUnderRunningQueues() throws {
    try withDirectory { directory in
      let server = RunningServer(device, path: directory + "/disk.sock")
      defer { server.close() }
      let frontend = try Frontend(connectingTo: directory + "/disk.sock")
      try frontend.bringUp(queues: 1, memory: memory)
      let extra = Rig.region(1 << 32, size: 0x1000, user: 0x1000)
      try frontend.addMemory(FrontendRegion(extra, descriptor: memory))
      #expect(device.state.withLock { $0.activations[0]?.memory.regions.count } == 2)
      try frontend.removeMemory(extra)
      #expect(device.state.withLock { $0.activations[0]?.memory.regions.count } == 1)
      #expect(device.deeds == ["start 0 at 0", "stop 0", "start 0 at 1", "stop 0", "start 0 at 2"])
    }
  }

  /// As on SIGTERM: queues are stopped, the socket is removed, the front-end's connection is closed.
  @Test func closingStopsQueuesAndRemovesTheSocket() throws {
    try withDirectory { directory in
      let path = directory + "/disk.sock"
      let server = RunningServer(device, path: path)
      let frontend = try Frontend(connectingTo: path)
      try frontend.bringUp(queues: 3, memory: memory)
      server.close()
      #expect(device.running.isEmpty)
      #expect(throws: FrontendError.closed(during: .getFeatures)) { _ = try frontend.features() }
      #expect(!FileManager.default.fileExists(atPath: path))
    }
  }

  /// A server with a connected socket ends with its front-end.
  @Test func connectedSocketIsServedUntilItsEnd() throws {
    let (ours, theirs) = socketPair()
    let finished = EventLog()
    let device = device
    let server = RunningServer { loop, log in
      let server = BackendServer(device: device, on: .connected(theirs), in: loop) { log.append($0) }
      server.finished = { finished.append(.disconnected) }
      return [server]
    }
    defer { server.close() }
    do {
      let frontend = Frontend(socket: ours)
      try frontend.bringUp(queues: 1, memory: memory)
      shutdown(frontend.descriptor, Int32(SHUT_RDWR))
    }
    #expect(eventually { finished.events == [.disconnected] })
    #expect(device.running.isEmpty)
  }

  private func connected(_ socket: OwnedDescriptor) -> RunningServer {
    let device = device
    return RunningServer { loop, log in
      [BackendServer(device: device, on: .connected(socket), in: loop) { log.append($0) }]
    }
  }
}
