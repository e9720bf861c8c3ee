/// The translations that a front-end has sent: from addresses of a driver behind an IOMMU to addresses of the front-end's own
/// process.
internal import VirtioCore

/// A bounded table. Adjacent translations are merged, so that a guest with an identity mapping has few. When the table is full,
/// the oldest entry is dropped: a queue that needs it will ask for it again.
struct TranslationTable: Sendable {
  struct Entry: Equatable, Sendable {
    /// The first and the last address of the driver.
    var first: UInt64
    var last: UInt64
    /// Where the first one is in the front-end's process.
    var user: UInt64
    var access: MemoryAccess
    /// When it came; for merged translations, when the newest of them came.
    var age: UInt64 = 0

    /// Whether they translate in the same way, whatever their ages.
    static func == (one: Entry, other: Entry) -> Bool {
      (one.first, one.last, one.user, one.access) == (other.first, other.last, other.user, other.access)
    }

    func user(of address: UInt64) -> UInt64 { user &+ (address &- first) }
  }

  /// Enough for 16 MiB of pages that are not adjacent.
  static let leastCapacity = 4096
  /// Twice as many as a queue can need at once, for the pages of its ring and of its next request. Twice, because entries that
  /// were known when it began to ask may be the oldest, and are dropped once before it asks for them again.
  static let capacityOfQueue = 2 * 1152

  /// The most entries.
  let capacity: Int
  /// The most pieces that they may resolve to: an entry that spans several memory regions becomes several pieces.
  var pieces: Int { 4 * capacity }

  /// Sorted; none of them overlap.
  private(set) var entries: [Entry] = []
  /// How often a translation in force was dropped or replaced without an invalidation from the front-end.
  private(set) var losses: UInt64 = 0
  /// How often a translation was replaced in this way by one to another address.
  private(set) var replacements: UInt64 = 0
  /// Grows with each change.
  private(set) var number: UInt64 = 0

  init(capacity: Int) { self.capacity = capacity }
  init(queues: Int) { self.init(capacity: max(Self.leastCapacity, queues * Self.capacityOfQueue)) }

  /// Adds a translation. The newer address counts, but access that is already allowed to the same address stays allowed.
  mutating func insert(_ entry: Entry) {
    var parts: [Entry] = []
    var next = entry
    for old in entries[range(first: entry.first, last: entry.last)] {
      let (start, end) = (max(old.first, entry.first), min(old.last, entry.last))
      guard old.user(of: start) == entry.user(of: start), !entry.access.isSuperset(of: old.access) else { continue }
      if next.first < start { parts.append(Entry(first: next.first, last: start - 1, user: next.user, access: next.access)) }
      parts.append(Entry(first: start, last: end, user: entry.user(of: start), access: entry.access.union(old.access)))
      guard end < entry.last else {
        for part in parts { place(part) }
        return
      }
      next.user = entry.user(of: end + 1)
      next.first = end + 1
    }
    for part in parts + [next] { place(part) }
  }

  private mutating func place(_ entry: Entry) {
    let overlapped = range(first: entry.first, last: entry.last)
    if entries[overlapped].contains(where: { old in
      let start = max(old.first, entry.first)
      return old.user(of: start) != entry.user(of: start)
    }) {
      losses += 1
      replacements += 1
    }
    remove(first: entry.first, last: entry.last)
    if entries.count >= capacity, let oldest = entries.indices.min(by: { entries[$0].age < entries[$1].age }) {
      entries.remove(at: oldest)
      losses += 1
    }
    var index = firstIndex(endingAtOrAfter: entry.first)
    var entry = entry
    entry.age = number
    if index > 0, Self.continues(entries[index - 1], entry) {
      index -= 1
      entry.first = entries[index].first
      entry.user = entries[index].user
      entries.remove(at: index)
    }
    if index < entries.count, Self.continues(entry, entries[index]) {
      entry.last = entries[index].last
      entries.remove(at: index)
    }
    entries.insert(entry, at: index)
    number += 1
  }

