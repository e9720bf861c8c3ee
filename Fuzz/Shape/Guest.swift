/// A driver that is correct unless its input says otherwise: it lays out requests, makes them available, and checks the
/// device's answers.
internal import Glibc
internal import VirtioBlkDevice
internal import VirtioCore

/// The driver of one queue. Its own mistakes decide what it may still expect.
@safe
final class Guest {
  /// Where everything is, unless the ring's parts are misplaced by mistake.
  private enum Place {
    static let ring: UInt64 = 0
    static let available: UInt64 = 0x1000
    static let used: UInt64 = 0x2000
    static let tables: UInt64 = 0x3000
    static let headers: UInt64 = 0x5000
    static let statuses: UInt64 = 0x6000
    static let data: UInt64 = 0x7000
    /// A correct driver leaves alone what belongs to requests in flight.
    static let headerCount = 64
    static let tableCount = 16
  }

  struct Piece {
    var address: UInt64
    var length: UInt32
    var isWritable: Bool
  }

  let arena: Arena
  let isPacked: Bool
  let size: Int
  let features: FeatureSet
  var configuration: QueueConfiguration
  /// The guest changed memory that belongs to the device, so the ring's contents prove nothing.
  private(set) var isTainted = false
  /// The device may give the queue up.
  private(set) var isBroken = false
  /// How often each head or buffer id was made available, minus how often it was used; and how much may be written for it.
  private var outstanding: [UInt16: (count: Int, writable: UInt64)] = [:]
  /// The flags of the current chain differ from what was meant about who may write.
  private var isVague = false
  private(set) var given = 0
  private(set) var answered = 0
  private let sectors: UInt64

  private var available: UInt16
  private var seenUsed: UInt16
  /// Which descriptors of a split ring are in a chain, and each chain's descriptors, by its head.
  private var holds: [Bool]
  private var chains: [UInt16: [Int]] = [:]
  private var requests = 0
  /// The head of the request that each table was last used for, until it is answered.
  private var tables: [Int: UInt16] = [:]
  // For a packed ring.
  private var nextSlot: PackedPosition
  private var usedSlot: PackedPosition
  private var spans: [UInt16: Int] = [:]

  /// - Parameter sectors: the size of the disk.
  init(_ shaper: inout Shaper, isPacked: Bool, features: FeatureSet, sectors: UInt64) {
    arena = shaper.choice(4) == 1 ? .single : .several
    arena.clear()
    self.isPacked = isPacked
    self.features = features
    self.sectors = sectors
    size = isPacked ? shaper.pick([16, 1, 3, 7, 64, 128, 2, 255]) : 1 << shaper.pick([4, 0, 1, 2, 3, 5, 6, 7])
    configuration = QueueConfiguration(
      size: UInt16(size), descriptorTable: GuestAddress(Place.ring), availableRing: GuestAddress(Place.available),
      usedRing: GuestAddress(Place.used))
    holds = Array(repeating: false, count: size)
    available = isPacked || shaper.choice(4) != 1 ? 0 : shaper.word16()
    seenUsed = available
    nextSlot = .start
    usedSlot = .start
    if !isPacked {
      arena.store(available, at: Place.available + 2)
      arena.store(available, at: Place.used + 2)
    }
    if shaper.mistake() { misplace(&shaper) }
  }

  var position: QueuePosition {
    isPacked ? QueuePosition(available: nextSlot, used: nextSlot) : QueuePosition(available: available, used: available)
  }

  /// Puts ring parts at addresses that are impossible, or possible but unusual.
  private func misplace(_ shaper: inout Shaper) {
    (isTainted, isBroken) = (true, true)
    if shaper.flag() { configuration.size = UInt16(truncatingIfNeeded: shaper.oddNumber()) }
    let places: [UInt64] = [
      0xfff0, 0xfff8, 0x17ff0, 0x4000_7ff0, 0 &- 0x10, 0 &- 0x4000, 0x20000, 0x4000_0000, shaper.oddNumber(),
    ]
    if shaper.flag() { configuration.descriptorTable = GuestAddress(shaper.pick(places)) }
    if shaper.flag() { configuration.availableRing = GuestAddress(shaper.pick(places)) }
    if shaper.flag() { configuration.usedRing = GuestAddress(shaper.pick(places)) }
  }

