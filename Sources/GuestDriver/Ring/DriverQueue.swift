/// The driver's side of a ring, split or packed. It reads what the device can write only once, and trusts none of it; its own
/// state is in private memory. Nothing here allocates after `init`.
internal import Glibc
internal import VirtioCore

/// A ring with its bookkeeping, with the same operations for either format. A noncopyable value: it belongs to one thread.
@safe
public struct DriverQueue: ~Copyable {
  public let setup: QueueSetup
  let raw: RawView
  public internal(set) var notifications: NotificationLedger
  /// Chains that the device holds or could hold: added and not yet reaped.
  public internal(set) var outstanding = 0
  public internal(set) var freeDescriptors: Int

  /// The fields in memory.
  enum RawView {
    case split(RawRing)
    case packed(RawPackedRing)
  }

  // Private memory: what is known about each descriptor, and about each chain by its head or ID.
  let shadow: UnsafeMutablePointer<RawDescriptor>
  let chains: UnsafeMutablePointer<Chain>
  /// The heads or IDs of chains in the order in which they were added, by their numbers modulo the ring's size.
  let sequence: UnsafeMutablePointer<UInt16>
  /// With IN_ORDER: chains that one answer stands for and that were not reaped, and the length that it has for the last of
  /// them.
  var batchLeft = 0
  var batchLength: UInt32 = 0
  var tables: IndirectTables

  /// Split: the first free descriptor. Packed: the first free ID.
  var firstFree: UInt16 = 0
  // Three indices. Split: free-running. Packed: positions, as words (`RingPosition`).
  /// Where the next chain becomes available.
  var availableIndex: UInt16
  /// Up to where chains were published to the device.
  var publishedIndex: UInt16
  /// The used index up to which everything was reaped.
  public internal(set) var reapedIndex: UInt16
  /// The same as a free-running count: of chains, or of a packed ring's descriptors.
  var reapedCount: UInt16 = 0
  /// Chains added since the beginning, and those of them that were published.
  var added: UInt64 = 0
  var published: UInt64 = 0
  /// What the driver last wrote to its event suppression structure.
  var driverEvent = EventSuppression()

  /// What is known of the chain that a head or an ID stands for.
  struct Chain {
    var isOutstanding = false
    var descriptors: UInt16 = 0
    var table: UInt16 = 0
    var tableEntries: UInt16 = 0
    var token: UInt32 = 0
    /// Packed: the next free ID, if this one is free.
    var nextFree: UInt16 = 0
    var writable: UInt64 = 0
    /// How many were added before it.
    var number: UInt64 = 0
  }

  public init(_ setup: QueueSetup) {
    self.setup = setup
    let layout = setup.ring.layout
    let size = Int(layout.size)
    freeDescriptors = size
    tables = IndirectTables(setup)
    notifications = NotificationLedger(setup.lines)
    unsafe shadow = .allocate(capacity: size)
    unsafe chains = .allocate(capacity: size)
    unsafe sequence = .allocate(capacity: size)
    unsafe sequence.initialize(repeating: 0, count: size)
    for index in 0..<size {
      let next = UInt16((index + 1) % size)
      unsafe (shadow + index).initialize(
        to: RawDescriptor(address: 0, length: 0, next: layout.format == .split ? next : 0))
      unsafe (chains + index).initialize(to: Chain(nextFree: next))
    }
    switch layout.format {
    case .split:
      let ring = RawRing(layout, in: setup.memory)
      raw = .split(ring)
      (availableIndex, publishedIndex, reapedIndex) = (0, 0, 0)
      ring.usedEvent.storeRelaxed(0)
    case .packed:
      raw = .packed(RawPackedRing(layout, in: setup.memory))
      let start = RingPosition.start.word
      (availableIndex, publishedIndex, reapedIndex) = (start, start, start)
    }
  }

  deinit {
    unsafe shadow.deallocate()
    unsafe chains.deallocate()
    unsafe sequence.deallocate()
    tables.deallocate()
  }

  public var format: RingFormat { setup.ring.layout.format }
  /// Entries.
  public var size: UInt16 { setup.ring.layout.size }
  public var freeTables: Int { tables.free }

  /// The fields in memory. - Precondition: it is a split ring.
  public var ring: RawRing {
    guard case .split(let ring) = raw else { preconditionFailure("a packed ring has no fields of a split one") }
    return ring
  }

  /// The fields in memory. - Precondition: it is a packed ring.
  public var packedRing: RawPackedRing {
    guard case .packed(let ring) = raw else { preconditionFailure("a split ring has no fields of a packed one") }
    return ring
  }

  /// Published chains that were not reaped.
  var inDevice: Int { outstanding - Int(added - published) }

  // MARK: available

