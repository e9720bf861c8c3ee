/// The model's rings: both formats, one chain at a time.
import GuestDriver
import VirtioCore

@testable import Conform

final class ModelQueue {
  /// A piece of a chain in memory.
  struct Piece {
    var address: UInt64
    var length: Int
    var isWritable: Bool
  }
  struct Chain {
    var id: UInt16
    var slots: UInt16
    var pieces: [Piece]
    var usedIndirect = false
    var hadDirect = false
  }
  struct Broken: Error {}

  let index: Int
  unowned let transport: ModelTransport
  let kick: OwnedDescriptor
  let call: OwnedDescriptor
  var isKicked = false
  var isReset = false
  /// The device is being suspended.
  var isDraining = false
  private var configuration: QueueConfiguration
  // Split: free-running indices. Packed: slot and wrap counter.
  private var next: UInt16 = 0
  private var used: UInt16 = 0
  private var nextWrap = true
  private var usedWrap = true
  private var count = 0
  var late: [() -> Void] = []
  private var touched: [UInt64] = []

  init(_ index: Int, _ configuration: QueueConfiguration, _ transport: ModelTransport) throws {
    self.index = index
    self.configuration = configuration
    self.transport = transport
    kick = try .eventCounter()
    call = try .eventCounter()
  }

  func restart(_ configuration: QueueConfiguration, keepsPosition: Bool) {
    self.configuration = configuration
    isReset = false
    isKicked = true
    guard !keepsPosition else { return }
    (next, used, nextWrap, usedWrap) = (0, 0, true, true)
  }

  private var memory: DriverMemory { transport.memory }
  var fault: Fault? { transport.fault }
  private var size: UInt16 { configuration.size }
  private var table: UInt64 { configuration.descriptorTable.rawValue }
  private var driver: UInt64 { configuration.availableRing.rawValue }
  private var deviceArea: UInt64 {
    configuration.usedRing.rawValue + (fault == .legacyRingElsewhere && transport.device.face.isLegacy ? 64 : 0)
  }
  private var isPacked: Bool { transport.accepted.contains(.packedRing) }
  private var eventIndex: Bool { transport.accepted.contains(.eventIndex) }

  private func word(_ place: UInt64) -> UInt16 { memory.load(UInt16.self, at: GuestAddress(place)) }
  private func setWord(_ place: UInt64, _ value: UInt16) { memory.store(value, at: GuestAddress(place)) }

  /// Whether the ring is valid at all.
  private var isSound: Bool {
    guard size > 0, isPacked ? size <= 32768 : size & (size - 1) == 0 else { return false }
    let sizes = isPacked ? (16 * Int(size), 4, 4) : (16 * Int(size), 6 + 2 * Int(size), 6 + 8 * Int(size))
    let alignments: (UInt64, UInt64, UInt64) = isPacked ? (16, 4, 4) : (16, 2, 4)
    guard table % alignments.0 == 0, driver % alignments.1 == 0, deviceArea % alignments.2 == 0 else { return false }
    return memory.contains(GuestAddress(table), count: sizes.0) && memory.contains(GuestAddress(driver), count: sizes.1)
      && memory.contains(GuestAddress(deviceArea), count: sizes.2)
  }

  func finishLate() {
    for action in late { action() }
    late = []
    if fault == .touchesUsedAgain { for place in touched { memory.store(UInt32(0), at: GuestAddress(place + 8)) } }
  }

  func work() {
    isKicked = false
    guard isSound else { return transport.fail() }
    if fault == .diesOfSharedRings, transport.queues.contains(where: { $0.index != index && $0.table == table }) {
      transport.device.isDead = true
    }
    if fault == .bigRingsFail, size > 60 { return }
    if fault == .ringOfOneHangs, size == 1 { return }
    if fault == .stopsAfterLaps, count > 2500 { return }
    if fault == .diesOfStrangeEvents, eventIndex, word(driver + (isPacked ? 0 : 4 + 2 * UInt64(size))) > 4 { return }
    do {
      let before = (used, usedWrap)
      if isPacked { try workPacked(before) } else { try workSplit(before.0) }
    } catch { transport.fail() }
    if isPacked {
      let flags: UInt16 = fault == .garbageUsedFlags ? 3 : fault == .strandsRequests ? 1 : 0
      setWord(deviceArea + 2, flags)
    } else if eventIndex {
      setWord(deviceArea + 4 + 8 * UInt64(size), fault == .strandsRequests ? next &- 5 : next)
      setWord(deviceArea, fault == .usedFlagsWithEventIndex ? 1 : 0)
    } else {
      setWord(deviceArea, fault == .garbageUsedFlags ? 4 : fault == .strandsRequests ? 1 : 0)
    }
  }

