/// Copies between buffers and a mapping of the image, as the mapped engine makes them: with page tables filled beforehand,
/// small reads four at a time, otherwise with the next one prefetched while this one is copied, and with non-temporal stores
/// into the image.
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
    // Not with holes, which populating the mapping would fill.
    var info = stat()
    if unsafe fstat(context.descriptor, &info) == 0, UInt64(max(info.st_blocks, 0)) &* 512 >= size {
      _ = unsafe madvise(mapping.base, mapping.count, clinux_madv_populate_read)
    }
    let isShared = !context.isWrite && context.depth >= 4 && context.blockSize <= 16384 && context.blockSize % 64 == 0
    if isShared { runFour(&context, mapping) } else { runSingle(&context, mapping) }
    withExtendedLifetime(mapping) {}
  }

  private static func runFour(_ context: inout BareContext, _ mapping: Mapping) {
    func places() -> clinux_four {
      unsafe clinux_four(
        first: mapping.base + Int(context.nextOffset()), second: mapping.base + Int(context.nextOffset()),
        third: mapping.base + Int(context.nextOffset()), fourth: mapping.base + Int(context.nextOffset()))
    }
    var result = BareResult()
    var slot = 0
    var from = unsafe places()
    while true {
      let next = unsafe places()
      let to = unsafe clinux_four(
        first: context.buffer(slot), second: context.buffer(slot &+ 1), third: context.buffer(slot &+ 2),
        fourth: context.buffer(slot &+ 3))
      unsafe clinux_copy_four(to, from, next, context.blockSize)
      unsafe from = next
      slot = slot &+ 8 > context.depth ? 0 : slot &+ 4
      result.requests &+= 4
      if result.requests & 15 == 0, context.isOver(result) { break }
    }
  }

  private static func runSingle(_ context: inout BareContext, _ mapping: Mapping) {
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
  }
}
