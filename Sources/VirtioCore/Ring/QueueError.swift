/// Errors that make a queue unusable. A queue that throws one of them is stopped until the driver resets it; the process and
/// the other queues continue.

/// Why a ring was refused at start, or stopped while it ran. The numbers are the guest's, for the log.
public enum QueueError: Error, Hashable, Sendable, CustomStringConvertible {
  // At start.
  /// A split ring's size is not a power of two from 1 to 32768 (virtio 2.6).
  case badSize(UInt16)
  /// A packed ring's size is not 1 … 32768 (virtio 2.7).
  case badPackedSize(UInt16)
  /// A packed ring of this size cannot have this position.
  case badPosition(available: PackedPosition, used: PackedPosition, size: UInt16)
  /// A part of the ring is not aligned as it has to be (virtio 2.6, 2.7).
  case misaligned(part: RingPart, GuestAddress)
  /// A part of the ring is not inside guest memory, or not in one piece.
  case unmapped(part: RingPart, GuestAddress)
  /// The device's other queues have the other ring format.
  case otherFormat
  /// There is no memory for its requests.
  case outOfMemory
  /// The process cannot open more files.
  case outOfDescriptors
  /// The system cannot start more threads.
  case outOfThreads
  /// Its previous run was abandoned and has not ended.
  case leftBehind
  /// Its kick descriptor cannot be polled.
  case kickCannotBeWaitedFor
  /// The in-flight records have no region for it.
  case inflightMissing
  /// Its in-flight record has this version, and not 1.
  case inflightVersion(UInt16)
  /// Its in-flight record is that of a ring with another number of entries.
  case inflightSize(recorded: UInt16, size: UInt16)
  /// Its in-flight record has more requests than the driver has outstanding.
  case inflightTooMany(Int, waiting: UInt16)
  /// Its in-flight record is that of the other ring format.
  case inflightFormat
  /// Its in-flight record contradicts itself.
  case inflightDamaged
  /// The device of a packed ring died and left no in-flight record.
  case positionLost
  // While running.
  /// `avail.idx` moved by more than the ring has entries.
  case availableIndexJumped(from: UInt16, to: UInt16, size: UInt16)
  /// An available entry names a descriptor outside the table.
  case headOutOfRange(UInt16)
  /// A head was made available again before it was used.
  case headAlreadyInFlight(UInt16)
  /// A buffer ID of a packed ring was made available again before it was used.
  case bufferAlreadyInFlight(UInt16)
  /// A chain of a packed ring covers slots of chains that were not used yet.
  case slotNotFree(UInt16)
  /// A descriptor's `next` is outside the table.
  case nextOutOfRange(UInt16)
  /// A chain is longer than its table, so that it loops.
  case chainLoops(head: UInt16)
  /// A readable descriptor comes after a writable one (virtio 2.6.4.2, 2.7.17).
  case readableAfterWritable(head: UInt16)
  /// A chain describes more than 2^32 bytes (virtio 2.6.5.2).
  case chainTooLarge(head: UInt16)
  /// A descriptor is indirect without RING_INDIRECT_DESC.
  case indirectNotNegotiated(head: UInt16)
  /// An indirect descriptor has the NEXT flag.
  case indirectWithNext(head: UInt16)
  /// An indirect descriptor of a packed ring is part of a list.
  case indirectInList(head: UInt16)
  /// An indirect table contains an indirect descriptor.
  case nestedIndirect(head: UInt16)
  /// An indirect table's length in bytes is 0, too large, or not a multiple of 16.
  case badIndirectLength(head: UInt16, UInt32)
  /// An indirect table is not inside guest memory.
  case indirectUnmapped(head: UInt16, GuestAddress)
  /// A chain has no byte for the status, so it cannot be answered.
  case noWritableByte(head: UInt16)
  /// The byte for the status is outside guest memory.
  case statusUnmapped(head: UInt16)
  /// The file behind the guest's memory was truncated.
  case memoryLost
  /// The file of the in-flight records was truncated.
  case inflightLost
  /// The file of the dirty log was truncated.
  case logLost
  /// The image accepts no more requests from this process.
  case mediumLost
  /// The queue is not broken: the next chain cannot be taken before the front-end has translated this.
  case untranslated(TranslationMiss)

