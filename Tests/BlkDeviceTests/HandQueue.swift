/// One queue, started and stopped by hand, with a driver on it: for what no transport does on its own.
import Testing
import VirtioBlkDevice
import VirtioCore

@testable import GuestDriver

/// Guest memory, mapped by both sides.
struct SharedMemory {
  let driver: DriverMemory
  let device: GuestMemory

  init(size: Int = 4 << 20) throws { try self.init(regions: [(GuestAddress(0), size)]) }

  init(regions: [(start: GuestAddress, size: Int)]) throws {
    driver = try DriverMemory(anonymous: regions)
    device = try GuestMemory(
      driver.regions.map {
        GuestRegion(start: $0.start, size: UInt64($0.size), mapping: $0.mapping, offset: $0.offset)
      })
  }
}

final class HandQueue {
  let device: BlockDevice
  /// Tracks the device's queues; queues on one device share it.
  let attended: AttendedDevice
  let queue: BlockQueue
  let ring: RingMemory
  let kick: OwnedDescriptor
  let call: OwnedDescriptor
  /// Kicks in shared memory instead of `kick`.
  private let doorbell: Doorbell?
  private(set) var activation: Activation

  /// - Parameter tables: how many requests can use indirect tables at once; further ones use the ring.
  init(
    _ device: BlockDevice, _ index: Int, _ memory: SharedMemory, size: UInt16 = 16,
    features: FeatureSet = BlockFeature.understood, tables: Int = 0, publishesInOrder: Bool = false, usesDoorbell: Bool = false,
    log: QueueLog? = nil, beside other: HandQueue? = nil
  ) throws {
    let features = features.intersection(device.features)
    let kick = try OwnedDescriptor.eventCounter()
    self.kick = kick
    call = try OwnedDescriptor.eventCounter()
    ring = try RingMemory(size: size, format: RingFormat(features), shape: .separate, in: memory.driver)
    let setup = try QueueSetup(
      index: index, ring: ring, lines: .eventCounters(kick: kick, call: call), memory: memory.driver, features: features,
      indirectTables: tables, indirectEntries: 8)
    queue = BlockQueue(setup)
    self.device = device
    attended = other?.attended ?? AttendedDevice(device)
    if usesDoorbell {
      let word = try memory.driver.allocate(4, alignment: 4)
      word.fill(0)
      doorbell = unsafe Doorbell(SharedCell(word.host))
    } else {
      doorbell = nil
    }
    activation = Activation(
      queue: index, memory: memory.device, features: features, configuration: ring.layout.configuration,
      kick: doorbell.map { .doorbell($0) } ?? .eventCounter(kick), call: .eventCounter(call),
      publishesInOrder: publishesInOrder, log: log)
  }

  /// The same ring and driver, on a device that continues where the previous one stopped.
  init(taking other: HandQueue, on device: BlockDevice) throws {
    self.device = device
    attended = AttendedDevice(device)
    (queue, ring, kick, call, doorbell) = (other.queue, other.ring, other.kick, other.call, other.doorbell)
    activation = other.activation
  }

  /// Replaces the memory that the device uses, from the next start on.
  func use(_ memory: GuestMemory) { activation.memory = memory }

  /// Written pages are logged from the next start on.
  func log(_ log: QueueLog) { activation.log = log }

  /// The position of a ring that has not been used yet.
  var beginning: QueuePosition {
    ring.layout.format == .packed ? QueuePosition(available: PackedPosition.start, used: PackedPosition.start) : QueuePosition()
  }

  func start(at position: QueuePosition? = nil, record: InflightMemory? = nil) throws {
    activation.position = position ?? beginning
    activation.inflight = record
    try attended.startAndWait(activation)
  }

  /// The same, but no request is taken before the release.
  func startHeld(at position: QueuePosition? = nil, record: InflightMemory? = nil) throws {
    var held = activation
    held.position = position ?? beginning
    held.inflight = record
    held.isHeld = true
    try attended.startAndWait(held)
  }

  func stop() -> QueuePosition? { attended.stopAndWait(queue: activation.queue) }

  /// Puts a request into the ring; the device sees it when the queue publishes. - Returns: its tag.
  @discardableResult func submit(_ request: BlockRequest) throws -> UInt32 { try #require(try queue.submit(request)) }

  func perform(_ request: BlockRequest) throws -> BlockOutcome {
    guard let doorbell else { return try queue.perform(request) }
    try submit(request)
    queue.publish()
    doorbell.ring()
    var outcome: BlockOutcome?
    try waitUntil("\(request) is answered") {
      outcome = try queue.reap()
      return outcome != nil
    }
    return try #require(outcome)
  }

  /// The used index in memory.
  var usedIndex: UInt16 { queue.ring.ring.usedIndex.loadAcquire() }
}
