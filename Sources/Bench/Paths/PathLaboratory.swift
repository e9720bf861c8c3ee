/// Runs all rows alternately, so that slow changes of the machine affect all of them alike.
internal import CLinux
internal import FoundationEssentials
internal import Glibc
internal import GuestDriver
internal import Histogram
public import VirtioBlkDevice

/// What to compare, and how long.
public struct PathOptions: Sendable {
  public var image: ImageFile
  /// `pattern`, `blockSize`, `size` and `seed` are used.
  public var workload = Workload()
  /// The depths of engines and bare loops, whose rows become curves.
  public var depths = [1, 2, 4, 8, 16, 32, 64, 128, 256]
  /// The depths of the other rows.
  public var pointDepths = [1, 32]
  public var mainDepth = 32
  public var rounds = 3
  /// Seconds of one measurement, and of the warm-up before it.
  public var slice = 0.3
  public var ramp = 0.1
  public var backendCPU: Int?
  public var clientCPUs: [Int] = []
  /// Rows to measure; empty: all.
  public var only: Set<PathGroup> = []

  public init(image: ImageFile) { self.image = image }
}

public enum PathLaboratory {
  /// The progress: measurements done and in total, and what is being measured.
  public typealias Progress = (_ done: Int, _ total: Int, _ what: String) -> Void

