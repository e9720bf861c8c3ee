/// Reads and writes of one size from buffers that are prepared once: the client for measuring. Nothing allocates after
/// `init`, and the checks are the ring's own and the status byte.
internal import VirtioCore

/// One queue of a block device with a fixed number of request slots. A noncopyable value: it belongs to one thread.
@safe
public struct PreparedQueue: ~Copyable {
  /// The ring, for waiting and for its counts of notifications.
  public var ring: DriverQueue
  /// Slots, and how many of them are not in use.
  public let depth: Int
  public private(set) var free: Int
  /// Data bytes of each request.
  public let bytes: Int

  private let memory: DriverMemory
  private let slots: UnsafeMutablePointer<Slot>
  private let freeSlots: UnsafeMutablePointer<UInt32>
  // Three pieces for each slot and direction: header, data, status.
  private let pieces: UnsafeMutablePointer<ChainPiece>

  private struct Slot {
    var control: GuestBuffer
    var data: GuestBuffer
  }

  /// A request that was answered.
  public struct Outcome: Hashable, Sendable {
    /// 0 …< depth: the slot, whose data stays until it is used again.
    public let slot: Int
    public let wasRead: Bool
    public let status: BlockStatusCode
  }

  private static let statusOffset = 16

  /// - Parameters:
  ///   - depth: requests in flight, at least 1; never more than the ring holds.
  ///   - bytes: data of each request, a multiple of 512.
  public init(_ setup: QueueSetup, depth: Int, bytes: Int) throws(DriverError) {
    precondition(depth > 0 && bytes > 0 && bytes % 512 == 0)
    var buffers: [Slot] = []
    for _ in 0..<depth {
      buffers.append(
        Slot(
          control: try setup.memory.allocate(32, alignment: 32), data: try setup.memory.allocate(bytes, alignment: 4096)))
    }
    self.depth = depth
    self.bytes = bytes
    memory = setup.memory
    ring = DriverQueue(setup)
    free = depth
    unsafe slots = .allocate(capacity: depth)
    unsafe freeSlots = .allocate(capacity: depth)
    unsafe pieces = .allocate(capacity: 6 * depth)
    for (index, slot) in buffers.enumerated() {
      unsafe (slots + index).initialize(to: slot)
      unsafe (freeSlots + index).initialize(to: UInt32(depth - 1 - index))
      for isRead in [false, true] {
        let first = 6 * index + (isRead ? 3 : 0)
        let status = GuestAddress(slot.control.address.rawValue + UInt64(Self.statusOffset))
        unsafe (pieces + first).initialize(to: ChainPiece(slot.control.address, length: 16, deviceWrites: false))
        unsafe (pieces + first + 1).initialize(
          to: ChainPiece(slot.data.address, length: UInt32(bytes), deviceWrites: isRead))
        unsafe (pieces + first + 2).initialize(to: ChainPiece(status, length: 1, deviceWrites: true))
      }
    }
  }

  deinit {
    for index in 0..<depth {
      unsafe memory.release(slots[index].control)
      unsafe memory.release(slots[index].data)
    }
    unsafe slots.deallocate()
    unsafe freeSlots.deallocate()
    unsafe pieces.deallocate()
  }

  /// The data of a slot: what a write sends and a read returns.
  public func data(of slot: Int) -> GuestBuffer {
    precondition(slot >= 0 && slot < depth)
    return unsafe slots[slot].data
  }

  /// The slot that the next request takes; `nil` when all are in use.
  public var nextSlot: Int? { free > 0 ? unsafe Int(freeSlots[free - 1]) : nil }

  /// Puts a read or a write of `bytes` bytes into the ring; the device sees it after `publish`.
  ///
  /// - Parameter sector: 512-byte units.
  /// - Returns: false when no slot is free, or the ring has no room.
  public mutating func submit(isRead: Bool, sector: UInt64) -> Bool {
    guard free > 0 else { return false }
    let index = unsafe Int(freeSlots[free - 1])
    let control = unsafe slots[index].control.host
    unsafe control.storeBytes(
      of: (isRead ? BlockRequestType.read : .write).rawValue.littleEndian, toByteOffset: 0, as: UInt32.self)
    unsafe control.storeBytes(of: 0, toByteOffset: 4, as: UInt32.self)
    unsafe control.storeBytes(of: sector.littleEndian, toByteOffset: 8, as: UInt64.self)
    unsafe control.storeBytes(of: BlockStatusCode.poison.rawValue, toByteOffset: Self.statusOffset, as: UInt8.self)
    let placement: ChainPlacement = ring.freeTables > 0 ? .indirect() : .direct
    let chain = unsafe UnsafeBufferPointer(start: pieces + 6 * index + (isRead ? 3 : 0), count: 3)
    let token = UInt32(index) << 1 | (isRead ? 1 : 0)
    guard unsafe ring.add(chain.span, placement: placement, token: token) != nil else { return false }
    free -= 1
    return true
  }

  /// Makes everything submitted available at once. - Returns: whether the device was kicked.
  @discardableResult public mutating func publish() -> Bool { ring.publish() }

  /// Takes an answer, if there is one.
  public mutating func reap() throws(DriverFault) -> Outcome? {
    guard let used = try ring.reap() else { return nil }
    let index = Int(used.token >> 1)
    let status = unsafe BlockStatusCode(
      rawValue: slots[index].control.host.load(fromByteOffset: Self.statusOffset, as: UInt8.self))
    guard status != .poison else { throw .noStatus(queue: ring.setup.index, head: used.head) }
    unsafe freeSlots[free] = UInt32(index)
    free += 1
    return Outcome(slot: index, wasRead: used.token & 1 == 1, status: status)
  }
}
