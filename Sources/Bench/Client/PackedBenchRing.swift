/// A packed ring for chains that were written once: a request copies its one or three descriptors into the next slots.
internal import GuestDriver
internal import VirtioCore

@safe
struct PackedBenchRing: BenchRing {
  private enum Flag {
    static let next: UInt64 = 1 << 48
    static let indirect: UInt64 = 4 << 48
  }
  static var writeMark: UInt64 { 2 << 48 }

  /// A place in the ring and the wrap counter there, as the marks of a descriptor that is available.
  private struct Place {
    var slot = 0
    /// 0x0080 or 0x8000.
    var marks: UInt16 = 0x0080

    @inline(__always) var usedMarks: UInt16 { marks == 0x0080 ? 0x8080 : 0 }
    @inline(__always) var word: UInt16 { UInt16(truncatingIfNeeded: slot) | (marks == 0x0080 ? 0x8000 : 0) }

    /// - Parameter count: at most `size`.
    @inline(__always) mutating func advance(by count: Int, size: Int) {
      slot &+= count
      if slot >= size {
        slot &-= size
        marks ^= 0x8080
      }
    }
  }

  private let ring: UnsafeMutableRawPointer
  private let driverEvent: UnsafeMutableRawPointer
  private let deviceEvent: UnsafeMutableRawPointer
  private let control: UnsafeMutablePointer<GuestWindow.Piece>
  private let size: Int
  private let hasEventIndex: Bool
  /// Descriptors of a slot in the ring: 1 that refers to a table, or 3.
  private let stride: Int
  private var available = Place()
  private var published = Place()
  private var reaped = Place()
  /// The flags that `publish` gives to the first descriptor of a batch; 0: there is nothing to publish.
  private var heldFlags: UInt16 = 0
  /// Descriptors offered since the last `publish`.
  private var offered: UInt16 = 0
  /// How many chains `take` may still return.
  private var left = 0

  init(_ setup: QueueSetup, isIndirect: Bool, memory: GuestWindow) throws(BenchError) {
    let layout = setup.ring.layout
    unsafe ring = try memory.host(layout.descriptorTable, count: RingLayout.descriptorTableBytes(layout.size))
    unsafe driverEvent = try memory.host(layout.availableRing, count: RingLayout.eventBytes)
    unsafe deviceEvent = try memory.host(layout.usedRing, count: RingLayout.eventBytes)
    size = Int(layout.size)
    hasEventIndex = setup.eventIndex
    stride = isIndirect ? 1 : 3
    unsafe control = .allocate(capacity: size)
  }

  func deallocate() { unsafe control.deallocate() }

  func lay(_ slot: Int, _ places: SlotPlaces, isWrite: Bool) -> UnsafeMutableRawPointer {
    let chain = unsafe places.control.host + SlotPlaces.descriptorOffset
    // Entries of a table have no flag but WRITE; those copied into the ring get the other flags there.
    unsafe Self.store(at: chain, address: places.control.address, rest: 16)
    unsafe Self.store(
      at: chain + 16, address: places.data.address, rest: UInt64(places.bytes) | (isWrite ? 0 : Self.writeMark))
    unsafe Self.store(
      at: chain + 32, address: places.control.address + SlotPlaces.statusOffset, rest: 1 | Self.writeMark)
    unsafe (control + slot).initialize(to: places.control)
    return unsafe chain + 16
  }

  @inline(__always)
  mutating func offer(_ slot: Int) {
    let id = UInt64(truncatingIfNeeded: slot) << 32
    let places = unsafe control[slot]
    if stride == 1 {
      write(places.address &+ UInt64(SlotPlaces.descriptorOffset), 48 | Flag.indirect | id)
      return
    }
    let chain = unsafe places.host + SlotPlaces.descriptorOffset
    for part in 0..<3 {
      let address = unsafe SharedCell<UInt64>(chain + 16 &* part).loadRelaxed()
      let rest = unsafe SharedCell<UInt64>(chain + (16 &* part &+ 8)).loadRelaxed()
      write(address, rest | (part < 2 ? Flag.next : 0) | id)
    }
  }

  @inline(__always)
  private mutating func write(_ address: UInt64, _ rest: UInt64) {
    var marks = available.marks
    if offered == 0 {
      heldFlags = UInt16(truncatingIfNeeded: rest >> 48) | marks
      // As the lap before left it: neither available nor used.
      marks = marks == 0x0080 ? 0 : 0x8080
    }
    unsafe Self.store(at: ring + 16 &* available.slot, address: address, rest: rest | UInt64(marks) << 48)
    available.advance(by: 1, size: size)
    offered &+= 1
  }

  @inline(__always)
  mutating func publish() -> Bool {
    guard offered != 0 else { return false }
    // Release: headers and the other descriptors before the flags that show them (virtio 2.7.21.1.1).
    unsafe SharedCell<UInt16>(ring + (16 &* published.slot &+ 14)).storeRelease(heldFlags)
    let count = offered
    offered = 0
    published = available
    // The flags before the check whether the device sleeps (virtio 2.7.21.3.1).
    fullFence()
    // Acquire: the position is read after the flags that make it valid.
    switch unsafe SharedCell<UInt16>(deviceEvent + 2).loadAcquire() {
    case 1: return false
    case 2 where hasEventIndex:
      let event = unsafe SharedCell<UInt16>(deviceEvent).loadRelaxed()
      // As slots of the present lap; one of the previous lap is negative.
      let sameLap = event >> 15 == published.word >> 15
      let wanted = sameLap ? event & 0x7fff : (event & 0x7fff) &- UInt16(truncatingIfNeeded: size)
      return UInt16(truncatingIfNeeded: published.slot) &- wanted &- 1 < count
    default: return true
    }
  }

  @inline(__always) private var hasUsed: Bool {
    // Acquire: names, statuses and data are read after the flags that show them.
    unsafe SharedCell<UInt16>(ring + (16 &* reaped.slot &+ 14)).loadAcquire() & 0x8080 == reaped.usedMarks
  }

  @inline(__always)
  mutating func look(outstanding: Int, queue: Int) throws(BenchError) -> Bool {
    left = outstanding
    return hasUsed
  }

  @inline(__always)
  mutating func take() -> UInt32? {
    guard left > 0, hasUsed else { return nil }
    left &-= 1
    let id = unsafe SharedCell<UInt16>(ring + (16 &* reaped.slot &+ 12)).loadRelaxed()
    reaped.advance(by: stride, size: size)
    return UInt32(id)
  }

  @inline(__always)
  func slot(of name: UInt32) -> Int { Int(name) }

  func disableCalls() { unsafe SharedCell<UInt16>(driverEvent + 2).storeRelaxed(1) }

  func enableCalls() -> Bool {
    if hasEventIndex {
      unsafe SharedCell<UInt16>(driverEvent).storeRelaxed(reaped.word)
      // Release: the position before the flags that make it valid.
      unsafe SharedCell<UInt16>(driverEvent + 2).storeRelease(2)
    } else {
      unsafe SharedCell<UInt16>(driverEvent + 2).storeRelaxed(0)
    }
    // Enabling calls before the check for what is used already (virtio 2.7.22).
    fullFence()
    return !hasUsed
  }
}
