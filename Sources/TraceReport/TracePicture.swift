/// A trace as a picture that any browser shows: one thread's sleeps and polls, and above them its requests with what they waited for.
internal import VirtioBlkDevice

package enum TracePicture {
  private static let width = 960.0
  private static let margin = 110.0
  private static let rowHeight = 18.0
  /// How many overlapping requests can be drawn; more of them are left out, which the picture says.
  private static let rowLimit = 40

  /// An SVG of the time span with that many requests of the disk's first thread that had any.
  ///
  /// - Parameters:
  ///   - count: requests, the first that were taken.
  ///   - skip: requests before them that are not shown.
  package static func svg(_ disk: TracedDisk, requests count: Int, skipping skip: Int = 0) -> String {
    guard let thread = disk.threads.first(where: { $0.requests.contains { $0.answered != nil } }) else {
      return frame(height: 40, [text(10, 25, "no request was answered while \(disk.name) was traced")])
    }
    let all = thread.requests.filter { $0.answered != nil }.sorted { $0.taken < $1.taken }
    let shown = all.dropFirst(min(skip, max(0, all.count - count))).prefix(max(count, 1))
    guard let first = shown.first else { return frame(height: 40, [text(10, 25, "nothing to show")]) }
    let last = shown.map { max($0.end, $0.called ?? 0) }.max() ?? first.taken
    let name = disk.name.split(separator: "/").last.map { String($0) } ?? disk.name
    // The sleep that a kick ended, and the one that follows, are part of the story.
    let length = max(last - first.taken, 1)
    let range = first.taken - min(first.taken, length / 6)..<last + length / 6
    return draw(thread, shown, range, title: "\(name) (\(disk.engine)), thread \(thread.number)")
  }

  private static func draw(
    _ thread: TracedThread, _ requests: ArraySlice<TracedRequest>, _ range: Range<UInt64>, title: String
  ) -> String {
    func x(_ time: UInt64) -> Double {
      let inside = min(max(time, range.lowerBound), range.upperBound) - range.lowerBound
      return margin + (width - margin - 10) * Double(inside) / Double(range.length)
    }
    func bar(_ from: UInt64, _ to: UInt64, _ y: Double, _ style: String, _ about: String) -> String {
      let left = x(from)
      return
        "<rect x=\"\(number(left))\" y=\"\(number(y))\" width=\"\(number(max(x(to) - left, 0.8)))\" height=\"\(rowHeight - 4)\" "
        + "class=\"\(style)\"><title>\(escaped(about))</title></rect>"
    }
    var parts = [text(10, 20, title, style: "title")]
    let threadRow = 34.0
    parts.append(text(10, threadRow + 11, "thread"))
    parts.append(bar(range.lowerBound, range.upperBound, threadRow, "works", "works"))
    for span in thread.spans where span.range.overlaps(range) {
      let length = TraceTable.duration(span.range.length)
      parts.append(
        bar(
          span.range.lowerBound, span.range.upperBound, threadRow, span.kind == .rest ? "rest" : span.kind.rawValue,
          "\(span.kind.rawValue) \(length), \(span.inFlight) in flight"))
    }
    let marks = threadRow + rowHeight
    parts.append(text(10, marks + 11, "kicks, calls"))
    for time in thread.kicks where range.contains(time) { parts.append(mark(x(time), marks, "kick", "▲")) }
    for call in thread.calls where range.contains(call.time) { parts.append(mark(x(call.time), marks, "call", "▼")) }

    var ends: [UInt64] = []
    var left = 0
    let top = marks + rowHeight + 6
    for request in requests {
      let end = request.end
      guard let row = ends.firstIndex(where: { $0 <= request.taken }) ?? (ends.count < rowLimit ? ends.count : nil) else {
        left += 1
        continue
      }
      if row == ends.count { ends.append(end) } else { ends[row] = end }
      let y = top + Double(row) * rowHeight
      let about = "\(request.kind), sector \(request.sector), \(request.bytes) bytes, head \(request.head)"
      for phase in request.phases where !phase.range.isEmpty {
        parts.append(
          bar(
            phase.range.lowerBound, phase.range.upperBound, y, phase.name.rawValue,
            "\(about): \(phase.name.rawValue) \(TraceTable.duration(phase.range.length))"))
      }
    }
    parts.append(text(10, top + 11, "requests"))
    let bottom = top + Double(max(ends.count, 1)) * rowHeight + 8
    parts += axis(range, bottom, x)
    parts += legend(bottom + 40)
    if left > 0 { parts.append(text(margin, bottom + 56, "\(left) more requests at the same time are not shown")) }
    return frame(height: bottom + 66, parts)
  }

  /// Round steps of time, from the left edge on.
  private static func axis(_ range: Range<UInt64>, _ y: Double, _ x: (UInt64) -> Double) -> [String] {
    let steps = sequence(first: UInt64(1)) { $0 * 10 }.prefix(18).flatMap { power in [1, 2, 5].map { $0 * power } }
    let step = steps.first { $0 >= range.length / 8 } ?? range.length
    var parts: [String] = []
    for time in stride(from: range.lowerBound, to: range.upperBound, by: Int(step)) {
      parts.append("<line x1=\"\(number(x(time)))\" x2=\"\(number(x(time)))\" y1=\"34\" y2=\"\(number(y))\" class=\"grid\"/>")
      // A label at the edge would be cut off.
      guard x(time) + 56 < width else { continue }
      parts.append(text(x(time) + 2, y + 12, TraceTable.duration(time - range.lowerBound)))
    }
    return parts
  }

  private static func legend(_ y: Double) -> [String] {
    let words = ["works", "polling", "asleep", "limit", "medium", "order", "publish"]
    return words.enumerated().flatMap { index, word in
      let x = margin + Double(index) * 88
      return [
        "<rect x=\"\(number(x))\" y=\"\(number(y - 10))\" width=\"12\" height=\"12\" class=\"\(word)\"/>",
        text(x + 16, y, word),
      ]
    } + [text(margin + 620, y, "▲ kick  ▼ call")]
  }

  private static func mark(_ x: Double, _ y: Double, _ style: String, _ sign: String) -> String {
    "<text x=\"\(number(x - 4))\" y=\"\(number(y + 11))\" class=\"\(style)\">\(sign)</text>"
  }

  private static func text(_ x: Double, _ y: Double, _ text: String, style: String = "") -> String {
    "<text x=\"\(number(x))\" y=\"\(number(y))\"\(style.isEmpty ? "" : " class=\"\(style)\"")>\(escaped(text))</text>"
  }

  private static func frame(height: Double, _ parts: [String]) -> String {
    """
    <svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 \(number(width)) \(number(height))" font-family="sans-serif" font-size="11">
    <style>.title{font-weight:bold;font-size:13px}.works{fill:#4c78a8}.polling{fill:#f2b134}.asleep{fill:#dfe3e8}.rest{fill:#fff}\
    .limit{fill:#b279a2}.medium{fill:#59a14f}.order{fill:#e15759}.publish{fill:#9d755d}.grid{stroke:#ccc;stroke-width:.5}\
    .kick{fill:#c33}.call{fill:#06c}</style>
    <rect width="100%" height="100%" fill="#fff"/>
    \(parts.joined(separator: "\n"))
    </svg>

    """
  }

  private static func number(_ value: Double) -> String { "\((value * 10).rounded() / 10)" }

  private static func escaped(_ text: String) -> String {
    text.reduce(into: "") { output, character in
      switch character {
      case "<": output += "&lt;"
      case ">": output += "&gt;"
      case "&": output += "&amp;"
      case "\"": output += "&quot;"
      default: output.append(character)
      }
    }
  }
}
