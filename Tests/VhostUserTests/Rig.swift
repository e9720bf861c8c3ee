/// A session with a simulated environment: actions are recorded, answers can be chosen.
import CLinux
import Glibc
import SystemPackage
import TestSupport
import Testing
import VirtioCore

@testable import VhostUser

/// Files of guest memory whose names can be found in /proc, to see who still has them open.
enum TestMemory {
  static func file(_ name: String, size: Int) -> OwnedDescriptor {
    let descriptor = unsafe memfd_create(name, UInt32(MFD_CLOEXEC))
    precondition(descriptor >= 0 && ftruncate(descriptor, size) == 0)
    return OwnedDescriptor(descriptor)
  }

  /// How many descriptors of this process refer to the memory file with that name.
  static func openDescriptors(named name: String) -> Int {
    guard let directory = unsafe opendir("/proc/self/fd") else { return -1 }
    defer { unsafe closedir(directory) }
    var found = 0
    while let entry = unsafe readdir(directory) {
      let number = unsafe withUnsafePointer(to: &entry.pointee.d_name) { name in
        unsafe name.withMemoryRebound(to: CChar.self, capacity: 256) { unsafe String(cString: $0) }
      }
      var room = [UInt8](repeating: 0, count: 256)
      let count = unsafe room.withUnsafeMutableBytes { bytes in
        unsafe readlink("/proc/self/fd/" + number, bytes.baseAddress!.assumingMemoryBound(to: CChar.self), 256)
      }
      guard count > 0 else { continue }
      if String(decoding: room[..<count], as: UTF8.self).hasPrefix("/memfd:\(name) ") { found += 1 }
    }
    return found
  }

  static func duplicate(_ descriptor: OwnedDescriptor) -> OwnedDescriptor {
    OwnedDescriptor(dup(descriptor.rawValue))
  }
}

/// Runs a session against a device that does as the test prescribes.
struct Rig {
  static let features: FeatureSet = [.version1, .eventIndex, .indirectDescriptors]
  var session: BackendSession
  /// What the session asked for, in order, in words.
  var deeds: [String] = []
  var replies: [Message] = []
  var activations: [Activation] = []
  /// Why queues fail to start; `nil`: they start.
  var startFailure: QueueError?
  var acceptsFeatures = true
  var writable = true
  /// How far each running queue has progressed when it is stopped.
  var progress: UInt16 = 5
  var running: Set<Int> = []
  /// Translations that were requested, in order.
  var questions: [TranslationMiss] = []
  /// Queues do not release withdrawn translations.
  var holdsWithdrawals = false { didSet { isHeld = isHeld && holdsWithdrawals } }
  private var isHeld = false
  /// Records that were cleared: of one queue, or of all (`nil`).
  var forgotten: [Int?] = []
  /// Bytes written to the configuration space.
  var written: [Int: UInt8] = [:]
  /// Other features were negotiated with the device before.
  var replacesChoice = false
  /// The last withdrawal.
  var withdrawal: Withdrawal?

  init(
    queues: Int = 2, features: FeatureSet = Rig.features, maximumQueueSize: UInt16 = 1024, memoryBudget: UInt64 = .max,
    publishesInOrder: Bool = false
  ) {
    session = BackendSession(
      .init(
        features: features, queueCount: queues, maximumQueueSize: maximumQueueSize, memoryBudget: memoryBudget,
        publishesInOrder: publishesInOrder))
  }

  mutating func send(
    _ request: FrontendRequest, _ payload: [UInt8] = [], _ descriptors: [OwnedDescriptor] = [], needReply: Bool = false
  ) {
    send(Message(request, needReply: needReply, payload: payload, descriptors: descriptors))
  }

  mutating func send(_ message: Message) {
    session.receive(message)
    run()
  }

  mutating func run() {
    while !isHeld, let effect = session.nextEffect() { perform(effect) }
  }

  /// The replies since the last call.
  mutating func takeReplies() -> [Message] {
    defer { replies = [] }
    return replies
  }

  mutating func takeDeeds() -> [String] {
    defer { deeds = [] }
    return deeds
  }

  /// Runs effects that do not come from messages. - Returns: them in words.
  mutating func words(_ effects: [Effect]) -> [String] {
    effects.map { effect in
      switch effect {
      case .translate(let queue, _, _): "translate \(queue)"
      case .send(let message): "ask \(TranslationMessage(decoding: message.payload)?.address ?? 0)"
      default: "\(effect)"
      }
    }
  }

