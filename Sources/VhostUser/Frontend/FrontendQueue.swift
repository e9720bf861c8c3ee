/// The front-end sets up, starts and stops rings.
public import VirtioCore

/// One ring as a front-end describes it.
public struct FrontendQueue: Sendable {
  public var index: UInt8
  /// Entries.
  public var size: UInt16
  /// Addresses of the parts in the front-end's own address space, inside the region that begins at `userAddress`.
  public var descriptorTable: UInt64
  public var availableRing: UInt64
  public var usedRing: UInt64
  /// The guest address under which writes to the used ring are logged; `nil`: they are not logged.
  public var usedRingLog: UInt64?
  /// The available index to start with: what `stop` returned, or 0 for a new ring.
  public var base: UInt32
  /// `nil`: the back-end has to poll.
  public var kick: OwnedDescriptor?
  /// `nil`: the front-end polls.
  public var call: OwnedDescriptor?
  /// `nil`: do not send SET_VRING_ERR.
  public var error: OwnedDescriptor?

  public init(
    index: UInt8, size: UInt16, descriptorTable: UInt64, availableRing: UInt64, usedRing: UInt64,
    usedRingLog: UInt64? = nil, base: UInt32 = 0, kick: OwnedDescriptor?, call: OwnedDescriptor?, error: OwnedDescriptor? = nil
  ) {
    self.index = index
    self.size = size
    self.descriptorTable = descriptorTable
    self.availableRing = availableRing
    self.usedRing = usedRing
    self.usedRingLog = usedRingLog
    self.base = base
    self.kick = kick
    self.call = call
    self.error = error
  }
}

extension Frontend {
  /// Sets up a ring, starts it, and enables it if rings have to be enabled.
  public func start(_ queue: FrontendQueue) throws(FrontendError) {
    try setSize(queue: queue.index, UInt32(queue.size))
    try setBase(queue: queue.index, queue.base)
    try setAddress(
      VringAddress(
        index: UInt32(queue.index), flags: queue.usedRingLog == nil ? 0 : 1, descriptorTable: queue.descriptorTable,
        usedRing: queue.usedRing, availableRing: queue.availableRing, log: queue.usedRingLog ?? 0))
    try setCall(queue: queue.index, queue.call)
    if let error = queue.error { try setError(queue: queue.index, error) }
    try setKick(queue: queue.index, queue.kick)
    if enablesRings { try setEnabled(queue: queue.index, true) }
  }

  /// Stops a ring; returns when everything in flight on it is completed and published.
  /// - Returns: its available index.
  public func stop(queue: UInt8) throws(FrontendError) -> UInt32 {
    let reply = try ask(.getVringBase, VringState(index: UInt32(queue), number: 0).bytes)
    guard let state = VringState(decoding: reply) else { preconditionFailure("the length of the reply was checked") }
    return state.number
  }

  public func setSize(queue: UInt8, _ size: UInt32) throws(FrontendError) {
    try tell(.setVringSize, VringState(index: UInt32(queue), number: size).bytes)
  }

  public func setBase(queue: UInt8, _ base: UInt32) throws(FrontendError) {
    try tell(.setVringBase, VringState(index: UInt32(queue), number: base).bytes)
  }

  public func setAddress(_ address: VringAddress) throws(FrontendError) { try tell(.setVringAddress, address.bytes) }

  /// Starts the ring; without a descriptor the back-end has to poll.
  public func setKick(queue: UInt8, _ kick: OwnedDescriptor?) throws(FrontendError) {
    try set(.setVringKick, queue, kick)
  }

  public func setCall(queue: UInt8, _ call: OwnedDescriptor?) throws(FrontendError) {
    try set(.setVringCall, queue, call)
  }

  /// The descriptor that is signalled when the ring breaks.
  public func setError(queue: UInt8, _ error: OwnedDescriptor?) throws(FrontendError) {
    try set(.setVringError, queue, error)
  }

  public func setEnabled(queue: UInt8, _ enabled: Bool) throws(FrontendError) {
    try tell(.setVringEnable, VringState(index: UInt32(queue), number: enabled ? 1 : 0).bytes)
  }

  private func set(_ request: FrontendRequest, _ queue: UInt8, _ descriptor: OwnedDescriptor?) throws(FrontendError) {
    let word = VringDescriptorWord(index: queue, hasDescriptor: descriptor != nil)
    try tell(request, word.bytes, descriptor.map { [$0] } ?? [])
  }
}
