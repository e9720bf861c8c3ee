/// A ring with a watched device's queue at one end, and a driver that can do anything at the other, on one thread.
import Conform
import GuestDriver
import Testing
import VirtioCore

@testable import DriverCheck
@testable import GuestDriver

/// The device's side, in either format.
class QueueServer {
  /// Serves all chains, one at a time. - Parameter meanwhile: what the driver does while the device holds
  /// one.
  func serve(_ meanwhile: () -> Void) {}
  /// Takes a chain, and looks for the next before it answers the first.
  func hold(_ meanwhile: () -> Void) {}
  /// Takes two chains, answers the second, and takes a third before it answers the first.
  func overtake(_ meanwhile: () -> Void) {}
  func sleep() {}
}

@safe
final class ServerOf<Base: Virtqueue & ~Copyable>: QueueServer {
  private var queue: WatchedQueue<Base>
  private let segments: UnsafeMutablePointer<MemorySegment> = .allocate(capacity: 256)

  init(_ configuration: QueueConfiguration, _ memory: GuestMemory, _ features: FeatureSet, _ watch: any RingWatch) throws {
    queue = try WatchedQueue<Base>(
      configuration, memory: memory, features: features, position: .start(features), record: nil)
    queue.attach(watch)
  }

  deinit { unsafe segments.deallocate() }

  override func serve(_ meanwhile: () -> Void) {
    // An invalid ring ends here, as it does in the device.
    for _ in 0..<64 {
      var shape = unsafe ChainShape(at: segments)
      guard let chain = try? unsafe queue.pop(into: segments, capacity: 256, shape: &shape) else { return }
      meanwhile()
      queue.push(chain, written: 1)
      queue.publish()
    }
  }

  override func hold(_ meanwhile: () -> Void) {
    var shape = unsafe ChainShape(at: segments)
    guard let first = try? unsafe queue.pop(into: segments, capacity: 256, shape: &shape) else { return }
    meanwhile()
    if let second = try? unsafe queue.pop(into: segments, capacity: 256, shape: &shape) { queue.push(second, written: 1) }
    queue.push(first, written: 1)
    queue.publish()
  }

  override func overtake(_ meanwhile: () -> Void) {
    var shape = unsafe ChainShape(at: segments)
    guard let first = try? unsafe queue.pop(into: segments, capacity: 256, shape: &shape) else { return }
    if let second = try? unsafe queue.pop(into: segments, capacity: 256, shape: &shape) { queue.push(second, written: 1) }
    queue.publish()
    meanwhile()
    let third = try? unsafe queue.pop(into: segments, capacity: 256, shape: &shape)
    queue.push(first, written: 1)
    if let third { queue.push(third, written: 1) }
    queue.publish()
  }

  override func sleep() { _ = queue.enableKicks() }
}

/// One ring, new.
final class RingRig {
  static let plain: FeatureSet = [
    .version1, .indirectDescriptors, FeatureSet(bit: 2), FeatureSet(bit: 9), FeatureSet(bit: 13), FeatureSet(bit: 14),
    FeatureSet(bit: 16),
  ]
  /// 2048 sectors, seg_max 4, two segments of each kind of range; host-managed zones of 256 sectors, appends of 16, of 8 each.
  static let configuration: [UInt8] = {
    var bytes = [UInt8](repeating: 0, count: 96)
    bytes[1] = 8
    (bytes[12], bytes[40], bytes[52], bytes[64]) = (4, 2, 2, 2)
    (bytes[73], bytes[84], bytes[89], bytes[92]) = (1, 16, 16, 1)
    return bytes
  }()

  let format: RingFormat
  let features: FeatureSet
  let memory: DriverMemory
  let guest: GuestMemory
  let ring: RingMemory
  let findings = DriverFindings()
  private(set) var watch: QueueWatch?
  private let size: UInt16
  private var server: QueueServer?
  private var slot: UInt16 = 0
  private var place = RingPosition.start
  private var id: UInt16 = 0

  /// - Parameters:
  ///   - more: features in addition to `plain`.
  ///   - less: features to leave out.
  init(_ format: RingFormat, more: FeatureSet = [], less: FeatureSet = [], size: UInt16 = 16) throws {
    self.format = format
    self.size = size
    features = Self.plain.union(more).union(format == .packed ? .packedRing : []).subtracting(less)
    memory = try DriverMemory(size: 1 << 20)
    guest = try GuestMemory(
      memory.regions.map {
        GuestRegion(start: $0.start, size: UInt64($0.size), mapping: $0.mapping, offset: $0.offset)
      })
    ring = try RingMemory(size: size, format: format, shape: .separate, in: memory)
  }

  var split: RawRing { RawRing(ring.layout, in: memory) }
  var packed: RawPackedRing { RawPackedRing(ring.layout, in: memory) }
  /// Where the next chain of a packed ring begins.
  var next: RingPosition { place }