  // MARK: Split

  private func workSplit(_ old: UInt16) throws {
    let end = word(driver + 2)
    guard end &- next <= size else { throw Broken() }
    var finished: [(UInt16, UInt32)] = []
    var heads: Set<UInt16> = []
    defer { if !finished.isEmpty { publishAll(&finished, old) } }
    while next != end, takes(after: finished.count) {
      let head = word(driver + 4 + 2 * UInt64(next & (size - 1)))
      guard head < size, heads.insert(head).inserted else { throw Broken() }
      let chain = try walk(head)
      let length = try execute(chain)
      next &+= 1
      count += 1
      finished.append((head, length))
    }
    if fault == .outOfOrder, finished.count > 1 {
      let first = finished.removeFirst()
      late.append { [unowned self] in publish([first], used) }
    }
  }

  private func publishAll(_ finished: inout [(UInt16, UInt32)], _ old: UInt16) {
    if leavesInFlight { return late.append { [unowned self, finished] in publish(finished, used) } }
    if callsOnce { publish([finished.removeFirst()], old) }
    if !finished.isEmpty { publish(finished, used, mayCall: !callsOnce) }
  }

  private func publish(_ finished: [(UInt16, UInt32)], _ old: UInt16, mayCall: Bool = true) {
    for (head, length) in finished {
      let place = deviceArea + 4 + 8 * UInt64(used & (size - 1))
      memory.store(UInt32(fault == .wrongIDs ? (head + 1) & (size - 1) : head), at: GuestAddress(place))
      if fault == .lengthAfterIndex {
        late.append { [memory] in memory.store(length, at: GuestAddress(place + 4)) }
      } else {
        memory.store(length, at: GuestAddress(place + 4))
      }
      used &+= 1
    }
    setWord(deviceArea + 2, used)
    let flags = word(driver)
    let event = word(driver + 4 + 2 * UInt64(size))
    let isPassed = used &- event &- 1 < used &- old
    var wants = eventIndex ? isPassed : flags & 1 == 0
    switch fault {
    case .usedEventAlways: wants = isPassed
    case .flagsAlways: wants = wants && flags & 1 == 0
    case .onlyLastOfBatch: wants = eventIndex ? event == used &- 1 : wants
    case .neverCalls: wants = false
    case .callsAlways: wants = true
    default: break
    }
    if wants, mayCall { tell() }
  }

  private func walk(_ head: UInt16) throws -> Chain {
    var chain = Chain(id: head, slots: 0, pieces: [])
    var slot = head
    var total = 0
    for step in 0... {
      guard step < Int(size), slot < size else { throw Broken() }
      let raw = try descriptor(table + 16 * UInt64(slot))
      if raw.flags & 4 != 0 {
        guard raw.flags & 1 == 0 else { throw Broken() }
        chain.hadDirect = step > 0
        try walkTable(raw, &chain, &total)
        break
      }
      try add(raw, &chain, &total)
      if fault == .writesDescriptors { setWord(table + 16 * UInt64(slot) + 14, 0x77) }
      guard raw.flags & 1 != 0 else { break }
      slot = raw.next
    }
    return chain
  }

  private struct Raw {
    var address: UInt64
    var length: UInt32
    var flags: UInt16
    var next: UInt16
  }

  private func descriptor(_ place: UInt64) throws -> Raw {
    guard memory.contains(GuestAddress(place), count: 16) else { throw Broken() }
    let address = memory.load(UInt64.self, at: GuestAddress(place))
    let length = memory.load(UInt32.self, at: GuestAddress(place + 8))
    let (third, fourth) = (word(place + 12), word(place + 14))
    return Raw(address: address, length: length, flags: isPacked ? fourth : third, next: isPacked ? third : fourth)
  }