  // MARK: Requests

  /// Makes some requests available at once.
  func submit(_ shaper: inout Shaper) {
    for _ in 0...shaper.choice(6) {
      guard room > 0, isTainted || given - answered < Place.headerCount - 1 else { break }
      put(pieces(&shaper), &shaper)
    }
    if !isPacked {
      if shaper.mistake() {
        // An index that jumps, or goes back.
        (isTainted, isBroken) = (true, true)
        available &+= shaper.flag() ? UInt16(truncatingIfNeeded: shaper.oddNumber()) : UInt16(shaper.byte())
      }
      arena.store(available, at: Place.available + 2)
    }
    if shaper.choice(3) == 1 { askForCalls(&shaper) }
  }

  /// A correct read of one block.
  func submitPlain() {
    var nothing = unsafe Shaper(UnsafePointer(bitPattern: 8)!, 0)
    put(pieces(&nothing), &nothing)
    if !isPacked { arena.store(available, at: Place.available + 2) }
  }

  /// How many descriptors are free. A guest that has lost count starts over.
  private var room: Int {
    let room = isPacked ? size - spans.values.reduce(0, +) : holds.count { !$0 }
    guard room == 0, isTainted else { return room }
    spans = [:]
    for index in holds.indices { holds[index] = false }
    return size
  }

  /// Descriptors for a chain; `nil` if there are not enough.
  private func freePlaces(_ count: Int) -> [Int]? {
    let places = Array(holds.indices.lazy.filter { !self.holds[$0] }.prefix(count))
    guard places.count == count else { return nil }
    for place in places { holds[place] = true }
    return places
  }

  /// The state, for the message about what is wrong.
  var summary: String {
    let open = outstanding.filter { $0.value.count > 0 }
    return "\(given) given, \(answered) answered, open \(open), ring of \(size), "
      + (isPacked ? "next \(nextSlot), used \(usedSlot), spans \(spans)" : "available \(available), used \(seenUsed)")
      + ", ring "
      + (0..<4).map { String(arena.load(UInt64($0) * 16 + 8, as: UInt64.self), radix: 16) }.joined(separator: " ")
      + ", features \(features), tainted \(isTainted), broken \(isBroken)"
  }

  /// The available chains belong to another device, and so do their answers.
  func forget() {
    (isTainted, isBroken) = (true, true)
    outstanding = [:]
  }

  var isAllAnswered: Bool { outstanding.values.allSatisfy { $0.count == 0 } }

  /// A mistake in a request, for which the device may give the queue up.
  private func slips(_ shaper: inout Shaper) -> Bool {
    guard shaper.mistake() else { return false }
    isBroken = true
    return true
  }

  private func slipsVaguely(_ shaper: inout Shaper) -> Bool {
    let slip = slips(&shaper)
    isVague = isVague || slip
    return slip
  }

