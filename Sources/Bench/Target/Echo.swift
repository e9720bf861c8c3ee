/// The ceiling: a thread that answers every request with OK and does nothing else. It shares no code with any device here, so
/// that it shows only what the client can do.
internal import GuestDriver
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// Rings in memory of this process, without any transport.
final class Echo {
  let setups: [QueueSetup]
  private let memory: DriverMemory
  private let isStopping = StopFlag()
  private let thread: SystemThread

  private final class StopFlag: Sendable { let value = Atomic<Bool>(false) }

  /// Starts at once.
  ///
  /// - Parameters:
  ///   - features: those that the driver uses.
  ///   - cpu: where to run.
  init(_ workload: Workload, ringSize: Int?, features: FeatureSet, cpu: Int?) throws(BenchError) {
    let memory = try Target.memory(workload, ringSize: ringSize, regions: 1)
    let needed = features.contains(.indirectDescriptors) ? workload.depth : 3 * workload.depth
    let size = ringSize ?? max(Target.powerOfTwo(atLeast: needed), 128)
    guard needed <= size, size <= 32768 else {
      throw .depthExceedsRing(depth: workload.depth, ring: needed, maximum: min(size, 32768))
    }
    var setups: [QueueSetup] = []
    var rings: [EchoRing] = []
    do {
      for index in 0..<workload.jobs {
        let ring = try RingMemory(size: UInt16(size), shape: .legacy(), in: memory)
        let lines = QueueLines.eventCounters(kick: try .eventCounter(), call: try .eventCounter())
        setups.append(try QueueSetup(index: index, ring: ring, lines: lines, memory: memory, features: features))
        rings.append(try EchoRing(ring.layout, memory, hasEventIndex: features.contains(.eventIndex)))
      }
    } catch let error as Errno { throw .system("eventfd", error) } catch { throw .target("\(error)") }
    self.memory = memory
    self.setups = setups
    let flag = isStopping
    let all = rings
    thread = try SystemThread(benchmark: "echo", cpu: cpu) {
      var rings = all
      while !flag.value.load(ordering: .relaxed) {
        for index in rings.indices { rings[index].turn() }
      }
    }
  }

  /// Ends the thread. Nothing may be outstanding.
  func stop() {
    isStopping.value.store(true, ordering: .relaxed)
    thread.join()
  }
}

/// The device's end of one ring, in as few steps as possible. The driver is ours and trusted.
@safe
private struct EchoRing: @unchecked Sendable {
  private let guest: UnsafeMutableRawPointer
  private let table: UnsafeMutableRawPointer
  private let available: UnsafeMutableRawPointer
  private let used: UnsafeMutableRawPointer
  private let size: UInt16
  private var seen: UInt16 = 0

  init(_ layout: RingLayout, _ memory: DriverMemory, hasEventIndex: Bool) throws(BenchError) {
    let window = GuestWindow(memory)
    unsafe guest = try window.host(GuestAddress(0), count: 1)
    unsafe table = try window.host(layout.descriptorTable, count: RingLayout.descriptorTableBytes(layout.size))
    unsafe available = try window.host(layout.availableRing, count: RingLayout.availableRingBytes(layout.size))
    unsafe used = try window.host(layout.usedRing, count: RingLayout.usedRingBytes(layout.size))
    size = layout.size
    // No kicks are wanted; with event indices, a stale index already says so.
    if !hasEventIndex { unsafe SharedCell<UInt16>(used).storeRelaxed(1) }
  }

  @inline(__always)
  mutating func turn() {
    let index = unsafe SharedCell<UInt16>(available + 2).loadAcquire()
    guard index != seen else { return }
    while seen != index {
      let place = Int(seen & (size &- 1))
      let head = unsafe SharedCell<UInt16>(available + (4 &+ 2 &* place)).loadRelaxed()
      let last = unsafe lastDescriptor(of: head)
      let status = unsafe SharedCell<UInt64>(last).loadRelaxed()
      unsafe (guest + Int(status)).storeBytes(of: 0, as: UInt8.self)
      let element = unsafe used + (4 &+ 8 &* place)
      unsafe SharedCell<UInt32>(element).storeRelaxed(UInt32(head))
      unsafe SharedCell<UInt32>(element + 4).storeRelaxed(1)
      seen &+= 1
    }
    // Release: statuses and elements before the index that shows them.
    unsafe SharedCell<UInt16>(used + 2).storeRelease(seen)
  }

  /// The last of three descriptors: header, data, status.
  @inline(__always)
  private func lastDescriptor(of head: UInt16) -> UnsafeMutableRawPointer {
    let first = unsafe table + 16 &* Int(head)
    let rest = unsafe SharedCell<UInt64>(first + 8).loadRelaxed()
    guard rest >> 32 & 4 != 0 else { return unsafe first + 32 }
    return unsafe guest + Int(SharedCell<UInt64>(first).loadRelaxed()) + 32
  }
}

extension Echo {
  /// The most that the client can do, in requests per second.
  ///
  /// - Parameter cpu: where the back-end would run.
  static func ceiling(
    _ workload: Workload, ringSize: Int?, features: FeatureSet, options: RunOptions, cpu: Int?, seconds: Double
  ) throws(BenchError) -> Double {
    try measure(
      workload, ringSize: ringSize, features: features, options: options, cpu: cpu, ramp: min(seconds / 4, 0.1),
      seconds: seconds
    ).iops
  }

  static func measure(
    _ workload: Workload, ringSize: Int?, features: FeatureSet, options: RunOptions, cpu: Int?, ramp: Double,
    seconds: Double, progress: (RunProgress) -> Void = { _ in }
  ) throws(BenchError) -> Measurement {
    var workload = workload
    // The echo keeps no data.
    workload.verification = nil
    var options = options
    options.rampTime = ramp
    options.runtime = seconds
    // The echo never calls.
    options.sleeps = false
    let echo = try Echo(workload, ringSize: ringSize, features: features, cpu: cpu)
    defer { echo.stop() }
    return try Client.run(
      echo.setups, features: features, capacity: 1 << 40, workload: workload, options: options,
      meter: OwnProcessMeter(device: nil), progress: progress)
  }
}
