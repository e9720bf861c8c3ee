/// An open load on many disks at once: 4 KiB reads that fall due at Poisson moments, each on a random disk, whether or not
/// earlier ones are answered. `Scripts/many.py --active` starts it.
///
///     open-load <slots> <entries> <blocks> <rate> <seconds> <busy depth>
///
/// Standard input has a line for each disk: the numbers of two inherited descriptors, its memory and its kick. The memory is
/// laid out as in many.py (see `LoadedDisk`), and the device has it already. The output is one JSON object.
///
/// Latency is counted from the moment when a request was due, not from when it was sent: a device, or a generator, that stalls
/// for a while also pays for the requests that became due in the meantime. The generator never sleeps. It asks for a call after
/// every answer, like a guest that sleeps, so that the device pays for it; nobody listens to the calls.
import CLinux
import Glibc
import VirtioCore

@main
struct OpenLoad {
  static func main() {
    let numbers = CommandLine.arguments.dropFirst().compactMap { Double($0) }
    guard numbers.count == 6 else { end("usage: open-load <slots> <entries> <blocks> <rate> <seconds> <busy depth>") }
    let shape = LoadedDisk.Shape(slots: Int(numbers[0]), entries: Int(numbers[1]), blocks: UInt64(numbers[2]))
    var disks: [LoadedDisk] = []
    while let line = readLine() {
      let words = line.split(separator: " ").compactMap { Int32($0) }
      guard words.count == 2, let disk = LoadedDisk(memory: words[0], kick: words[1], shape) else {
        end("open-load: '\(line)' does not name the memory and the kick of a disk")
      }
      disks.append(disk)
    }
    guard !disks.isEmpty else { end("open-load: there is no disk") }
    var load = Load(disks, busyDepth: Int(numbers[5]))
    print(load.run(rate: numbers[3], seconds: numbers[4]))
  }

  static func end(_ sentence: String) -> Never {
    _ = unsafe (sentence + "\n").withCString { unsafe write(2, $0, strlen($0)) }
    exit(2)
  }
}

/// The disks, and the times at which requests are due.
struct Load {
  /// How long answers may take after the last request is due, in nanoseconds.
  private static let patience: UInt64 = 20_000_000_000

  private var disks: [LoadedDisk]
  /// The disks with outstanding requests, and the position of each disk in that list, or −1.
  private var active: [Int] = []
  private var place: [Int]
  private let busyDepth: Int
  private var random: UInt64 = 0x9e37_79b9_7f4a_7c15

  /// - Parameter busyDepth: how many requests the last disk always has in flight, beside the load on the others; 0: it is one
  ///   of them.
  init(_ disks: [LoadedDisk], busyDepth: Int) {
    self.disks = disks
    self.busyDepth = busyDepth
    place = Array(repeating: -1, count: disks.count)
  }

  /// - Parameter rate: requests per second, all disks together.
  mutating func run(rate: Double, seconds: Double) -> String {
    var latencies: [UInt64] = []
    latencies.reserveCapacity(Int(rate * seconds * 1.2) + 1000)
    var busyAnswers = 0
    let loaded = busyDepth > 0 ? disks.count - 1 : disks.count
    let busy = busyDepth > 0 ? disks.count - 1 : nil
    let start = Clock.now
    let end = start &+ UInt64(seconds * 1e9)
    var due = start &+ gap(rate)
    var ended = start
    var late: UInt64 = 0
    if let busy {
      for _ in 0..<busyDepth { disks[busy].ask(due: start, block: next() &>> 8, isLast: false) }
      disks[busy].publish()
    }
    while true {
      let now = Clock.now
      if now >= end, ended == start { ended = now }
      while loaded > 0, due <= now, due < end {
        late = max(late, now &- due)
        let index = Int(next() &>> 8 % UInt64(loaded))
        if place[index] < 0 {
          place[index] = active.count
          active.append(index)
        }
        disks[index].ask(due: due, block: next() &>> 8, isLast: true)
        due &+= gap(rate)
      }
      var position = 0
      while position < active.count {
        let index = active[position]
        if disks[index].hasAnswers {
          let moment = Clock.now
          while let asked = disks[index].takeAnswer() { latencies.append(moment &- asked) }
          disks[index].sendDelayed()
          disks[index].wantCall()
        }
        if disks[index].isIdle {
          place[index] = -1
          let last = active.removeLast()
          if last != index {
            active[position] = last
            place[last] = position
          }
        } else {
          position += 1
        }
      }
      if let busy, disks[busy].hasAnswers {
        while disks[busy].takeAnswer() != nil {
          if now < end {
            busyAnswers += 1
            disks[busy].ask(due: now, block: next() &>> 8, isLast: false)
          }
        }
        disks[busy].publish()
      }
      if now >= end, active.isEmpty, busy.map({ disks[$0].isIdle }) ?? true { break }
      if now >= end &+ Self.patience { OpenLoad.end("open-load: requests were not answered within 20 seconds") }
    }
    latencies.sort()
    func percentile(_ share: Double) -> Double {
      latencies.isEmpty ? 0 : Double(latencies[min(latencies.count - 1, Int(Double(latencies.count) * share))]) / 1000
    }
    let failures = disks.reduce(0) { $0 + $1.failures }
    let kicks = disks.reduce(0) { $0 + $1.kicks }
    return """
      {"requests": \(latencies.count), "seconds": \(Double(ended &- start) / 1e9), "p50": \(percentile(0.5)), "p99": \
      \(percentile(0.99)), "p999": \(percentile(0.999)), "worst": \(Double(latencies.last ?? 0) / 1000), "kicks": \(kicks), \
      "failures": \(failures), "late": \(Double(late) / 1000), "busy": \(busyAnswers)}
      """
  }

  /// Nanoseconds to the next request: exponentially distributed, as in a Poisson process.
  private mutating func gap(_ rate: Double) -> UInt64 {
    let share = (Double(next() >> 11) + 1) / Double(UInt64(1) << 53)
    return UInt64(-log(share) / rate * 1e9)
  }

  /// xorshift64*: cheap, and good enough to pick a disk.
  private mutating func next() -> UInt64 {
    random ^= random &>> 12
    random ^= random &<< 25
    random ^= random &>> 27
    return random &* 0x2545_f491_4f6c_dd1d
  }
}
