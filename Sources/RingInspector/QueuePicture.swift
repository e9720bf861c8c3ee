/// One ring as a user wants to see it: indices, flags, and every chain that is pending or was used last.
public import MemoryFile
public import VirtioCore

/// A queue at one moment, read from copies. It can be made from any contents of memory: what is wrong is reported in
/// `problems`.
public struct QueuePicture: Sendable {
  /// An element of the used ring.
  public struct Used: Equatable, Sendable {
    /// Its free-running index.
    public let position: UInt16
    public let id: UInt32
    /// With IN_ORDER, for a chain that shares the element of a later one: all of its writable bytes.
    public let length: UInt32
    /// The chain as its descriptors stand now; `nil` when the id is not a head, or the head has been made available again.
    public let chain: ChainPicture?
  }

  /// A chain that was made available and is not used yet.
  public struct Pending: Equatable, Sendable {
    /// Its free-running index in the available ring.
    public let position: UInt16
    public let chain: ChainPicture
  }

  public let queue: Int
  public let configuration: QueueConfiguration
  public let ready: Bool
  public let features: FeatureSet
  /// `nil` when the ring cannot be read, or is a packed one.
  public let rings: Rings?
  /// The picture of a packed ring, which has neither `rings` nor chains.
  public let packed: PackedPicture?
  /// The number of pending chains according to the indices; `pending` has fewer if there are too many to draw.
  public let pendingCount: Int
  /// Oldest first.
  public let pending: [Pending]
  /// The newest elements of the used ring, oldest first, at most one for each entry of the ring.
  public let used: [Used]
  /// What is wrong with the queue as a whole, one sentence each.
  public let problems: [String]

  /// The words at the beginning and end of both rings.
  public struct Rings: Equatable, Sendable {
    public let availableFlags: UInt16
    public let availableIndex: UInt16
    /// Meaningful only with EVENT_IDX.
    public let usedEvent: UInt16
    public let usedFlags: UInt16
    public let usedIndex: UInt16
    /// Meaningful only with EVENT_IDX.
    public let availableEvent: UInt16
  }

  /// The limit of descriptors shown for pending chains, and for used ones.
  static let descriptorLimit = 100_000

  /// Whether something is wrong with the queue or with a pending chain.
  public var isBroken: Bool { !problems.isEmpty || pending.contains { !$0.chain.problems.isEmpty } }