  /// Puts a chain into the ring. The device sees it after `publish`.
  ///
  /// - Parameters:
  ///   - pieces: at least one, readable ones first, except in tests of a device's refusal.
  ///   - placement: indirect needs a free table with room for the pieces.
  ///   - token: comes back with the chain.
  /// - Returns: the head, or the ID; `nil` when there are not enough free descriptors or tables.
  public mutating func add(_ pieces: Span<ChainPiece>, placement: ChainPlacement = .direct, token: UInt32) -> UInt16? {
    var direct = pieces.count
    var writeFlag = false
    if case .indirect(let before, let write) = placement {
      direct = format == .packed ? 0 : min(max(before, 0), pieces.count - 1)
      writeFlag = write
    }
    let indirect = pieces.count - direct
    let descriptors = direct + (indirect > 0 ? 1 : 0)
    guard descriptors > 0, descriptors <= freeDescriptors else { return nil }
    guard indirect == 0 || tables.hasRoom(for: indirect) else { return nil }

    var chain = Chain(isOutstanding: true, descriptors: UInt16(descriptors), token: token, number: added)
    for place in 0..<direct where pieces[place].deviceWrites { chain.writable += UInt64(pieces[place].length) }
    var tableDescriptor: ChainPiece?
    if indirect > 0 {
      let (table, address) = tables.take(pieces, from: direct, writable: &chain.writable)
      chain.table = table
      chain.tableEntries = UInt16(indirect)
      tableDescriptor = ChainPiece(address, length: UInt32(16 * indirect), deviceWrites: writeFlag)
    }
    freeDescriptors -= descriptors
    outstanding += 1
    added += 1
    let head =
      switch raw {
      case .split(let ring): place(pieces, direct: direct, tableDescriptor, in: ring)
      case .packed(let ring): place(pieces, direct: direct, tableDescriptor, in: ring)
      }
    unsafe chains[Int(head)] = chain
    unsafe sequence[Int(chain.number % UInt64(size))] = head
    return head
  }

  /// Makes everything added since the last time available with one store, and kicks if the device wants it
  /// (virtio 2.6.13, 2.7.21).
  ///
  /// - Returns: whether the device was kicked.
  @discardableResult
  public mutating func publish() -> Bool {
    guard published != added else { return false }
    let wanted =
      switch raw {
      case .split(let ring): show(in: ring)
      case .packed(let ring): show(in: ring)
      }
    published = added
    if wanted { kick() }
    return wanted
  }

  /// Notifies the device, and if the transport can express it, tells it up to where chains are available.
  private func kick() {
    guard let notify = setup.notify else { return setup.lines.kick() }
    notify.write(queue: setup.index, next: publishedIndex)
  }

  // MARK: used

  /// Whether there are used chains that were not reaped yet.
  public var hasUsed: Bool {
    switch raw {
    case .split(let ring): ring.usedIndex.loadAcquire() != reapedIndex
    case .packed(let ring): batchLeft > 0 || inDevice > 0 && ring.isUsed(RingPosition(word: reapedIndex))
    }
  }

  /// Takes the next used chain, and checks everything about it that the ring shows.
  public mutating func reap() throws(DriverFault) -> UsedChain? {
    switch raw {
    case .split(let ring): try reap(from: ring)
    case .packed(let ring): try reap(from: ring)
    }
  }

  /// Up to where chains are used, reaped or not: free-running, as `reapedCount`.
  var usedCount: UInt16 {
    switch raw {
    case .split(let ring): ring.usedIndex.loadAcquire()
    case .packed(let ring): reapedCount &+ usedSpan(in: ring)
    }
  }

  /// Where the ring stands, for a device that has to continue from there. - Precondition: no device is using it.
  public var standing: QueueStanding {
    switch raw {
    case .split(let ring): QueueStanding(available: publishedIndex, used: ring.usedIndex.loadAcquire())
    case .packed(let ring):
      QueueStanding(
        available: publishedIndex,
        used: RingPosition(word: reapedIndex).advanced(by: min(usedSpan(in: ring), size), size: size).word)
    }
  }

  /// Accounts for a chain that came back and was checked.
  mutating func take(_ head: UInt16, _ chain: Chain, length: UInt32) -> UsedChain {
    unsafe chains[Int(head)].isOutstanding = false
    outstanding -= 1
    freeDescriptors += Int(chain.descriptors)
    if chain.tableEntries > 0 { tables.give(chain.table) }
    notifications.countReaped()
    return UsedChain(head: head, token: chain.token, length: length, writable: chain.writable)
  }
}

/// The two halves of a ring's state, as the driver knows them. Split: `avail.idx` and `used.idx`. Packed: the words of
/// `RingPosition`.
public struct QueueStanding: Hashable, Sendable {
  /// After everything that was published.
  public var available: UInt16
  /// After everything that was used.
  public var used: UInt16

  public init(available: UInt16, used: UInt16) {
    self.available = available
    self.used = used
  }

  /// The state of a ring that was not used yet.
  public static func start(_ format: RingFormat) -> QueueStanding {
    let start = format == .split ? 0 : RingPosition.start.word
    return QueueStanding(available: start, used: start)
  }
}
