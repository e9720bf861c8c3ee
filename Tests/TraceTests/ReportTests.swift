/// What is made of records: times, phases, valid JSON, a table and a picture.
import Foundation
import Testing
import VirtioBlkDevice

@testable import TraceReport

@Suite struct ReportTests {
  /// A tick is two nanoseconds here.
  static func disk(_ records: [TraceRecord], overwritten: UInt64 = 0, name: String = "/run/a.sock") -> TracedDisk {
    var disk = TracedDisk(
      name: name, engine: "sync", start: TraceMoment(ticks: 1000, time: 5_000_000),
      end: TraceMoment(ticks: 2000, time: 5_002_000))
    disk.add(thread: 0, records, overwritten: overwritten)
    return disk
  }

  static let records = [
    TraceRecord(.asleep, times: (1000, 1100, 0, 0)),
    TraceRecord(.kick, times: (1101, 0, 0, 0)),
    TraceRecord(.request, request: .read, head: 3, first: 8, second: 4096, times: (1110, 0, 1200, 1200)),
    TraceRecord(.request, request: .write, head: 5, first: 16, second: 512, times: (1120, 1180, 1220, 1240)),
    TraceRecord(.publication, first: 2, times: (1250, 1260, 0, 0)),
    TraceRecord(.polling, times: (1300, 1400, 0, 0)),
    TraceRecord(.request, request: .flush, status: 1, times: (1500, 0, 1600, 1600)),
    TraceRecord(.publication, first: 1, times: (1610, 0, 0, 0)),
    TraceRecord(.request, request: .read, first: 99, second: 512, times: (1700, 0, 0, 0)),
    TraceRecord(.asleep, times: (1750, 1950, 0, 0)),
  ]

  @Test func timesAreThoseOfTheSystemsClock() throws {
    let disk = Self.disk(Self.records)
    let thread = try #require(disk.threads.first)
    #expect(disk.range == 5_000_000..<5_002_000)
    #expect(thread.kicks == [5_000_202])
    #expect(thread.spans.map(\.range) == [5_000_000..<5_000_200, 5_000_600..<5_000_800, 5_001_500..<5_001_900])
    #expect(thread.spans.map(\.inFlight) == [0, 0, 1])
    let read = try #require(disk.requests.first)
    #expect(read.taken == 5_000_220 && read.completed == 5_000_400 && read.answered == 5_000_400)
    #expect(read.published == 5_000_500 && read.called == 5_000_520)
    #expect(disk.requests[2].called == nil && disk.requests[2].status == 1)
    #expect(disk.requests[3].answered == nil && disk.requests[3].phases.isEmpty)
  }

