/// A driver whose ring is laid out once: the same chains are made available again and again, so that between two batches there
/// is only one index and, if the device wants it, one kick.
internal import CLinux
internal import Glibc
internal import SystemPackage
public import VirtioCore

public struct HandDriver {
  private static let table: UInt64 = 0
  private static let available: UInt64 = 0x8_0000
  private static let used: UInt64 = 0xA_0000
  private static let indirect: UInt64 = 0x10_0000
  /// Where the data begins, and how much of it each further region has.
  private static let data: UInt64 = 0x20_0000
  private static let share: UInt64 = 0x90_0000

  public let scenario: Scenario
  public let memory: GuestMemory
  private let kick: OwnedDescriptor
  private let mapping: Mapping
  private let availableIndex: SharedCell<UInt16>
  private let availableFlags: SharedCell<UInt16>
  private let usedIndex: SharedCell<UInt16>
  private let usedFlags: SharedCell<UInt16>
  /// The used index from which a call is wanted, and the available index from which a kick is (virtio 2.6.7, 2.6.10).
  private let usedEvent: SharedCell<UInt16>
  private let availableEvent: SharedCell<UInt16>
  /// `nil` for a split ring.
  private let packed: PackedHand?
  public private(set) var kicks = 0

  public init(_ scenario: Scenario) throws {
    let parts = max(1, scenario.regions - 1)
    mapping = try Mapping(anonymous: Int(Self.data + Self.share * UInt64(parts)))
    if scenario.regions == 1 {
      memory = try GuestMemory([GuestRegion(start: GuestAddress(0), size: Self.data + Self.share, mapping: mapping)])
    } else {
      var regions = [GuestRegion(start: GuestAddress(0), size: Self.data, mapping: mapping)]
      for part in 0..<parts {
        let start = Self.data + Self.share * UInt64(part)
        regions.append(GuestRegion(start: GuestAddress(start), size: Self.share, mapping: mapping, offset: Int(start)))
      }
      memory = try GuestMemory(regions)
    }
    self.scenario = scenario
    kick = try .eventCounter()
    let base = unsafe mapping.base
    func cell(_ address: UInt64) -> SharedCell<UInt16> { unsafe SharedCell(base + Int(address)) }
    availableFlags = cell(Self.available)
    availableIndex = cell(Self.available + 2)
    usedFlags = cell(Self.used)
    usedIndex = cell(Self.used + 2)
    usedEvent = cell(Self.available + 4 + 2 * UInt64(scenario.ringSize))
    availableEvent = cell(Self.used + 4 + 8 * UInt64(scenario.ringSize))
    packed =
      scenario.isPacked
      ? unsafe PackedHand(
        scenario, base: base + Int(Self.table), driver: base + Int(Self.available), device: base + Int(Self.used)) : nil
    for slot in 0..<scenario.batch { layOut(slot) }
    guard packed == nil else { return }
    for entry in 0..<scenario.ringSize {
      store(UInt16(entry % scenario.batch * scenario.tableEntries), Self.available + 4 + UInt64(entry * 2))
    }
  }

  public var configuration: QueueConfiguration {
    QueueConfiguration(
      size: UInt16(scenario.ringSize), descriptorTable: GuestAddress(Self.table),
      availableRing: GuestAddress(Self.available), usedRing: GuestAddress(Self.used))
  }

  /// The queue, ready to be started.
  public func activation(call: CallSink) throws -> Activation {
    try Activation(
      queue: 0, memory: memory, features: scenario.features, configuration: configuration,
      position: .start(scenario.features), kick: .eventCounter(kick), call: call, publishesInOrder: scenario.publishesInOrder,
      inflight: scenario.isRecorded
        ? InflightMemory.create(queueCount: 1, queueSize: UInt16(scenario.ringSize), isPacked: scenario.isPacked) : nil,
      log: scenario.isLogged ? log() : nil)
  }

  /// The log of everything that the device writes.
  private func log() throws -> QueueLog {
    let size = UInt64(mapping.count) / DirtyLog.pageSize / 8 + 1
    let file = OwnedDescriptor(unsafe memfd_create("log", UInt32(MFD_CLOEXEC)))
    guard ftruncate(file.rawValue, off_t(size)) == 0 else { throw Errno(rawValue: errno) }
    return QueueLog(
      log: try DirtyLog(descriptor: file, offset: 0, size: size), coversBuffers: true, usedRing: Self.used)
  }

  // MARK: A batch

  /// Makes one batch available, and sets whether the driver wants calls, but does not kick.
  public func makeAvailable() {
    if let packed { return packed.makeAvailable() }
    let old = availableIndex.loadRelaxed()
    if scenario.hasEventIndex {
      usedEvent.storeRelaxed(scenario.asksForCalls ? old : old &+ 0x8000)
    } else {
      availableFlags.storeRelaxed(scenario.asksForCalls ? 0 : 1)
    }
    availableIndex.storeRelease(old &+ UInt16(scenario.batch))
  }

