/// Lines between an operator and a server: requests and answers, from any program.
internal import FoundationEssentials
internal import VirtioCore

@testable internal import Control
@testable internal import MetricsExport
@testable internal import OperatorWords
@testable internal import VirtioBlkDevice

func attackOperator(_ shaper: inout Shaper) {
  switch shaper.choice(4) {
  case 1: attackFigures(&shaper)
  case 2: attackAnswers(&shaper)
  default: attackRequest(&shaper)
  }
}

/// A body as a received line, with a few bytes changed.
private func line(_ body: some Encodable, _ shaper: inout Shaper) -> ControlLine {
  var text = ControlLine(body).text
  for _ in 0..<shaper.choice(3) where shaper.mistake() && !text.isEmpty {
    let place = Int(shaper.word16()) % text.count
    switch shaper.choice(3) {
    case 0: text[place] = shaper.byte()
    case 1: text.insert(contentsOf: shaper.bytes(upTo: 16), at: place)
    default: text.removeSubrange(place..<min(text.count, place + shaper.choice(32)))
    }
  }
  tell(String(decoding: text, as: UTF8.self))
  return ControlLine(text: text, descriptors: [])
}

private func name(_ shaper: inout Shaper) -> String {
  shaper.mistake()
    ? String(decoding: shaper.bytes(upTo: 64), as: UTF8.self) : shaper.pick(["/a.sock", "a.sock", "", "/run/\u{1b}[2J"])
}

private func number(_ shaper: inout Shaper) -> UInt64 {
  shaper.choice(4) == 1 ? shaper.oddNumber() : UInt64(shaper.byte())
}

// MARK: Requests

private func attackRequest(_ shaper: inout Shaper) {
  let verbs = Operator.Verb.allCases
  var request = Operator.Request(request: shaper.pick([.limit] + verbs))
  if shaper.flag() { request.disk = name(&shaper) }
  if shaper.choice(8) == 1 { request.level = name(&shaper) }
  if shaper.choice(4) == 1 { request.size = number(&shaper) }
  if shaper.choice(4) == 1 { request.shrink = shaper.flag() }
  var limits: [String: Operator.Limit?] = [:]
  for _ in 0..<shaper.choice(5) {
    let word = shaper.mistake() ? name(&shaper) : shaper.pick(LimitWord.allCases.map(\.rawValue) + ["none", "iop"])
    let limit = Operator.Limit(rate: number(&shaper), burst: shaper.flag() ? number(&shaper) : nil)
    limits.updateValue(shaper.choice(4) == 1 ? nil : limit, forKey: word)
  }
  if !limits.isEmpty { request.limits = limits }
  guard let taken = try? line(request, &shaper).decode(Operator.Request.self) else { return }
  guard let again = try? ControlLine(taken).decode(Operator.Request.self) else { fail("a request cannot be forwarded") }
  check(
    again.request == taken.request && again.disk == taken.disk && again.size == taken.size,
    "a request changes when it is forwarded")
  guard let wanted = taken.limits, let change = try? Operator.change(wanted) else { return }
  var result = RateLimits()
  change.apply(to: &result)
  check(LimitChange(argument: result.words)?.limits == result, "\(result.words) cannot be parsed again")
  // As an operator's program sends its argument.
  guard let same = try? Operator.change(Operator.limits(change)) else { fail("limits cannot be sent again") }
  check(same == change, "limits are different when they are sent again")
}

// MARK: Answers

/// What `top` and `metrics` make of the metrics that another process reports.
private func attackFigures(_ shaper: inout Shaper) {
  guard let before = try? line(figures(&shaper), &shaper).decode(Operator.Metrics.self),
    let now = shaper.choice(4) == 1 ? before : try? line(figures(&shaper), &shaper).decode(Operator.Metrics.self)
  else { return }
  let seconds = Double(shaper.choice(4))
  let width = shaper.flag() ? shaper.choice(200) : nil
  let lines = TopTable.lines(
    from: before, to: now, seconds: seconds, width: width, rows: shaper.flag() ? shaper.choice(8) : nil)
  check(lines.count <= now.disks.count + 4, "\(now.disks.count) disks have \(lines.count) lines")
  for line in lines {
    check(width.map { line.count <= $0 } ?? true, "a line is longer than its terminal")
    check(!line.utf8.contains { $0 < 0x20 }, "a line has a control character")
  }
  check(!MetricsPage.page(now).bytes.isEmpty, "a page of metrics is empty")
}

