/// Every field of a packed ring in its place, without any rules: a driver's ring is built on it, and tests use it to build
/// rings that no driver would.
public import VirtioCore

/// A packed ring in memory, field by field (virtio 2.7). It borrows the memory: keep that alive.
///
/// Indices into the ring are taken modulo its size.
@safe
public struct RawPackedRing: @unchecked Sendable {
  public let layout: RingLayout
  private let ring: UnsafeMutableRawPointer
  private let driver: UnsafeMutableRawPointer
  private let device: UnsafeMutableRawPointer

  /// - Precondition: the layout is that of a packed ring, and each part lies in one region of the memory.
  public init(_ layout: RingLayout, in memory: DriverMemory) {
    guard
      let ring = unsafe memory.host(layout.descriptorTable, count: RingLayout.descriptorTableBytes(layout.size)),
      let driver = unsafe memory.host(layout.availableRing, count: RingLayout.eventBytes),
      let device = unsafe memory.host(layout.usedRing, count: RingLayout.eventBytes)
    else { preconditionFailure("the ring is not in guest memory") }
    precondition(layout.format == .packed, "these are the fields of a packed ring")
    self.layout = layout
    unsafe self.ring = ring
    unsafe self.driver = driver
    unsafe self.device = device
  }

  @inline(__always) private func place(_ slot: UInt16) -> UnsafeMutableRawPointer {
    unsafe ring + 16 * Int(slot % layout.size)
  }

  // MARK: descriptors

  @inline(__always) public func descriptor(_ slot: UInt16) -> RawDescriptor {
    unsafe RawDescriptor(loadedFrom: place(slot), .packed)
  }

  @inline(__always) public func setDescriptor(_ slot: UInt16, _ descriptor: RawDescriptor) {
    unsafe descriptor.store(at: place(slot), .packed)
  }

  // One field at a time, for tests that race with a device.
  public func address(_ slot: UInt16) -> SharedCell<UInt64> { unsafe SharedCell(place(slot)) }
  public func length(_ slot: UInt16) -> SharedCell<UInt32> { unsafe SharedCell(place(slot) + 8) }
  /// The word that says who owns a descriptor.
  @inline(__always) public func flags(_ slot: UInt16) -> SharedCell<UInt16> { unsafe SharedCell(place(slot) + 14) }

  // MARK: event suppression

  /// When the driver wants to be called.
  public var driverEventPosition: SharedCell<UInt16> { unsafe SharedCell(driver) }
  public var driverEventFlags: SharedCell<UInt16> { unsafe SharedCell(driver + 2) }
  /// When the device wants to be kicked.
  public var deviceEventPosition: SharedCell<UInt16> { unsafe SharedCell(device) }
  public var deviceEventFlags: SharedCell<UInt16> { unsafe SharedCell(device + 2) }

  /// Acquire: the position is read after the flags that make it valid.
  public var deviceEvent: EventSuppression {
    let flags = deviceEventFlags.loadAcquire()
    return EventSuppression(position: deviceEventPosition.loadRelaxed(), flags: flags)
  }

  public var driverEvent: EventSuppression {
    let flags = driverEventFlags.loadAcquire()
    return EventSuppression(position: driverEventPosition.loadRelaxed(), flags: flags)
  }

  // MARK: unchecked

  /// Makes a chain available from `start` on without checking whether that is allowed: the first descriptor's marks come last.
  ///
  /// - Parameter chain: taken as it is, with the marks of an available descriptor added.
  /// - Returns: where the next chain would begin.
  @discardableResult public func offer(_ chain: [RawDescriptor], at start: RingPosition) -> RingPosition {
    var position = start
    for (place, descriptor) in chain.enumerated() {
      var copy = descriptor
      copy.flags.formUnion(RawDescriptor.Flags(rawValue: place == 0 ? start.restingMarks : position.availableMarks))
      setDescriptor(position.slot, copy)
      position = position.advanced(by: 1, size: layout.size)
    }
    if let first = chain.first {
      flags(start.slot).storeRelease(first.flags.rawValue | start.availableMarks)
    }
    return position
  }

  /// Whether the descriptor at `position` is used in that lap.
  public func isUsed(_ position: RingPosition) -> Bool {
    flags(position.slot).loadAcquire() & RingPosition.marks == position.usedMarks
  }
}