  public static func run(_ options: PathOptions, progress: Progress = { _, _, _ in }) throws(BenchError) -> PathReport {
    let memory = largestGuestMemory(options)
    let catalogue = PathCatalogue(
      image: options.image, backendCPU: options.backendCPU, clientCPUs: options.clientCPUs,
      processors: max(Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))), 1), guestMemory: memory)
    let load = ProcessFiles.text("/proc/loadavg")?.split(separator: " ").first.map(String.init) ?? "unknown"
    let started = Date().formatted(Date.ISO8601FormatStyle(timeZone: .gmt))
    var rows = catalogue.rows.filter { options.only.isEmpty || options.only.contains($0.group) || $0.id == "null" }
    let plan = schedule(rows, options)

    var samples: [PathSample] = []
    var troubles: [String: String] = [:]
    for (done, step) in plan.enumerated() {
      let row = rows[step.row]
      progress(done, plan.count, "\(row.title), depth \(step.depth)")
      guard troubles[row.id] == nil else { continue }
      do throws(BenchError) {
        if let sample = try measure(row, step, options) { samples.append(sample) }
      } catch {
        // A row that cannot run here is a finding, not the end of the run.
        if samples.contains(where: { $0.row == row.id }) { throw error }
        troubles[row.id] = error.description
      }
    }
    for index in rows.indices {
      if let trouble = troubles[rows[index].id] { rows[index].subject = .impossible(trouble) }
    }
    return report(rows, samples, options, engine: catalogue.automatic.engine.rawValue, started: started, load: load)
  }

  private struct Step {
    var row: Int
    var depth: Int
    var round: Int
  }

  /// Rounds over depths over rows; each round begins with another row, and every other round goes backwards.
  private static func schedule(_ rows: [PathRow], _ options: PathOptions) -> [Step] {
    let depths = Set(options.depths).union(options.pointDepths).union([options.mainDepth]).sorted()
    var steps: [Step] = []
    for round in 0..<max(options.rounds, 1) {
      for depth in depths {
        for turn in rows.indices {
          let place = (turn + round * (rows.count / max(options.rounds, 1) + 1)) % rows.count
          let index = round % 2 == 0 ? place : rows.count - 1 - place
          let row = rows[index]
          let wanted = row.group == .bare || row.group == .engine ? options.depths : options.pointDepths
          guard wanted.contains(depth) || depth == options.mainDepth else { continue }
          if case .impossible = row.subject { continue }
          steps.append(Step(row: index, depth: depth, round: round))
        }
      }
    }
    return steps
  }

  private static func measure(_ row: PathRow, _ step: Step, _ options: PathOptions) throws(BenchError) -> PathSample? {
    var workload = options.workload
    workload.depth = step.depth
    workload.jobs = 1
    workload.verification = nil
    switch row.subject {
    case .impossible: return nil
    case .bare(let kind):
      let result = try BareLoop.measure(
        kind, image: options.image, workload: workload, cpu: options.backendCPU, ramp: options.ramp, seconds: options.slice)
      func each(_ total: UInt64) -> Double? { result.requests > 0 ? Double(total) / Double(result.requests) : nil }
      return PathSample(
        row: row.id, depth: step.depth, round: step.round, iops: result.iops, latency: nil,
        cpu: each(result.cpu).map { $0 / 1000 }, systemCalls: each(result.systemCalls), switches: each(result.switches),
        kicks: nil, calls: nil)
    case .device(let deviceOptions, let manners):
      let measurement = try drive(deviceOptions, manners, workload, options)
      let latencies = measurement.latencies
      return PathSample(
        row: row.id, depth: step.depth, round: step.round, iops: measurement.iops,
        latency: Dictionary(
          uniqueKeysWithValues: Percentile.ofCurve.map { ($0.name, latencies.valueAtPercentile($0.value)) }),
        cpu: measurement.backendMicroseconds, systemCalls: measurement.systemCallsPerRequest,
        switches: measurement.perRequest(measurement.backend.switches), kicks: measurement.perRequest(measurement.kicks),
        calls: measurement.perRequest(measurement.calls))
    }
  }

  private static func drive(
    _ deviceOptions: BlockDeviceOptions, _ manners: PathRow.DriverManners, _ workload: Workload, _ options: PathOptions
  ) throws(BenchError) -> Measurement {
    let device: BlockDevice
    do { device = try BlockDevice(image: options.image, options: deviceOptions) } catch { throw .unavailable("\(error)") }
    var targetOptions = TargetOptions()
    targetOptions.usesEventIndex = manners.usesEventIndex
    let target = try Target.open(.device(device, name: ""), workload: workload, options: targetOptions)
    try target.start()
    var run = RunOptions()
    run.runtime = options.slice
    run.rampTime = options.ramp
    run.processors = options.clientCPUs
    run.sleeps = manners.sleeps
    let measurement = try Client.run(
      target.session.queues, features: target.session.features, capacity: target.capacity, workload: workload,
      options: run, meter: target.meter)
    try target.shutDown()
    return measurement
  }

  private static func largestGuestMemory(_ options: PathOptions) -> Int {
    var workload = options.workload
    workload.depth = (options.depths + options.pointDepths + [options.mainDepth]).max() ?? 1
    return Target.memorySize(workload, ringSize: nil, regions: 1)
  }

  // MARK: Summing up

  private static func report(
    _ rows: [PathRow], _ samples: [PathSample], _ options: PathOptions, engine: String, started: String, load: String
  ) -> PathReport {
    let descriptions = rows.map { row in
      var why: String? = nil
      if case .impossible(let reason) = row.subject { why = reason }
      return PathDescription(
        id: row.id, group: row.group, title: row.title, sentence: row.sentence, flags: row.flags, impossible: why)
    }
    let points = summarize(rows, samples)
    return PathReport(
      conditions: conditions(options, engine: engine, started: started, load: load), rows: descriptions, points: points,
      samples: samples,
      recommendation: Recommendation(
        rows: descriptions, points: points, mainDepth: options.mainDepth,
        // Mapping a block device in memory makes a second copy of what is used of it.
        inMemory: options.image.isInMemory && !options.image.isBlockDevice, rounds: options.rounds),
      mainDepth: options.mainDepth)
  }

  static func summarize(_ rows: [PathRow], _ samples: [PathSample]) -> [PathPoint] {
    struct Place: Hashable {
      var row: String
      var depth: Int
    }
    let groups = Dictionary(grouping: samples) { Place(row: $0.row, depth: $0.depth) }
    func rate(_ row: String, _ depth: Int, _ round: Int) -> Double? {
      groups[Place(row: row, depth: depth)]?.first { $0.round == round }?.iops
    }
    var bareIDs: [BareKind: String] = [:]
    for row in rows { if case .bare(let kind) = row.subject { bareIDs[kind] = row.id } }
    var points: [PathPoint] = []
    for row in rows {
      for (place, group) in groups.filter({ $0.key.row == row.id }).sorted(by: { $0.key.depth < $1.key.depth }) {
        var limits: [Int: Double] = [:]
        for sample in group {
          guard let kind = row.limit, let id = bareIDs[kind], let bare = rate(id, place.depth, sample.round),
            let null = rate("null", place.depth, sample.round), bare > 0, null > 0
          else { continue }
          limits[sample.round] = 1 / (1 / bare + 1 / null)
        }
        points.append(PathPoint(group.sorted { $0.round < $1.round }, limits: limits))
      }
    }
    return points
  }

  private static func conditions(
    _ options: PathOptions, engine: String, started: String, load: String
  ) -> PathConditions {
    var machine = Conditions()
    machine.describe(options.image)
    let usual = BlockDeviceOptions()
    return PathConditions(
      processor: machine.processor, processors: machine.processors, kernel: machine.kernel,
      image: options.image.path, imageSize: options.image.size, direct: options.image.isDirect,
      inMemory: options.image.isInMemory, rw: options.workload.pattern.rawValue, blockSize: options.workload.blockSize,
      rounds: options.rounds, slice: options.slice, started: started, engine: engine,
      setup: usual.uring.words, waiting: usual.waiting.words,
      holes: options.workload.pattern.reads ? machine.holes : nil, commit: machine.commit, load: load)
  }
}

extension Percentile {
  /// Enough to draw a distribution.
  static let ofCurve: [Percentile] = [1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.99, 100].map(Percentile.init)
}
