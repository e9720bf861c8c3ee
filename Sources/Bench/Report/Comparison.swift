/// Two results side by side: how much the second differs from the first, and whether that is more than noise.
internal import FoundationEssentials
internal import VirtioCore

/// The repeats of one figure in one file.
struct Samples: Sendable {
  var values: [Double]

  /// Their logarithms, because figures are compared by ratios.
  fileprivate var logarithms: [Double] { values.map { Double.naturalLogarithm($0) } }
}

/// What can be said about two sets of repeats.
public enum Verdict: String, Sendable, Codable {
  case better
  case worse
  /// A difference, if there is any, is within the noise.
  case same = "no difference beyond the noise"
  /// There are not enough repeats to know the noise.
  case unknown = "too few repeats to know the noise: measure with --repeats 5 or more"

  /// In a table.
  var word: String {
    switch self {
    case .better: "better"
    case .worse: "worse"
    case .same: "same"
    case .unknown: "unknown"
    }
  }
}

/// The ratio of the second to the first.
struct Ratio: Sendable {
  /// The ratio of the medians.
  var value: Double
  /// Where the ratio of the means lies with 95 % confidence (Welch's interval on the logarithms); `nil` with fewer than
  /// three repeats on a side.
  var interval: (low: Double, high: Double)?

  init(_ first: Samples, _ second: Samples) {
    let base = Statistics.median(first.values)
    value = base > 0 ? Statistics.median(second.values) / base : .nan
    guard first.values.count >= 3, second.values.count >= 3, (first.values + second.values).allSatisfy({ $0 > 0 }) else {
      return
    }
    let (one, other) = (first.logarithms, second.logarithms)
    let (a, b) = (Self.squaredError(one), Self.squaredError(other))
    let difference = Statistics.mean(other) - Statistics.mean(one)
    guard a + b > 0 else {
      interval = (Double.exponential(difference), Double.exponential(difference))
      return
    }
    // Welch and Satterthwaite's degrees of freedom.
    let freedom = (a + b) * (a + b) / (a * a / Double(one.count - 1) + b * b / Double(other.count - 1))
    let margin = Self.studentQuantile(freedom) * (a + b).squareRoot()
    interval = (Double.exponential(difference - margin), Double.exponential(difference + margin))
  }

  private static func squaredError(_ values: [Double]) -> Double {
    let deviation = Statistics.deviation(values)
    return deviation * deviation / Double(values.count)
  }

  /// Student's 97.5 % quantile, rounded to the safe side between the entries.
  static func studentQuantile(_ freedom: Double) -> Double {
    let table: [(freedom: Double, quantile: Double)] = [
      (1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (6, 2.447), (7, 2.365), (8, 2.306), (9, 2.262),
      (10, 2.228), (12, 2.179), (15, 2.131), (20, 2.086), (30, 2.042), (60, 2.000), (120, 1.980),
    ]
    return table.last { $0.freedom <= freedom }?.quantile ?? table[0].quantile
  }

  func verdict(higherIsBetter: Bool) -> Verdict {
    guard let interval, value.isFinite else { return .unknown }
    if interval.low <= 1, interval.high >= 1 { return .same }
    return (interval.low > 1) == higherIsBetter ? .better : .worse
  }
}

/// One saved file, from this program or from fio.
public struct SavedResult: Sendable {
  /// For people.
  public let name: String
  /// Repeats, by what was run.
  fileprivate let groups: [(name: String, jobs: [SavedJob])]
  /// The conditions of the measurement; `nil` in fio's own files.
  let conditions: Conditions?
  /// For display, after the name.
  let label: String

  /// - Parameter text: JSON in fio's structure.
  public init(_ text: String, name: String) throws(BenchError) {
    let file: SavedFile
    do { file = try JSONDecoder().decode(SavedFile.self, from: Data(text.utf8)) } catch {
      throw .report(path: name, "it has no jobs in fio's structure; save one with --output-format=json")
    }
    guard !file.jobs.isEmpty else { throw .report(path: name, "it has no jobs") }
    self.name = name
    var groups: [(name: String, jobs: [SavedJob])] = []
    for job in file.jobs {
      if let index = groups.firstIndex(where: { $0.name == job.name }) {
        groups[index].jobs.append(job)
      } else {
        groups.append((job.name, [job]))
      }
    }
    self.groups = groups
    conditions = file.jobs[0].extra?.conditions
    label = conditions?.label ?? file.jobs[0].label
  }
}

private struct SavedFile: Decodable { var jobs: [SavedJob] }

/// The fields of a job that are compared.
private struct SavedJob: Decodable, Sendable {
  struct Direction: Decodable, Sendable {
    struct Latency: Decodable, Sendable { var percentile: [String: Double]? }
    var iops: Double
    var completion: Latency?
    enum CodingKeys: String, CodingKey {
      case iops
      case completion = "clat_ns"
    }
  }
  struct Extra: Decodable, Sendable {
    var backend: Double?
    var conditions: Conditions?
    enum CodingKeys: String, CodingKey {
      case backend = "backend_cpu_us_per_io"
      case conditions
    }
  }

