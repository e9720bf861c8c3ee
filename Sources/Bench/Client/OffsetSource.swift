/// Where the next request goes and in which direction: a few instructions only, because the client is not what is to be
/// measured.

/// Numbers from a seed, good enough to spread requests (Vigna's xorshift64*).
struct FastRandom {
  private var state: UInt64

  /// - Parameter seed: anything; 0 is replaced, because the generator would be stuck there.
  init(seed: UInt64) { state = seed == 0 ? 0x9e37_79b9_7f4a_7c15 : seed }

  @inline(__always) mutating func next() -> UInt64 {
    state ^= state >> 12
    state ^= state << 25
    state ^= state >> 27
    return state &* 0x2545_f491_4f6c_dd1d
  }

  /// 0 ..< `bound`, by multiplication instead of division.
  @inline(__always) mutating func next(below bound: UInt64) -> UInt64 { next().multipliedFullWidth(by: bound).high }
}

/// The blocks of one queue, one after the other or at random.
struct OffsetSource {
  private let range: DiskArea
  private let isRandom: Bool
  /// Reads among 2^32 requests.
  private let readThreshold: UInt64
  private let isMixed: Bool
  private let alwaysWrites: Bool
  private var position: UInt64
  private var random: FastRandom

  /// - Parameter start: where a sequence begins, blocks from the start of the range.
  init(_ workload: Workload, range: DiskArea, start: UInt64, job: Int) {
    self.range = range
    isRandom = workload.pattern.isRandom
    isMixed = workload.pattern.isMixed
    alwaysWrites = !workload.pattern.reads
    readThreshold = (UInt64(min(max(workload.readPercentage, 0), 100)) << 32) / 100
    position = start % range.count
    random = FastRandom(seed: workload.seed &+ UInt64(job) &* 0x9e37_79b9_7f4a_7c15)
    // The first numbers of neighbouring seeds resemble each other.
    for _ in 0..<8 { _ = random.next() }
  }

  /// The next block, counted from the start of the disk.
  @inline(__always) mutating func nextBlock() -> UInt64 {
    if isRandom { return range.first &+ random.next(below: range.count) }
    let block = range.first &+ position
    position = position &+ 1 == range.count ? 0 : position &+ 1
    return block
  }

  /// Whether the next request writes.
  @inline(__always) mutating func nextWrites() -> Bool {
    guard isMixed else { return alwaysWrites }
    return random.next() >> 32 >= readThreshold
  }
}
