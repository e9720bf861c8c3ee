/// memcpy between buffers and a mapping of the image.
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
    var result = BareResult()
    var slot = 0
    while true {
      let place = unsafe mapping.base + Int(context.nextOffset())
      let buffer = unsafe context.buffer(slot)
      if context.isWrite {
        unsafe place.copyMemory(from: buffer, byteCount: context.blockSize)
      } else {
        unsafe buffer.copyMemory(from: place, byteCount: context.blockSize)
      }
      result.requests &+= 1
      slot = slot &+ 1 == context.depth ? 0 : slot &+ 1
      if result.requests & 15 == 0, context.isOver(result) { break }
    }
    withExtendedLifetime(mapping) {}
  }
}
