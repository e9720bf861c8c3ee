/// One ring of a session: its two independent states, and everything that it needs to start.
internal import VirtioCore

/// A ring's question to the front-end.
struct TranslationWait: Sendable {
  let miss: TranslationMiss
  /// Unique for each wait.
  let number: UInt64
  /// Updates of that address that did not allow the access. Each may be the answer to another ring's question.
  var refusals = 0
}

/// "Ring states": stopped or started, enabled or disabled. A ring runs on the device while it is started, enabled, and has
/// all that it needs.
struct Ring: Sendable {
  /// `nil` until SET_VRING_NUM.
  var size: UInt16?
  var address: VringAddress?
  /// The position from which it continues when it is started next.
  var position = Self.unsaid
  /// `nil` while stopped.
  var kick: KickSource?
  var call = CallSink.none
  var failure = CallSink.none
  var isEnabled = false
  /// The device runs it.
  var isRunning = false
  /// The ring broke while the device served it, and has to be started again.
  var hasFailed = false
  /// At most one wait; an array, because most rings never have any, and a process has many rings.
  private var waits: [TranslationWait] = []
  /// With a driver behind an IOMMU: the translation that it waits for, running or not.
  var wait: TranslationWait? {
    get { waits.first }
    set { waits = newValue.map { [$0] } ?? [] }
  }

  var isStarted: Bool { kick != nil }

  /// Whether the device should run it now.
  var isReady: Bool { isStarted && isEnabled && !isRunning && !hasFailed && size != nil && address != nil }

  /// The front-end has stopped the ring, and sends another kick descriptor to start it again. The used position is then read
  /// from memory, because the front-end may change the ring in the meantime; in a packed ring it cannot be read.
  mutating func stop(isPacked: Bool) {
    kick = nil
    hasFailed = false
    wait = nil
    if !isPacked { position.used = nil }
  }

  /// The position before one was set.
  static let unsaid = QueuePosition(available: 0, used: nil)

  /// Back to its initial state, except for the descriptors, which belong to the connection.
  mutating func reset() {
    self = Ring(call: call, failure: failure)
  }

  /// The ring's parts as guest addresses.
  func configuration(in table: MemoryTable) throws(Refusal) -> QueueConfiguration {
    guard let size, let address else { preconditionFailure("only a ring that is ready is configured") }
    return QueueConfiguration(
      size: size,
      descriptorTable: try Self.translate(address.descriptorTable, .descriptorTable, table),
      availableRing: try Self.translate(address.availableRing, .availableRing, table),
      usedRing: try Self.translate(address.usedRing, .usedRing, table))
  }

  private static func translate(
    _ user: UInt64, _ part: QueueError.RingPart, _ table: MemoryTable
  ) throws(Refusal) -> GuestAddress {
    guard let address = table.guestAddress(ofUser: user) else { throw .notInMemory(part, user) }
    return address
  }

  /// Checks an address as far as possible before the ring starts (virtio 2.6: alignment to 16, 2 and 4 bytes).
  ///
  /// - Parameter isTranslated: its addresses have to be translated, and are not checked against the table.
  static func check(_ address: VringAddress, in table: MemoryTable, isTranslated: Bool) throws(Refusal) {
    let parts: [(QueueError.RingPart, UInt64, alignment: UInt64)] = [
      (.descriptorTable, address.descriptorTable, 16), (.availableRing, address.availableRing, 2),
      (.usedRing, address.usedRing, 4),
    ]
    for (part, user, alignment) in parts {
      guard user % alignment == 0 else { throw .misaligned(part, user) }
      // Some front-ends describe rings before memory; then it is checked at the start.
      if !isTranslated, !table.entries.isEmpty { _ = try translate(user, part, table) }
    }
  }
}
