/// The laboratory's results, as they are saved to files.

/// One measurement.
struct PathSample: Codable, Sendable {
  var row: String
  var depth: Int
  var round: Int
  var iops: Double
  /// Nanoseconds by percentile: `50`, `99`, `99.9`, …; absent for bare loops, which do not time each request.
  var latency: [String: UInt64]?
  /// CPU time of the back-end per request, in microseconds.
  var cpu: Double?
  /// System calls and the other counts are those of the back-end, per request.
  var systemCalls: Double?
  var switches: Double?
  var kicks: Double?
  var calls: Double?
}

/// The medians of one row at one depth.
struct PathPoint: Codable, Sendable {
  var row: String
  var depth: Int
  var iops: Double
  /// The largest minus the smallest, as a share of the median; `nil` after one round, which says nothing about it.
  var spread: Double?
  var latency: [String: UInt64]?
  var cpu: Double?
  var systemCalls: Double?
  var switches: Double?
  var kicks: Double?
  var calls: Double?
  /// 1/(1/bare + 1/null): what the calls and the ring together allow.
  var limit: Double?
  /// The rate as a share of that, the median of the rounds.
  var ofLimit: Double?

  /// The limit is below the result by more than the wake-ups of the null engine explain, so something else ran while one of
  /// them was measured.
  var isDisturbed: Bool { ofLimit.map { $0 > 1.1 } ?? false }
}

/// A row in words.
struct PathDescription: Codable, Sendable {
  var id: String
  var group: PathGroup
  var title: String
  var sentence: String
  var flags: String?
  /// Why it was not measured.
  var impossible: String?
}

/// What was measured, and under which conditions.
struct PathConditions: Codable, Sendable {
  var processor: String
  var processors: Int
  var kernel: String
  var image: String
  /// Bytes.
  var imageSize: UInt64
  var direct: Bool
  var inMemory: Bool
  var rw: String
  var blockSize: Int
  var rounds: Int
  /// Seconds that each measurement took.
  var slice: Double
  var started: String
  /// What rows use for options that they do not vary: the engine that is chosen for the image, the defaults of its ring, and
  /// how it waits.
  var engine: String
  var setup: String
  var waiting: String
  /// Bytes of the image that are holes.
  var holes: UInt64?
  /// The commit that this program was built from.
  var commit: String?
  /// The load of the machine before the first measurement, which may have disturbed it.
  var load: String
}

extension PathConditions {
  var holesWarning: String? {
    var conditions = Conditions()
    (conditions.holes, conditions.imageSize) = (holes, imageSize)
    return conditions.holesWarning
  }
}

public struct PathReport: Codable, Sendable {
  var conditions: PathConditions
  var rows: [PathDescription]
  var points: [PathPoint]
  var samples: [PathSample]
  var recommendation: Recommendation
  /// The depth that tables and bars show.
  var mainDepth: Int

  func point(_ row: String, depth: Int) -> PathPoint? { points.first { $0.row == row && $0.depth == depth } }

  public func json() -> String { BenchmarkResult.encode(self) }
}

extension PathPoint {
  /// - Parameters:
  ///   - samples: those of one row at one depth, one for each round; at least one.
  ///   - limits: by round, if they are known.
  init(_ samples: [PathSample], limits: [Int: Double]) {
    let rates = samples.map(\.iops)
    let median = Statistics.median(rates)
    func middle(_ figure: (PathSample) -> Double?) -> Double? {
      let values = samples.compactMap(figure)
      return values.isEmpty ? nil : Statistics.median(values)
    }
    row = samples[0].row
    depth = samples[0].depth
    iops = median
    spread = median > 0 && rates.count > 1 ? ((rates.max() ?? 0) - (rates.min() ?? 0)) / median : nil
    cpu = middle(\.cpu)
    systemCalls = middle(\.systemCalls)
    switches = middle(\.switches)
    kicks = middle(\.kicks)
    calls = middle(\.calls)
    let names = samples.first?.latency.map { $0.keys.sorted() } ?? []
    if !names.isEmpty {
      latency = Dictionary(
        uniqueKeysWithValues: names.map { name in
          (name, UInt64(Statistics.median(samples.compactMap { $0.latency?[name].map { Double($0) } })))
        })
    }
    let known = samples.compactMap { limits[$0.round] }
    if !known.isEmpty {
      limit = Statistics.median(known)
      // Each round against the limit of that round, so that drift cancels.
      ofLimit = Statistics.median(samples.compactMap { sample in limits[sample.round].map { sample.iops / $0 } })
    }
  }
}
