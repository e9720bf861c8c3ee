/// Runs a workload on a target: starts the threads, takes them through the phases, and adds up their results.
internal import CLinux
internal import Glibc
internal import GuestDriver
internal import VirtioCore

/// The options of a run.
public struct RunOptions: Sendable {
  /// Seconds that are measured, and seconds of warm-up before them.
  public var runtime = 5.0
  public var rampTime = 0.5
  /// The client's threads are pinned to these CPUs in turn; not pinned if empty.
  public var processors: [Int] = []
  /// A thread for each queue instead of one for all.
  public var hasThreadPerQueue = false
  /// Sleep until called instead of polling. Only for a client and a device that share CPUs.
  public var sleeps = false
  /// The least number of requests to measure, even if that takes longer: fewer would say nothing.
  public var leastRequests: UInt64 = 1
  /// Seconds that answers may take.
  public var patience = 10

  public init() {}
}

/// What to tell the user while it runs.
public struct RunProgress: Sendable {
  /// Seconds since the start, and in total.
  public var elapsed: Double
  public var total: Double
  /// Requests a second since the last time.
  public var iops: Double
}

enum Client {
  /// Seconds between two looks at the progress, which are fio's bandwidth samples, too.
  private static var interval: Double { 0.5 }

  /// - Parameters:
  ///   - setups: the queues of a live device.
  ///   - meter: measures the back-end.
  static func run(
    _ setups: [QueueSetup], features: FeatureSet, capacity: UInt64, workload: Workload, options: RunOptions,
    meter: any BackendMeter, progress: (RunProgress) -> Void = { _ in }
  ) throws(BenchError) -> Measurement {
    switch setups.first?.ring.layout.format {
    case .packed:
      try run(
        PackedBenchRing.self, setups, features: features, capacity: capacity, workload: workload, options: options,
        meter: meter, progress: progress)
    case .split, nil:
      try run(
        SplitBenchRing.self, setups, features: features, capacity: capacity, workload: workload, options: options,
        meter: meter, progress: progress)
    }
  }

  private static func run<Ring: BenchRing>(
    _: Ring.Type, _ setups: [QueueSetup], features: FeatureSet, capacity: UInt64, workload: Workload, options: RunOptions,
    meter: any BackendMeter, progress report: (RunProgress) -> Void
  ) throws(BenchError) -> Measurement {
    let progress = try ProgressWords(count: setups.count)
    let control = RunControl()
    let blocks: [QueueBlock<Ring>] = try arrange(
      setups, features: features, capacity: capacity, workload: workload, options: options, progress)
    if options.sleeps, !options.hasThreadPerQueue, setups.count > 1, case .memoryFile = setups[0].lines {
      throw .cannotSleep
    }
    var threads: [ClientThread] = []
    defer { withExtendedLifetime(blocks) {} }
    do throws(BenchError) {
      for (number, block) in blocks.enumerated() {
        let cpus = options.processors
        let cpu = cpus.isEmpty ? nil : cpus[number % cpus.count]
        threads.append(
          try ClientThread(block, cpu: cpu, sleeps: options.sleeps, control: control, number: number))
      }
    } catch {
      control.move(to: .abandoned)
      for thread in threads { _ = thread.join() }
      throw error
    }

    var watch = Watch(control: control, progress: progress, total: options.rampTime + options.runtime)
    watch.sleep(options.rampTime, report)
    let before = meter.sample(.begin)
    let mainBefore = ThreadUsage.now()
    control.move(to: .measuring)
    watch.startSampling()
    watch.sleep(options.runtime, report)
    // A thread looks at the phase between two passes over its queues; what one pass can answer may not have counted yet.
    let onePass = UInt64(workload.depth * setups.count)
    watch.sleep(untilAnswered: options.leastRequests + onePass, atMost: options.patience)
    control.move(to: .draining)
    let mainUsage = ThreadUsage.now() - mainBefore
    let backend = meter.sample(.end).since(before)

    awaitEnd(control, threads: threads.count, progress: progress, patience: options.patience)
    let outstanding = control.endedThreads < threads.count
    control.move(to: .abandoned)
    let outcomes = threads.map { $0.join() }
    if let error = outcomes.lazy.compactMap(\.error).first { throw error }
    if outstanding { throw .noAnswer(outstanding: workload.depth * setups.count, seconds: options.patience) }
    return Measurement(
      workload: workload, outcomes: outcomes, main: mainUsage, backend: backend, includesClient: meter.includesClient,
      samples: watch.samples)
  }