  private func walkTable(_ reference: Raw, _ chain: inout Chain, _ total: inout Int) throws {
    guard transport.accepted.contains(.indirectDescriptors), reference.length > 0, reference.length % 16 == 0,
      reference.length <= 16 * 1024, fault != .indirectFails
    else { throw Broken() }
    if fault == .refusesIndirectWrite, reference.flags & 2 != 0 { throw Broken() }
    if fault == .refusesMixedChains, chain.hadDirect { throw Broken() }
    if fault == .shortTablesOnly, reference.length > 16 * 16 { throw Broken() }
    if fault == .diesOfOddTables, reference.address % 16 != 0 { transport.device.isDead = true }
    chain.usedIndirect = true
    let entries = reference.length / 16
    var entry: UInt32 = 0
    for step in 0... {
      guard entry < entries, step < entries else {
        if isPacked, entry == entries { break }
        throw Broken()
      }
      let raw = try descriptor(reference.address &+ 16 * UInt64(entry))
      guard raw.flags & 4 == 0 else { throw Broken() }
      try add(raw, &chain, &total)
      if isPacked {
        entry += 1
        if entry == entries { break }
      } else {
        guard raw.flags & 1 != 0 else { break }
        entry = UInt32(raw.next)
      }
    }
  }

  private func add(_ raw: Raw, _ chain: inout Chain, _ total: inout Int) throws {
    total += Int(raw.length)
    guard total <= 1 << 32 else { throw Broken() }
    if raw.length == 0 {
      if fault == .diesOfEmptyDescriptors { transport.device.isDead = true }
      return
    }
    let isWritable = raw.flags & 2 != 0
    if !isWritable, chain.pieces.last?.isWritable == true { throw Broken() }
    guard memory.contains(GuestAddress(raw.address), count: Int(raw.length)) else { throw Broken() }
    if fault == .diesOfRingWrites, raw.address == deviceArea || isWritable && raw.address == transport.queues.last?.deviceArea {
      transport.device.isDead = true
    }
    chain.pieces.append(Piece(address: raw.address, length: Int(raw.length), isWritable: isWritable))
    if fault == .diesOfLongChains, chain.pieces.count > 24, !chain.usedIndirect { transport.device.isDead = true }
  }

  // MARK: Packed

  private func isAvailable() -> Bool {
    let flags = word(table + 16 * UInt64(next) + 14)
    let (available, usedMark) = (flags & 0x80 != 0, flags & 0x8000 != 0)
    if fault == .ignoresMarks { return available == nextWrap }
    return available == nextWrap && usedMark != nextWrap
  }

  private func workPacked(_ old: (UInt16, Bool)) throws {
    var finished: [(Chain, UInt32)] = []
    var ids: Set<UInt16> = []
    defer { if !finished.isEmpty { publishAllPacked(&finished, old) } }
    while isAvailable(), takes(after: finished.count) {
      let chain = try walkPacked()
      if fault == .diesOfSameID, !ids.insert(chain.id).inserted { transport.device.isDead = true }
      let length = try execute(chain)
      count += 1
      finished.append((chain, length))
    }
    if fault == .outOfOrder, finished.count > 1 {
      let first = finished.removeFirst()
      late.append { [unowned self] in publishPacked([first], (used, usedWrap)) }
    }
  }

  private func walkPacked() throws -> Chain {
    var chain = Chain(id: 0, slots: 0, pieces: [])
    var total = 0
    let head = next
    var (slot, wrap) = (next, nextWrap)
    while true {
      guard chain.slots < size else { throw Broken() }
      let raw = try descriptor(table + 16 * UInt64(slot))
      chain.id = raw.next
      let marks: UInt16 = wrap ? 0x0080 : 0x8000
      if fault == .diesOfMarksInside, raw.flags & 0x8080 != marks { transport.device.isDead = true }
      chain.slots += 1
      if raw.flags & 4 != 0 {
        guard raw.flags & 1 == 0, chain.slots == 1 else { throw Broken() }
        try walkTable(raw, &chain, &total)
      } else {
        try add(raw, &chain, &total)
      }
      slot += 1
      if slot == size {
        slot = fault == .doesNotWrapChains && raw.flags & 1 != 0 ? 1 : 0
        wrap.toggle()
      }
      guard raw.flags & 1 != 0, raw.flags & 4 == 0 else { break }
    }
    if fault == .idIsPosition { chain.id = head }
    (next, nextWrap) = (slot, wrap)
    return chain
  }