  public init(
    queue: Int, configuration: QueueConfiguration, ready: Bool = true, features: FeatureSet, memory: GuestBytes,
    usedSince: UInt16? = nil
  ) {
    self.queue = queue
    self.configuration = configuration
    self.ready = ready
    self.features = features
    guard !features.contains(.packedRing) else {
      (packed, self.problems) = Self.readPacked(configuration, memory: memory)
      (rings, pendingCount, pending, used) = (nil, 0, [], [])
      return
    }
    packed = nil
    var problems: [String] = []
    let size = Int(configuration.size)
    guard size > 0, size <= 32768, size & (size - 1) == 0 else {
      self.problems = [QueueError.badSize(configuration.size).description]
      (rings, pendingCount, pending, used) = (nil, 0, [], [])
      return
    }
    // Sizes and alignments of virtio 2.7.
    func part(_ part: QueueError.RingPart, _ address: GuestAddress, alignment: UInt64, count: Int) -> [UInt8]? {
      if !address.isAligned(to: alignment) { problems.append(QueueError.misaligned(part: part, address).description) }
      let bytes = memory.bytes(at: address, count: count)
      if bytes == nil { problems.append(QueueError.unmapped(part: part, address).description) }
      return bytes
    }
    let table = part(.descriptorTable, configuration.descriptorTable, alignment: 16, count: 16 * size)
    let available = part(.availableRing, configuration.availableRing, alignment: 2, count: 6 + 2 * size)
    let usedRing = part(.usedRing, configuration.usedRing, alignment: 4, count: 6 + 8 * size)
    guard let table, let available, let usedRing else {
      self.problems = problems
      (rings, pendingCount, pending, used) = (nil, 0, [], [])
      return
    }
    let rings = Rings(
      availableFlags: available[...].word(at: 0), availableIndex: available[...].word(at: 2),
      usedEvent: available[...].word(at: 4 + 2 * size), usedFlags: usedRing[...].word(at: 0),
      usedIndex: usedRing[...].word(at: 2), availableEvent: usedRing[...].word(at: 4 + 8 * size))
    self.rings = rings
    let mask = UInt16(size - 1)
    // A hostile ring can make each of its chains as long as the table, so the total is bounded.
    var budget = Self.descriptorLimit
    func chain(_ head: UInt16) -> ChainPicture {
      let chain = ChainPicture(head: head, table: table, memory: memory, features: features)
      budget -= chain.descriptors.count + chain.indirect.count
      return chain
    }
    func head(_ position: UInt16) -> UInt16 { available[...].word(at: 4 + 2 * Int(position & mask)) }
    func element(_ position: UInt16) -> Element {
      let at = 4 + 8 * Int(position & mask)
      return (usedRing[...].word(at: at), usedRing[...].word(at: at + 4))
    }

    let count = Int(rings.availableIndex &- rings.usedIndex)
    pendingCount = count
    var pending: [Pending] = []
    if count > size {
      problems.append(
        QueueError.availableIndexJumped(from: rings.usedIndex, to: rings.availableIndex, size: configuration.size)
          .description)
    } else {
      let positions = Self.outstanding(count: count, size: size, rings: rings, head: head, element: element)
      for position in positions where budget > 0 {
        pending.append(Pending(position: position, chain: chain(head(position))))
      }
      var seen = Set<UInt16>()
      var repeated = Set<UInt16>()
      for position in positions where !seen.insert(head(position)).inserted {
        guard repeated.insert(head(position)).inserted else { continue }
        problems.append(QueueError.headAlreadyInFlight(head(position)).description)
      }
    }
    self.pending = pending
    var recycled = Set(pending.map(\.chain.head))
    // Newest first: an older element with the same id refers to a chain that is gone. A low index that has wrapped looks like
    // one that has not, so that fewer elements may be shown than the ring holds.
    budget = Self.descriptorLimit
    let shown = min(max(Int(rings.usedIndex), usedSince.map { Int(rings.usedIndex &- $0) } ?? 0), size)
    let batches =
      features.contains(.inOrder) ? Self.batches(shown, rings: rings, head: head, element: element) : [:]
    var used: [Used] = []
    for back in 0..<shown where budget > 0 {
      let position = rings.usedIndex &- 1 &- UInt16(back)
      // An element that belongs to no remaining batch has no meaning.
      guard !features.contains(.inOrder) || batches[position] != nil else { continue }
      let (id, length) = batches[position] ?? element(position)
      if id >= UInt32(size) { problems.append("used element \(position) names descriptor \(id), outside the table") }
      let isCurrent = id < UInt32(size) && recycled.insert(UInt16(id)).inserted
      budget -= 1
      let picture = isCurrent ? chain(UInt16(id)) : nil
      let written = length ?? UInt32(clamping: picture?.writableBytes ?? 0)
      used.append(Used(position: position, id: id, length: written, chain: picture))
    }
    self.used = used.reversed()
    self.problems = problems
  }

  /// `length` is `nil` for a chain without its own element.
  private typealias Element = (id: UInt32, length: UInt32?)

  /// Resolves used elements when one can stand for several chains and names the last of them (IN_ORDER, virtio 2.6.9): chains
  /// are used in the order of the available ring, whose entries of that age still exist.
  private static func batches(
    _ count: Int, rings: Rings, head: (UInt16) -> UInt16, element: (UInt16) -> Element
  ) -> [UInt16: Element] {
    let first = rings.usedIndex &- UInt16(count)
    let heads = (0..<count).map { UInt32(head(first &+ UInt16($0))) }
    let places = Dictionary(zip(heads, 0..<count), uniquingKeysWith: { _, newer in newer })
    var elements: [UInt16: Element] = [:]
    var place = 0
    while place < count {
      let (id, length) = element(first &+ UInt16(place))
      // An element from the middle of a batch whose beginning is gone cannot be resolved.
      guard let last = places[id], last >= place else {
        place += 1
        continue
      }
      for step in place...last { elements[first &+ UInt16(step)] = (heads[step], step == last ? length : nil) }
      place = last + 1
    }
    return elements
  }

  /// The positions in the available ring whose chains are not used yet, oldest first. If the device uses chains in order, these
  /// are the newest ones; otherwise the heads in the used ring are removed from those in the available ring.
  private static func outstanding(
    count: Int, size: Int, rings: Rings, head: (UInt16) -> UInt16, element: (UInt16) -> Element
  ) -> [UInt16] {
    let available = (0..<min(Int(rings.availableIndex), size)).reversed().map { rings.availableIndex &- 1 &- UInt16($0) }
    let newest = Array((0..<count).reversed().map { rings.availableIndex &- 1 &- UInt16($0) })
    let used = (0..<min(Int(rings.usedIndex), size)).reversed().map { rings.usedIndex &- 1 &- UInt16($0) }
    let inOrder = used.allSatisfy { position in
      rings.availableIndex &- position > UInt16(size) || UInt32(head(position)) == element(position).id
    }
    if inOrder { return newest }
    var left = available
    for position in used {
      if let match = left.firstIndex(where: { UInt32(head($0)) == element(position).id }) { left.remove(at: match) }
    }
    return left.count == count ? left : newest
  }
}
