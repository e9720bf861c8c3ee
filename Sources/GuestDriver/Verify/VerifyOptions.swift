/// The verifier's options, its progress, and why it stops.

/// What to do to the disk.
public struct VerifyOptions: Sendable {
  /// Determines the whole run.
  public var seed: UInt64
  /// The part of the disk, bytes, whole blocks; `nil`: all, up to 1 GiB from its start.
  public var range: Range<UInt64>?
  public var limit: Limit
  /// The largest request, bytes.
  public var largest: Int
  /// How often each kind is chosen, relative to the others. Kinds that the device does not offer are left out.
  public var weights: Weights
  public var cuts: Cuts

  /// How requests are cut into descriptors. Devices have to accept all of these.
  public enum Cuts: String, CaseIterable, Sendable {
    /// Header, data and status in a descriptor each, as Linux does.
    case classic
    /// At random, all in the ring's table or all in an indirect one.
    case random
    /// Also some in the ring's table and the rest in an indirect one, which libvhost-user, and with it QEMU's export, does
    /// not understand.
    case all
  }

  public enum Limit: Hashable, Sendable {
    /// Bytes read and written.
    case bytes(UInt64)
    case duration(Duration)
  }

  public struct Weights: Hashable, Sendable {
    public var read = 40
    public var write = 45
    public var flush = 3
    public var discard = 4
    public var writeZeroes = 8
    public init() {}
  }

  public init(
    seed: UInt64, range: Range<UInt64>? = nil, limit: Limit, largest: Int = 128 * 1024, weights: Weights = Weights(),
    cuts: Cuts = .all
  ) {
    self.seed = seed
    self.range = range
    self.limit = limit
    self.largest = largest
    self.weights = weights
    self.cuts = cuts
  }
}

/// The progress of a run, or its result.
public struct VerifyProgress: Sendable {
  public var elapsed = Duration.zero
  public var requests: [BlockRequestType: Int] = [:]
  /// Requests that were answered, those of the last pass included.
  public var answered = 0
  public var bytesRead: UInt64 = 0
  public var bytesWritten: UInt64 = 0
  /// Bytes of the last pass, which reads everything back.
  public var bytesReadBack: UInt64 = 0
  public var kicks = 0
  public var calls = 0

  public var bytes: UInt64 { bytesRead + bytesWritten }
  public var requestCount: Int { requests.values.reduce(0, +) }
}

/// Why the verification failed.
public enum VerifyError: Error, Sendable, CustomStringConvertible {
  case driver(DriverError, seed: UInt64)
  case failed(request: String, queue: Int, status: BlockStatusCode, seed: UInt64)
  case mismatch(Mismatch, request: String, queue: Int, seed: UInt64)
  case badOptions(String)

  public var description: String {
    switch self {
    case .driver(let error, let seed): "\(error) (seed \(seed))"
    case .failed(let request, let queue, let status, let seed):
      "the device answered \(status) to request \(request) on queue \(queue) (seed \(seed))"
    case .mismatch(let mismatch, let request, let queue, let seed):
      "the disk does not hold what was written: \(mismatch); read by request \(request) on queue \(queue) (seed \(seed))"
    case .badOptions(let what): what
    }
  }
}