  private func publishAllPacked(_ finished: inout [(Chain, UInt32)], _ old: (UInt16, Bool)) {
    if leavesInFlight { return late.append { [unowned self, finished] in publishPacked(finished, (used, usedWrap)) } }
    if callsOnce { publishPacked([finished.removeFirst()], old) }
    if !finished.isEmpty { publishPacked(finished, (used, usedWrap), mayCall: !callsOnce) }
  }

  private func publishPacked(_ finished: [(Chain, UInt32)], _ old: (UInt16, Bool), mayCall: Bool = true) {
    var passed: Set<UInt16> = []
    for (chain, length) in finished {
      let place = table + 16 * UInt64(used)
      setWord(place + 12, fault == .wrongIDs ? (chain.id + 1) % size : chain.id)
      if fault == .lengthAfterIndex {
        memory.store(UInt32(0xdead), at: GuestAddress(place + 8))
        late.append { [memory] in memory.store(length, at: GuestAddress(place + 8)) }
      } else {
        memory.store(length, at: GuestAddress(place + 8))
      }
      setWord(place + 14, (usedWrap ? 0x8080 : 0) | (length > 0 ? 2 : 0))
      touched = [place]
      for _ in 0..<chain.slots {
        passed.insert(used | (usedWrap ? 0x8000 : 0))
        used += 1
        if used == size {
          used = 0
          usedWrap.toggle()
        }
      }
    }
    let flags = word(driver + 2)
    var wants = flags == 0 || flags == 2 && eventIndex && passed.contains(word(driver))
    if fault == .neverCalls { wants = false }
    if fault == .callsAlways { wants = true }
    if wants, mayCall { tell() }
  }

  // MARK: Requests

  /// - Returns: the used length.
  private func execute(_ chain: Chain) throws -> UInt32 {
    let device = transport.device
    let input = chain.pieces.filter { !$0.isWritable }.flatMap { memory.bytes(at: GuestAddress($0.address), count: $0.length) }
    let writable = chain.pieces.filter(\.isWritable)
    let room = writable.reduce(0) { $0 + $1.length }
    guard input.count >= 16, room > 0 else { throw Broken() }
    if fault == .headerIsOneDescriptor, chain.pieces[0].length != 16 { throw Broken() }
    if fault == .statusIsAlone, writable.last?.length != 1 { throw Broken() }
    if fault == .identityHangs, input[0] == 8, room != 21 { device.isDead = true }
    if fault == .emptyRequestsHang, input[0] < 2, input.count == 16, room == 1 { device.isDead = true }
    let (status, answer) =
      transport.isDeclined(.failsRequests) ? (1, []) : device.perform(input, room: room - 1, queue: index)
    store(answer, at: 0, writable)
    if status != 0, fault == .noStatusOnErrors { return 0 }
    if isDraining, fault == .suspendsHalfway {
      late.append { [unowned self] in store([status], at: room - 1, writable) }
    } else {
      store([status], at: room - 1, writable)
    }
    if fault == .writesReadable, let first = chain.pieces.first { memory.store([0x99], at: GuestAddress(first.address)) }
    if fault == .writesNextToRings { memory.store([0x99], at: GuestAddress(table &- 1)) }
    if fault == .lengthTooLong { return UInt32(room) + 1 }
    if fault == .lengthIsZero { return 0 }
    return answer.count == room - 1 ? UInt32(room) : UInt32(answer.count)
  }

  private func store(_ bytes: [UInt8], at offset: Int, _ pieces: [Piece]) {
    var (start, done) = (0, 0)
    for piece in pieces {
      let from = max(start, offset + done)
      while done < bytes.count, from + 0 < start + piece.length, offset + done < start + piece.length {
        memory.store([bytes[done]], at: GuestAddress(piece.address + UInt64(offset + done - start)))
        done += 1
      }
      start += piece.length
    }
  }
}
