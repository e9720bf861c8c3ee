/// A slow and simple block device over an array of bytes: a second implementation of every rule, written from the
/// specification and without any code of the product's rings. It can be told to be wrong in one way, to prove that the
/// driver detects that.
import CLinux
import Foundation
import Synchronization
import SystemPackage
import VirtioCore

/// One way of being wrong.
enum Flaw: String, CaseIterable, Sendable {
  case wrongID, idOutOfRange, idTwice, lengthTooLong, indexJumps, indexBackwards, neverPublishes, noCall, callsWhenUnwanted
  case ignoresKicks, garbageUsedFlags, changesDescriptor, changesAvailableIndex
  case noStatus, wrongStatus, writesBehindBuffer, writesBeforeBuffer, writesFarAway, changesPayload, reportsUnwritten
  case dropsWrite, dropsLastSector, wrongSector, readsStale, flipsBit, writeZeroesDoesNothing, tearsSector
}

final class ReferenceDevice: VirtioDevice, @unchecked Sendable {
  let deviceID: UInt32 = 2
  let features: FeatureSet
  let queueCount: Int
  let maximumQueueSize: UInt16 = 32768
  let configurationSize = 60
  let configurationGeneration: UInt32 = 0
  let eventDescriptor: Int32

  private let events: OwnedDescriptor
  private let wake: OwnedDescriptor
  private let state: Mutex<State>
  private let readOnly: Bool
  let flaw: Flaw?
  private let logicalBlock: Int
  static let serial = "reference"
  static let maximumSegments = 4
  static let maximumSectors = 4096

  struct State: @unchecked Sendable {
    var disk: [UInt8]
    var old: [UInt8]
    var queues: [Int: Queue] = [:]
    var events: [DeviceEvent] = []
    var requests = 0
  }

  /// One running queue.
  @safe
  struct Queue: @unchecked Sendable {
    let activation: Activation
    var view: GuestMemoryView
    // Packed: the descriptor ring, and the two event suppression structures.
    let table: UnsafeMutableRawPointer
    let available: UnsafeMutableRawPointer
    let used: UnsafeMutableRawPointer
    // Packed: a descriptor, and the wrap counter in bit 15.
    var next: UInt16
    var published: UInt16
    var failed = false
    var size: UInt16 { activation.configuration.size }
    var eventIndex: Bool { activation.features.contains(.eventIndex) }
    func available(_ offset: Int) -> SharedCell<UInt16> { unsafe SharedCell(available + offset) }
    func used(_ offset: Int) -> SharedCell<UInt16> { unsafe SharedCell(used + offset) }
    func usedID(_ index: UInt16) -> SharedCell<UInt32> { unsafe SharedCell(used + 4 + 8 * slot(index)) }
    func usedLength(_ index: UInt16) -> SharedCell<UInt32> { unsafe SharedCell(used + 8 + 8 * slot(index)) }
    var usedEvent: SharedCell<UInt16> { available(4 + 2 * Int(size)) }
    var availableEvent: SharedCell<UInt16> { used(4 + 8 * Int(size)) }
    func slot(_ index: UInt16) -> Int { Int(index & (size &- 1)) }
  }

  struct Piece {
    var address: UInt64
    var length: UInt32
    var writes: Bool
  }

  init(
    bytes: Int, queues: Int = 2, readOnly: Bool = false, logicalBlock: Int = 512, offersPacked: Bool = false, flaw: Flaw? = nil
  ) throws {
    queueCount = queues
    self.readOnly = readOnly
    self.flaw = flaw
    self.logicalBlock = logicalBlock
    var features = FeatureSet(rawValue: 1 << 32 | 1 << 29 | 1 << 28 | 1 << 14 | 1 << 13 | 1 << 12 | 1 << 9 | 1 << 6 | 1 << 2)
    if readOnly { features.rawValue |= 1 << 5 }
    if offersPacked { features.rawValue |= 1 << 34 }
    self.features = features
    events = try .eventCounter()
    wake = try .eventCounter()
    eventDescriptor = events.rawValue
    state = Mutex(State(disk: Array(repeating: 0, count: bytes), old: Array(repeating: 0, count: bytes)))
    Thread.detachNewThread { [weak self, wake] in
      while true {
        guard let descriptors = self?.descriptors else { return }
        var polled = descriptors.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
        _ = unsafe poll(&polled, nfds_t(polled.count), -1)
        EventCounter.drain(wake.rawValue)
        guard let self else { return }
        self.work()
      }
    }
  }

