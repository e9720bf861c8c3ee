/// A packed ring as a user wants to see it: which notifications both sides want, and the descriptors as they are in memory.
internal import MemoryFile
public import VirtioCore

/// A copy of a packed ring at one moment. Who owns a descriptor depends on the wrap counters, which only the two sides know, so
/// AVAIL and USED are shown for each.
public struct PackedPicture: Equatable, Sendable {
  public struct Slot: Equatable, Sendable {
    public let number: Int
    public let address: GuestAddress
    /// Bytes.
    public let length: UInt32
    public let id: UInt16
    public let flags: UInt16

    /// NEXT, WRITE, INDIRECT, AVAIL and USED (virtio 2.7.13).
    public var flagNames: [String] {
      [(0, "NEXT"), (1, "WRITE"), (2, "INDIRECT"), (7, "AVAIL"), (15, "USED")].filter { flags >> $0.0 & 1 == 1 }.map(\.1)
    }
  }

  /// The event suppression structures: offset and wrap counter in the low half, flags in the high one.
  public let driverWish: UInt32
  public let deviceWish: UInt32
  /// Slots that have been written at some time, in the order of the ring.
  public let slots: [Slot]

  /// - Parameters:
  ///   - ring: 16 bytes for each slot.
  ///   - driver, device: 4 bytes each.
  init(ring: [UInt8], driver: [UInt8], device: [UInt8]) {
    driverWish = driver[...].word(at: 0)
    deviceWish = device[...].word(at: 0)
    slots = (0..<ring.count / 16).map { number in
      let at = 16 * number
      return Slot(
        number: number, address: GuestAddress(ring[...].word(at: at)), length: ring[...].word(at: at + 8),
        id: ring[...].word(at: at + 12), flags: ring[...].word(at: at + 14))
    }.filter { $0.flags != 0 || $0.address.rawValue != 0 || $0.length != 0 }
  }

  /// Which notifications a side wants, in words (virtio 2.7.14).
  static func words(_ wish: UInt32) -> String {
    let position = PackedPosition(rawValue: UInt16(truncatingIfNeeded: wish))
    return switch wish >> 16 & 3 {
    case 0: "every time"
    case 1: "never"
    case 2: "when slot \(position.slot) of round \(position.wrap ? 1 : 0) is passed"
    default: "flags 3, a reserved value"
    }
  }
}

extension QueuePicture {
  /// The parts of a packed ring, or what is wrong with them.
  static func readPacked(
    _ configuration: QueueConfiguration, memory: GuestBytes
  ) -> (picture: PackedPicture?, problems: [String]) {
    let size = Int(configuration.size)
    guard size > 0, size <= 32768 else { return (nil, [QueueError.badPackedSize(configuration.size).description]) }
    var problems: [String] = []
    func part(_ part: QueueError.RingPart, _ address: GuestAddress, alignment: UInt64, count: Int) -> [UInt8]? {
      if !address.isAligned(to: alignment) { problems.append(QueueError.misaligned(part: part, address).description) }
      let bytes = memory.bytes(at: address, count: count)
      if bytes == nil { problems.append(QueueError.unmapped(part: part, address).description) }
      return bytes
    }
    let ring = part(.descriptorRing, configuration.descriptorTable, alignment: 16, count: 16 * size)
    let driver = part(.driverEvents, configuration.availableRing, alignment: 4, count: 4)
    let device = part(.deviceEvents, configuration.usedRing, alignment: 4, count: 4)
    guard let ring, let driver, let device else { return (nil, problems) }
    return (PackedPicture(ring: ring, driver: driver, device: device), problems)
  }
}
