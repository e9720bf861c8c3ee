/// What the kernel's own trace points recorded during a trace: requests of io_uring, and of block devices.

/// One request as the kernel saw it. Nanoseconds of CLOCK_MONOTONIC, in steps of a microsecond.
package struct KernelRequest: Hashable, Sendable {
  package enum Layer: String, Sendable {
    case ring = "io_uring"
    case block = "block devices"
  }

  package var layer: Layer
  /// The operation: READ, WRITE, …; of a block device as the kernel abbreviates it: R, WS, ….
  package var name: String
  /// The thread that submitted it; of a block device its number, as "254,0".
  package var place: String
  package var begin: UInt64
  /// When a kernel worker took it over, because it could have blocked the thread; `nil` if none did.
  package var handedOver: UInt64?
  /// `nil`: it was not complete when the trace ended.
  package var end: UInt64?
}

/// The events of an instance of tracefs, as text. The text is not trusted: what makes no sense is skipped.
package struct KernelTrace: Sendable {
  /// In the order in which they began.
  package private(set) var requests: [KernelRequest] = []
  /// Events that were overwritten in the kernel's buffer.
  package private(set) var lost = 0

  /// The trace points that are read.
  package static let events = [
    "io_uring/io_uring_submit_req", "io_uring/io_uring_queue_async_work", "io_uring/io_uring_complete", "block/block_rq_issue",
    "block/block_rq_complete",
  ]

  /// - Parameters:
  ///   - text: the file `trace`, recorded with the clock `mono`.
  ///   - threads: of the server: only their io_uring requests count. Block devices' requests are those of the whole machine.
  package init(_ text: String, threads: Set<Int>) {
    var open: [String: Int] = [:]
    for line in text.split(separator: "\n") {
      if line.hasPrefix("#") {
        if let written = Self.entries(line) { lost += written }
        continue
      }
      guard let event = Event(line) else { continue }
      take(event, threads, &open)
    }
  }

  private mutating func take(_ event: Event, _ threads: Set<Int>, _ open: inout [String: Int]) {
    func begin(_ key: String, _ request: KernelRequest) {
      open[key] = requests.count
      requests.append(request)
    }
    switch event.name {
    case "io_uring_submit_req":
      guard threads.contains(event.thread), let key = event.ringKey else { return }
      begin(
        key,
        KernelRequest(layer: .ring, name: event.field("opcode") ?? "?", place: "\(event.thread)", begin: event.time))
    case "io_uring_queue_async_work":
      guard let key = event.ringKey, let index = open[key] else { return }
      requests[index].handedOver = event.time
    case "io_uring_complete":
      guard let key = event.ringKey, let index = open.removeValue(forKey: key) else { return }
      requests[index].end = max(event.time, requests[index].begin)
    case "block_rq_issue":
      guard let key = event.blockKey else { return }
      let words = event.rest.split(separator: " ")
      begin(key, KernelRequest(layer: .block, name: String(words[1]), place: String(words[0]), begin: event.time))
    case "block_rq_complete":
      guard let key = event.blockKey, let index = open.removeValue(forKey: key) else { return }
      requests[index].end = max(event.time, requests[index].begin)
    default: return
    }
  }

  /// The number of overwritten entries, from the header's line "# entries-in-buffer/entries-written: 22/30 #P:2".
  private static func entries(_ line: Substring) -> Int? {
    guard let colon = line.firstRange(of: "entries-written:") else { return nil }
    let numbers = line[colon.upperBound...].split(separator: " ").first?.split(separator: "/").compactMap { Int($0) } ?? []
    guard numbers.count == 2, numbers[1] > numbers[0] else { return nil }
    return numbers[1] - numbers[0]
  }

  /// A line "comm-PID  [CPU] flags seconds.micros: event: the rest".
  private struct Event {
    let thread: Int
    let time: UInt64
    let name: Substring
    let rest: Substring

    init?(_ line: Substring) {
      // A name of a process may have spaces, brackets and dashes in it; the time is the first word that ends with a colon and
      // has a CPU in brackets two words before.
      let words = line.split(separator: " ")
      guard
        let place = words.indices.dropFirst(3).first(where: { words[$0].last == ":" && words[$0 - 2].first == "[" }),
        let time = Self.nanoseconds(words[place].dropLast()), words.indices.contains(place + 2),
        let dash = words[place - 3].lastIndex(of: "-"),
        let thread = Int(words[place - 3][words[place - 3].index(after: dash)...])
      else { return nil }
      self.thread = thread
      self.time = time
      name = words[place + 1].dropLast()
      rest = line[words[place + 2].startIndex...]
    }

    /// Of "85945.350909".
    private static func nanoseconds(_ text: Substring) -> UInt64? {
      let parts = text.split(separator: ".", omittingEmptySubsequences: false)
      guard parts.count == 2, parts[1].utf8.count == 6, let seconds = UInt64(parts[0]), let micros = UInt64(parts[1]) else {
        return nil
      }
      let (whole, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
      let (sum, carry) = whole.addingReportingOverflow(micros * 1000)
      return overflow || carry ? nil : sum
    }

    /// What follows a word in "ring 0000a1, req 0000b2, user_data 0x1, …".
    func field(_ word: String) -> String? {
      for part in rest.split(separator: ",") {
        let words = part.split(separator: " ")
        if words.count > 1, words[0] == word { return String(words[1]) }
      }
      return nil
    }

    /// A request of a ring; the kernel calls it "req" in one event and "request" in another.
    var ringKey: String? {
      guard let ring = field("ring"), let request = field("req") ?? field("request") else { return nil }
      return ring + " " + request
    }

    /// Device and sector: of "254,0 R 4096 () 20401888 + 8 …".
    var blockKey: String? {
      let words = rest.split(separator: " ")
      guard words.count > 3, let plus = words.firstIndex(of: "+"), plus > 2 else { return nil }
      return "\(words[0]) \(words[plus - 1])"
    }
  }
}

extension KernelTrace {
  /// Operations that wait for kicks and commands, so that their duration means nothing.
  private static let waits: Set<String> = ["FUTEX_WAIT", "FUTEX_WAITV", "POLL_ADD", "POLL_REMOVE", "TIMEOUT", "ASYNC_CANCEL"]

  /// A line for each layer that had requests, and one for what is missing.
  package var lines: [String] {
    var lines: [String] = []
    for layer in [KernelRequest.Layer.ring, .block] {
      let ours = requests.filter { $0.layer == layer && !Self.waits.contains($0.name) }
      let times = ours.compactMap { request in request.end.map { $0 - request.begin } }
      guard !ours.isEmpty else {
        lines.append("kernel, \(layer.rawValue): no request")
        continue
      }
      let mean = times.isEmpty ? "" : ", \(TraceTable.duration(times.reduce(0, +) / UInt64(times.count))) each on average"
      let workers = ours.count { $0.handedOver != nil }
      lines.append(
        "kernel, \(layer.rawValue): \(ours.count) \(ours.count == 1 ? "request" : "requests")\(mean)"
          + (workers > 0 ? ", \(workers) of them handed to kernel workers" : ""))
    }
    if lost > 0 { lines.append("kernel: \(lost) events were overwritten; trace for a shorter time") }
    return lines
  }
}
