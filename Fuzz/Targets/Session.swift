/// A vhost-user front-end that sends anything, with descriptors of every kind: the protocol, the mapping of the memory that it
/// hands over, and the start of the rings that it describes.
internal import CLinux
internal import Glibc

@testable internal import VhostUser
@testable internal import VirtioCore

func attackSession(_ shaper: inout Shaper) {
  Handed.open()
  let before = (Descriptors.open, AddressSpace.shared.reserved)
  do {
    var world = World(&shaper)
    var messages = 0
    while !shaper.isOver, messages < 64, !world.isClosed {
      messages += 1
      world.say(message(&shaper), &shaper)
    }
    world.checkAlive(&shaper)
  }
  check(Descriptors.open == before.0, "descriptors that a front-end sent were left open")
  check(AddressSpace.shared.reserved == before.1, "mappings of a front-end were leaked")
}

/// Descriptors that a front-end may hand over, which stay open here.
enum Handed {
  nonisolated(unsafe) private(set) static var numbers: [Int32] = []
  /// The largest memory file, as the front-end sees it.
  nonisolated(unsafe) private static var view: UnsafeMutableRawPointer?
  static let size = 1 << 20

  static func open() {
    guard unsafe numbers.isEmpty else { return }
    var list: [Int32] = []
    for bytes in [Self.size, 0x10000, 0x3000, 0] {
      let number = unsafe memfd_create("handed", UInt32(MFD_CLOEXEC))
      _ = ftruncate(number, off_t(bytes))
      list.append(number)
    }
    list += [eventfd(0, Int32(EFD_NONBLOCK)), eventfd(0, 0)]
    var pair: [Int32] = [0, 0]
    _ = unsafe pipe(&pair)
    list += pair
    _ = unsafe socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &pair)
    list += pair
    list += unsafe [
      clinux_open("/dev/null", O_RDWR, 0), clinux_open("/dev/zero", O_RDONLY, 0), clinux_open("/tmp", O_RDONLY, 0),
    ]
    check(list.allSatisfy { $0 >= 0 }, "the fuzzer has no descriptors")
    unsafe view = mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED, list[0], 0)
    unsafe numbers = list
  }

  /// A duplicate for the session to own. - Parameter kind: the index of the ordinary descriptor.
  static func take(_ shaper: inout Shaper, _ kind: Int) -> OwnedDescriptor {
    let number = unsafe shaper.mistake() ? numbers[shaper.choice(numbers.count)] : numbers[kind]
    return OwnedDescriptor(clinux_fcntl_int(number, F_DUPFD_CLOEXEC, 0))
  }

  static func poke(_ shaper: inout Shaper) {
    guard let view = unsafe view else { return }
    for _ in 0...shaper.choice(8) {
      unsafe view.storeBytes(
        of: shaper.flag() ? shaper.oddNumber() : UInt64(shaper.byte()), toByteOffset: Int(shaper.word16() & ~7), as: UInt64.self
      )
    }
  }
}

/// The environment of a session: its device, whose queues run without a disk, and the replies to the front-end.
struct World {
  private(set) var session: BackendSession
  private(set) var isClosed = false
  private var running: [Int: QueuePosition] = [:]
  private var channel: OwnedDescriptor?
  private var replies = 0
  /// The last reply.
  private var last: Message?

  init(_ shaper: inout Shaper) {
    let features: FeatureSet = [
      .version1, .eventIndex, .indirectDescriptors, .packedRing, .accessPlatform, .blockFlushBit,
    ]
    session = BackendSession(
      .init(
        features: features, queueCount: 1 + shaper.choice(4), maximumQueueSize: 256, memoryBudget: 4 << 20,
        publishesInOrder: shaper.choice(4) == 1))
  }

  init(_ session: BackendSession) { self.session = session }