  /// Starts the device's queue, if it has not been started.
  func begin() throws {
    guard server == nil else { return }
    let configuration = ring.layout.configuration
    let setup = WatchedSetup(
      queue: 0, memory: guest, features: features, configuration: configuration, findings: findings,
      limits: RequestLimits(features, configuration: Self.configuration),
      kicks: KickAccount(0, features, findings, limit: Patience.limit),
      look: RingLook(guest, configuration, isPacked: format == .packed))
    let watch = format == .packed ? PackedWatch(setup) : SplitWatch(setup)
    self.watch = watch
    server =
      switch format {
      case .split: try ServerOf<SplitQueue>(configuration, guest, features, watch)
      case .packed: try ServerOf<PackedQueue>(configuration, guest, features, watch)
      }
  }

  func serve(_ meanwhile: () -> Void = {}) throws {
    try begin()
    server?.serve(meanwhile)
  }

  func hold(_ meanwhile: () -> Void) throws {
    try begin()
    server?.hold(meanwhile)
  }

  func overtake(_ meanwhile: () -> Void) throws {
    try begin()
    server?.overtake(meanwhile)
  }

  func sleep() throws {
    try begin()
    server?.sleep()
  }

  // MARK: Requests

  func buffer(_ bytes: [UInt8]) throws -> GuestBuffer {
    let buffer = try memory.allocate(max(bytes.count, 1), alignment: 16)
    buffer.store(bytes)
    return buffer
  }

  func number<Value: FixedWidthInteger>(_ value: Value) -> [UInt8] {
    (0..<Value.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> Value(8 * $0)) }
  }

  func readable(_ bytes: [UInt8]) throws -> RawDescriptor {
    RawDescriptor(address: try buffer(bytes).address.rawValue, length: UInt32(bytes.count))
  }

  func writable(_ count: Int) throws -> RawDescriptor {
    RawDescriptor(
      address: try buffer([UInt8](repeating: 0, count: count)).address.rawValue, length: UInt32(count), flags: .write)
  }

  /// Header, data to be read, data to be written, status.
  func request(_ type: UInt32, sector: UInt64 = 0, out: [UInt8] = [], into: Int = 0) throws -> [RawDescriptor] {
    var chain = [try readable(number(type) + number(UInt32(0)) + number(sector))]
    if !out.isEmpty { chain.append(try readable(out)) }
    if into > 0 { chain.append(try writable(into)) }
    return chain + [try writable(1)]
  }

  /// A range of DISCARD, WRITE_ZEROES or SECURE_ERASE.
  func range(_ sector: UInt64 = 0, _ count: UInt32 = 8, flags: UInt32 = 0) -> [UInt8] {
    number(sector) + number(count) + number(flags)
  }

  func good() throws -> [RawDescriptor] { try request(0, into: 512) }

  /// An indirect table of a chain, and the descriptor that refers to it. - Parameter link: the next entry, in a split ring.
  func indirect(_ chain: [RawDescriptor], link: (Int) -> UInt16? = { UInt16($0 + 1) }) throws -> RawDescriptor {
    let table = try memory.allocate(16 * max(chain.count, 1), alignment: 16)
    for (index, descriptor) in chain.enumerated() {
      var entry = descriptor
      if format == .split, index + 1 < chain.count, let next = link(index) {
        entry.flags.insert(.next)
        entry.next = next
      }
      table.store(entry.bytes(format), at: 16 * index)
    }
    return RawDescriptor(address: table.address.rawValue, length: UInt32(16 * chain.count), flags: .indirect)
  }

  /// Makes a chain available as a driver does, in consecutive descriptors.
  ///
  /// - Parameters:
  ///   - isLinked: false: flags and links are left as they are.
  ///   - named: packed: the buffer ID.
  func offer(_ chain: [RawDescriptor], isLinked: Bool = true, named: UInt16? = nil) {
    var linked = chain
    switch format {
    case .split:
      let first = slot
      for index in chain.indices {
        if isLinked, index + 1 < chain.count {
          linked[index].flags.insert(.next)
          linked[index].next = (first + UInt16(index) + 1) % size
        }
        split.setDescriptor(slot, linked[index])
        slot = (slot + 1) % size
      }
      split.offer(first)
    case .packed:
      for index in chain.indices {
        linked[index].next = named ?? id
        if isLinked, index + 1 < chain.count { linked[index].flags.insert(.next) }
      }
      id = (id + 1) % size
      place = packed.offer(linked, at: place)
    }
  }

  var broken: [String] {
    zip(DriverRules.all, findings.all).filter { $1.broken > 0 }.map { rule, account in
      "\(rule.clause.id): \(account.violations.first?.description ?? "")"
    }
  }
}
