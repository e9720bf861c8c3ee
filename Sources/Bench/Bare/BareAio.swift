/// libaio with nothing around it.
internal import CLinux
internal import Glibc
internal import SystemPackage

enum BareAio {
  static func run(_ context: inout BareContext) throws(BenchError) {
    let depth = context.depth
    var queue: io_context_t? = nil
    let made = unsafe io_setup(Int32(depth), &queue)
    guard made == 0, let queue = unsafe queue else { throw .system("io_setup", Errno(rawValue: -made)) }
    defer { unsafe io_destroy(queue) }
    let blocks = UnsafeMutablePointer<iocb>.allocate(capacity: depth)
    let list = UnsafeMutablePointer<UnsafeMutablePointer<iocb>?>.allocate(capacity: depth)
    let events = UnsafeMutablePointer<io_event>.allocate(capacity: depth)
    defer {
      unsafe blocks.deallocate()
      unsafe list.deallocate()
      unsafe events.deallocate()
    }

    var result = BareResult()
    for slot in 0..<depth { unsafe prepare(blocks, list, place: slot, slot: slot, &context) }
    var ready = depth
    var inFlight = 0
    var isOver = false
    repeat {
      var submitted = 0
      while submitted < ready {
        result.systemCalls &+= 1
        let rc = unsafe io_submit(queue, ready - submitted, list + submitted)
        guard rc > 0 else { throw .system("io_submit", Errno(rawValue: -rc)) }
        submitted += Int(rc)
      }
      inFlight += ready
      ready = 0
      result.systemCalls &+= 1
      let count = unsafe io_getevents(queue, 1, depth, events, nil)
      guard count >= 0 || count == -EINTR else { throw .system("io_getevents", Errno(rawValue: -count)) }
      isOver = isOver || context.isOver(result)
      for index in 0..<max(Int(count), 0) {
        unsafe try BareLoop.check(Int(bitPattern: UInt(events[index].res)), context)
        result.requests &+= 1
        inFlight -= 1
        guard !isOver else { continue }
        let slot = unsafe Int(bitPattern: events[index].data)
        unsafe prepare(blocks, list, place: ready, slot: slot, &context)
        ready += 1
      }
    } while inFlight > 0 || ready > 0
  }

  @inline(__always)
  private static func prepare(
    _ blocks: UnsafeMutablePointer<iocb>, _ list: UnsafeMutablePointer<UnsafeMutablePointer<iocb>?>, place: Int, slot: Int,
    _ context: inout BareContext
  ) {
    let block = unsafe blocks + slot
    if context.isWrite {
      unsafe io_prep_pwrite(
        block, context.descriptor, context.buffer(slot), context.blockSize, Int64(bitPattern: context.nextOffset()))
    } else {
      unsafe io_prep_pread(
        block, context.descriptor, context.buffer(slot), context.blockSize, Int64(bitPattern: context.nextOffset()))
    }
    unsafe block.pointee.data = UnsafeMutableRawPointer(bitPattern: slot)
    unsafe list[place] = block
  }
}
