/// Guest memory as the fixed buffers of a ring: pinned once, and referred to by number.
internal import CLinux
internal import VirtioCore

/// A sorted table of host ranges; a buffer in the kernel is at most 1 GiB, so a large region becomes several.
@safe
struct RegisteredBuffers {
  private static let largest = 1 << 30

  private var ranges: [(base: UInt, count: UInt)] = []
  private var last = 0
  private var memory: GuestMemory?

  var isEmpty: Bool { ranges.isEmpty }

  /// Replaces what was registered. If the kernel refuses (because of the limit of locked memory, for example), operations do
  /// without.
  mutating func register(_ memory: GuestMemory, with ring: UnsafeMutablePointer<io_uring>) {
    guard memory !== self.memory else { return }
    if !ranges.isEmpty { _ = unsafe io_uring_unregister_buffers(ring) }
    ranges = []
    last = 0
    self.memory = memory
    var vectors: [iovec] = unsafe []
    for region in memory.regions {
      var offset = 0
      while offset < Int(region.size) {
        let count = min(Int(region.size) - offset, Self.largest)
        unsafe vectors.append(iovec(iov_base: region.mapping.base + region.offset + offset, iov_len: count))
        offset += count
      }
    }
    unsafe vectors.sort { unsafe UInt(bitPattern: $0.iov_base) < UInt(bitPattern: $1.iov_base) }
    guard unsafe io_uring_register_buffers(ring, vectors, UInt32(vectors.count)) == 0 else { return }
    ranges = unsafe vectors.map { unsafe (UInt(bitPattern: $0.iov_base), UInt($0.iov_len)) }
  }

  /// The number of the buffer that contains the whole segment.
  @inline(__always)
  mutating func index(of segment: MemorySegment) -> Int32? {
    let base = unsafe UInt(bitPattern: segment.base)
    if contains(last, base, segment.count) { return Int32(truncatingIfNeeded: last) }
    return search(base, segment.count)
  }

  private func contains(_ index: Int, _ base: UInt, _ count: Int) -> Bool {
    let distance = base &- ranges[index].base
    return distance < ranges[index].count && UInt(count) <= ranges[index].count &- distance
  }

  @inline(never)
  private mutating func search(_ base: UInt, _ count: Int) -> Int32? {
    var low = 0
    var high = ranges.count
    while low < high {
      let middle = (low + high) / 2
      if ranges[middle].base <= base { low = middle + 1 } else { high = middle }
    }
    guard low > 0, contains(low - 1, base, count) else { return nil }
    last = low - 1
    return Int32(truncatingIfNeeded: last)
  }
}