  mutating func say(_ message: Message, _ shaper: inout Shaper) {
    switch shaper.choice(12) {
    case 1: session.configurationChanged()
    case 2: session.queueFailed(shaper.choice(session.rings.count))
    case 3: session.memoryIsMissing()
    case 4: Handed.poke(&shaper)
    case 5:
      let miss = TranslationMiss(
        address: odd(&shaper, userBase), access: MemoryAccess(rawValue: 1 + UInt8(truncatingIfNeeded: shaper.choice(3))))
      for effect in session.missed(queue: shaper.choice(session.rings.count), miss) { perform(effect, &shaper) }
    default: break
    }
    goOn(&shaper)
    guard !isClosed else { return }
    replies = 0
    session.receive(message)
    goOn(&shaper)
    check(replies <= 1, "one message was answered \(replies) times")
  }

  /// Checks that it still answers a correct message.
  mutating func checkAlive(_ shaper: inout Shaper) {
    guard !isClosed else { return }
    say(Message(.getFeatures), &shaper)
    check(isClosed || last?.payload.count == 8, "the features are no longer reported")
  }

  private mutating func goOn(_ shaper: inout Shaper) {
    var steps = 0
    while !isClosed, let effect = session.nextEffect() {
      steps += 1
      check(steps < 10_000, "a message is never finished")
      perform(effect, &shaper)
    }
  }

  private mutating func perform(_ effect: Effect, _ shaper: inout Shaper) {
    switch effect {
    case .reply(let message):
      replies += 1
      check(message.flags.rawValue == 5, "a reply has the flags \(message.flags.rawValue)")
      check(message.payload.count <= 512, "a reply has \(message.payload.count) bytes")
      last = message
    case .negotiate(let features):
      check(features.isSubset(of: session.device.features), "features were negotiated that are not on offer")
      session.negotiated(accepted: shaper.choice(16) != 1)
    case .map(let plan): session.mapped(plan.carryOut())
    case .mapLog(let plan): session.logMapped(plan.carryOut())
    case .createInflight(let queues, let size, let isPacked):
      check((1...session.rings.count).contains(queues), "records for \(queues) queues were asked for")
      session.inflightCreated(InflightPlan.create(queueCount: queues, queueSize: size, isPacked: isPacked))
    case .mapInflight(let plan): session.inflightMapped(plan.carryOut())
    case .forgetInflight(let memory, let queue): memory.forget(queue: queue)
    case .examine(let examination): session.examined(examination.carryOut())
    case .start(let activation): start(activation)
    case .stop(let queue):
      check(running[queue] != nil, "a queue was stopped that does not run")
      session.stopped(queue: queue, position: running.removeValue(forKey: queue))
    case .signal(let sink): sink.signal()
    case .readConfiguration(let offset, let count):
      check(offset >= 0 && count >= 0 && offset + count <= 256, "configuration was read at \(offset), \(count) bytes")
      session.configurationRead(Array(repeating: 0x5a, count: min(count, 96)))
    case .writeConfiguration(let offset, let bytes, _):
      check(offset >= 0 && offset + bytes.count <= 256, "configuration was written at \(offset)")
      session.configurationWritten(offset == 32)
    case .openChannel(let socket): channel = socket
    case .close: isClosed = true
    case .replaceCall(let queue, _), .replaceFailure(let queue, _):
      check(running[queue] != nil, "a queue that does not run received an update")
    case .translate(let queue, let translations, _):
      check(running[queue] != nil, "a queue that does not run received an update")
      check(translations.count <= session.translations.pieces, "translations grow without a limit")
    case .withdraw(let queues, _):
      check(queues.allSatisfy { running[$0] != nil }, "translations were withdrawn from a queue that does not run")
      session.withdrawn()
    case .resetDevice: check(running.isEmpty, "a device with queues was reset")
    case .send, .refused, .queueRefused: break
    }
  }

  /// A queue without a disk: its ring is created, and the available chains are taken and returned.
  private mutating func start(_ activation: Activation) {
    check(running[activation.queue] == nil, "a queue was started that runs")
    check(!activation.isHeld, "the queue of a front-end is held")
    do throws(QueueError) {
      let record = activation.inflight.map { InflightRecord($0, queue: activation.queue) }
      running[activation.queue] =
        switch (activation.features.contains(.packedRing), record == nil) {
        case (false, true): try run(SplitQueue.self, activation, nil)
        case (false, false): try run(RecordedSplitQueue.self, activation, record)
        case (true, true): try run(PackedQueue.self, activation, nil)
        case (true, false): try run(RecordedPackedQueue.self, activation, record)
        }
      session.started(queue: activation.queue, failure: nil)
    } catch { session.started(queue: activation.queue, failure: error) }
  }

