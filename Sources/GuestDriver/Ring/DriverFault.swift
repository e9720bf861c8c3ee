/// What a device did that no device may do, as seen by the driver.
public import VirtioCore

/// A rule that the device broke, with the numbers that show it (sections are those of virtio 1.1).
public enum DriverFault: Error, Hashable, Sendable, CustomStringConvertible {
  /// `used.idx` moved by more than what is outstanding, or backwards (2.6.8).
  case usedIndexJumped(queue: Int, from: UInt16, to: UInt16, outstanding: Int)
  /// A used element names no chain that the device holds (2.6.8, 2.7.21).
  case usedIDNotOutstanding(queue: Int, id: UInt32, slot: UInt16)
  /// With IN_ORDER, a used element stands for more chains than `used.idx` has moved by (2.6.9).
  case batchTooLong(queue: Int, id: UInt16, count: Int, moved: Int)
  /// A packed descriptor that the device holds is marked neither available nor used in this lap (2.7.1).
  case badDescriptorMarks(queue: Int, slot: UInt16, flags: UInt16, wrap: Bool)
  /// A used element reports more bytes than there were to write (2.6.8.2).
  case usedLengthTooLong(queue: Int, head: UInt16, length: UInt32, writable: UInt64)
  /// The device changed a descriptor (2.6.5.1, from 1.2 on).
  case descriptorModified(queue: Int, index: UInt16, wrote: RawDescriptor, found: RawDescriptor)
  case indirectDescriptorModified(queue: Int, head: UInt16, entry: Int, wrote: RawDescriptor, found: RawDescriptor)
  /// The device wrote into the available ring, which is the driver's.
  case availableIndexModified(queue: Int, wrote: UInt16, found: UInt16)
  /// `used.flags` is more than bit 0, or anything but 0 with EVENT_IDX (2.6.10.2).
  case badUsedFlags(queue: Int, UInt16, eventIndex: Bool)
  /// The device wrote into the driver's event suppression structure (2.7.14).
  case driverEventModified(queue: Int, wrote: EventSuppression, found: EventSuppression)
  /// The device's event suppression structure is invalid (2.7.14): unknown flags, an entry without EVENT_IDX, or one outside
  /// the ring.
  case badDeviceEvent(queue: Int, EventSuppression, eventIndex: Bool)
  /// Buffers were used while the driver waited for a call for them, and no call came (2.6.7.2). The indices are free-running;
  /// those of a packed ring count descriptors.
  case missingCall(queue: Int, usedEvent: UInt16, usedIndex: UInt16)
  /// More calls than the device can have had reasons for (2.6.7.2).
  case unwantedCalls(queue: Int, count: Int, wanted: Int)
  /// Nothing comes back.
  case noAnswer(queue: Int, outstanding: Int, milliseconds: Int, lastKick: String)
  /// Memory that is not allocated, or lies next to a buffer, was written to.
  case strayWrite(GuestAddress, near: String)
  /// A buffer that the device may only read was written to (2.6.5.1).
  case readableBufferModified(queue: Int, head: UInt16, offset: Int)
  /// Bytes that `used.len` counts were not written (2.6.8.2).
  case reportedButNotWritten(queue: Int, request: String, length: UInt32, offset: Int)
  /// The status byte was not written (5.2.6).
  case noStatus(queue: Int, head: UInt16)

  public var description: String {
    switch self {
    case .usedIndexJumped(let queue, let from, let to, let outstanding):
      "queue \(queue): used.idx went from \(from) to \(to) with \(outstanding) chains outstanding"
    case .usedIDNotOutstanding(let queue, let id, let slot):
      "queue \(queue): used element \(slot) names chain \(id), which the device does not hold"
    case .batchTooLong(let queue, let id, let count, let moved):
      "queue \(queue): a used element names chain \(id), which is number \(count) of those in flight, while used.idx moved by \(moved)"
    case .badDescriptorMarks(let queue, let slot, let flags, let wrap):
      "queue \(queue): the flags of descriptor \(slot) became 0x\(String(flags, radix: 16)), which is neither available nor used "
        + "while the wrap counter is \(wrap ? 1 : 0)"
    case .usedLengthTooLong(let queue, let head, let length, let writable):
      "queue \(queue): chain \(head) came back with \(length) bytes written of \(writable) writable ones"
    case .descriptorModified(let queue, let index, let wrote, let found):
      "queue \(queue): the device changed descriptor \(index) from \(wrote) to \(found)"
    case .indirectDescriptorModified(let queue, let head, let entry, let wrote, let found):
      "queue \(queue): the device changed entry \(entry) of chain \(head)'s indirect table from \(wrote) to \(found)"
    case .availableIndexModified(let queue, let wrote, let found):
      "queue \(queue): the device changed avail.idx from \(wrote) to \(found)"
    case .badUsedFlags(let queue, let flags, let eventIndex):
      "queue \(queue): used.flags is \(flags)\(eventIndex ? " with EVENT_IDX, where it must stay 0" : ", where only bit 0 is defined")"
    case .driverEventModified(let queue, let wrote, let found):
      "queue \(queue): the device changed the driver's event suppression from \(wrote) to \(found)"
    case .badDeviceEvent(let queue, let event, let eventIndex):
      "queue \(queue): the device's event suppression is \(event), which means nothing \(eventIndex ? "in this ring" : "without EVENT_IDX")"
    case .missingCall(let queue, let usedEvent, let usedIndex):
      "queue \(queue): used.idx went from \(usedEvent) to \(usedIndex) and the call that the driver waited for did not come"
    case .unwantedCalls(let queue, let count, let wanted):
      "queue \(queue): \(count) calls where at most \(wanted) were wanted"
    case .noAnswer(let queue, let outstanding, let milliseconds, let lastKick):
      "queue \(queue): no answer to \(outstanding) outstanding chains for \(milliseconds) ms; \(lastKick)"
    case .strayWrite(let address, let near):
      "the device wrote to \(address), which it was never given (\(near))"
    case .readableBufferModified(let queue, let head, let offset):
      "queue \(queue): the device wrote to byte \(offset) of the readable part of chain \(head)"
    case .reportedButNotWritten(let queue, let request, let length, let offset):
      "queue \(queue): \(request) came back with \(length) bytes written, but byte \(offset) was not"
    case .noStatus(let queue, let head):
      "queue \(queue): chain \(head) came back without a status byte"
    }
  }
}
