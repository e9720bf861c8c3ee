/// A fixed number of requests through a device of this process, for counting what one of them costs: instructions under
/// callgrind, allocations, system calls. It measures no time.
///
///     request-cost <read|write> <requests> <engine>[,cached|,epoll] <image>
///
/// `cached` uses the page cache, where io_uring finishes everything while it is handed over. `epoll` does so, too, and sleeps
/// in epoll: valgrind cannot let other threads run while one sleeps in a ring.
///
/// The image has to hold 1 MiB; the null engine only opens it. The driver's side is a ring that is laid out once: 64 chains of header, 4 KiB of data and status, made available again and
/// again. Prints one line of counters.
import CLinux
import Glibc
import Synchronization
import VirtioBlkDevice
import VirtioCore

@main
struct RequestCost {
  static let size = 256
  static let depth = 64
  static let blockBytes = 4096
  static let table: UInt64 = 0
  static let available: UInt64 = 0x2000
  static let used: UInt64 = 0x3000
  static let headers: UInt64 = 0x5000
  static let statuses: UInt64 = 0x6000
  static let data: UInt64 = 0x1_0000

  static func main() throws {
    let arguments = CommandLine.arguments
    guard arguments.count == 5, let requests = Int(arguments[2]), requests > 0, ["read", "write"].contains(arguments[1]),
      let engine = EngineKind(rawValue: String(arguments[3].prefix { $0 != "," }))
    else {
      print("usage: request-cost <read|write> <requests> <engine>[,cached|,epoll] <image>")
      exit(2)
    }
    let isRead = arguments[1] == "read"
    var options = BlockDeviceOptions()
    options.engine = engine
    // Looking for work costs instructions that belong to no request.
    options.waiting = .sleep
    options.uring.kicksThroughEpoll = arguments[3].hasSuffix(",epoll")
    let image = try ImageFile(
      ImageOptions(path: arguments[4], direct: arguments[3].contains(",") ? .off : .auto, isLocked: false))
    let device = try BlockDevice(image: image, options: options)

    let mapping = try Mapping(anonymous: 1 << 20)
    let memory = try GuestMemory([GuestRegion(start: GuestAddress(0), size: 1 << 20, mapping: mapping)])
    let base = unsafe mapping.base
    func store<Value: FixedWidthInteger>(_ value: Value, _ address: UInt64) {
      unsafe base.storeBytes(of: value, toByteOffset: Int(address), as: Value.self)
    }
    for slot in 0..<depth {
      let head = UInt16(slot * 3)
      describe(head, headers + UInt64(slot * 16), 16, flags: 1, next: head + 1, store)
      describe(head + 1, data + UInt64(slot * 8192), UInt32(blockBytes), flags: isRead ? 3 : 1, next: head + 2, store)
      describe(head + 2, statuses + UInt64(slot), 1, flags: 2, next: 0, store)
      store(UInt32(isRead ? 0 : 1), headers + UInt64(slot * 16))
      store(UInt64(slot * 8), headers + UInt64(slot * 16) + 8)
    }
    for entry in 0..<size { store(UInt16(entry % depth * 3), available + 4 + UInt64(entry * 2)) }

    let kick = try OwnedDescriptor.eventCounter()
    device.negotiated([.version1, .eventIndex, .blockFlush])
    try device.start(
      Activation(
        queue: 0, memory: memory, features: [.version1, .eventIndex, .blockFlush],
        configuration: QueueConfiguration(
          size: UInt16(size), descriptorTable: GuestAddress(table), availableRing: GuestAddress(available),
          usedRing: GuestAddress(used)), kick: .eventCounter(kick), call: .none))

    let availableIndex = unsafe SharedCell<UInt16>(base + Int(available) + 2)
    let usedIndex = unsafe SharedCell<UInt16>(base + Int(used) + 2)
    var done = 0
    while done < requests {
      let batch = min(depth, requests - done)
      let target = availableIndex.loadRelaxed() &+ UInt16(batch)
      availableIndex.storeRelease(target)
      EventCounter.signal(kick.rawValue)
      while usedIndex.loadAcquire() != target { sched_yield() }
      done += batch
    }
    _ = device.stop(queue: 0)
    let counters = device.counters
    print(
      "requests=\(counters.requests) failures=\(counters.failures) turns=\(counters.turns) "
        + "system-calls=\(counters.systemCalls) kicks=\(counters.kicks) calls=\(counters.calls)")
  }

  static func describe(
    _ index: UInt16, _ address: UInt64, _ length: UInt32, flags: UInt16, next: UInt16,
    _ store: (UInt64, UInt64) -> Void
  ) {
    let place = table + UInt64(index) * 16
    store(address, place)
    store(UInt64(length) | UInt64(flags) << 32 | UInt64(next) << 48, place + 8)
  }
}
