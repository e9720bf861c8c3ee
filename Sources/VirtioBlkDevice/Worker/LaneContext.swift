/// What all lanes of a device have in common.
internal import VirtioCore

@safe
struct LaneContext: @unchecked Sendable {
  let limits: BlockLimits
  /// 512-byte sectors, the unit of every address in the protocol (virtio 5.2.4). Changes with the image.
  let capacity: SharedCell<UInt64>
  let medium: MediumFacts
  /// The `writeback` byte of the configuration space; not 0 means writeback.
  let writeback: SharedCell<UInt32>
  /// Where stalls are reported if the medium fails a request; `nil`: the driver gets the error, and the queue continues.
  let stalls: DeviceNews?
  /// 20 bytes, NUL padded.
  let serial: UnsafeRawPointer
  let lifetime: LifetimeFiles?
  /// The zones of a zoned disk.
  let zones: ZonedDisk?
  /// The count of pages in the process's mappings that turned out to be lost.
  let faults = FaultGuard.counter

  // MARK: Tags

  private static let slotBits: UInt32 = 10
  /// How many requests one queue can have in flight; a larger ring holds the rest.
  static let slots = 1 << Int(slotBits)

  /// Lane and slot in one number, which identifies a request to the medium.
  static func firstTag(ofLane lane: Int) -> UInt32 { UInt32(lane) << slotBits }
  @inline(__always)
  static func lane(of tag: UInt32) -> Int { Int(tag >> slotBits) }
  @inline(__always)
  static func slot(of tag: UInt32) -> Int { Int(tag & (1 << slotBits - 1)) }
}