  private func pieces(_ shaper: inout Shaper) -> [Piece] {
    let number = UInt64(requests % Place.headerCount)
    requests += 1
    let header = Place.headers + number * 32
    let status = Place.statuses + number * 16
    let kinds: [UInt32] = [0, 1, 4, 8, 11, 13, 5, 2]
    let type = slips(&shaper) ? shaper.word32() : shaper.pick(kinds)
    let blocks = 1 + shaper.choice(4)
    var sector = UInt64(shaper.byte()) * 8 % max(sectors, 1)
    if slips(&shaper) { sector = shaper.flag() ? shaper.oddNumber() : sectors &- UInt64(shaper.choice(4)) }
    arena.store(type, at: header)
    arena.store(shaper.word32(), at: header + 4)
    arena.store(sector, at: header + 8)
    arena.store(0xee as UInt8, at: status)
    var list = cut(Piece(address: header, length: 16, isWritable: false), &shaper)
    switch type {
    case 0, 1:
      for _ in 0..<1 + shaper.choice(4) {
        list += cut(data(&shaper, UInt32(blocks) * 512, isWritable: type == 0), &shaper)
      }
    case 8: list += cut(data(&shaper, slips(&shaper) ? UInt32(shaper.byte()) : 20, isWritable: true), &shaper)
    case 11, 13:
      let ranges = slips(&shaper) ? shaper.choice(40) : 1 + shaper.choice(3)
      let place = data(&shaper, UInt32(ranges) * 16, isWritable: false)
      for index in 0..<UInt64(ranges) {
        let range = place.address &+ index * 16
        // In the ring, the guest itself would break it.
        guard range >= Place.data, range <= 0 &- 16 else { break }
        arena.store(slips(&shaper) ? shaper.oddNumber() : UInt64(shaper.byte()) % max(sectors, 1), at: range)
        arena.store(slips(&shaper) ? UInt32(truncatingIfNeeded: shaper.oddNumber()) : 8, at: range &+ 8)
        arena.store(slips(&shaper) ? shaper.word32() : UInt32(shaper.choice(2)), at: range &+ 12)
      }
      list += cut(place, &shaper)
    default:
      if slips(&shaper) { list.append(data(&shaper, UInt32(shaper.byte()), isWritable: shaper.flag())) }
    }
    // A separate status byte, or the last byte of the data.
    if !slips(&shaper) {
      list.append(Piece(address: status, length: slips(&shaper) ? UInt32(shaper.byte()) : 1, isWritable: true))
    }
    if slips(&shaper) { list.swapAt(shaper.choice(list.count), shaper.choice(list.count)) }
    if slips(&shaper) { list.remove(at: shaper.choice(list.count)) }
    return list
  }

  private func data(_ shaper: inout Shaper, _ length: UInt32, isWritable: Bool) -> Piece {
    let starts: [UInt64] = [Place.data, 0xfc00, 0x10000, 0x4000_0000, 0 &- 0x4000, 0x8001, 0xfe00, 0x17f00]
    var address = shaper.pick(starts) &+ UInt64(shaper.choice(8)) * 512
    var length = length
    if slips(&shaper) { address = shaper.oddNumber() }
    if slips(&shaper) { length = UInt32(truncatingIfNeeded: shaper.oddNumber()) }
    // A guest that lets the device read into the ring cannot blame it. A buffer that passes the end of the address space
    // continues in the ring, too.
    if address < Place.data || length > 0 && address &+ UInt64(length &- 1) < address { isTainted = true }
    return Piece(address: address, length: length, isWritable: isWritable)
  }

  /// A buffer in one piece, or in several: drivers may split it as they like (virtio 2.6.4).
  private func cut(_ piece: Piece, _ shaper: inout Shaper) -> [Piece] {
    guard shaper.choice(8) == 1, piece.length > 1 else { return [piece] }
    let first = 1 + UInt32(shaper.byte()) % (piece.length - 1)
    return [
      Piece(address: piece.address, length: first, isWritable: piece.isWritable),
      Piece(address: piece.address &+ UInt64(first), length: piece.length - first, isWritable: piece.isWritable),
    ]
  }

  // MARK: Rings

  private func put(_ list: [Piece], _ shaper: inout Shaper) {
    guard !list.isEmpty else { return }
    isVague = false
    // A guest cannot write more than its memory, so what lies outside of it counts for nothing.
    let writable = list.reduce(0) { $0 + ($1.isWritable ? UInt64($1.length) : 0) }
    let mayHaveTable = features.contains(.indirectDescriptors) && (isTainted || tables[requests % Place.tableCount] == nil)
    let isIndirect = mayHaveTable && (shaper.choice(3) == 1 || list.count > room)
    isPacked
      ? putPacked(list, writable, isIndirect: isIndirect, &shaper) : putSplit(list, writable, isIndirect: isIndirect, &shaper)
  }

