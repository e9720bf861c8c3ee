/// memcpy between buffers and a mapping of the image, as the mapped engine does it: in page tables beforehand, the next one on
/// its way while this one is copied, and into the image around the caches.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

enum BareCopy {
  static func run(_ context: inout BareContext, size: UInt64, isReadOnly: Bool) throws(BenchError) {
    let mapping: Mapping
    do { mapping = try Mapping(descriptor: context.descriptor, count: Int(clamping: size), readOnly: isReadOnly) } catch {
      throw .system("mapping the image", error)
    }
    // A hole would be filled by that.
    var info = stat()
    if unsafe fstat(context.descriptor, &info) == 0, UInt64(max(info.st_blocks, 0)) &* 512 >= size {
      _ = unsafe madvise(mapping.base, mapping.count, clinux_madv_populate_read)
    }
    var result = BareResult()
    var slot = 0
    var offset = Int(context.nextOffset())
    while true {
      let next = Int(context.nextOffset())
      let place = unsafe mapping.base + offset
      let buffer = unsafe context.buffer(slot)
      let isLast = slot &+ 1 == context.depth
      if context.isWrite {
        unsafe clinux_prefetch(context.buffer(isLast ? 0 : slot &+ 1), 4)
        unsafe clinux_copy_around_cache(place, buffer, context.blockSize)
      } else {
        unsafe clinux_prefetch(mapping.base + next, 4)
        unsafe buffer.copyMemory(from: place, byteCount: context.blockSize)
      }
      result.requests &+= 1
      offset = next
      slot = isLast ? 0 : slot &+ 1
      if result.requests & 15 == 0 {
        clinux_streamed()
        if context.isOver(result) { break }
      }
    }
    withExtendedLifetime(mapping) {}
  }
}
