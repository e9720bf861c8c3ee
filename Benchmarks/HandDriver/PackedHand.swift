/// The packed ring of a driver that makes the same chains available again and again. Its descriptors are rewritten each time,
/// because the device has overwritten them.
internal import VirtioCore

/// Only used by the driver's thread. It allocates nothing after its creation.
@safe
final class PackedHand {
  /// The two halves of a descriptor, without the flags that depend on the round.
  private struct Template {
    var address: UInt64
    var rest: UInt64
  }

  private let base: UnsafeMutableRawPointer
  private let size: Int
  private let batch: Int
  /// The slots that one chain takes.
  private let span: Int
  private let hasEventIndex: Bool
  private let asksForCalls: Bool
  private let driverEvents: SharedCell<UInt32>
  private let deviceEvents: SharedCell<UInt32>
  private var templates: [Template]
  /// Where the last batch begins, and where the next one does.
  private var first = PackedPosition.start
  private var next = PackedPosition.start

  /// - Parameter base: the descriptor ring.
  init(_ scenario: Scenario, base: UnsafeMutableRawPointer, driver: UnsafeMutableRawPointer, device: UnsafeMutableRawPointer) {
    unsafe self.base = base
    size = scenario.ringSize
    batch = scenario.batch
    span = scenario.tableEntries
    hasEventIndex = scenario.hasEventIndex
    asksForCalls = scenario.asksForCalls
    unsafe driverEvents = SharedCell(driver)
    unsafe deviceEvents = SharedCell(device)
    templates = Array(repeating: Template(address: 0, rest: 0), count: scenario.batch * scenario.tableEntries)
  }

  /// - Parameter index: the index of the descriptor among those of one batch.
  func describe(_ index: Int, _ address: UInt64, _ length: UInt32, flags: UInt16) {
    templates[index] = Template(
      address: address, rest: UInt64(length) | UInt64(index / span) << 32 | UInt64(flags) << 48)
  }

  private func place(_ position: PackedPosition) -> UnsafeMutableRawPointer { unsafe base + 16 * position.slot }

  /// Makes one batch available: the flags of its first descriptor are written last.
  func makeAvailable() {
    first = next
    let wish: UInt32 = hasEventIndex ? UInt32(first.rawValue) | 2 << 16 : 0
    driverEvents.storeRelaxed(asksForCalls ? wish : 1 << 16)
    var position = first
    var head: UInt64 = 0
    for index in templates.indices {
      let place = unsafe place(position)
      let rest = templates[index].rest | (position.wrap ? 0x80 : 0x8000) << 48
      unsafe SharedCell<UInt64>(place).storeRelaxed(templates[index].address)
      if index == 0 { head = rest } else { unsafe SharedCell<UInt64>(place + 8).storeRelaxed(rest) }
      position = position.advanced(by: 1, size: size)
    }
    unsafe SharedCell<UInt64>(place(first) + 8).storeRelease(head)
    next = position
  }

  /// Whether every chain of the batch is used. Of chains that are published together, the first becomes visible last.
  var isAnswered: Bool {
    var position = first
    for _ in 0..<batch {
      let flags = unsafe SharedCell<UInt16>(place(position) + 14).loadAcquire()
      guard flags & 0x8080 == (position.wrap ? 0x8080 : 0) else { return false }
      position = position.advanced(by: span, size: size)
    }
    return true
  }

  /// Whether the device wants a kick for the batch (virtio 2.7.14).
  var isKickWanted: Bool {
    let wish = deviceEvents.loadRelaxed()
    switch wish >> 16 & 3 {
    case 1: return false
    case 2:
      let event = PackedPosition(rawValue: UInt16(truncatingIfNeeded: wish))
      let distance = event.slot - first.slot + (event.wrap == first.wrap ? 0 : size)
      return (0..<batch * span).contains(distance)
    default: return true
    }
  }
}
