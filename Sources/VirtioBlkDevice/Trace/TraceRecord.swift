/// The records of a trace: one for each request that was answered, and one for each thing that its thread did.

/// 64 bytes, eight little-endian words, so that a reader needs nothing but this description.
///
/// | word | of a request | of a publication | of a span (asleep, polling, rest) | of a kick |
/// |---|---|---|---|---|
/// | 0 | kind, request kind, status, 0, queue (16 bits), head (16 bits) | kind, queue | kind | kind |
/// | 1 | sector | chains published | 0 | 0 |
/// | 2 | bytes | 0 | 0 | 0 |
/// | 3 | popped | began | began | noticed |
/// | 4 | started, 0: at once | call sent, 0: none | ended | 0 |
/// | 5 | completed by the medium | 0 | 0 | 0 |
/// | 6 | answered, 0: not yet | 0 | 0 | 0 |
/// | 7 | 0 | 0 | 0 | 0 |
///
/// Times are ticks; `TraceMoment` relates them to the system's clock.
package struct TraceRecord: Hashable, Sendable {
  package static let size = 64
  /// The version of the layout, for readers of what another version wrote.
  package static let format = 1

  package enum Kind: UInt8, Sendable {
    case request = 1
    /// Answers were published to the driver.
    case publication = 2
    case asleep = 3
    case polling = 4
    /// A notification of the driver was noticed.
    case kick = 5
    /// Nothing was recorded for a while, to keep the cost of recording low.
    case rest = 6
  }

  package var words: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64)

  package init(
    _ kind: Kind, queue: Int = 0, request: RequestKind = .read, status: UInt8 = 0, head: UInt16 = 0, first: UInt64 = 0,
    second: UInt64 = 0, times: (UInt64, UInt64, UInt64, UInt64)
  ) {
    let low = UInt64(kind.rawValue) | UInt64(request.rawValue) << 8 | UInt64(status) << 16
    let high = UInt64(UInt16(truncatingIfNeeded: queue)) << 32 | UInt64(head) << 48
    words = (low | high, first, second, times.0, times.1, times.2, times.3, 0)
  }

  /// - Parameter bytes: at least `size` from `offset` on. - Returns: `nil` for a kind that this version does not know.
  package init?(_ bytes: [UInt8], at offset: Int) {
    func word(_ number: Int) -> UInt64 {
      (0..<8).reduce(0) { $0 | UInt64(bytes[offset + number * 8 + $1]) << UInt64($1 * 8) }
    }
    words = (word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7))
    guard Kind(rawValue: UInt8(truncatingIfNeeded: words.0)) != nil else { return nil }
  }

  package var kind: Kind { Kind(rawValue: UInt8(truncatingIfNeeded: words.0)) ?? .kick }
  package var request: RequestKind { RequestKind(rawValue: Int(words.0 >> 8 & 0xff)) ?? .other }
  /// The status byte of the answer.
  package var status: UInt8 { UInt8(truncatingIfNeeded: words.0 >> 16) }
  package var queue: Int { Int(words.0 >> 32 & 0xffff) }
  /// The chain's head in the ring.
  package var head: UInt16 { UInt16(truncatingIfNeeded: words.0 >> 48) }
  /// In units of 512 bytes.
  package var sector: UInt64 { words.1 }
  /// The bytes of a read or a write; 0 for anything else.
  package var bytes: UInt64 { words.2 }
  /// When it began, was popped, or was noticed.
  package var begin: UInt64 { words.3 }
  /// A request's start, a publication's call or a span's end; 0 as in the table above.
  package var next: UInt64 { words.4 }
  package var completed: UInt64 { words.5 }
  package var answered: UInt64 { words.6 }

  package static func == (left: Self, right: Self) -> Bool { left.list == right.list }
  package func hash(into hasher: inout Hasher) { hasher.combine(list) }
  private var list: [UInt64] { [words.0, words.1, words.2, words.3, words.4, words.5, words.6, words.7] }
}

/// The two clocks at one moment.
package struct TraceMoment: Hashable, Sendable, Codable {
  /// Ticks, as in records.
  package var ticks: UInt64
  /// Nanoseconds of CLOCK_MONOTONIC.
  package var time: UInt64

  package init(ticks: UInt64, time: UInt64) {
    self.ticks = ticks
    self.time = time
  }
}
