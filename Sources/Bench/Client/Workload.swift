/// The workload of a run, with fio's names.

/// The order and direction of the requests (fio's `rw`).
public enum AccessPattern: String, CaseIterable, Sendable, Codable {
  case read
  case write
  case randread
  case randwrite
  /// Sequential, reads and writes mixed.
  case rw
  case randrw

  public var isRandom: Bool { self == .randread || self == .randwrite || self == .randrw }
  public var isMixed: Bool { self == .rw || self == .randrw }
  public var reads: Bool { self != .write && self != .randwrite }
  public var writes: Bool { self != .read && self != .randread }
}

/// How data that was read is checked.
public enum Verification: String, CaseIterable, Sendable {
  /// Each block carries its place and a checksum of itself.
  case crc32c
  /// Each byte of a block is derived from its place, its generation and the seed.
  case pattern
}

/// One closed loop: `depth` requests in flight on each queue at all times.
public struct Workload: Sendable {
  public var pattern = AccessPattern.randread
  /// Bytes of a request, a multiple of 512.
  public var blockSize = 4096
  /// Requests in flight on each queue.
  public var depth = 1
  /// Queues.
  public var jobs = 1
  /// Bytes of the disk that are used, from its start; `nil`: all of it.
  public var size: UInt64?
  /// Reads among mixed requests, percent.
  public var readPercentage = 50
  public var verification: Verification?
  /// The seed of offsets and contents.
  public var seed: UInt64 = 0x626c_6b62_656e_6368

  public init() {}
}

/// The part of a disk that one queue works on.
public struct DiskArea: Hashable, Sendable {
  /// In blocks of the workload.
  public var first: UInt64
  /// At least 1.
  public var count: UInt64

  public init(first: UInt64, count: UInt64) {
    self.first = first
    self.count = count
  }
}

extension Workload {
  /// The blocks that queue `job` uses, and where in them it begins.
  ///
  /// Random requests go anywhere. Sequential ones begin at evenly spaced places, so that a queue does not follow another
  /// through what that one has just brought into the page cache. If contents are checked, each queue has its own blocks,
  /// because two queues that write the same block cannot both be right.
  ///
  /// - Parameter capacity: bytes of the disk.
  func range(of job: Int, capacity: UInt64) throws(BenchError) -> (range: DiskArea, start: UInt64) {
    let bytes = min(size ?? capacity, capacity)
    let blocks = bytes / UInt64(blockSize)
    let share = blocks / UInt64(jobs)
    guard share > 0 else { throw .diskTooSmall(bytes: bytes, blockSize: blockSize, jobs: jobs) }
    if verification != nil {
      guard share > UInt64(depth) else { throw .diskTooSmall(bytes: bytes, blockSize: blockSize, jobs: jobs) }
      return (DiskArea(first: UInt64(job) * share, count: share), 0)
    }
    return (DiskArea(first: 0, count: blocks), UInt64(job) * share)
  }
}
