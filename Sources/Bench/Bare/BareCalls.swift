/// pread and pwrite, one after the other.
internal import CLinux
internal import Glibc

enum BareCalls {
  static func run(_ context: inout BareContext) throws(BenchError) {
    var result = BareResult()
    var slot = 0
    while true {
      let offset = off_t(bitPattern: context.nextOffset())
      let buffer = unsafe context.buffer(slot)
      let count =
        context.isWrite
        ? unsafe pwrite(context.descriptor, buffer, context.blockSize, offset)
        : unsafe pread(context.descriptor, buffer, context.blockSize, offset)
      if count < 0 { try BareLoop.check(-Int(errno), context) }
      try BareLoop.check(count, context)
      result.requests &+= 1
      slot = slot &+ 1 == context.depth ? 0 : slot &+ 1
      result.systemCalls &+= 1
      // The clock costs as much as a fiftieth of the cheapest call.
      if result.requests & 15 == 0, context.isOver(result) { return }
    }
  }
}

extension off_t {
  fileprivate init(bitPattern value: UInt64) { self = off_t(Int64(bitPattern: value)) }
}
