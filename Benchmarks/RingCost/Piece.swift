/// A piece of the device that is measured alone, and the measurement.
internal import CLinux
internal import Glibc
internal import Histogram

/// Something that is done several times in one run, after a preparation that is not measured.
protocol Piece: ~Copyable {
  /// How many operations one `run` does.
  var operations: Int { get }
  mutating func prepare()
  mutating func run()
}

/// One line of the table.
struct Row {
  let name: String
  /// Picoseconds for each operation, with one value for each run.
  var times = Histogram<UInt64>(lowestDiscernibleValue: 1, highestTrackableValue: 1_000_000_000_000)
}

/// The only place where a piece runs: a separate function in the machine code, so that callgrind counts only here
/// (`--toggle-collect=*measured*`).
@inline(never)
private func measured<P: Piece & ~Copyable>(_ piece: inout P) { piece.run() }

/// A function that callgrind can refer to (`--dump-after=*pieceIsOver*`).
@inline(never)
private func pieceIsOver() { fflush(nil) }

/// Runs pieces for their time, or a fixed number of times for callgrind.
struct Meter {
  /// How many runs of each piece callgrind counts, after one that is not counted.
  static let countedRuns = 4
  /// The time for a piece in each round.
  private static let nanosecondsForEach: UInt64 = 10_000_000

  let counts: Bool
  /// The rows in the order of the first measurement. A piece that is measured again adds to its row.
  private(set) var rows: [Row] = []
  /// How long it takes to read the clock twice, in nanoseconds.
  private var overhead: UInt64 = 0

  init(counts: Bool) {
    self.counts = counts
    guard !counts else { return }
    struct Nothing: Piece {
      let operations = 1
      func prepare() {}
      func run() {}
    }
    measure("", Nothing())
    overhead = rows.removeLast().times.valueAtPercentile(50) / 1000
  }

  mutating func measure<P: Piece & ~Copyable>(_ name: String, _ piece: consuming P) {
    let place = rows.firstIndex { $0.name == name } ?? rows.count
    if place == rows.count { rows.append(Row(name: name)) }
    if counts {
      for runs in [1, Self.countedRuns] {
        for _ in 0..<runs {
          piece.prepare()
          measured(&piece)
        }
        pieceIsOver()
      }
      print("\(name)\t\(piece.operations * Self.countedRuns)")
    } else {
      let end = Self.now + Self.nanosecondsForEach
      var run = 0
      while Self.now < end {
        piece.prepare()
        let start = Self.now
        measured(&piece)
        let elapsed = Self.now - start
        run += 1
        // The first runs are slow because they touch memory for the first time.
        guard run > 100 else { continue }
        rows[place].times.record((elapsed > overhead ? elapsed - overhead : 0) * 1000 / UInt64(piece.operations))
      }
    }
  }

  @inline(__always)
  private static var now: UInt64 {
    var time = timespec()
    unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }
}
