/// A split ring whose descriptors stay where they are: a request is an entry in the available ring and a step of its index.
internal import GuestDriver
internal import VirtioCore

@safe
struct SplitBenchRing: BenchRing {
  private enum Flag {
    static let next: UInt64 = 1 << 32
    static let indirect: UInt64 = 4 << 32
  }
  static var writeMark: UInt64 { 2 << 32 }

  private let table: UnsafeMutableRawPointer
  private let available: UnsafeMutableRawPointer
  private let used: UnsafeMutableRawPointer
  private let size: UInt16
  private let hasEventIndex: Bool
  /// Descriptors of a slot in the ring: 1 that refers to a table, or 3.
  private let stride: Int
  private var availableIndex: UInt16 = 0
  private var publishedIndex: UInt16 = 0
  private var reapedIndex: UInt16 = 0
  /// The used index up to which `take` may go.
  private var seenUsed: UInt16 = 0

  init(_ setup: QueueSetup, isIndirect: Bool, memory: GuestWindow) throws(BenchError) {
    let layout = setup.ring.layout
    unsafe table = try memory.host(layout.descriptorTable, count: RingLayout.descriptorTableBytes(layout.size))
    unsafe available = try memory.host(layout.availableRing, count: RingLayout.availableRingBytes(layout.size))
    unsafe used = try memory.host(layout.usedRing, count: RingLayout.usedRingBytes(layout.size))
    size = layout.size
    hasEventIndex = setup.eventIndex
    stride = isIndirect ? 1 : 3
  }

  func deallocate() {}

  func lay(_ slot: Int, _ places: SlotPlaces, isWrite: Bool) -> UnsafeMutableRawPointer {
    let isIndirect = stride == 1
    let head = slot * stride
    let chain = unsafe isIndirect ? places.control.host + SlotPlaces.descriptorOffset : table + 16 * head
    let first = isIndirect ? 0 : head
    unsafe Self.store(at: chain, address: places.control.address, rest: 16 | Flag.next | UInt64(first + 1) << 48)
    unsafe Self.store(
      at: chain + 16, address: places.data.address,
      rest: UInt64(places.bytes) | Flag.next | (isWrite ? 0 : Self.writeMark) | UInt64(first + 2) << 48)
    unsafe Self.store(
      at: chain + 32, address: places.control.address + SlotPlaces.statusOffset, rest: 1 | Self.writeMark)
    if isIndirect {
      unsafe Self.store(at: table + 16 * head, address: places.descriptorAddress, rest: 48 | Flag.indirect)
    }
    return unsafe chain + 16
  }

  @inline(__always)
  mutating func offer(_ slot: Int) {
    let entry = unsafe available + (4 &+ Int(availableIndex & (size &- 1)) &* 2)
    unsafe SharedCell<UInt16>(entry).storeRelaxed(UInt16(truncatingIfNeeded: slot &* stride))
    availableIndex &+= 1
  }

  @inline(__always)
  mutating func publish() -> Bool {
    guard availableIndex != publishedIndex else { return false }
    let old = publishedIndex
    publishedIndex = availableIndex
    // Release: headers, descriptors and entries before the index that shows them (virtio 2.6.13.3.1).
    unsafe SharedCell<UInt16>(available + 2).storeRelease(availableIndex)
    // The index before the check whether the device sleeps (virtio 2.6.13.4.1).
    fullFence()
    guard hasEventIndex else { return unsafe SharedCell<UInt16>(used).loadRelaxed() & 1 == 0 }
    let event = unsafe SharedCell<UInt16>(used + (4 &+ Int(size) &* 8)).loadRelaxed()
    return availableIndex &- event &- 1 < availableIndex &- old
  }

  @inline(__always)
  mutating func look(outstanding: Int, queue: Int) throws(BenchError) -> Bool {
    // Acquire: elements, statuses and data are read after the index that shows them (virtio 2.6.14).
    seenUsed = unsafe SharedCell<UInt16>(used + 2).loadAcquire()
    guard seenUsed != reapedIndex else { return false }
    guard Int(seenUsed &- reapedIndex) <= outstanding else {
      throw .brokenRing(queue: queue, "used.idx jumped to \(seenUsed)")
    }
    return true
  }

  @inline(__always)
  mutating func take() -> UInt32? {
    guard reapedIndex != seenUsed else { return nil }
    let element = unsafe used + (4 &+ Int(reapedIndex & (size &- 1)) &* 8)
    reapedIndex &+= 1
    return unsafe SharedCell<UInt32>(element).loadRelaxed()
  }

  @inline(__always)
  func slot(of name: UInt32) -> Int {
    let id = Int(name)
    if stride == 1 { return id }
    let slot = id / 3
    return slot &* 3 == id ? slot : -1
  }

  func disableCalls() {
    if hasEventIndex {
      unsafe SharedCell<UInt16>(available + (4 &+ Int(size) &* 2)).storeRelaxed(reapedIndex &- 1)
    } else {
      unsafe SharedCell<UInt16>(available).storeRelaxed(1)
    }
  }

  func enableCalls() -> Bool {
    if hasEventIndex {
      unsafe SharedCell<UInt16>(available + (4 &+ Int(size) &* 2)).storeRelaxed(reapedIndex)
    } else {
      unsafe SharedCell<UInt16>(available).storeRelaxed(0)
    }
    // Enabling calls before the check for what is used already (virtio 2.6.14).
    fullFence()
    return unsafe SharedCell<UInt16>(used + 2).loadAcquire() == reapedIndex
  }
}