  @Test func phasesHaveNoGaps() {
    for request in Self.disk(Self.records).requests where request.answered != nil {
      let phases = request.phases
      #expect(phases.map(\.name) == RequestPhase.Name.allCases)
      #expect(phases.first?.range.lowerBound == request.taken)
      #expect(phases.last?.range.upperBound == request.published)
      for (one, next) in zip(phases, phases.dropFirst()) { #expect(one.range.upperBound == next.range.lowerBound) }
    }
  }

  /// Any values in a record are handled.
  @Test func senselessRecordsHarmNobody() {
    var generator = SystemRandomNumberGenerator()
    var records: [TraceRecord] = []
    for _ in 0..<2000 {
      var bytes = (0..<TraceRecord.size).map { _ in UInt8.random(in: .min ... .max, using: &generator) }
      bytes[0] = bytes[0] % 7
      if let record = TraceRecord(bytes, at: 0) { records.append(record) }
    }
    let disk = Self.disk(records, overwritten: 7)
    #expect(!TraceTable.lines([disk]).isEmpty)
    #expect(TracePicture.svg(disk, requests: 20).hasSuffix("</svg>\n"))
    #expect((try? JSONSerialization.jsonObject(with: Data(TraceEvents.json([disk]).utf8))) != nil)
  }

  @Test func theEventsAreWhatViewersRead() throws {
    let text = TraceEvents.json([Self.disk(Self.records, name: "a \"b\"\\\u{1}"), Self.disk([])])
    let object = try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
    let events = try #require(object["traceEvents"] as? [[String: Any]])
    func named(_ name: String, _ phase: String) -> [[String: Any]] {
      events.filter { $0["name"] as? String == name && $0["ph"] as? String == phase }
    }
    let process = try #require(named("process_name", "M").first?["args"] as? [String: Any])
    #expect(process["name"] as? String == "a \"b\"\\\u{1} (sync)")
    #expect(named("kick", "i").first?["ts"] as? Double == 5000.202)
    #expect(named("asleep", "X").map { $0["dur"] as? Double } == [0.2, 0.4])
    // What begins also ends, except requests in flight; their phases are inside.
    #expect(named("read", "b").count == 2 && named("read", "e").count == 1)
    for name in ["write", "flush", "limit", "medium", "order", "publish"] {
      #expect(named(name, "b").count == named(name, "e").count, "\(name)")
    }
    #expect(named("limit", "b").count == 1 && named("medium", "b").count == 3)
    #expect(named("call", "i").count == 1 && named("publish", "i").count == 2)
  }

  @Test func theTableSaysWhereTheTimeWent() {
    let lines = TraceTable.lines([Self.disk(Self.records, overwritten: 0)])
    let words = lines.map { $0.split(separator: " ").map(String.init) }
    #expect(lines[0] == "/run/a.sock (sync): 3 requests recorded in 2.0 µs")
    #expect(words.contains(["read", "1", "280", "ns", "280", "ns", "0", "ns", "180", "ns", "0", "ns", "100", "ns"]))
    #expect(words.contains(["write", "1", "260", "ns", "260", "ns", "120", "ns", "80", "ns", "40", "ns", "20", "ns"]))
    #expect(lines.contains("1 request was in flight at the end"))
    #expect(words.contains(["thread", "0", "100", "%", "60", "%", "10", "%", "30", "%", "67", "%", "2", "1", "1", "0"]))
    #expect(TraceTable.lines([Self.disk([])]).first == "/run/a.sock (sync): 0 requests recorded in 2.0 µs")
    var silent = Self.disk([])
    silent.silent = [4]
    #expect(TraceTable.lines([silent]).last?.hasPrefix("thread 4 has not responded") == true)
  }

  @Test(arguments: [
    (0, "0 ns"), (999, "999 ns"), (1500, "1.5 µs"), (123_456, "123 µs"), (99_960, "100.0 µs"), (2_000_000_000, "2.0 s"),
  ])
  func durationsAreShort(_ time: UInt64, _ text: String) { #expect(TraceTable.duration(time) == text) }

  @Test func thePictureIsXML() {
    for disk in [Self.disk(Self.records, name: "<&>\""), Self.disk([])] {
      let text = TracePicture.svg(disk, requests: 12)
      let parser = XMLChecker(text)
      #expect(parser.isWellFormed, "\(text)")
      #expect(text.contains("<title>asleep") == !disk.requests.isEmpty)
    }
  }
}

/// Tags are closed in order, and the text between them has no unescaped markup.
private struct XMLChecker {
  var isWellFormed = true

  init(_ text: String) {
    var open: [Substring] = []
    for piece in text.split(separator: "<").dropFirst(0) {
      guard let end = piece.firstIndex(of: ">") else {
        isWellFormed = piece.allSatisfy(\.isWhitespace) && isWellFormed
        continue
      }
      let tag = piece[..<end]
      let name = tag.prefix { !$0.isWhitespace && $0 != "/" }
      if tag.hasPrefix("/") {
        if open.popLast() != tag.dropFirst() { isWellFormed = false }
      } else if !tag.hasSuffix("/") {
        open.append(name)
      }
      if piece[piece.index(after: end)...].contains(">") { isWellFormed = false }
    }
    if !open.isEmpty { isWellFormed = false }
  }
}
