/// One disk under load: a split ring whose chains are laid out once, in memory that many.py has set up with the device.
import CLinux
import Glibc
import VirtioCore

/// Its memory: descriptors, rings, a cache line with header and status for each slot, and 4 KiB of data for each.
@safe
struct LoadedDisk {
  struct Shape {
    /// How many requests can be in flight; each takes three descriptors.
    var slots: Int
    /// The entries of the ring.
    var entries: Int
    /// The size of the disk in blocks of 4 KiB.
    var blocks: UInt64

    var bytes: Int { Place.data + slots * 4096 }
  }

  /// The same places as in many.py.
  private enum Place {
    static let available = 0x4000
    static let used = 0x5000
    static let headers = 0x8000
    static let data = 0x10000
  }

  private let base: UnsafeMutableRawPointer
  private let kick: Int32
  private let shape: Shape
  private var free: [UInt16]
  /// When the request in each slot was due.
  private var due: [UInt64]
  /// Requests that were due when all slots were in use.
  private var delayed: [(due: UInt64, block: UInt64)] = []
  private var availableIndex: UInt16 = 0
  private var publishedIndex: UInt16 = 0
  private var usedIndex: UInt16 = 0
  private(set) var kicks = 0
  private(set) var failures = 0

  /// Lays out the chains. - Returns: `nil` if the memory cannot be mapped.
  init?(memory: Int32, kick: Int32, _ shape: Shape) {
    let address = unsafe mmap(nil, shape.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0)
    guard let base = unsafe address, unsafe base != MAP_FAILED else { return nil }
    unsafe self.base = base
    self.kick = kick
    self.shape = shape
    free = (0..<UInt16(shape.slots)).reversed()
    due = Array(repeating: 0, count: shape.slots)
    for slot in 0..<shape.slots {
      let header = UInt64(Place.headers + slot * 64)
      let head = UInt64(slot * 3)
      let (next, write): (UInt64, UInt64) = (1 << 32, 2 << 32)
      store(at: slot * 48, header, 16 | next | (head + 1) << 48)
      store(at: slot * 48 + 16, UInt64(Place.data + slot * 4096), 4096 | next | write | (head + 2) << 48)
      store(at: slot * 48 + 32, header + 16, 1 | write)
      unsafe (base + Int(header)).initializeMemory(as: UInt8.self, repeating: 0, count: 64)
    }
  }

  private func store(at offset: Int, _ address: UInt64, _ rest: UInt64) {
    unsafe (base + offset).storeBytes(of: address, as: UInt64.self)
    unsafe (base + offset + 8).storeBytes(of: rest, as: UInt64.self)
  }

  private func cell(_ offset: Int) -> SharedCell<UInt16> { unsafe SharedCell(base + offset) }

  var isIdle: Bool { availableIndex == usedIndex && delayed.isEmpty }
  // Acquire: elements and statuses are read after the index that shows them (virtio 2.6.14).
  var hasAnswers: Bool { cell(Place.used + 2).loadAcquire() != usedIndex }

  /// Requests a block, now or as soon as a slot is free. - Parameter isLast: publish it at once.
  mutating func ask(due moment: UInt64, block: UInt64, isLast: Bool) {
    guard let slot = free.popLast() else { return delayed.append((moment, block)) }
    due[Int(slot)] = moment
    let header = Place.headers + Int(slot) * 64
    unsafe (base + header).storeBytes(of: block % shape.blocks &* 8, toByteOffset: 8, as: UInt64.self)
    unsafe (base + header).storeBytes(of: 0xee, toByteOffset: 16, as: UInt8.self)
    cell(Place.available + 4 + Int(availableIndex) % shape.entries * 2).storeRelaxed(slot * 3)
    availableIndex &+= 1
    if isLast { publish() }
  }

  mutating func sendDelayed() {
    while !delayed.isEmpty, !free.isEmpty {
      let next = delayed.removeFirst()
      ask(due: next.due, block: next.block, isLast: delayed.isEmpty || free.isEmpty)
    }
    publish()
  }

  /// Publishes the new requests, and kicks if the device wants it.
  mutating func publish() {
    guard availableIndex != publishedIndex else { return }
    let old = publishedIndex
    publishedIndex = availableIndex
    // Release: chains and entries before the index that shows them (virtio 2.6.13.3.1).
    cell(Place.available + 2).storeRelease(availableIndex)
    // The index is written before the check whether the device sleeps (virtio 2.6.13.4.1).
    fullFence()
    let event = cell(Place.used + 4 + shape.entries * 8).loadRelaxed()
    guard availableIndex &- event &- 1 < availableIndex &- old else { return }
    kicks += 1
    EventCounter.signal(kick)
  }

  /// Takes one answer. - Returns: when its request was due.
  mutating func takeAnswer() -> UInt64? {
    guard hasAnswers else { return nil }
    let element = unsafe SharedCell<UInt32>(base + (Place.used + 4 + Int(usedIndex) % shape.entries * 8)).loadRelaxed()
    usedIndex &+= 1
    let slot = Int(element / 3)
    guard element % 3 == 0, slot < shape.slots else { OpenLoad.end("open-load: a used element has the id \(element)") }
    if unsafe base.load(fromByteOffset: Place.headers + slot * 64 + 16, as: UInt8.self) != 0 { failures += 1 }
    free.append(UInt16(slot))
    return due[slot]
  }

  /// Asks for a call at the next answer.
  func wantCall() { cell(Place.available + 4 + shape.entries * 2).storeRelaxed(usedIndex) }
}
