/// Which options to choose on this machine for this image, by fixed rules.

/// What the report ends with.
struct Recommendation: Codable, Sendable {
  /// Options of `serve` and `run`.
  var flags: String
  /// Why: a sentence for each choice.
  var reasons: [String]
}

extension Recommendation {
  /// Rates within this share of each other count as equal: rounds differ by as much.
  static let tie = 0.05
  /// Rounds that differ by more than this share say little; the report says so.
  static let noise = 0.25

  /// The default way of waiting, which the others are compared with.
  static let usualWaiting = "wait-adaptive-50"

  /// The rules:
  ///
  /// 1. Of the engines (without null), those whose rate at the main depth is within 5 % of the best, or within the spread of
  ///    its rounds if that is larger (25 % at most); of these, the one that costs least CPU time for each request. A mapping is
  ///    considered only for images in memory, because elsewhere a page fault stops the queue.
  /// 2. Another way of waiting than the default is only an alternative. One that polls longer costs CPU time while nothing
  ///    happens; it is mentioned if it cuts the default's latency at depth 1 by a quarter or more. Sleeping at once is
  ///    mentioned if it takes no longer than the default, within 5 %.
  /// 3. A setup of io_uring or a way to notify that beats the default by more than a tie is mentioned.
  /// 4. One round says nothing about noise, so nothing is recommended.
  init(rows: [PathDescription], points: [PathPoint], mainDepth: Int, inMemory: Bool, rounds: Int) {
    func point(_ row: PathDescription, _ depth: Int) -> PathPoint? {
      points.first { $0.row == row.id && $0.depth == depth }
    }
    func cost(_ point: PathPoint) -> String { point.cpu.map { ", \(Format.significant($0)) us of CPU each" } ?? "" }
    reasons = []
    flags = "--engine auto"
    guard rounds > 1 else {
      reasons.append("one round says nothing about noise, so the automatic choice stands: measure with --rounds 3 or more")
      return
    }

    let engines = rows.filter { $0.group == .engine && $0.id != "null" && ($0.id != "mapped" || inMemory) }
      .compactMap { row in point(row, mainDepth).map { (row: row, point: $0) } }
    guard let fastest = engines.max(by: { $0.point.iops < $1.point.iops }) else {
      reasons.append("no engine was measured at depth \(mainDepth), so the automatic choice stands")
      return
    }
    let margin = min(max(Self.tie, fastest.point.spread ?? 0), Self.noise)
    let equals = engines.filter { $0.point.iops >= fastest.point.iops * (1 - margin) }
    let best = equals.min { ($0.point.cpu ?? .infinity) < ($1.point.cpu ?? .infinity) } ?? fastest
    flags = best.row.flags ?? flags
    var reason =
      "\(best.row.title): \(Format.count(best.point.iops)) requests/s at depth \(mainDepth)\(cost(best.point))"
    if equals.count > 1 {
      let others = equals.filter { $0.row.id != best.row.id }.map(\.row.title).joined(separator: ", ")
      reason += "; as fast within \(Format.fixed(margin * 100, 0)) %, and no cheaper: \(others)"
    } else if let second = engines.filter({ $0.row.id != best.row.id }).max(by: { $0.point.iops < $1.point.iops }) {
      reason += "; the next is \(second.row.title) with \(Format.count(second.point.iops))"
    }
    reasons.append(reason)
    if let worst = engines.compactMap(\.point.spread).max(), worst > Self.noise {
      reasons.append(
        "the rounds of an engine differ by up to \(Format.fixed(worst * 100, 0)) %, so this says little: run it on a quiet "
          + "machine, or with more and longer rounds (--rounds, --slice)")
    }

    if let usual = rows.first(where: { $0.id == Self.usualWaiting }), let base = point(usual, 1)?.latency?["50"] {
      // Rows with a different engine answer another question.
      let others = rows.filter { $0.group == .waiting && ![usual.id, "wait-ring", "wait-epoll"].contains($0.id) }
        .compactMap { row in point(row, 1)?.latency?["50"].map { (row: row, latency: $0) } }
      let sleep = others.first { $0.row.id == "wait-sleep" }
      let quick = others.filter { $0.row.id != "wait-sleep" && Double($0.latency) <= 0.75 * Double(base) }
        .min { $0.latency < $1.latency }
      if let quick {
        reasons.append(
          "add \(quick.row.flags ?? "") where latency matters more than CPU time: a single request takes "
            + "\(Format.microseconds(quick.latency)) us instead of the default's \(Format.microseconds(base))")
      } else {
        reasons.append("no way of waiting cuts the default's latency by a quarter")
      }
      if let sleep, Double(sleep.latency) <= Double(base) * (1 + Self.tie) {
        reasons.append(
          "\(sleep.row.flags ?? "") costs no latency here (\(Format.microseconds(sleep.latency)) us against "
            + "\(Format.microseconds(base))) and does not poll in vain")
      }
    }

    for (group, defaultID) in [(PathGroup.uring, "uring-deferred"), (.notification, "notify-event-index")] {
      guard group != .uring || best.row.id == "uring" else { continue }
      guard let usual = rows.first(where: { $0.id == defaultID }).flatMap({ point($0, mainDepth) }) else { continue }
      let better = rows.filter { $0.group == group && $0.id != defaultID }
        .compactMap { row in point(row, mainDepth).map { (row: row, point: $0) } }
        .filter { $0.point.iops > usual.iops * (1 + max(Self.tie, usual.spread ?? 0, $0.point.spread ?? 0)) }
        .max { $0.point.iops < $1.point.iops }
      let subject = group == .uring ? "io_uring's default set-up" : "the default way to notify"
      if let better {
        reasons.append(
          "\(better.row.title) beats \(subject) by \(Format.fixed((better.point.iops / usual.iops - 1) * 100, 0)) % here"
            + (better.row.flags.map { ": add \($0)" } ?? "; a program selects it in the device's options"))
      } else {
        reasons.append("\(subject) is as good as any other here, within what the rounds differ by")
      }
    }
  }
}
