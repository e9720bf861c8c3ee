/// Guest memory with fences: the space between and around the regions is poisoned, so that a single byte too far is a finding.
internal import Glibc
internal import VirtioCore

@_silgen_name("__asan_poison_memory_region") private func poison(_ base: UnsafeRawPointer, _ count: Int)
@_silgen_name("__asan_unpoison_memory_region") private func unpoison(_ base: UnsafeRawPointer, _ count: Int)

/// Some regions of guest memory. Created once for each layout, and cleared before each run.
@safe
final class Arena {
  /// A region: its guest address, and its size in bytes.
  struct Part {
    var start: UInt64
    var count: Int
  }

  /// Two that are adjacent for the guest but not here, one far away whose size is not a multiple of the page size, and one that
  /// ends at the end of the address space.
  nonisolated(unsafe) static let several = Arena([
    Part(start: 0, count: 0x10000), Part(start: 0x10000, count: 0x8000), Part(start: 0x4000_0000, count: 0x7ff8),
    Part(start: 0 &- 0x4000, count: 0x4000),
  ])
  nonisolated(unsafe) static let single = Arena([Part(start: 0, count: 0x10000)])

  let memory: GuestMemory
  private let mapping: Mapping
  private let parts: [(part: Part, offset: Int)]
  private static let fence = 4096

  private init(_ list: [Part]) {
    var offset = Self.fence
    var parts: [(Part, Int)] = []
    for part in list {
      parts.append((part, offset))
      offset += (part.count + 4095) / 4096 * 4096 + Self.fence
    }
    self.parts = parts
    do {
      let mapping = try Mapping(anonymous: offset)
      self.mapping = mapping
      memory = try GuestMemory(
        parts.map {
          GuestRegion(start: GuestAddress($0.0.start), size: UInt64($0.0.count), mapping: mapping, offset: $0.1)
        })
    } catch { fail("no memory for a guest: \(error)") }
    unsafe poison(mapping.base, offset)
    for (part, place) in parts { unsafe unpoison(mapping.base + place, part.count) }
  }

  func clear() {
    for (part, offset) in parts { unsafe _ = memset(mapping.base + offset, 0, part.count) }
  }

  /// Where some bytes of the guest are; `nil` if there is no such memory, or not in one piece.
  func place(_ address: UInt64, _ count: Int) -> UnsafeMutableRawPointer? {
    for (part, offset) in parts {
      let distance = address &- part.start
      if distance < UInt64(part.count), count <= part.count - Int(distance) {
        return unsafe mapping.base + offset + Int(distance)
      }
    }
    return nil
  }

  /// Writes a number, if there is memory at the address.
  func store<Word: FixedWidthInteger>(_ word: Word, at address: UInt64) {
    guard let place = unsafe place(address, Word.bitWidth / 8) else { return }
    unsafe place.storeBytes(of: word, as: Word.self)
  }

  func load<Word: FixedWidthInteger & BitwiseCopyable>(_ address: UInt64, as type: Word.Type) -> Word {
    guard let place = unsafe place(address, Word.bitWidth / 8) else { return 0 }
    return unsafe place.loadUnaligned(as: type)
  }
}