  /// Whether everything that was made available is used.
  @inline(__always)
  public var isAnswered: Bool {
    packed?.isAnswered ?? (usedIndex.loadAcquire() == availableIndex.loadRelaxed())
  }

  /// Makes one batch available, kicks if the device asked for it, and waits until all of it is used.
  /// - Returns: false if that takes more than ten seconds.
  public mutating func runBatch() -> Bool {
    makeAvailable()
    fullFence()
    let new = availableIndex.loadRelaxed()
    let isKickWanted =
      packed != nil
      ? packed!.isKickWanted
      : scenario.hasEventIndex
        ? new &- availableEvent.loadRelaxed() &- 1 < UInt16(scenario.batch) : usedFlags.loadRelaxed() & 1 == 0
    if isKickWanted {
      kicks += 1
      EventCounter.signal(kick.rawValue)
    }
    let end = Self.seconds + 10
    while !isAnswered {
      sched_yield()
      if Self.seconds > end { return false }
    }
    return true
  }

  private static var seconds: Int {
    var now = timespec()
    unsafe clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec
  }

  // MARK: Layout

  private func store<Value: FixedWidthInteger>(_ value: Value, _ address: UInt64) {
    unsafe mapping.base.storeBytes(of: value, toByteOffset: Int(address), as: Value.self)
  }

  /// Where a piece of a request is. With several regions, each piece, or each request, is in another one than the last.
  private func place(_ slot: Int, piece: Int, offset: UInt64) -> UInt64 {
    let parts = max(1, scenario.regions - 1)
    let number = scenario.isTogether ? slot : slot * scenario.descriptors + piece
    return Self.data + Self.share * UInt64(number % parts) + offset
  }

  private func layOut(_ slot: Int) {
    let count = scenario.descriptors
    let header = place(slot, piece: 0, offset: UInt64(slot * 64))
    store(scenario.requestType, header)
    store(scenario.kind == .outside ? UInt64.max / 1024 : UInt64(slot * 8), header + 8)
    let chain =
      scenario.isIndirect ? Self.indirect + UInt64(slot * 1024) : Self.table + UInt64(slot * count * 16)
    if scenario.isIndirect {
      describeInRing(slot, Self.table + UInt64(slot * 16), chain, UInt32(count * 16), flags: 4, next: 0)
    }
    // Links are relative to the table that they are in.
    let first = scenario.isIndirect ? 0 : slot * count
    for piece in 0..<count {
      let isLast = piece == count - 1
      let address: UInt64
      let length: UInt32
      var flags: UInt16 = isLast ? 0 : 1
      switch (piece, scenario.kind) {
      case (0, let kind) where kind != .single: (address, length) = (header, 16)
      case (count - 1, _):
        (address, length) = (place(slot, piece: piece, offset: 0x2000 + UInt64(slot * 64)), 1)
        flags |= 2
      case (_, .discard), (_, .writeZeroes):
        (address, length) = (place(slot, piece: piece, offset: 0x4000 + UInt64(slot * 64)), 16)
        store(UInt64(slot * 8), address)
        store(UInt32(8), address + 8)
      case (_, .getID):
        (address, length) = (place(slot, piece: piece, offset: 0x4000 + UInt64(slot * 64)), 20)
        flags |= 2
      default:
        let offset = 0x1_0000 + UInt64((slot * scenario.segments + piece - 1) * 4096)
        (address, length) = (place(slot, piece: piece, offset: offset), UInt32(scenario.bytes))
        if scenario.kind != .write { flags |= 2 }
      }
      let (place, next) = (chain + UInt64(piece * 16), isLast ? 0 : UInt16(first + piece + 1))
      if scenario.isIndirect {
        describe(place, address, length, flags: flags, next: next)
      } else {
        describeInRing(slot * count + piece, place, address, length, flags: flags, next: next)
      }
    }
  }

  /// - Parameter index: the index among the descriptors of one batch.
  private func describeInRing(
    _ index: Int, _ place: UInt64, _ address: UInt64, _ length: UInt32, flags: UInt16, next: UInt16
  ) {
    guard let packed else { return describe(place, address, length, flags: flags, next: next) }
    packed.describe(index, address, length, flags: flags)
  }

  private func describe(_ place: UInt64, _ address: UInt64, _ length: UInt32, flags: UInt16, next: UInt16) {
    store(address, place)
    // In the table of a packed ring, entries are consecutive, and their ids mean nothing.
    store(
      scenario.isPacked
        ? UInt64(length) | UInt64(flags & 2) << 48 : UInt64(length) | UInt64(flags) << 32 | UInt64(next) << 48, place + 8)
  }
}
