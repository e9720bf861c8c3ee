/// Requests through a device in this process, to count what one of them costs: instructions under callgrind, allocations,
/// system calls, kicks and calls. It measures no time.
///
///     request-cost <engine>[,cached|,epoll|,qcow2] <image> <scenario>...
///
/// `cached` uses the page cache, where io_uring finishes everything during the submission. `epoll` does so, too, and sleeps in
/// epoll: valgrind cannot let other threads run while one sleeps in a ring. With `qcow2` the image is one, and not a raw file.
///
/// The image has to hold 1 MiB; the null engine only opens it. Each scenario (see `Scenario`) has its own device and thread,
/// and a line of counters, from the moment when the thread sleeps after the first batch to the moment when it sleeps after the
/// last one. At both moments callgrind can end a part of its report (`--dump-after=*endOfPart*`), and strace shows a `getppid`.
/// In between, the driver's side allocates nothing and copies nothing, so all such calls are the device's.
import CLinux
import Glibc
import HandDriver
import SystemPackage
import VirtioBlkDevice
import VirtioCore

@main
struct RequestCost {
  static func main() throws {
    let arguments = CommandLine.arguments.dropFirst()
    let scenarios = arguments.dropFirst(2).map { (text: $0, scenario: Scenario($0)) }
    guard let engine = arguments.first, let kind = EngineKind(rawValue: String(engine.prefix { $0 != "," })),
      let path = arguments.dropFirst().first, !scenarios.isEmpty
    else { end("usage: request-cost <engine>[,cached|,epoll|,qcow2] <image> <scenario>...") }
    for (text, scenario) in scenarios where scenario == nil { end("request-cost: '\(text)' is not a scenario") }

    var imageOptions = ImageOptions(path: path, direct: engine.contains(",") ? .off : .auto, isLocked: false)
    if engine.hasSuffix(",qcow2") { imageOptions.qcow2 = Qcow2Location(path: path) }
    let image = try ImageFile(imageOptions)
    for case (_, let scenario?) in scenarios {
      var options = BlockDeviceOptions()
      options.engine = kind
      // Polling for work costs instructions that belong to no request.
      options.waiting = .sleep
      options.notification = scenario.callsForEach ? .each : .batch
      options.metrics = scenario.isMetered
      options.uring.kicksThroughEpoll = engine.hasSuffix(",epoll")
      try run(scenario, on: BlockDevice(image: image, options: options))
    }
  }

  static func run(_ scenario: Scenario, on device: BlockDevice) throws {
    var driver = try HandDriver(scenario)
    device.negotiated(scenario.features)
    let attended = AttendedDevice(device)
    try attended.startAndWait(driver.activation(call: .eventCounter(.eventCounter())))
    guard let watch = SleepWatch(thread: "queue 0") else { end("request-cost: the device has no thread named 'queue 0'") }
    func runBatches(_ count: Int) {
      for _ in 0..<count {
        watch.wait()
        guard driver.runBatch() else { end("request-cost: \(scenario.text): a batch was not answered in ten seconds") }
      }
      watch.wait()
    }
    // The first batch includes the costs of everything that is done once.
    runBatches(1)
    endOfPart()
    let before = (kicks: driver.kicks, counters: device.counters)
    runBatches(scenario.batches)
    let after = (kicks: driver.kicks, counters: device.counters)
    endOfPart()
    _ = attended.stopAndWait(queue: 0)
    func difference(_ counter: KeyPath<BlockCounters, UInt64>) -> UInt64 {
      after.counters[keyPath: counter] - before.counters[keyPath: counter]
    }
    print(
      "scenario=\(scenario.text) requests=\(difference(\.requests)) failures=\(difference(\.failures)) "
        + "turns=\(difference(\.turns)) system-calls=\(difference(\.systemCalls)) kicks=\(after.kicks - before.kicks) "
        + "kicks-seen=\(difference(\.kicks)) calls=\(difference(\.calls))")
  }

  /// A function that a profiler can refer to, with a system call that nothing else here makes, for a tracer.
  @inline(never)
  static func endOfPart() { _ = getppid() }

  static func end(_ message: String) -> Never {
    _ = try? FileDescriptor.standardError.writeAll((message + "\n").utf8)
    exit(2)
  }
}