  private mutating func perform(_ effect: Effect) {
    switch effect {
    case .reply(let message): replies.append(message)
    case .negotiate(let features):
      deeds.append("negotiate \(features)")
      session.negotiated(accepted: acceptsFeatures, replaces: replacesChoice)
    case .map(let plan):
      let result = plan.carryOut()
      if case .success(let table) = result { deeds.append("map \(table.regions.count)") }
      session.mapped(result)
    case .mapLog(let plan):
      let result = plan.carryOut()
      if case .success = result { deeds.append("map log") }
      session.logMapped(result)
    case .createInflight(let queueCount, let queueSize, let isPacked):
      deeds.append("records for \(queueCount) of \(queueSize)")
      session.inflightCreated(InflightPlan.create(queueCount: queueCount, queueSize: queueSize, isPacked: isPacked))
    case .mapInflight(let plan): session.inflightMapped(plan.carryOut())
    case .forgetInflight(let memory, let queue):
      forgotten.append(queue)
      memory.forget(queue: queue)
    case .examine(let examination): session.examined(examination.carryOut())
    case .start(let activation):
      #expect(running.insert(activation.queue).inserted, "a queue that runs was started")
      activations.append(activation)
      deeds.append("start \(activation.queue) at \(activation.position.available)")
      if startFailure != nil { running.remove(activation.queue) }
      session.started(queue: activation.queue, failure: startFailure)
    case .stop(let queue):
      #expect(running.remove(queue) != nil, "a queue that does not run was stopped")
      deeds.append("stop \(queue)")
      session.stopped(queue: queue, position: QueuePosition(available: progress, used: progress))
    case .translate(let queue, _, let refused): deeds.append("\(refused == nil ? "translate" : "refuse") \(queue)")
    case .withdraw(let queues, let withdrawal):
      #expect(running.isSuperset(of: queues))
      self.withdrawal = withdrawal
      deeds.append("withdraw from " + queues.map(String.init).joined(separator: ", "))
      isHeld = holdsWithdrawals
      if !isHeld { session.withdrawn() }
    case .send(let message) where message.request == BackendRequest.translation.rawValue:
      guard let asked = TranslationMessage(decoding: message.payload), asked.type == 1 else {
        Issue.record("not a translation request")
        return
      }
      questions.append(TranslationMiss(address: asked.address, access: MemoryAccess(rawValue: asked.permission)))
    case .replaceCall(let queue, _): deeds.append("call \(queue)")
    case .replaceFailure(let queue, _): deeds.append("err \(queue)")
    case .signal(let sink):
      if case .none = sink { return }
      deeds.append("signal")
      sink.signal()
    case .readConfiguration(let offset, let count):
      // Sixty bytes, each with its own offset as its value.
      session.configurationRead((offset..<offset + count).map { written[$0] ?? ($0 < 60 ? UInt8($0) : 0) })
    case .writeConfiguration(let offset, let bytes, let restores):
      deeds.append("write \(bytes.count) at \(offset)" + (restores ? " restoring" : ""))
      if writable { for (place, byte) in bytes.enumerated() { written[offset + place] = byte } }
      session.configurationWritten(writable)
    case .resetDevice: deeds.append("reset")
    case .openChannel: deeds.append("channel")
    case .send(let message): deeds.append("say \(message.request)")
    case .refused(let request, _): deeds.append("refused \(request)")
    case .queueRefused(let queue, _): deeds.append("cannot start \(queue)")
    case .close: deeds.append("close")
    }
  }
}

// MARK: What front-ends send

extension Rig {
  static let userBase: UInt64 = 0x7f00_0000_0000
  static let memorySize: UInt64 = 0x10_0000

  static func number(_ value: UInt64) -> [UInt8] { NumberPayload.encode(value) }

  static func state(_ index: UInt32, _ number: UInt32) -> [UInt8] { VringState(index: index, number: number).bytes }

  static func word(_ index: UInt8, hasDescriptor: Bool = true) -> [UInt8] {
    VringDescriptorWord(index: index, hasDescriptor: hasDescriptor).bytes
  }

  /// A queue's ring parts inside the first region, 64 KiB per queue.
  static func address(_ index: UInt32, base: UInt64 = userBase) -> VringAddress {
    let start = base + UInt64(index) * 0x1_0000
    return VringAddress(
      index: index, descriptorTable: start, usedRing: start + 0x8000, availableRing: start + 0x4000)
  }

  static func region(
    _ guest: UInt64 = 0, size: UInt64 = memorySize, user: UInt64 = userBase, offset: UInt64 = 0
  ) -> MemoryRegion {
    MemoryRegion(guestAddress: GuestAddress(guest), size: size, userAddress: user, offset: offset)
  }

  mutating func setMemory(_ regions: [MemoryRegion] = [region()], file: OwnedDescriptor? = nil, needReply: Bool = false) {
    let file = file ?? TestMemory.file("vhost-rig", size: Int(Rig.memorySize) * 2)
    send(
      .setMemoryTable, MemoryRegion.encode(table: regions), regions.map { _ in TestMemory.duplicate(file) },
      needReply: needReply)
  }

  /// Sets everything up until the queues run, with acknowledgements if `acks`.
  mutating func bringUp(queues: Int = 2, features: FeatureSet = Rig.features, acks: Bool = false) {
    send(.setOwner)
    send(.getFeatures)
    send(.setProtocolFeatures, Rig.number(ProtocolFeatures.served.rawValue))
    send(.setFeatures, Rig.number(features.union(.protocolFeatures).rawValue), needReply: acks)
    setMemory(needReply: acks)
    for queue in 0..<queues {
      let index = UInt32(queue)
      send(.setVringSize, Rig.state(index, 128), needReply: acks)
      send(.setVringBase, Rig.state(index, 0), needReply: acks)
      send(.setVringAddress, Rig.address(index).bytes, needReply: acks)
      send(.setVringCall, Rig.word(UInt8(queue)), [eventCounter()], needReply: acks)
      send(.setVringError, Rig.word(UInt8(queue)), [eventCounter()], needReply: acks)
      send(.setVringKick, Rig.word(UInt8(queue)), [eventCounter()], needReply: acks)
      send(.setVringEnable, Rig.state(index, 1), needReply: acks)
    }
  }
}