  /// Distributes the queues among threads.
  private static func arrange<Ring: BenchRing>(
    _ setups: [QueueSetup], features: FeatureSet, capacity: UInt64, workload: Workload, options: RunOptions,
    _ progress: ProgressWords
  ) throws(BenchError) -> [QueueBlock<Ring>] {
    let threads = options.hasThreadPerQueue ? setups.count : 1
    let blocks = (0..<threads).map { _ in QueueBlock<Ring>(capacity: (setups.count + threads - 1) / threads) }
    for (index, setup) in setups.enumerated() {
      blocks[index % threads].append(
        try BenchQueue(
          setup, features: features, workload: workload, capacity: capacity, progress: progress.word(index)))
    }
    return blocks
  }

  /// Waits until all threads ended, as long as answers keep coming.
  private static func awaitEnd(_ control: RunControl, threads: Int, progress: ProgressWords, patience: Int) {
    var seen = progress.total
    var since = Clock.now
    while control.endedThreads < threads {
      usleep(1000)
      let total = progress.total
      if total != seen {
        seen = total
        since = Clock.now
      }
      // A thread that failed ends alone; the others drain.
      if Clock.now - since > UInt64(max(patience, 0)) * 1_000_000_000 { return }
    }
  }

  /// Sleeps through the phases and follows the progress.
  private struct Watch {
    let control: RunControl
    let progress: ProgressWords
    let total: Double
    private let start = Clock.now
    private var last: (time: UInt64, answered: UInt64)
    private var isSampling = false
    private var answeredBefore: UInt64 = 0
    /// Requests a second, one for each full interval that was measured.
    private(set) var samples: [Double] = []

    init(control: RunControl, progress: ProgressWords, total: Double) {
      self.control = control
      self.progress = progress
      self.total = total
      last = (Clock.now, 0)
    }

    mutating func startSampling() {
      isSampling = true
      answeredBefore = progress.total
      last = (Clock.now, answeredBefore)
    }

    /// - Parameter seconds: how long to wait without any answer.
    func sleep(untilAnswered count: UInt64, atMost seconds: Int) {
      var seen = progress.total
      var since = Clock.now
      while seen &- answeredBefore < count, !control.hasFailed {
        usleep(1000)
        let total = progress.total
        if total != seen { (seen, since) = (total, Clock.now) }
        if Clock.now - since > UInt64(max(seconds, 0)) * 1_000_000_000 { return }
      }
    }

    mutating func sleep(_ seconds: Double, _ report: (RunProgress) -> Void) {
      let end = Clock.now + UInt64(max(seconds, 0) * 1e9)
      while !control.hasFailed {
        let now = Clock.now
        guard now < end else { return }
        let next = min(end, last.time + UInt64(Client.interval * 1e9))
        // In slices, so that a failure ends the run soon.
        if next > now { usleep(UInt32(min((next - now) / 1000, 50_000))) }
        let woken = Clock.now
        guard Double(woken - last.time) >= Client.interval * 1e9 else { continue }
        let answered = progress.total
        let iops = Double(answered &- last.answered) / Double(woken - last.time) * 1e9
        if isSampling { samples.append(iops) }
        last = (woken, answered)
        report(RunProgress(elapsed: Double(woken - start) / 1e9, total: total, iops: iops))
      }
    }
  }
}

/// A word for each queue, each on its own cache lines.
@safe
final class ProgressWords: @unchecked Sendable {
  private let base: UnsafeMutableRawPointer
  private let count: Int

  init(count: Int) throws(BenchError) {
    self.count = count
    unsafe base = .allocate(byteCount: 128 * max(count, 1), alignment: 128)
    unsafe base.initializeMemory(as: UInt8.self, repeating: 0, count: 128 * max(count, 1))
  }

  deinit { unsafe base.deallocate() }

  func word(_ index: Int) -> SharedCell<UInt64> {
    precondition((0..<count).contains(index))
    return unsafe SharedCell(base + 128 * index)
  }

  var total: UInt64 { (0..<count).reduce(0) { $0 &+ word($1).loadRelaxed() } }
}