  /// Removes translations; the rest of an entry that is cut stays in force.
  mutating func remove(first: UInt64, last: UInt64) {
    number += 1
    let overlapped = range(first: first, last: last)
    guard let (lowest, highest) = entries[overlapped].first.flatMap({ low in entries[overlapped].last.map { (low, $0) } })
    else { return }
    var rest: [Entry] = []
    if lowest.first < first {
      rest.append(
        Entry(first: lowest.first, last: first - 1, user: lowest.user, access: lowest.access, age: lowest.age))
    }
    if highest.last > last {
      rest.append(
        Entry(
          first: last + 1, last: highest.last, user: highest.user(of: last + 1), access: highest.access, age: highest.age))
    }
    // A hole splits one entry into two.
    if entries.count - overlapped.count + rest.count > capacity {
      rest.removeLast()
      losses += 1
    }
    entries.replaceSubrange(overlapped, with: rest)
  }

  mutating func removeAll() {
    entries = []
    number += 1
  }

  /// The table resolved in the front-end's present memory. Addresses outside that are left out.
  func translations(in table: MemoryTable) -> Translations {
    let places = UserPlaces(table)
    var found: [Translations.Entry] = []
    found.reserveCapacity(entries.count)
    for entry in entries {
      guard found.count < pieces else { break }
      var (address, user) = (entry.first, entry.user)
      while true {
        let left = entry.last - address
        // Bytes up to the next piece or gap; counted minus one below, because all of them together can be 2^64.
        let step: UInt64
        if let (host, size) = unsafe places.place(of: user) {
          step = min(left, size - 1)
          unsafe found.append(.init(start: address, size: step + 1, host: host, access: entry.access))
        } else {
          step = min(left, places.gap(at: user) - 1)
        }
        guard step < left, found.count < pieces else { break }
        address += step + 1
        user &+= step + 1
      }
    }
    return Translations(found, number: number, losses: losses)
  }

  private static func continues(_ one: Entry, _ next: Entry) -> Bool {
    one.last != .max && one.last + 1 == next.first && one.user(of: next.first) == next.user && one.access == next.access
  }

  /// Entries that overlap these addresses.
  private func range(first: UInt64, last: UInt64) -> Range<Int> {
    let begin = firstIndex(endingAtOrAfter: first)
    var end = begin
    while end < entries.count, entries[end].first <= last { end += 1 }
    return begin..<end
  }

  private func firstIndex(endingAtOrAfter address: UInt64) -> Int {
    var (low, high) = (0, entries.count)
    while low < high {
      let middle = (low + high) / 2
      if entries[middle].last < address { low = middle + 1 } else { high = middle }
    }
    return low
  }
}

/// Looks up addresses of the front-end's process. Meant for many look-ups at once, because the regions have to be sorted.
struct UserPlaces {
  /// Sorted by the front-end's address; they do not overlap.
  private let entries: [MemoryTable.Entry]

  init(_ table: MemoryTable) { entries = table.entries.sorted { $0.region.userAddress < $1.region.userAddress } }

  /// The index of the first region that begins after the address.
  private func following(_ address: UInt64) -> Int {
    var (low, high) = (0, entries.count)
    while low < high {
      let middle = (low + high) / 2
      if entries[middle].region.userAddress <= address { low = middle + 1 } else { high = middle }
    }
    return low
  }

  /// Where an address is, and the bytes from there to the end of its region.
  func place(of address: UInt64) -> (host: UnsafeMutableRawPointer, size: UInt64)? {
    let index = following(address)
    guard index > 0 else { return nil }
    let entry = entries[index - 1]
    let distance = address - entry.region.userAddress
    guard distance < entry.region.size else { return nil }
    return unsafe (entry.mapping.base + entry.offset + Int(distance), entry.region.size - distance)
  }

  /// Bytes from an address that is in no region to the next one that is; at least 1.
  func gap(at address: UInt64) -> UInt64 {
    let index = following(address)
    return index < entries.count ? entries[index].region.userAddress - address : .max
  }

  /// Whether all of a range is in memory. - Parameter last: the last byte.
  func holds(first: UInt64, last: UInt64) -> Bool {
    var next = first
    while let (_, size) = unsafe place(of: next) {
      guard last - next >= size else { return true }
      // No overflow: the range continues after this region, so the region ends before the end of the address space.
      next += size
    }
    return false
  }
}

extension MemoryTable {
  /// Whether all of a range of the front-end's addresses is in memory. - Parameter last: the last byte.
  func holds(userFirst first: UInt64, last: UInt64) -> Bool { UserPlaces(self).holds(first: first, last: last) }
}