  var jobname: String
  var options: [String: String]?
  var read: Direction
  var write: Direction
  var extra: Extra?

  enum CodingKeys: String, CodingKey {
    case jobname, read, write
    case options = "job options"
    case extra = "vmm-blk"
  }

  /// What makes two runs comparable.
  var name: String {
    let options = options ?? [:]
    let block = options["bs"].map { "bs=" + Self.bytes($0) }
    // fio leaves out what is 1.
    let counts = ["iodepth", "numjobs"].map { "\($0)=\(options[$0] ?? "1")" }
    return ([options["rw"] ?? jobname, block].compactMap { $0 } + counts).joined(separator: " ")
  }

  /// What fio records about engine, cache and file.
  var label: String {
    let options = options ?? [:]
    let direct = options["direct"].map { $0 == "1" ? "direct" : "page cache" }
    return [options["ioengine"], direct, options["filename"]].compactMap { $0 }.joined(separator: ", ")
  }

  /// fio repeats a size as it was given: `4k` is 4096.
  private static func bytes(_ size: String) -> String { ByteSize.parse(size).map { "\($0)" } ?? size }

  private var main: Direction { read.iops >= write.iops ? read : write }
  var iops: Double { read.iops + write.iops }
  func percentile(_ name: String) -> Double? { main.completion?.percentile?[name] }
}

/// The comparison of two files.
public struct Comparison: Sendable {
  struct Line: Sendable {
    var group: String
    var figure: String
    var first: Samples
    var second: Samples
    var ratio: Ratio
    var verdict: Verdict
  }

  let lines: [Line]
  /// The names and labels of both, and how they differ.
  private let head: String

  /// - Throws: the files have no run in common.
  public init(_ first: SavedResult, _ second: SavedResult) throws(BenchError) {
    var lines: [Line] = []
    for group in first.groups {
      guard let other = second.groups.first(where: { $0.name == group.name }) else { continue }
      let figures: [(String, Bool, (SavedJob) -> Double?)] = [
        ("IOPS", true, { $0.iops }),
        ("p50 us", false, { $0.percentile("50.000000").map { $0 / 1000 } }),
        ("p99 us", false, { $0.percentile("99.000000").map { $0 / 1000 } }),
        ("CPU us/IO", false, { $0.extra?.backend }),
      ]
      for (name, higherIsBetter, figure) in figures {
        let (one, two) = (Samples(values: group.jobs.compactMap(figure)), Samples(values: other.jobs.compactMap(figure)))
        guard !one.values.isEmpty, !two.values.isEmpty else { continue }
        let ratio = Ratio(one, two)
        lines.append(
          Line(
            group: group.name, figure: name, first: one, second: two, ratio: ratio,
            verdict: ratio.verdict(higherIsBetter: higherIsBetter)))
      }
    }
    guard !lines.isEmpty else {
      throw .report(
        path: second.name, "it has no run in common with \(first.name): rw, bs, iodepth and numjobs have to be the same")
    }
    self.lines = lines
    var head = "first:  \(first.name) (\(first.label))\nsecond: \(second.name) (\(second.label))\n"
    if let one = first.conditions, let other = second.conditions {
      let differences = Conditions.differences(one, other)
      head += differences.isEmpty ? "under the same conditions\n" : "they differ in \(differences.joined(separator: "; "))\n"
    }
    self.head = head
  }

  /// For people.
  ///
  /// - Parameter width: characters in a line; `nil`: no limit.
  public func table(width: Int? = nil) -> String {
    func spread(_ ratio: Ratio) -> String {
      guard let interval = ratio.interval else { return "-" }
      return "\(Format.fixed(interval.low, 3)) to \(Format.fixed(interval.high, 3))"
    }
    var text = head
    for group in lines.map(\.group).reduce(into: [String](), { if !$0.contains($1) { $0.append($1) } }) {
      let lines = lines.filter { $0.group == group }
      func column(_ title: String, _ alignment: TableColumn.Alignment = .right, _ value: (Line) -> String) -> TableColumn {
        TableColumn(title: title, alignment: alignment, values: lines.map(value))
      }
      text += "\n\(group)\n"
      text += ColumnTable.text(
        [
          column("figure", .left) { $0.figure },
          column("first") { Format.count(Statistics.median($0.first.values)) },
          column("second") { Format.count(Statistics.median($0.second.values)) },
          column("repeats") { "\($0.first.values.count), \($0.second.values.count)" },
          column("ratio") { Format.fixed($0.ratio.value, 3) },
          column("95 % interval") { spread($0.ratio) },
          column("second is", .left) { $0.verdict.word },
        ], width: width)
    }
    let verdicts = [Verdict.same, .unknown].filter { lines.map(\.verdict).contains($0) }
    return text + (verdicts.isEmpty ? "" : "\n") + verdicts.map { "\($0.word): \($0.rawValue)\n" }.joined()
  }
}
