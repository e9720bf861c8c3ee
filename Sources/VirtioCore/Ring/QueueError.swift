/// What makes a queue unusable. A queue that throws one of these is stopped until the driver resets it; the process and the
/// other queues continue.

/// Why a ring was refused at start, or stopped while it ran. Numbers are the guest's, for the log.
public enum QueueError: Error, Hashable, Sendable, CustomStringConvertible {
  // At start.
  case badSize(UInt16)
  case badPackedSize(UInt16)
  case badPosition(available: PackedPosition, used: PackedPosition, size: UInt16)
  case misaligned(part: RingPart, GuestAddress)
  case unmapped(part: RingPart, GuestAddress)
  /// The device's other queues have the other ring format.
  case otherFormat
  case outOfMemory
  case outOfDescriptors
  case outOfThreads
  /// Its previous run was abandoned and has not ended.
  case leftBehind
  case kickCannotBeWaitedFor
  case inflightMissing
  case inflightVersion(UInt16)
  case inflightSize(recorded: UInt16, size: UInt16)
  case inflightTooMany(Int, waiting: UInt16)
  case inflightFormat
  case inflightDamaged
  /// A packed ring whose device died without a record.
  case positionLost
  // While running.
  case availableIndexJumped(from: UInt16, to: UInt16, size: UInt16)
  case headOutOfRange(UInt16)
  case headAlreadyInFlight(UInt16)
  case bufferAlreadyInFlight(UInt16)
  case slotNotFree(UInt16)
  case nextOutOfRange(UInt16)
  case chainLoops(head: UInt16)
  case chainTooLong(head: UInt16)
  case readableAfterWritable(head: UInt16)
  case chainTooLarge(head: UInt16)
  case indirectNotNegotiated(head: UInt16)
  case indirectWithNext(head: UInt16)
  case indirectInList(head: UInt16)
  case nestedIndirect(head: UInt16)
  case badIndirectLength(head: UInt16, UInt32)
  case indirectUnmapped(head: UInt16, GuestAddress)
  case noWritableByte(head: UInt16)
  case statusUnmapped(head: UInt16)
  case memoryLost
  case inflightLost
  case logLost
  case mediumLost
  /// Not the end of the queue: the chain that comes next cannot be taken before the front-end has translated this.
  case untranslated(TranslationMiss)

  /// The three parts of a ring: the first three of a split one, the others of a packed one. Where a chain's head is named, it
  /// is the slot of its first descriptor in a packed ring.
  public enum RingPart: String, Hashable, Sendable {
    case descriptorTable = "descriptor table"
    case availableRing = "available ring"
    case usedRing = "used ring"
    case descriptorRing = "descriptor ring"
    case driverEvents = "driver event suppression structure"
    case deviceEvents = "device event suppression structure"
  }

  public var description: String {
    switch self {
    case .badSize(let size): "queue size \(size) is not a power of two from 1 to 32768"
    case .badPackedSize(let size): "queue size \(size) is not one from 1 to 32768"
    case .badPosition(let available, let used, let size):
      "a queue of \(size) entries cannot stand at slot \(available.slot) of round \(available.wrap ? 1 : 0) and be used up to slot "
        + "\(used.slot) of round \(used.wrap ? 1 : 0): have the front-end set the queue's base again"
    case .misaligned(let part, let address): "the \(part.rawValue) at \(address) is misaligned"
    case .unmapped(let part, let address): "the \(part.rawValue) at \(address) is not inside guest memory"
    case .otherFormat: "the queue is not of the ring format that was negotiated for the others: reset the device"
    case .outOfMemory: "there is no memory for the queue's requests"
    case .outOfDescriptors: "this process has no file descriptor left for the queue; raise the limit of open files (ulimit -n)"
    case .outOfThreads: "there is no thread for the queue; raise the limits of processes and of memory (ulimit -u, ulimit -v)"
    case .leftBehind: "the queue still waits for its medium from the time before"
    case .kickCannotBeWaitedFor: "the queue's kick descriptor is of a kind that cannot be waited for"
    case .inflightMissing: "the in-flight records have no region for the queue"
    case .inflightVersion(let version):
      "the queue's in-flight record has version \(version), and this program knows version 1: have the front-end make a new one"
    case .inflightSize(let recorded, let size):
      "the queue's in-flight record is one of \(recorded) entries, and the queue has \(size)"
    case .inflightTooMany(let count, let waiting):
      "the queue's in-flight record has \(count) requests that were not answered, and the driver waits for \(waiting)"
    case .inflightFormat:
      "the queue's in-flight record is one of the other ring format: have the front-end make a new one"
    case .inflightDamaged: "the queue's in-flight record cannot be one: have the front-end make a new one"
    case .positionLost:
      "the process that served the packed queue before died, and where that stood is not in memory: its driver has to reset the device"
    case .mediumLost:
      "the image takes no more requests from this process: see the earlier messages and its limits, and start it again"
    case .untranslated(let miss): "the address \(GuestAddress(miss.address)) has no translation yet"
    case .memoryLost: "the file behind the guest's memory was cut short"
    case .inflightLost: "the file of the in-flight records was cut short"
    case .logLost: "the file of the log of written pages was cut short"
    case .availableIndexJumped(let from, let to, let size):
      "the available index went from \(from) to \(to), more than the \(size) entries of the queue"
    case .headOutOfRange(let head): "descriptor head \(head) is outside the table"
    case .headAlreadyInFlight(let head): "descriptor head \(head) was made available again before it was used"
    case .bufferAlreadyInFlight(let id): "buffer id \(id) was made available again before it was used"
    case .slotNotFree(let slot): "the chain at slot \(slot) covers slots whose chains were not used yet"
    case .nextOutOfRange(let next): "a chain continues at descriptor \(next), outside the table"
    case .chainLoops(let head): "the chain at head \(head) is longer than its table: it loops"
    case .chainTooLong(let head): "the chain at head \(head) has too many descriptors"
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
