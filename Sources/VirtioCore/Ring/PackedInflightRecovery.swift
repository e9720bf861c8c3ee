/// Recovery from the in-flight record that the previous user of a packed queue left.

/// Recovers a region before its ring runs. It may be killed between any two stores, and run again.
@safe
struct PackedInflightRecovery {
  /// A chain that was taken and not published as used.
  struct Chain {
    var id: UInt16
    /// Its first and last entry.
    var head: UInt16
    var last: UInt16
    var order: UInt64
    var descriptors: [PackedDescriptor]
    /// All of its entries, as they were found: the region may be changed in the meantime.
    var entries: [UInt16]
  }

  struct Found {
    /// To be taken again, in the order in which they were taken.
    var chains: [Chain]
    /// Where the next used descriptor goes.
    var used: PackedPosition
    /// Entries that are free, in the order of their list.
    var free: [UInt16]

    /// Slots of all chains.
    var slots: Int { chains.reduce(0) { $0 + $1.descriptors.count } }
  }

  private let region: UnsafeMutableRawPointer
  private let ring: UnsafeMutableRawPointer
  private let size: UInt16
  /// Entries of the region.
  private let capacity: UInt16

  init(region: UnsafeMutableRawPointer, ring: UnsafeMutableRawPointer, size: UInt16, capacity: UInt16) {
    unsafe self.region = region
    unsafe self.ring = ring
    self.size = size
    self.capacity = capacity
  }

  private func entry(_ number: UInt16) -> UnsafeMutableRawPointer {
    unsafe region + PackedRecordOffset.header + PackedRecordOffset.entry * Int(number)
  }
  private func cell(_ offset: Int) -> SharedCell<UInt16> { unsafe SharedCell(region + offset) }
  private func mark(_ number: UInt16) -> SharedCell<UInt8> { unsafe SharedCell(entry(number)) }
  private func field(_ number: UInt16, _ offset: Int) -> SharedCell<UInt16> { unsafe SharedCell(entry(number) + offset) }
  private func flags(_ slot: Int) -> SharedCell<UInt16> { unsafe SharedCell(ring + (slot * 16 + 14)) }
  private var positions: SharedCell<UInt64> { unsafe SharedCell(region + PackedRecordOffset.used) }
  private var freeWord: SharedCell<UInt32> { unsafe SharedCell(region + PackedRecordOffset.free) }

  /// - Parameter used: the ring's position if its region has not been used yet.
  func run(freshAt used: PackedPosition) throws(QueueError) -> Found {
    switch cell(PackedRecordOffset.version).loadRelaxed() {
    case 0: return begin(at: used)
    case InflightBuffers.version: break
    case let other: throw .inflightVersion(other)
    }
    // Other implementations store either the number of entries of the region or that of the ring.
    let recorded = cell(PackedRecordOffset.entries).loadRelaxed()
    guard recorded >= size, recorded <= capacity else { throw .inflightSize(recorded: recorded, size: size) }
    let position = try finishPublication()
    clearFree()
    let chains = try collect()
    let found = Found(chains: chains, used: position, free: entriesOutside(chains))
    let slots = found.slots
    guard slots <= Int(size) else { throw .inflightTooMany(slots, waiting: size) }
    hideAnswers(from: position, slots)
    link(found.free)
    return found
  }

  /// The region has not been used: its contents are ignored.
  private func begin(at used: PackedPosition) -> Found {
    for number in 0..<capacity {
      mark(number).storeRelease(0)
      KillPoint.pass(.recoveryCleared)
    }
    let free = Array(0..<capacity)
    link(free)
    cell(PackedRecordOffset.entries).storeRelease(capacity)
    KillPoint.pass(.recoverySized)
    positions.storeRelease(InflightBuffers.word(used, used))
    KillPoint.pass(.recoveryCopied)
    // Last: from now on the region is valid.
    cell(PackedRecordOffset.version).storeRelease(InflightBuffers.version)
    KillPoint.pass(.recoveryBegun)
    return Found(chains: [], used: used, free: free)
  }