  deinit {
    // The thread holds no reference while it sleeps; once woken, it finds the device gone and ends.
    EventCounter.signal(wake.rawValue)
  }

  /// The present content of the disk.
  var disk: [UInt8] { state.withLock { $0.disk } }

  func accepts(_ features: FeatureSet) -> Bool { true }
  func negotiated(_ features: FeatureSet) {}

  func readConfiguration(at offset: Int, count: Int) -> [UInt8] {
    var space = [UInt8](repeating: 0, count: configurationSize)
    func put(_ offset: Int, _ value: Int, _ bytes: Int) {
      for index in 0..<bytes { space[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index)) }
    }
    put(0, state.withLock { $0.disk.count } / 512, 8)
    put(12, 126, 4)
    put(20, logicalBlock, 4)
    put(34, queueCount, 2)
    for base in [36, 48] {
      put(base, Self.maximumSectors, 4)
      put(base + 4, Self.maximumSegments, 4)
    }
    put(44, 1, 4)
    return (0..<count).map { offset + $0 < space.count ? space[offset + $0] : 0 }
  }

  func writeConfiguration(at offset: Int, _ bytes: [UInt8]) -> Bool { false }

  func start(_ activation: Activation) {
    do throws(QueueError) {
      try begin(activation)
      tell(.started(queue: activation.queue))
    } catch { tell(.notStarted(queue: activation.queue, error)) }
  }

  private func tell(_ event: DeviceEvent) {
    state.withLock { $0.events.append(event) }
    EventCounter.signal(events.rawValue)
  }

  private func begin(_ activation: Activation) throws(QueueError) {
    let configuration = activation.configuration
    let size = configuration.size
    let isPacked = activation.features.contains(.packedRing)
    guard size > 0, isPacked || size & (size - 1) == 0, size <= maximumQueueSize else { throw .badSize(size) }
    var view = activation.memory.view()
    func part(
      _ address: GuestAddress, _ count: Int, _ alignment: UInt64, _ part: QueueError.RingPart
    )
      throws(QueueError) -> MemorySegment
    {
      guard address.isAligned(to: alignment) else { throw .misaligned(part: part, address) }
      guard let segment = view.contiguous(address, count: count) else { throw .unmapped(part: part, address) }
      return segment
    }
    let table = try part(configuration.descriptorTable, 16 * Int(size), 16, .descriptorTable)
    let available = try part(
      configuration.availableRing, isPacked ? 4 : 6 + 2 * Int(size), isPacked ? 4 : 2, .availableRing)
    let used = try part(configuration.usedRing, isPacked ? 4 : 6 + 8 * Int(size), 4, .usedRing)
    let queue = unsafe Queue(
      activation: activation, view: view, table: table.base, available: available.base, used: used.base,
      next: activation.position.available,
      published: activation.position.used ?? SharedCell<UInt16>(used.base + 2).loadAcquire())
    state.withLock { $0.queues[activation.queue] = queue }
    EventCounter.signal(wake.rawValue)
  }

  func prepare(_ queues: [Int], memory: GuestMemory, kind: QueueKind) { tell(.prepared) }
  func unprepare() {}

  /// Queues are never held here.
  func release(queue: Int) {}

  func stop(queue: Int) {
    guard let stopped = state.withLock({ $0.queues.removeValue(forKey: queue) }) else { return }
    tell(.stopped(queue: queue, QueuePosition(available: stopped.next, used: stopped.published)))
  }

  func leave(queue: Int) { stop(queue: queue) }
  var leftQueues: Set<Int> { [] }

  func replaceCall(queue: Int, _ call: CallSink) {}
  func replaceFailure(queue: Int, _ failure: CallSink) {}
  func reset() { precondition(state.withLock { $0.queues.isEmpty }, "a device was reset while queues ran") }

  func takeEvents() -> [DeviceEvent] {
    EventCounter.drain(eventDescriptor)
    return state.withLock { state in
      defer { state.events = [] }
      return state.events
    }
  }

  // MARK: the worker

  private var descriptors: [Int32] {
    [wake.rawValue]
      + state.withLock { state in
        state.queues.values.compactMap { queue in
          if case .eventCounter(let kick) = queue.activation.kick, !queue.failed { kick.rawValue } else { nil }
        }
      }
  }

  private func work() {
    state.withLock { state in
      for index in state.queues.keys.sorted() {
        guard var queue = state.queues[index], !queue.failed else { continue }
        if case .eventCounter(let kick) = queue.activation.kick { EventCounter.drain(kick.rawValue) }
        do throws(QueueError) {
          if queue.activation.features.contains(.packedRing) {
            try drainPacked(&queue, &state)
          } else {
            try drain(&queue, &state)
          }
        } catch {
          queue.failed = true
          state.events.append(.queueFailed(queue: index, error))
          queue.activation.failure.signal()
          EventCounter.signal(eventDescriptor)
        }
        state.queues[index] = queue
      }
    }
  }

  private func drain(_ queue: inout Queue, _ state: inout State) throws(QueueError) {
    while true {
      let available = queue.available(2).loadAcquire()
      guard available &- queue.next <= queue.size else {
        throw .availableIndexJumped(from: queue.next, to: available, size: queue.size)
      }
      if available == queue.next {
        // Enable kicks again, then look once more.
        if queue.eventIndex {
          queue.availableEvent.storeRelaxed(flaw == .ignoresKicks ? queue.next &- 1 : queue.next)
        } else {
          queue.used(0).storeRelaxed(flaw == .ignoresKicks ? 1 : 0)
        }
        if flaw == .garbageUsedFlags { queue.used(0).storeRelaxed(4) }
        fullFence()
        if queue.available(2).loadAcquire() == queue.next { return }
        continue
      }
      var used = queue.published
      var heads: Set<UInt16> = []
      defer { publish(&queue, used) }
      while queue.next != available {
        let head = queue.available(4 + 2 * queue.slot(queue.next)).loadRelaxed()
        guard head < queue.size else { throw .headOutOfRange(head) }
        guard heads.insert(head).inserted else { throw .headAlreadyInFlight(head) }
        let pieces = try walk(head, &queue)
        let length = try execute(pieces, head, &queue, &state)
        state.requests += 1
        queue.next &+= 1
        push(head, length, at: used, queue, pieces)
        used &+= 1
      }
    }
  }

  private func push(_ head: UInt16, _ length: UInt32, at index: UInt16, _ queue: Queue, _ pieces: [Piece]) {
    var id = UInt32(head)
    var length = length
    switch flaw {
    case .wrongID: id = UInt32((head &+ 1) & (queue.size &- 1))
    case .idOutOfRange: id |= 0x10000
    case .idTwice where index > 0:
      id = queue.usedID(index &- 1).loadRelaxed()
    case .lengthTooLong: length = UInt32(pieces.filter(\.writes).reduce(0) { $0 + Int($1.length) }) + 1
    case .changesDescriptor: unsafe SharedCell<UInt16>(queue.table + 16 * Int(head) + 14).storeRelaxed(0x7777)
    default: break
    }
    queue.usedID(index).storeRelaxed(id)
    queue.usedLength(index).storeRelaxed(length)
  }

  private func publish(_ queue: inout Queue, _ used: UInt16) {
    guard used != queue.published, flaw != .neverPublishes else { return }
    let old = queue.published
    queue.published = used
    switch flaw {
    case .indexJumps: queue.used(2).storeRelease(used &+ queue.size)
    case .indexBackwards: queue.used(2).storeRelease(old &- 1)
    default: queue.used(2).storeRelease(used)
    }
    if flaw == .changesAvailableIndex, old == 0 { queue.available(2).storeRelaxed(queue.next &+ 1) }
    fullFence()
    let wanted: Bool
    if queue.eventIndex {
      let event = queue.usedEvent.loadRelaxed()
      wanted = used &- event &- 1 < used &- old
    } else {
      wanted = queue.available(0).loadRelaxed() & 1 == 0
    }
    if (wanted && flaw != .noCall) || flaw == .callsWhenUnwanted { queue.activation.call.signal() }
  }

  // MARK: chains

  func load(_ address: UInt64, _ count: UInt32, _ queue: inout Queue) -> [UInt8]? {
    guard let pieces = try? queue.view.pieces(GuestAddress(address), length: count) else { return nil }
    return pieces.flatMap { unsafe [UInt8](UnsafeRawBufferPointer(start: $0.base, count: $0.count)) }
  }

  private func walk(_ head: UInt16, _ queue: inout Queue) throws(QueueError) -> [Piece] {
    var pieces: [Piece] = []
    var total: UInt64 = 0
    func decode(_ raw: [UInt8]) -> (address: UInt64, length: UInt32, flags: UInt16, next: UInt16) {
      func number(_ range: Range<Int>) -> UInt64 { raw[range].reversed().reduce(0) { $0 << 8 | UInt64($1) } }
      return (number(0..<8), UInt32(number(8..<12)), UInt16(number(12..<14)), UInt16(number(14..<16)))
    }
    func follow(_ first: UInt16, count: Int, nested: Bool, _ fetch: (UInt16) -> [UInt8]) throws(QueueError) {
      var index = first
      var seen = 0
      while true {
        seen += 1
        guard seen <= count else { throw .chainLoops(head: head) }
        let (address, length, flags, next) = decode(fetch(index))
        if flags & 4 != 0 {
          guard queue.activation.features.contains(.indirectDescriptors) else { throw .indirectNotNegotiated(head: head) }
          guard !nested else { throw .nestedIndirect(head: head) }
          guard flags & 1 == 0 else { throw .indirectWithNext(head: head) }
          guard length > 0, length % 16 == 0, length <= 16 * 32768 else { throw .badIndirectLength(head: head, length) }
          guard let table = load(address, length, &queue) else {
            throw .indirectUnmapped(head: head, GuestAddress(address))
          }
          try follow(0, count: table.count / 16, nested: true) { entry in Array(table[Int(entry) * 16..<Int(entry) * 16 + 16]) }
          return
        }
        let writes = flags & 2 != 0
        if !writes, pieces.last?.writes == true { throw .readableAfterWritable(head: head) }
        total += UInt64(length)
        guard total <= 1 << 32 else { throw .chainTooLarge(head: head) }
        if length > 0 { pieces.append(Piece(address: address, length: length, writes: writes)) }
        guard flags & 1 != 0 else { return }
        guard Int(next) < count else { throw .nextOutOfRange(next) }
        index = next
      }
    }
    let table = unsafe MemorySegment(base: queue.table, count: 16 * Int(queue.size))
    try follow(head, count: Int(queue.size), nested: false) { index in
      unsafe [UInt8](UnsafeRawBufferPointer(start: table.base + 16 * Int(index), count: 16))
    }
    return pieces
  }

  // MARK: requests

  /// - Returns: the used length.
  func execute(
    _ pieces: [Piece], _ head: UInt16, _ queue: inout Queue, _ state: inout State
  ) throws(QueueError) -> UInt32 {
    var writable = pieces.filter(\.writes)
    guard var last = writable.popLast() else { throw .noWritableByte(head: head) }
    last.length -= 1
    guard
      let status = try? queue.view.pieces(GuestAddress(last.address &+ UInt64(last.length)), length: 1).first
    else { throw .statusUnmapped(head: head) }
    if last.length > 0 { writable.append(last) }
    let answerBytes = writable.reduce(0) { $0 + Int($1.length) }
    var (code, written) = answer(
      pieces.filter { !$0.writes }, writable, answerBytes, tooMany: pieces.count > 1024, &queue, &state)
    switch flaw {
    case .wrongStatus where state.requests % 16 == 7: code = 1
    case .writesBehindBuffer: unsafe status.base.storeBytes(of: 0x55, toByteOffset: 1, as: UInt8.self)
    case .writesBeforeBuffer:
      if let first = try? queue.view.pieces(GuestAddress((writable.first ?? last).address), length: 1).first {
        unsafe first.base.storeBytes(of: 0x55, toByteOffset: -1, as: UInt8.self)
      }
    case .writesFarAway:
      if let region = queue.activation.memory.regions.last {
        unsafe region.mapping.base.storeBytes(of: 0x55, toByteOffset: region.offset + Int(region.size) - 1, as: UInt8.self)
      }
    case .changesPayload:
      if let first = pieces.first, let place = try? queue.view.pieces(GuestAddress(first.address), length: 1).first {
        unsafe place.base.storeBytes(of: 0xee, as: UInt8.self)
      }
    default: break
    }
    if flaw != .noStatus { unsafe status.base.storeBytes(of: code, as: UInt8.self) }
    return UInt32(written == answerBytes ? written + 1 : written)
  }

  private func answer(
    _ readable: [Piece], _ writable: [Piece], _ answerBytes: Int, tooMany: Bool, _ queue: inout Queue, _ state: inout State
  ) -> (status: UInt8, written: Int) {
    if tooMany { return (1, 0) }
    var input: [UInt8] = []
    for piece in readable {
      guard let bytes = load(piece.address, piece.length, &queue) else { return (1, 0) }
      input += bytes
    }
    var room: [MemorySegment] = []
    for piece in writable {
      guard let found = try? queue.view.pieces(GuestAddress(piece.address), length: piece.length) else { return (1, 0) }
      room += found
    }
    guard input.count >= 16 else { return (1, 0) }
    func number(_ range: Range<Int>) -> UInt64 { input[range].reversed().reduce(0) { $0 << 8 | UInt64($1) } }
    func store(_ bytes: ArraySlice<UInt8>) {
      var rest = bytes
      for segment in room where !rest.isEmpty {
        let count = min(segment.count, rest.count)
        unsafe UnsafeMutableRawBufferPointer(start: segment.base, count: count).copyBytes(from: rest.prefix(count))
        rest = rest.dropFirst(count)
      }
    }
    let sector = number(8..<16)
    let payload = input[16...]
    switch number(0..<4) {
    case 0:
      guard payload.isEmpty, answerBytes % logicalBlock == 0 else { return (1, 0) }
      guard let place = range(sector, UInt64(answerBytes / 512), state) else { return (1, 0) }
      if flaw == .reportsUnwritten { return (0, answerBytes) }
      var bytes = flaw == .readsStale ? state.old[place] : state.disk[place]
      if flaw == .flipsBit, state.requests % 8 == 3, !bytes.isEmpty { bytes[bytes.startIndex + bytes.count / 2] ^= 4 }
      store(bytes)
      return (0, answerBytes)
    case 1:
      guard !readOnly, answerBytes == 0, payload.count % logicalBlock == 0 else { return (1, 0) }
      guard var place = range(sector, UInt64(payload.count / 512), state) else { return (1, 0) }
      if flaw == .readsStale { state.old = state.disk }
      switch flaw {
      case .dropsWrite where state.requests % 16 == 3: return (0, 0)
      case .dropsLastSector: place = place.lowerBound..<max(place.upperBound - 512, place.lowerBound)
      case .wrongSector where place.upperBound + 512 <= state.disk.count:
        place = place.lowerBound + 512..<place.upperBound + 512
      case .tearsSector: place = place.lowerBound..<max(place.upperBound - 256, place.lowerBound)
      default: break
      }
      state.disk.replaceSubrange(place, with: payload.prefix(place.count))
      return (0, 0)
    case 4: return (0, 0)
    case 8:
      let id = Array(Self.serial.utf8) + Array(repeating: 0, count: 20 - Self.serial.utf8.count)
      store(id.prefix(answerBytes))
      return (0, min(answerBytes, 20))
    case let type where type == 11 || type == 13:
      guard !readOnly, payload.count % 16 == 0, (1...Self.maximumSegments).contains(payload.count / 16) else { return (1, 0) }
      var ranges: [Range<Int>] = []
      for start in stride(from: 16, to: input.count, by: 16) {
        let flags = number(start + 12..<start + 16)
        guard flags & ~(type == 13 ? 1 : 0) == 0 else { return (2, 0) }
        let count = number(start + 8..<start + 12)
        guard count <= UInt64(Self.maximumSectors), let place = range(number(start..<start + 8), count, state) else {
          return (1, 0)
        }
        ranges.append(place)
      }
      guard flaw != .writeZeroesDoesNothing else { return (0, 0) }
      for place in ranges { state.disk.replaceSubrange(place, with: repeatElement(0, count: place.count)) }
      return (0, 0)
    default: return (2, 0)
    }
  }

  private func range(_ sector: UInt64, _ sectors: UInt64, _ state: State) -> Range<Int>? {
    let capacity = UInt64(state.disk.count / 512)
    guard sectors <= capacity, sector <= capacity - sectors else { return nil }
    return Int(sector) * 512..<Int(sector + sectors) * 512
  }
}
