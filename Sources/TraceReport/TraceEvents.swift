/// A trace as the viewers of Chrome and Perfetto read it: "Trace Event Format", an object with an array of events.

/// Each disk is a process of the picture, and each of its threads a row. Requests are drawn above it as spans that may overlap,
/// and contain what they waited for. Times are microseconds of CLOCK_MONOTONIC, which is also what `perf record -k
/// CLOCK_MONOTONIC` says.
package enum TraceEvents {
  /// All of it as one text. - Parameter kernel: what the kernel recorded in the meantime, as two more processes of the picture.
  package static func json(_ disks: [TracedDisk], kernel: KernelTrace? = nil) -> String {
    var text = ""
    var writer = Writer { text += $0 }
    // Appending to a string never fails.
    try? writer.add(disks, kernel)
    return text
  }

  /// Writes events piece by piece, so that the text of a long trace is never in memory as a whole.
  package struct Writer {
    /// Takes some tens of KiB at a time.
    private let output: (String) throws -> Void
    private var pending: String
    private var isFirst = true
    private static let pieceSize = 1 << 16

    package init(output: @escaping (String) throws -> Void) {
      self.output = output
      let meaning = #""otherData":{"clock":"CLOCK_MONOTONIC","program":"vmm-blk trace"}"#
      pending = "{\"displayTimeUnit\":\"ns\",\(meaning),\"traceEvents\":[\n"
    }

    fileprivate mutating func append(_ line: String) throws {
      pending += (isFirst ? "" : ",\n") + line
      isFirst = false
      guard pending.utf8.count >= Self.pieceSize else { return }
      try output(pending)
      pending = ""
    }

    fileprivate mutating func add(_ disks: [TracedDisk], _ kernel: KernelTrace?) throws {
      for (index, disk) in disks.enumerated() { try add(disk, process: index + 1) }
      if let kernel { try TraceEvents.append(kernel, process: disks.count + 1, to: &self) }
      try finish()
    }

    /// - Parameters:
    ///   - process: its number in the picture, from 1 on.
    ///   - isNamed: false if a part of the same disk was added before.
    package mutating func add(_ disk: TracedDisk, process: Int, isNamed: Bool = true) throws {
      if isNamed { try append(TraceEvents.name("process_name", "\(disk.name) (\(disk.engine))", process, nil)) }
      for thread in disk.threads {
        try append(TraceEvents.name("thread_name", "queue thread \(thread.number)", process, thread.number))
        try TraceEvents.append(thread, process, to: &self)
      }
    }

    /// The end of the text; nothing may be added afterwards.
    package mutating func finish() throws {
      try output(pending + "\n]}\n")
      pending = ""
    }
  }

  fileprivate static func append(_ thread: TracedThread, _ process: Int, to lines: inout Writer) throws {
    let place = "\"pid\":\(process),\"tid\":\(thread.number)"
    for span in thread.spans {
      try lines.append(
        #"{"ph":"X","cat":"thread","name":"\#(span.kind.rawValue)",\#(place),"ts":\#(stamp(span.range.lowerBound)),"#
          + #""dur":\#(stamp(span.range.upperBound - span.range.lowerBound)),"args":{"in flight":\#(span.inFlight)}}"#)
    }
    for time in thread.kicks { try lines.append(instant("kick", time, place)) }
    for call in thread.calls { try lines.append(instant("call", call.time, place, #","args":{"queue":\#(call.queue)}"#)) }
    for publication in thread.publications {
      try lines.append(
        instant(
          "publish", publication.time, place, #","args":{"queue":\#(publication.queue),"chains":\#(publication.count)}"#))
    }
    for (number, request) in thread.requests.enumerated() {
      try append(request, #""cat":"requests","id":"\#(process).\#(thread.number).\#(number)",\#(place)"#, to: &lines)
    }
  }

  fileprivate static func append(_ kernel: KernelTrace, process first: Int, to lines: inout Writer) throws {
    for (index, layer) in [KernelRequest.Layer.ring, .block].enumerated() {
      let process = first + index
      try lines.append(name("process_name", "kernel: \(layer.rawValue)", process, nil))
      var rows: [String: Int] = [:]
      for (number, request) in kernel.requests.enumerated() where request.layer == layer {
        let row = rows[request.place] ?? rows.count
        if rows.updateValue(row, forKey: request.place) == nil {
          try lines.append(
            name("thread_name", layer == .ring ? "thread \(request.place)" : "device \(request.place)", process, row))
        }
        let words = #""cat":"\#(layer.rawValue)","id":"k\#(number)","pid":\#(process),"tid":\#(row)"#
        func line(_ phase: String, _ text: String, _ time: UInt64) throws {
          try lines.append(#"{"ph":"\#(phase)","name":"\#(escaped(text))",\#(words),"ts":\#(stamp(time))}"#)
        }
        try line("b", request.name, request.begin)
        guard let end = request.end else { continue }
        if let handedOver = request.handedOver, request.begin <= handedOver, handedOver <= end {
          try line("b", "kernel worker", handedOver)
          try line("e", "kernel worker", end)
        }
        try line("e", request.name, end)
      }
    }
  }

  private static func append(_ request: TracedRequest, _ words: String, to lines: inout Writer) throws {
    let arguments =
      #""queue":\#(request.queue),"head":\#(request.head),"sector":\#(request.sector),"bytes":\#(request.bytes),"#
      + #""status":\#(request.answered == nil ? -1 : Int(request.status))"#
    func begin(_ name: String, _ time: UInt64, _ more: String = "") throws {
      try lines.append(#"{"ph":"b","name":"\#(name)",\#(words),"ts":\#(stamp(time))\#(more)}"#)
    }
    func end(_ name: String, _ time: UInt64) throws {
      try lines.append(#"{"ph":"e","name":"\#(name)",\#(words),"ts":\#(stamp(time))}"#)
    }

    let name = "\(request.kind)"
    try begin(name, request.taken, #","args":{\#(arguments)}"#)
    // A request in flight has no end.
    guard request.answered != nil else { return }
    for phase in request.phases where !phase.range.isEmpty {
      try begin(phase.name.rawValue, phase.range.lowerBound)
      try end(phase.name.rawValue, phase.range.upperBound)
    }
    try end(name, request.end)
  }

  private static func instant(_ name: String, _ time: UInt64, _ place: String, _ more: String = "") -> String {
    #"{"ph":"i","s":"t","cat":"thread","name":"\#(name)",\#(place),"ts":\#(stamp(time))\#(more)}"#
  }

  fileprivate static func name(_ what: String, _ text: String, _ process: Int, _ thread: Int?) -> String {
    let place = thread.map { ",\"tid\":\($0)" } ?? ""
    return #"{"ph":"M","name":"\#(what)","pid":\#(process)\#(place),"args":{"name":"\#(escaped(text))"}}"#
  }

  /// Microseconds, with the exact nanoseconds after the decimal point.
  private static func stamp(_ nanoseconds: UInt64) -> String {
    let rest = String(nanoseconds % 1000)
    return "\(nanoseconds / 1000).\(String(repeating: "0", count: 3 - rest.count))\(rest)"
  }

  /// Escapes a text for a JSON string.
  private static func escaped(_ text: String) -> String {
    text.unicodeScalars.reduce(into: "") { output, scalar in
      switch scalar {
      case "\"", "\\": output += "\\\(scalar)"
      case _ where scalar.value < 0x20:
        let digits = String(scalar.value, radix: 16)
        output += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
      default: output.unicodeScalars.append(scalar)
      }
    }
  }
}

/// What a request waits for.
package struct RequestPhase: Hashable, Sendable {
  package enum Name: String, CaseIterable, Sendable {
    /// A limit of the disk.
    case limit
    /// The medium, with everything below it: the kernel's queues, the disk.
    case medium
    /// The answers to requests before it, if these are published in order.
    case order
    /// The publication of its batch to the driver.
    case publish
  }

  package var name: Name
  package var range: Range<UInt64>
}

extension TracedRequest {
  /// When it was published to the driver, or else answered; for a request in flight, when it was popped. Never before that.
  package var end: UInt64 { phases.last?.range.upperBound ?? taken }

  /// In order of time, without gaps; empty for a request in flight.
  package var phases: [RequestPhase] {
    guard let answered else { return [] }
    let begin = min(max(started, taken), max(completed, taken))
    let done = max(completed, begin)
    let told = max(answered, done)
    return [
      RequestPhase(name: .limit, range: taken..<begin), RequestPhase(name: .medium, range: begin..<done),
      RequestPhase(name: .order, range: done..<told),
      RequestPhase(name: .publish, range: told..<max(told, published ?? told)),
    ]
  }
}
