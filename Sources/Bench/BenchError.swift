/// Why a benchmark cannot continue: one sentence each, saying what to do.
public import SystemPackage

public enum BenchError: Error, Sendable, CustomStringConvertible {
  case diskTooSmall(bytes: UInt64, blockSize: Int, jobs: Int)
  case badBlockSize(Int, logicalBlock: Int)
  case depthExceedsRing(depth: Int, ring: Int, maximum: Int)
  case readOnlyDisk(AccessPattern)
  case noThread(Errno)
  case noMemory(bytes: Int)
  case system(String, Errno)
  /// The device broke the rules of the ring.
  case brokenRing(queue: Int, String)
  case requestFailed(queue: Int, status: UInt8, isWrite: Bool, sector: UInt64)
  case wrongData(Mismatch)
  case noAnswer(outstanding: Int, seconds: Int)
  case cannotSleep
  case target(String)
  case report(path: String, String)
  case unavailable(String)

  public var description: String {
    switch self {
    case .diskTooSmall(let bytes, let blockSize, let jobs):
      "\(bytes) bytes are too few for \(jobs) jobs with blocks of \(blockSize) bytes: use a larger disk or --size, a smaller "
        + "--bs, or fewer jobs or requests"
    case .badBlockSize(let size, let block):
      "--bs \(size) is not a multiple of the disk's block of \(block) bytes: use a multiple of it"
    case .depthExceedsRing(let depth, let ring, let maximum):
      "--iodepth \(depth) needs a ring of \(ring) entries, and this device takes \(maximum): lower --iodepth, or serve with a "
        + "larger --queue-size-max"
    case .readOnlyDisk(let pattern): "the disk is read-only, so --rw \(pattern.rawValue) cannot run: use read or randread"
    case .noThread(let error): "no thread could be started (\(error)): raise the limit with 'ulimit -u'"
    case .noMemory(let bytes): "\(bytes) bytes of memory cannot be allocated: use a smaller --bs or --iodepth"
    case .system(let what, let error): "\(what) failed: \(error)"
    case .brokenRing(let queue, let what): "the device broke queue \(queue): \(what)"
    case .requestFailed(let queue, let status, let isWrite, let sector):
      "a \(isWrite ? "write" : "read") at sector \(sector) on queue \(queue) ended with status \(status): see the log of the "
        + "back-end for the cause"
    case .wrongData(let mismatch): mismatch.description
    case .noAnswer(let outstanding, let seconds):
      "\(outstanding) requests were not answered within \(seconds) s: the back-end is stuck or gone"
    case .cannotSleep:
      "one thread cannot sleep on several queues of a memory file: use --thread-per-queue, or let the client poll"
    case .target(let what): what
    case .report(let path, let what): "\(path) is not a report of this program: \(what)"
    case .unavailable(let what): what
    }
  }
}