private func figures(_ shaper: inout Shaper) -> Operator.Metrics {
  let process = Operator.ProcessMetrics(
    program: name(&shaper), startTime: number(&shaper), cpuTime: number(&shaper), residentMemory: number(&shaper),
    openFiles: number(&shaper), threads: number(&shaper), sandbox: shaper.flag() ? [name(&shaper)] : nil)
  let disks = (0..<shaper.pick([1, 0, 2, 3])).map { _ in
    let bucket: (inout Shaper) -> [UInt64] = { shaper in
      let start = number(&shaper)
      let end = shaper.choice(4) == 1 ? number(&shaper) : start &+ 1 &+ UInt64(shaper.byte())
      return shaper.mistake() ? [start] : [start, end, number(&shaper)]
    }
    var latencies: [String: Operator.Histogram] = [:]
    for kind in ["reads", "writes", "writeZeroes"] where shaper.choice(3) == 1 {
      latencies[kind] = Operator.Histogram(
        sum: number(&shaper), buckets: (0..<shaper.choice(6)).map { _ in bucket(&shaper) })
    }
    return Operator.DiskMetrics(
      disk: name(&shaper), image: name(&shaper), size: number(&shaper), engine: "sync",
      state: shaper.pick(Operator.State.allCases), flushFailed: shaper.flag(), features: ["FLUSH"], chosen: [],
      counters: counters(&shaper),
      depths: (0..<shaper.choice(4)).map { _ in Int(truncatingIfNeeded: number(&shaper)) }, latencies: latencies)
  }
  return Operator.Metrics(process: process, disks: disks)
}

private func counters(_ shaper: inout Shaper) -> Operator.Counters {
  var counters = Operator.Counters(BlockCounters())
  for _ in 0..<shaper.choice(6) {
    let fields: [WritableKeyPath<Operator.Counters, UInt64>] = [
      \.reads, \.writes, \.flushes, \.discards, \.others, \.failures, \.bytesRead, \.bytesWritten, \.mediumFailures,
      \.throttledNanoseconds,
    ]
    counters[keyPath: shaper.pick(fields)] = shaper.oddNumber()
  }
  return counters
}

private func attackAnswers(_ shaper: inout Shaper) {
  let limits = ["iops": Operator.Limit(rate: number(&shaper), burst: shaper.flag() ? number(&shaper) : nil)]
  switch shaper.choice(3) {
  case 0:
    guard let taken = try? line(Operator.Limits(limits: limits), &shaper).decode(Operator.Limits.self) else { return }
    check(LimitChange(argument: taken.words) != nil, "\(taken.words) cannot be parsed")
  case 1:
    let disk = Operator.Summary(disk: name(&shaper), image: name(&shaper), size: number(&shaper), state: .driven)
    _ = try? line(Operator.Disks(disks: [disk]), &shaper).decode(Operator.Disks.self)
  default:
    let ring = Operator.Ring(queue: Int(truncatingIfNeeded: number(&shaper)), size: 256, state: .running)
    let disk = Operator.Disk(
      disk: name(&shaper), image: name(&shaper), size: number(&shaper), state: .driven, readOnly: false, logicalBlockSize: 512,
      direct: false, serial: name(&shaper), engine: "sync", engineReason: "", flushFailed: false, queues: 1,
      maximumQueueSize: 256, features: [name(&shaper)], driver: Operator.Driver(process: 1, rings: [ring]), limits: limits,
      counters: counters(&shaper))
    _ = try? line(disk, &shaper).decode(Operator.Disk.self)
  }
}