  /// The parts of a ring: the first three of a split one, the others of a packed one.
  public enum RingPart: String, Hashable, Sendable {
    /// Of a split ring (virtio 2.6.5).
    case descriptorTable = "descriptor table"
    /// Of a split ring (virtio 2.6.6).
    case availableRing = "available ring"
    /// Of a split ring (virtio 2.6.8).
    case usedRing = "used ring"
    /// Of a packed ring (virtio 2.7.13).
    case descriptorRing = "descriptor ring"
    /// Of a packed ring (virtio 2.7.14).
    case driverEvents = "driver event suppression structure"
    /// Of a packed ring (virtio 2.7.14).
    case deviceEvents = "device event suppression structure"
  }

  /// One sentence for a person: what happened, and with what.
  public var description: String {
    switch self {
    case .badSize(let size): "queue size \(size) is not a power of two from 1 to 32768"
    case .badPackedSize(let size): "queue size \(size) is not between 1 and 32768"
    case .badPosition(let available, let used, let size):
      "a queue of \(size) entries cannot be at slot \(available.slot) of round \(available.wrap ? 1 : 0) and be used up to slot "
        + "\(used.slot) of round \(used.wrap ? 1 : 0): have the front-end set the queue's base again"
    case .misaligned(let part, let address): "the \(part.rawValue) at \(address) is misaligned"
    case .unmapped(let part, let address): "the \(part.rawValue) at \(address) is not inside guest memory"
    case .otherFormat: "the queue has the other ring format than the one that was negotiated: reset the device"
    case .outOfMemory: "there is no memory for the queue's requests"
    case .outOfDescriptors: "this process has no file descriptor left for the queue; raise the limit of open files (ulimit -n)"
    case .outOfThreads: "there is no thread for the queue; raise the limits of processes and of memory (ulimit -u, ulimit -v)"
    case .leftBehind: "the queue's previous run was given up and still waits for the medium"
    case .kickCannotBeWaitedFor: "the queue's kick descriptor is of a kind that cannot be waited for"
    case .inflightMissing: "the in-flight records have no region for the queue"
    case .inflightVersion(let version):
      "the queue's in-flight record has version \(version), and this program knows version 1: have the front-end make a new one"
    case .inflightSize(let recorded, let size):
      "the queue's in-flight record has \(recorded) entries, and the queue has \(size)"
    case .inflightTooMany(let count, let waiting):
      "the queue's in-flight record has \(count) unanswered requests, and the driver waits for \(waiting)"
    case .inflightFormat:
      "the queue's in-flight record has the other ring format: have the front-end make a new one"
    case .inflightDamaged: "the queue's in-flight record is invalid: have the front-end make a new one"
    case .positionLost:
      "the process that served the packed queue died, and its position is not in memory: the driver has to reset the device"
    case .mediumLost:
      "the image accepts no more requests from this process: see the earlier messages and its limits, and start it again"
    case .untranslated(let miss): "the address \(GuestAddress(miss.address)) has no translation yet"
    case .memoryLost: "the file behind the guest's memory was truncated"
    case .inflightLost: "the file of the in-flight records was truncated"
    case .logLost: "the file of the dirty log was truncated"
    case .availableIndexJumped(let from, let to, let size):
      "the available index went from \(from) to \(to), more than the \(size) entries of the queue"
    case .headOutOfRange(let head): "descriptor head \(head) is outside the table"
    case .headAlreadyInFlight(let head): "descriptor head \(head) was made available again before it was used"
    case .bufferAlreadyInFlight(let id): "buffer id \(id) was made available again before it was used"
    case .slotNotFree(let slot): "the chain at slot \(slot) covers slots whose chains were not used yet"
    case .nextOutOfRange(let next): "a chain continues at descriptor \(next), outside the table"
    case .chainLoops(let head): "the chain at head \(head) is longer than its table: it loops"
    case .readableAfterWritable(let head): "the chain at head \(head) has a readable descriptor after a writable one"
    case .chainTooLarge(let head): "the chain at head \(head) describes more than 2^32 bytes"
    case .indirectNotNegotiated(let head): "the chain at head \(head) is indirect, which was not negotiated"
    case .indirectWithNext(let head): "the chain at head \(head) continues after an indirect descriptor"
    case .indirectInList(let head): "the chain at head \(head) has an indirect descriptor among others"
    case .nestedIndirect(let head): "the chain at head \(head) has an indirect table inside an indirect table"
    case .badIndirectLength(let head, let length):
      "the chain at head \(head) has an indirect table of \(length) bytes, not a multiple of 16 in range"
    case .indirectUnmapped(let head, let address):
      "the chain at head \(head) has an indirect table at \(address), outside guest memory"
    case .noWritableByte(let head): "the chain at head \(head) has no writable byte for an answer"
    case .statusUnmapped(let head): "the chain at head \(head) has its last writable byte outside guest memory"
    }
  }
}