  /// For people who investigate a finding.
  private func tellChain(_ head: UInt16, _ list: [Piece], isIndirect: Bool) {
    tell(
      "head \(head)\(isIndirect ? " in a table" : ""): "
        + list.map { "\($0.address)+\($0.length)\($0.isWritable ? "w" : "")" }.joined(separator: " "))
  }

  private func note(_ head: UInt16, _ writable: UInt64) {
    given += 1
    let entry = outstanding[head] ?? (0, 0)
    let writable = isVague ? .max : writable
    outstanding[head] = (entry.count + 1, max(entry.writable, writable))
  }

  private func table(_ list: [Piece], _ shaper: inout Shaper, isSplit: Bool) -> Piece {
    let place = Place.tables + UInt64(requests % Place.tableCount) * 512
    for (index, piece) in list.prefix(32).enumerated() {
      var flags: UInt16 = (piece.isWritable ? 2 : 0) | (isSplit && index + 1 < min(list.count, 32) ? 1 : 0)
      if slips(&shaper) {
        flags = shaper.word16()
        isVague = true
      }
      descriptor(
        place + UInt64(index) * 16, piece, flags, isSplit ? (slipsVaguely(&shaper) ? shaper.word16() : UInt16(index + 1)) : 0,
        isSplit: isSplit)
    }
    let length = UInt32(min(list.count, 32)) * 16
    return Piece(
      address: slipsVaguely(&shaper) ? shaper.oddNumber() : place,
      length: slipsVaguely(&shaper) ? UInt32(truncatingIfNeeded: shaper.oddNumber()) : length, isWritable: slips(&shaper))
  }

  /// The words of a descriptor: the last two are flags and next in a split ring, id and flags in a packed one.
  private func descriptor(_ place: UInt64, _ piece: Piece, _ flags: UInt16, _ other: UInt16, isSplit: Bool) {
    arena.store(piece.address, at: place)
    arena.store(piece.length, at: place + 8)
    arena.store(isSplit ? flags : other, at: place + 12)
    arena.store(isSplit ? other : flags, at: place + 14)
  }

  private func putSplit(_ list: [Piece], _ writable: UInt64, isIndirect: Bool, _ shaper: inout Shaper) {
    let pieces = isIndirect ? [table(list, &shaper, isSplit: true)] : list
    guard let places = freePlaces(pieces.count) else { return }
    let head = places[0]
    for (index, piece) in pieces.enumerated() {
      let place = places[index]
      var flags: UInt16 = (piece.isWritable ? 2 : 0) | (index + 1 < pieces.count ? 1 : 0) | (isIndirect ? 4 : 0)
      var next = UInt16(index + 1 < places.count ? places[index + 1] : 0)
      if shaper.mistake() {
        (isTainted, isBroken) = (true, true)
        flags = shaper.word16()
      }
      if shaper.mistake() {
        (isTainted, isBroken) = (true, true)
        next = shaper.flag() ? UInt16(head) : shaper.word16()
      }
      descriptor(Place.ring + UInt64(place) * 16, piece, flags, next, isSplit: true)
    }
    chains[UInt16(head)] = places
    var named = UInt16(head)
    if shaper.mistake() {
      (isTainted, isBroken) = (true, true)
      named = shaper.word16()
    }
    note(named, writable)
    if isIndirect { tables[requests % Place.tableCount] = named }
    tellChain(named, list, isIndirect: isIndirect)
    arena.store(named, at: Place.available + 4 + UInt64(Int(available) % size) * 2)
    available &+= 1
  }

