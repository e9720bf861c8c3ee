/// What a front-end has translated so far, as it said it: from addresses of the driver, which is behind an IOMMU, to addresses of
/// the front-end's own process.
internal import VirtioCore

/// A bounded table. Translations that continue each other are one, so that a guest whose addresses are not really translated has
/// few. When there is no room for another, some other one goes: who needs it will ask for it again.
struct TranslationTable: Sendable {
  struct Entry: Hashable, Sendable {
    /// The first and the last address of the driver.
    var first: UInt64
    var last: UInt64
    /// Where the first one is in the front-end's process.
    var user: UInt64
    var access: MemoryAccess

    func user(of address: UInt64) -> UInt64 { user &+ (address &- first) }
  }

  /// 16 MiB of pages that do not continue each other.
  static let capacity = 4096
  /// Pieces that all of them may come to, as one that goes over several memory regions is several.
  static let pieces = 4 * capacity

  /// Sorted; none of them overlap.
  private(set) var entries: [Entry] = []
  /// How often something that was in force was forgotten or replaced, without the front-end having taken it back.
  private(set) var losses: UInt64 = 0
  /// Grows with each change.
  private(set) var number: UInt64 = 0

  /// Adds a translation. What is newer counts.
  mutating func insert(_ entry: Entry) {
    let overlapped = range(first: entry.first, last: entry.last)
    if entries[overlapped].contains(where: { old in
      let start = max(old.first, entry.first)
      return old.user(of: start) != entry.user(of: start)
    }) {
      losses += 1
    }
    remove(first: entry.first, last: entry.last)
    if entries.count >= Self.capacity {
      entries.remove(at: Int(number % UInt64(entries.count)))
      losses += 1
    }
    var index = firstIndex(endingAtOrAfter: entry.first)
    var entry = entry
    if index > 0, Self.continues(entries[index - 1], entry) {
      index -= 1
      entry = Entry(first: entries[index].first, last: entry.last, user: entries[index].user, access: entry.access)
      entries.remove(at: index)
    }
    if index < entries.count, Self.continues(entry, entries[index]) {
      entry.last = entries[index].last
      entries.remove(at: index)
    }
    entries.insert(entry, at: index)
    number += 1
  }

  /// Takes translations back: what is left of those that are cut stays.
  mutating func remove(first: UInt64, last: UInt64) {
    number += 1
    let overlapped = range(first: first, last: last)
    guard let (lowest, highest) = entries[overlapped].first.flatMap({ low in entries[overlapped].last.map { (low, $0) } })
    else { return }
    var rest: [Entry] = []
    if lowest.first < first {
      rest.append(Entry(first: lowest.first, last: first - 1, user: lowest.user, access: lowest.access))
    }
    if highest.last > last {
      rest.append(Entry(first: last + 1, last: highest.last, user: highest.user(of: last + 1), access: highest.access))
    }
    // A hole makes two of one.
    if entries.count - overlapped.count + rest.count > Self.capacity {
      rest.removeLast()
      losses += 1
    }
    entries.replaceSubrange(overlapped, with: rest)
  }

  mutating func removeAll() {
    entries = []
    number += 1
  }

  /// The table as the front-end's memory has it now. What is not in that is left out.
  func translations(in table: MemoryTable) -> Translations {
    var found: [Translations.Entry] = []
    found.reserveCapacity(entries.count)
    for entry in entries {
      guard found.count < Self.pieces else { break }
      var (address, user) = (entry.first, entry.user)
      while true {
        let left = entry.last - address
        // Bytes to where it goes on elsewhere, less one, as all of them can be 2^64.
        let step: UInt64
        if let (host, size) = unsafe table.place(ofUser: user) {
          step = min(left, size - 1)
          unsafe found.append(.init(start: address, size: step + 1, host: host, access: entry.access))
        } else {
          step = min(left, table.gap(atUser: user) - 1)
        }
        guard step < left, found.count < Self.pieces else { break }
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

extension MemoryTable {
  /// Where an address of the front-end's is here, and the bytes from there to the end of its region.
  func place(ofUser address: UInt64) -> (host: UnsafeMutableRawPointer, size: UInt64)? {
    for entry in entries {
      let distance = address &- entry.region.userAddress
      guard distance < entry.region.size else { continue }
      return unsafe (entry.mapping.base + entry.offset + Int(distance), entry.region.size - distance)
    }
    return nil
  }

  /// Bytes from an address that is in no region to the next one that is; at least 1.
  func gap(atUser address: UInt64) -> UInt64 {
    entries.map { $0.region.userAddress &- address }.min() ?? .max
  }

  /// Whether all of a range of the front-end's addresses is in memory. - Parameter last: the last byte.
  func holds(userFirst first: UInt64, last: UInt64) -> Bool {
    var next = first
    while let (_, size) = unsafe place(ofUser: next) {
      guard last - next >= size else { return true }
      // A region does not go past the end of the address space, and the range goes on behind it.
      next += size
    }
    return false
  }
}