  /// Settles whether the last answer was published, which may not have been recorded.
  /// - Returns: where the next used descriptor goes.
  private func finishPublication() throws(QueueError) -> PackedPosition {
    let word = positions.loadRelaxed()
    func position(_ slot: UInt64, _ wrap: UInt64) throws(QueueError) -> PackedPosition {
      let slot = Int(word >> slot & 0xffff)
      guard slot < Int(size) else { throw .inflightDamaged }
      return PackedPosition(slot: slot, wrap: word >> wrap & 0xff != 0)
    }
    let (now, before) = (try position(0, 32), try position(16, 40))
    var free = cell(PackedRecordOffset.free + 2).loadRelaxed()
    var stands = before
    if now != before {
      let current = cell(PackedRecordOffset.free).loadRelaxed()
      // Other implementations store slot and wrap counter of the previous position one after the other, when the free lists
      // agree again.
      let isSettled = now.slot == before.slot && free == current
      let wasShown = isSettled || flags(before.slot).loadAcquire() & PackedFlags.both != PackedFlags.whenAvailable(before.wrap)
      if wasShown { (free, stands) = (current, now) }
    }
    let list = UInt32(free) | UInt32(free) << 16
    // If the process dies between the two stores, the next recovery decides in the same way after the first one.
    if stands == before {
      positions.storeRelease(InflightBuffers.word(stands, stands))
      KillPoint.pass(.recoveryFreed)
      freeWord.storeRelease(list)
    } else {
      freeWord.storeRelease(list)
      KillPoint.pass(.recoveryFreed)
      positions.storeRelease(InflightBuffers.word(stands, stands))
    }
    KillPoint.pass(.recoveryFinished)
    return stands
  }

  /// Other implementations write the later answers of a batch before the first one, which publishes it. After a crash in
  /// between these slots look used, and the driver would take them for answers once it is past the first. They belong to chains
  /// in flight, whose descriptors are recorded, so their flags are reset.
  private func hideAnswers(from position: PackedPosition, _ slots: Int) {
    var position = position
    for _ in 0..<slots {
      let flags = flags(position.slot)
      if flags.loadRelaxed() & PackedFlags.both == PackedFlags.whenUsed(position.wrap) {
        flags.storeRelease(PackedFlags.whenAvailable(position.wrap))
        KillPoint.pass(.recoveryFreed)
      }
      position = position.advanced(by: 1, size: Int(size))
    }
  }

  /// Entries in the free list are free, whatever their marks say. The list ends where it would be longer than the number of
  /// entries or contain an entry twice, or where a link is invalid.
  private func clearFree() {
    var seen = [Bool](repeating: false, count: Int(capacity))
    var number = cell(PackedRecordOffset.free).loadRelaxed()
    while number < capacity, !seen[Int(number)] {
      seen[Int(number)] = true
      mark(number).storeRelease(0)
      KillPoint.pass(.recoveryFreed)
      number = field(number, PackedRecordOffset.next).loadRelaxed()
    }
  }

  private func collect() throws(QueueError) -> [Chain] {
    var chains: [Chain] = []
    var seen = [Bool](repeating: false, count: Int(capacity))
    var ids: Set<UInt16> = []
    for head in 0..<capacity where mark(head).loadRelaxed() != 0 {
      let count = field(head, PackedRecordOffset.count).loadRelaxed()
      guard count > 0, count <= size else { throw .inflightDamaged }
      var chain = unsafe Chain(
        id: 0, head: head, last: head, order: SharedCell<UInt64>(entry(head) + PackedRecordOffset.order).loadRelaxed(),
        descriptors: [], entries: [])
      var number = head
      for index in 0..<count {
        if index > 0 { number = field(number, PackedRecordOffset.next).loadRelaxed() }
        guard number < capacity, !seen[Int(number)] else { throw .inflightDamaged }
        seen[Int(number)] = true
        chain.entries.append(number)
        let place = unsafe entry(number)
        let link = unsafe SharedCell<UInt64>(place + PackedRecordOffset.link).loadRelaxed()
        let address = unsafe SharedCell<UInt64>(place + PackedRecordOffset.address).loadRelaxed()
        chain.descriptors.append(PackedDescriptor(address, link >> 32 | link << 32))
      }
      chain.last = number
      chain.id = chain.descriptors[chain.descriptors.count - 1].id
      guard ids.insert(chain.id).inserted else { throw .inflightDamaged }
      chains.append(chain)
    }
    // Equal orders are a mistake of the writer; then the entries decide, so that the result is deterministic.
    return chains.sorted { ($0.order, $0.head) < ($1.order, $1.head) }
  }

  private func entriesOutside(_ chains: [Chain]) -> [UInt16] {
    var isFree = [Bool](repeating: true, count: Int(capacity))
    for number in chains.flatMap(\.entries) { isFree[Int(number)] = false }
    return (0..<capacity).filter { isFree[Int($0)] }
  }

  /// Links all free entries into a list. Between any two stores, every link leads from one free entry to another, as before.
  private func link(_ free: [UInt16]) {
    for (index, number) in free.enumerated() {
      field(number, PackedRecordOffset.next).storeRelease(index + 1 < free.count ? free[index + 1] : capacity)
    }
    let first = free.first ?? capacity
    freeWord.storeRelease(UInt32(first) | UInt32(first) << 16)
    KillPoint.pass(.recoveryFreed)
  }
}