  private func putPacked(_ list: [Piece], _ writable: UInt64, isIndirect: Bool, _ shaper: inout Shaper) {
    let pieces = isIndirect ? [table(list, &shaper, isSplit: false)] : list
    guard pieces.count <= room else { return }
    var id = UInt16(requests % 512)
    while spans[id] != nil { id &+= 1 }
    if shaper.mistake() {
      (isTainted, isBroken) = (true, true)
      id = shaper.word16()
    }
    var position = nextSlot
    var first: (place: UInt64, flags: UInt16) = (0, 0)
    for (index, piece) in pieces.enumerated() {
      let place = Place.ring + UInt64(position.slot) * 16
      var flags: UInt16 = (piece.isWritable ? 2 : 0) | (index + 1 < pieces.count ? 1 : 0) | (isIndirect ? 4 : 0)
      flags |= position.wrap ? 0x80 : 0x8000
      if shaper.mistake() {
        (isTainted, isBroken) = (true, true)
        flags ^= shaper.word16()
      }
      if index == 0 { first = (place, flags) }
      descriptor(place, piece, index == 0 ? arena.load(place + 14, as: UInt16.self) : flags, id, isSplit: false)
      position = position.advanced(by: 1, size: size)
    }
    // The flags of the first descriptor make the chain available.
    arena.store(first.flags, at: first.place + 14)
    nextSlot = position
    spans[id] = pieces.count
    note(id, writable)
    if isIndirect { tables[requests % Place.tableCount] = id }
    tellChain(id, list, isIndirect: isIndirect)
  }

  private func askForCalls(_ shaper: inout Shaper) {
    if isPacked {
      arena.store(shaper.mistake() ? shaper.word32() : UInt32(shaper.choice(3)) << 16, at: Place.available)
    } else {
      arena.store(UInt16(shaper.choice(2)), at: Place.available)
      arena.store(shaper.mistake() ? shaper.word16() : seenUsed, at: Place.available + 4 + 2 * UInt64(size))
    }
  }

  /// As another CPU of the guest: writes into memory that the device is using.
  func rewrite(_ shaper: inout Shaper) {
    (isTainted, isBroken) = (true, true)
    for _ in 0...shaper.choice(4) {
      let starts: [UInt64] = [
        Place.ring, Place.available, Place.used, Place.tables, Place.headers, Place.statuses, Place.available + 2,
        Place.used + 2,
      ]
      let address = shaper.pick(starts) + UInt64(shaper.byte())
      switch shaper.choice(3) {
      case 0: arena.store(shaper.byte(), at: address)
      case 1: arena.store(shaper.word16(), at: address & ~1)
      default: arena.store(shaper.oddNumber(), at: address & ~7)
      }
    }
  }

  // MARK: Answers

  /// Takes what the device has used, and checks it.
  func reap() {
    guard !isTainted else { return }
    isPacked ? reapPacked() : reapSplit()
  }

  private func take(_ id: UInt16, _ length: UInt32) {
    guard let entry = outstanding[id], entry.count > 0 else { fail("head \(id) was answered, but not outstanding") }
    check(UInt64(length) <= entry.writable, "\(length) bytes were written for head \(id), which has room for \(entry.writable)")
    outstanding[id]?.count -= 1
    if let table = tables.first(where: { $0.value == id })?.key { tables[table] = nil }
    for place in chains.removeValue(forKey: id) ?? [] { holds[place] = false }
    answered += 1
  }

  private func reapSplit() {
    let used = arena.load(Place.used + 2, as: UInt16.self)
    check(Int(used &- seenUsed) <= size, "the used index went from \(seenUsed) to \(used)")
    while seenUsed != used {
      let element = Place.used + 4 + UInt64(Int(seenUsed) % size) * 8
      let id = arena.load(element, as: UInt32.self)
      guard let head = UInt16(exactly: id) else { fail("head \(id) was answered") }
      take(head, arena.load(element + 4, as: UInt32.self))
      seenUsed &+= 1
    }
  }

  private func reapPacked() {
    for _ in 0...size {
      let place = Place.ring + UInt64(usedSlot.slot) * 16
      let flags = arena.load(place + 14, as: UInt16.self)
      guard flags & 0x8080 == (usedSlot.wrap ? 0x8080 : 0), !spans.isEmpty else { return }
      let id = arena.load(place + 12, as: UInt16.self)
      guard let span = spans[id] else { fail("buffer \(id) was answered, but not outstanding") }
      take(id, arena.load(place + 8, as: UInt32.self))
      spans[id] = nil
      usedSlot = usedSlot.advanced(by: span, size: size)
    }
  }
}
