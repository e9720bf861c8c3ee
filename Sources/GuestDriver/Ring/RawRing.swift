/// Every field of a split ring in its place, without any rules: a driver's ring is built on it, and tests use it to build rings
/// that no driver would.
public import VirtioCore

/// A ring in memory, field by field. It borrows the memory: keep that alive.
///
/// Indices into the ring's arrays are taken modulo its size, as the specification counts them.
@safe
public struct RawRing: @unchecked Sendable {
  public let layout: RingLayout
  private let table: UnsafeMutableRawPointer
  private let available: UnsafeMutableRawPointer
  private let used: UnsafeMutableRawPointer

  /// - Precondition: the layout is that of a split ring, and each part lies in one region of the memory.
  public init(_ layout: RingLayout, in memory: DriverMemory) {
    guard
      let table = unsafe memory.host(layout.descriptorTable, count: RingLayout.descriptorTableBytes(layout.size)),
      let available = unsafe memory.host(layout.availableRing, count: RingLayout.availableRingBytes(layout.size)),
      let used = unsafe memory.host(layout.usedRing, count: RingLayout.usedRingBytes(layout.size))
    else { preconditionFailure("the ring is not in guest memory") }
    precondition(layout.format == .split, "these are the fields of a split ring")
    self.layout = layout
    unsafe self.table = table
    unsafe self.available = available
    unsafe self.used = used
  }

  @inline(__always) private func slot(_ index: UInt16) -> Int { Int(index & (layout.size &- 1)) }

  // MARK: descriptor table

  @inline(__always) public func descriptor(_ index: UInt16) -> RawDescriptor {
    unsafe RawDescriptor(loadedFrom: table + 16 * slot(index), .split)
  }

  @inline(__always) public func setDescriptor(_ index: UInt16, _ descriptor: RawDescriptor) {
    unsafe descriptor.store(at: table + 16 * slot(index), .split)
  }

  // MARK: available ring

  public var availableFlags: SharedCell<UInt16> { unsafe SharedCell(available) }
  public var availableIndex: SharedCell<UInt16> { unsafe SharedCell(available + 2) }
  @inline(__always) public func availableEntry(_ index: UInt16) -> SharedCell<UInt16> {
    unsafe SharedCell(available + 4 + 2 * slot(index))
  }
  /// The used index at which the driver wants to be called, with EVENT_IDX (virtio 2.6.7).
  public var usedEvent: SharedCell<UInt16> { unsafe SharedCell(available + 4 + 2 * Int(layout.size)) }

  // MARK: used ring

  public var usedFlags: SharedCell<UInt16> { unsafe SharedCell(used) }
  public var usedIndex: SharedCell<UInt16> { unsafe SharedCell(used + 2) }
  @inline(__always) public func usedID(_ index: UInt16) -> SharedCell<UInt32> {
    unsafe SharedCell(used + 4 + 8 * slot(index))
  }
  @inline(__always) public func usedLength(_ index: UInt16) -> SharedCell<UInt32> {
    unsafe SharedCell(used + 8 + 8 * slot(index))
  }
  /// The available index at which the device wants to be kicked, with EVENT_IDX (virtio 2.6.10).
  public var availableEvent: SharedCell<UInt16> { unsafe SharedCell(used + 4 + 8 * Int(layout.size)) }

  // MARK: unchecked

  /// Makes heads available without checking whether that is allowed: writes the next entries, then moves the index.
  public func offer(_ heads: UInt16...) {
    var index = availableIndex.loadRelaxed()
    for head in heads {
      availableEntry(index).storeRelaxed(head)
      index &+= 1
    }
    availableIndex.storeRelease(index)
  }

  /// All used elements that were published since the index was `start`.
  public func usedElements(since start: UInt16) -> [(id: UInt32, length: UInt32)] {
    let end = usedIndex.loadAcquire()
    return (0..<(end &- start)).map { step in
      (usedID(start &+ step).loadRelaxed(), usedLength(start &+ step).loadRelaxed())
    }
  }
}

extension RawDescriptor {
  /// Loads each half once. - Parameter place: 16 bytes, aligned to 8.
  @inline(__always) init(loadedFrom place: UnsafeMutableRawPointer, _ format: RingFormat) {
    self.init(
      lowWord: unsafe SharedCell<UInt64>(place).loadRelaxed(), highWord: unsafe SharedCell<UInt64>(place + 8).loadRelaxed(),
      format)
  }

  @inline(__always) func store(at place: UnsafeMutableRawPointer, _ format: RingFormat) {
    unsafe SharedCell<UInt64>(place).storeRelaxed(lowWord)
    unsafe SharedCell<UInt64>(place + 8).storeRelaxed(highWord(format))
  }
}
