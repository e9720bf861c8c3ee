/// What a client's queue needs from a ring of either format. The chains are laid out once and offered again and again.
internal import GuestDriver
internal import VirtioCore

/// The places of one slot: 128 bytes for header, status (after the header) and three descriptors (from byte 64 on), and the
/// data.
struct SlotPlaces {
  static var controlBytes: Int { 128 }
  static var statusOffset: UInt64 { 16 }
  static var descriptorOffset: Int { 64 }

  let control: GuestWindow.Piece
  let data: GuestWindow.Piece
  /// The length of the data.
  let bytes: Int

  var descriptorAddress: UInt64 { control.address + UInt64(Self.descriptorOffset) }
}

/// The driver's side of a ring whose chains all have the same shape. Slots are numbered 0 …< depth.
protocol BenchRing: SendableMetatype {
  /// WRITE in the second word of a descriptor.
  static var writeMark: UInt64 { get }

  init(_ setup: QueueSetup, isIndirect: Bool, memory: GuestWindow) throws(BenchError)

  /// Writes the three descriptors of a slot.
  /// - Returns: the data's descriptor, whose WRITE mark may be changed while the slot is not offered.
  func lay(_ slot: Int, _ places: SlotPlaces, isWrite: Bool) -> UnsafeMutableRawPointer

  /// Puts the slot's chain into the ring; the device sees it after `publish`.
  mutating func offer(_ slot: Int)
  /// - Returns: whether the device wants a kick for what was published.
  mutating func publish() -> Bool

  /// Checks for answers, once for all that `take` then returns. - Parameter outstanding: chains that the device holds.
  mutating func look(outstanding: Int, queue: Int) throws(BenchError) -> Bool
  /// The name in the next used element.
  mutating func take() -> UInt32?
  /// - Returns: −1 for a name that no slot has.
  func slot(of name: UInt32) -> Int

  /// The client polls.
  func disableCalls()
  /// Asks for a call at the next used chain.
  /// - Returns: false when something was used in the meantime, for which none may come.
  func enableCalls() -> Bool

  /// Frees what is not in guest memory.
  func deallocate()
}

extension BenchRing {
  static func store(at place: UnsafeMutableRawPointer, address: UInt64, rest: UInt64) {
    unsafe SharedCell<UInt64>(place).storeRelaxed(address.littleEndian)
    unsafe SharedCell<UInt64>(place + 8).storeRelaxed(rest.littleEndian)
  }
}