  private func run<Ring: Virtqueue & ~Copyable>(
    _ type: Ring.Type, _ activation: Activation, _ record: InflightRecord?
  ) throws(QueueError) -> QueuePosition {
    var ring = try Ring(
      activation.configuration, memory: activation.memory, features: activation.features, position: activation.position,
      record: record)
    let segments = UnsafeMutablePointer<MemorySegment>.allocate(capacity: 65)
    defer { unsafe segments.deallocate() }
    var shape = unsafe ChainShape(at: segments)
    // A chain that cannot be taken stops a running queue, which is not tested here.
    do throws(QueueError) {
      while ring.interrupted > 0, let chain = unsafe try ring.retake(into: segments, capacity: 64, shape: &shape) {
        ring.push(chain, written: 0)
      }
      for _ in 0..<32 {
        guard let chain = unsafe try ring.pop(into: segments, capacity: 64, shape: &shape) else { break }
        ring.push(chain, written: 0)
      }
    } catch {}
    ring.publish()
    _ = ring.needsCall()
    return ring.position
  }
}

extension FeatureSet {
  /// VIRTIO_BLK_F_FLUSH.
  fileprivate static let blockFlushBit = FeatureSet(bit: 9)
}

// MARK: Messages of a front-end

/// A message as front-ends send it, or nearly.
private func message(_ shaper: inout Shaper) -> Message {
  let needReply = shaper.flag()
  let index = shaper.mistake() ? shaper.word32() : UInt32(shaper.choice(4))
  let kinds: [FrontendRequest] = [
    .getFeatures, .setFeatures, .setMemoryTable, .setVringSize, .setVringAddress, .setVringBase, .setVringKick, .setVringCall,
    .setVringEnable, .getVringBase, .setProtocolFeatures, .addMemoryRegion, .removeMemoryRegion, .setLogBase, .getInflight,
    .setInflight, .setVringError, .getConfiguration, .setConfiguration, .setBackendRequestDescriptor, .setStatus, .getStatus,
    .resetDevice, .resetOwner, .setOwner, .getQueueCount, .getProtocolFeatures, .getMaximumMemorySlots, .iotlb, .iotlb,
  ]
  var request = shaper.pick(kinds).rawValue
  if shaper.mistake() { request = UInt32(shaper.byte()) }
  var (payload, descriptors): ([UInt8], [OwnedDescriptor]) = ([], [])
  switch FrontendRequest(rawValue: request) {
  case .setFeatures:
    var features = UInt64(1) << 32 | 1 << 30 | 1 << 29 | 1 << 28
    if shaper.choice(4) == 1 { features |= 1 << 34 }
    if shaper.choice(4) == 1 { features |= 1 << 26 }
    if shaper.choice(4) == 1 { features |= 1 << 33 }
    if shaper.choice(4) == 1 { features &= ~(1 << 30) }
    payload = NumberPayload.encode(shaper.mistake() ? shaper.oddNumber() : features)
  case .setProtocolFeatures:
    payload = NumberPayload.encode(shaper.mistake() ? shaper.oddNumber() : ProtocolFeatures.served.rawValue)
  case .setMemoryTable:
    let regions = (0..<1 + shaper.choice(4)).map { region(&shaper, $0) }
    payload = MemoryRegion.encode(table: regions)
    descriptors = regions.map { _ in Handed.take(&shaper, 0) }
  case .addMemoryRegion:
    payload = region(&shaper, shaper.choice(8)).singleBytes
    descriptors = [Handed.take(&shaper, 0)]
  case .removeMemoryRegion: payload = region(&shaper, shaper.choice(8)).singleBytes
  case .setVringSize:
    payload = VringState(index: index, number: shaper.mistake() ? shaper.word32() : 1 << UInt32(shaper.choice(9))).bytes
  case .setVringBase, .getVringBase:
    payload = VringState(index: index, number: shaper.choice(4) == 1 ? shaper.word32() : 0).bytes
  case .setVringEnable:
    payload = VringState(index: index, number: shaper.mistake() ? shaper.word32() : 1 &- UInt32(shaper.choice(2))).bytes
  case .setVringAddress:
    let base = userBase + UInt64(index & 3) * 0x4000
    payload =
      VringAddress(
        index: index, flags: shaper.choice(4) == 1 ? 1 : 0, descriptorTable: odd(&shaper, base),
        usedRing: odd(&shaper, base + 0x2000),
        availableRing: odd(&shaper, base + 0x1000), log: odd(&shaper, 0x2000)
      ).bytes
  case .setVringKick, .setVringCall, .setVringError:
    let has = shaper.choice(8) != 1
    payload = VringDescriptorWord(index: UInt8(truncatingIfNeeded: index), hasDescriptor: has).bytes
    if has { descriptors = [Handed.take(&shaper, 4)] }
  case .setLogBase:
    payload = SharedArea(size: odd(&shaper, 0x1000), offset: odd(&shaper, 0)).bytes
    descriptors = [Handed.take(&shaper, 1)]
  case .getInflight, .setInflight:
    payload =
      InflightDescription(
        byteCount: odd(&shaper, 0x8000), offset: odd(&shaper, 0),
        queueCount: shaper.mistake() ? shaper.word16() : 1 + UInt16(shaper.choice(4)),
        queueSize: shaper.mistake() ? shaper.word16() : 1 << UInt16(shaper.choice(9))
      ).bytes
    if request == FrontendRequest.setInflight.rawValue { descriptors = [Handed.take(&shaper, 0)] }
  case .getConfiguration, .setConfiguration:
    payload =
      ConfigurationPayload(
        offset: shaper.mistake() ? shaper.word32() : UInt32(shaper.choice(96)),
        flags: shaper.mistake() ? shaper.word32() : UInt32(shaper.choice(3)), contents: shaper.bytes(upTo: 96)
      ).bytes
  case .setBackendRequestDescriptor: descriptors = [Handed.take(&shaper, 8)]
  case .iotlb:
    // Identity translations, or nearly.
    let place = UInt64(shaper.choice(8)) * 0x10000
    payload =
      TranslationMessage(
        address: odd(&shaper, userBase + place), size: odd(&shaper, shaper.flag() ? 0x10000 : 0x1000),
        userAddress: odd(&shaper, userBase + place),
        permission: shaper.mistake() ? shaper.byte() : UInt8(truncatingIfNeeded: 1 + shaper.choice(3)),
        type: shaper.mistake() ? shaper.byte() : UInt8(truncatingIfNeeded: 2 + shaper.choice(2))
      ).bytes
  case .setStatus: payload = NumberPayload.encode(shaper.mistake() ? shaper.oddNumber() : UInt64(shaper.choice(16)))
  default: if shaper.mistake() { payload = shaper.bytes(upTo: 64) }
  }
  if shaper.mistake() {
    payload = shaper.flag() ? Array(payload.dropLast(shaper.choice(64))) : payload + shaper.bytes(upTo: 64)
  }
  if shaper.mistake(), !payload.isEmpty { payload[shaper.choice(min(payload.count, 256))] = shaper.byte() }
  if shaper.mistake() { descriptors = (0..<shaper.choice(12)).map { Handed.take(&shaper, $0) } }
  return Message(
    request: request, flags: needReply ? [.version1, .needReply] : .version1, payload: payload, descriptors: descriptors)
}

/// Where the front-end has its memory.
private let userBase: UInt64 = 0x7f00_0000_0000

private func odd(_ shaper: inout Shaper, _ ordinary: UInt64) -> UInt64 {
  guard shaper.mistake() else { return ordinary }
  return shaper.flag() ? ordinary &+ UInt64(shaper.byte()) : shaper.oddNumber()
}

private func region(_ shaper: inout Shaper, _ number: Int) -> MemoryRegion {
  let place = UInt64(number) * 0x10000
  return MemoryRegion(
    guestAddress: GuestAddress(odd(&shaper, place)), size: odd(&shaper, 0x10000), userAddress: odd(&shaper, userBase + place),
    offset: odd(&shaper, place))
}
