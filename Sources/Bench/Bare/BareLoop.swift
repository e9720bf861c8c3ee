/// The limit of a path: the same calls on the same image in a loop, without a ring, a request or a driver. What a device adds
/// to this is the cost of virtio.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage
internal import VirtioBlkDevice
internal import VirtioCore

/// The loops that there are.
enum BareKind: String, CaseIterable, Sendable {
  case uringPlain
  case uringDeferred
  case uringRegistered
  case aio
  case pread
  case copy
}

/// What a loop did.
struct BareResult: Sendable {
  var requests: UInt64 = 0
  /// Seconds.
  var seconds = 0.0
  /// CPU time in nanoseconds, including the kernel's I/O workers.
  var cpu: UInt64 = 0
  var systemCalls: UInt64 = 0
  var switches: UInt64 = 0

  var iops: Double { seconds > 0 ? Double(requests) / seconds : 0 }
}

/// What every loop works with: buffers like those in guest memory, offsets like the client's, and the time.
@safe
struct BareContext: ~Copyable {
  let descriptor: Int32
  let blockSize: Int
  let depth: Int
  let isWrite: Bool
  /// `depth` buffers of `blockSize` bytes, one after the other, each on its own page.
  let buffers: UnsafeMutableRawPointer
  /// Bytes from one buffer to the next.
  let stride: Int
  private var source: OffsetSource
  private let total: Int
  private let warmEnd: UInt64
  private let duration: UInt64
  /// The state when the warm-up ended; `nil` before.
  private var base: (result: BareResult, start: UInt64, cost: BackendSample)?
  /// What was done between the warm-up and the end.
  private(set) var measured = BareResult()
  private let meter = OwnProcessMeter(device: nil)

  /// - Parameters:
  ///   - ramp: seconds of warm-up from now on, which do not count.
  ///   - seconds: seconds to measure after that.
  init(_ image: ImageFile, _ workload: Workload, ramp: Double, seconds: Double) throws(BenchError) {
    let place = try workload.range(of: 0, capacity: image.size)
    let stride = (workload.blockSize + 4095) / 4096 * 4096
    let total = stride * workload.depth
    let memory = unsafe mmap(nil, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0)
    guard let memory = unsafe memory, unsafe memory != MAP_FAILED else { throw .noMemory(bytes: total) }
    // Zeroes would be written faster than real data: 43 GB/s against 26 on one machine.
    if !workload.pattern.reads {
      for word in 0..<(total / 8) {
        unsafe memory.storeBytes(of: (UInt64(word) &+ 1) &* 0x9e37_79b9_7f4a_7c15, toByteOffset: word &* 8, as: UInt64.self)
      }
    }
    unsafe buffers = memory
    descriptor = image.descriptor
    blockSize = workload.blockSize
    depth = workload.depth
    isWrite = !workload.pattern.reads
    source = OffsetSource(workload, range: place.range, start: place.start, job: 0)
    self.stride = stride
    self.total = total
    warmEnd = Clock.now + UInt64(max(ramp, 0) * 1e9)
    duration = UInt64(max(seconds, 0) * 1e9)
  }

  deinit { _ = unsafe munmap(buffers, total) }

  /// Looks at the clock, between batches.
  ///
  /// - Parameter done: the totals since the loop began.
  /// - Returns: whether to stop.
  mutating func isOver(_ done: BareResult) -> Bool {
    let now = Clock.now
    guard let base else {
      if now >= warmEnd { self.base = (done, now, meter.sample(.begin)) }
      return false
    }
    guard now - base.start >= duration else { return false }
    // The thread that waits for this one costs nothing in the meantime.
    let cost = meter.sample(.end).since(base.cost)
    measured = BareResult(
      requests: done.requests - base.result.requests, seconds: Double(now - base.start) / 1e9, cpu: cost.cpu ?? 0,
      systemCalls: done.systemCalls - base.result.systemCalls, switches: cost.switches ?? 0)
    return true
  }

  @inline(__always) func buffer(_ slot: Int) -> UnsafeMutableRawPointer { unsafe buffers + slot &* stride }
  /// All buffers as one range.
  var bufferRange: iovec { unsafe iovec(iov_base: buffers, iov_len: total) }

  /// Bytes from the start of the image.
  @inline(__always) mutating func nextOffset() -> UInt64 { source.nextBlock() &* UInt64(blockSize) }
}

enum BareLoop {
  /// Runs a loop on its own thread.
  ///
  /// - Parameters:
  ///   - cpu: where the back-end would run.
  ///   - ramp: seconds of warm-up before the measurement.
  static func measure(
    _ kind: BareKind, image: ImageFile, workload: Workload, cpu: Int?, ramp: Double, seconds: Double
  ) throws(BenchError) -> BareResult {
    final class Box: Sendable { let value = Mutex<Result<BareResult, BenchError>>(.failure(.noThread(.resourceBusy))) }
    let box = Box()
    let thread = try SystemThread(benchmark: "bare loop", cpu: cpu) {
      let result: Result<BareResult, BenchError>
      do throws(BenchError) {
        var context = try BareContext(image, workload, ramp: ramp, seconds: seconds)
        try loop(kind, image, &context)
        result = .success(context.measured)
      } catch { result = .failure(error) }
      box.value.withLock { $0 = result }
    }
    thread.join()
    switch box.value.withLock({ $0 }) {
    case .success(let value): return value
    case .failure(let error): throw error
    }
  }

  private static func loop(
    _ kind: BareKind, _ image: ImageFile, _ context: inout BareContext
  ) throws(BenchError) {
    switch kind {
    case .uringPlain: try BareUring.run(.plain, &context)
    case .uringDeferred: try BareUring.run(.deferred, &context)
    case .uringRegistered: try BareUring.run(.registered, &context)
    case .aio: try BareAio.run(&context)
    case .pread: try BareCalls.run(&context)
    case .copy: try BareCopy.run(&context, size: image.size, isReadOnly: image.isReadOnly)
    }
  }

  /// - Parameter result: what a call returned, negative for an error.
  static func check(_ result: Int, _ context: borrowing BareContext) throws(BenchError) {
    guard result == context.blockSize else {
      throw .system(
        context.isWrite ? "a write in the bare loop" : "a read in the bare loop",
        result < 0 ? Errno(rawValue: Int32(truncatingIfNeeded: -result)) : .ioError)
    }
  }
}
