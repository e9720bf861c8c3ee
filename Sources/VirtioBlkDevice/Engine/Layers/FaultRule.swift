/// Rules for fault injection, as a user writes them: `write:eio:rate=0.01:range=1M-2M`.
internal import Glibc
internal import VirtioCore

/// A fault to inject at the medium, and when.
///
/// `WHICH:FAULT[:CONDITION…]`; `help` has the full grammar. All conditions have to be met.
public struct FaultRule: Hashable, Sendable {
  /// The operations of the medium: one request may be several, and a retry is a new one.
  public enum Target: String, CaseIterable, Sendable {
    /// Reads.
    case read
    /// Writes of data.
    case write
    /// Flushes.
    case flush
    /// Punching of holes: DISCARD, and WRITE_ZEROES that may deallocate space.
    case discard
    /// WRITE_ZEROES that keeps its space.
    case zero
    /// All of these.
    case any
  }

  /// What happens to an operation that is hit.
  public enum Effect: Hashable, Sendable {
    /// Nothing is done, and the result is this errno (positive).
    case error(Int32)
    /// Only this many bytes are transferred; `nil`: a random number of whole sectors, at least one and, if there are several,
    /// not all.
    case short(bytes: UInt64?)
    /// It is executed at once and reported this much later: nanoseconds.
    case delay(ClosedRange<UInt64>)
    /// This many results are held back and reported in random order; those that wait for others are reported after 10 ms.
    case reorder(Int)
    /// It is not executed, and never completes.
    case never
  }

  /// Which operations are hit.
  public var target: Target
  /// What happens to them.
  public var effect: Effect
  /// The part of the operations that are hit: 0 … 1.
  public var rate = 1.0
  /// Bytes of the disk; only operations that touch them are hit, which flushes never do. `nil`: all.
  public var range: Range<UInt64>?
  /// The most operations that are hit; `nil`: no limit.
  public var count: Int?
  /// How many operations that would be hit are spared first.
  public var spared = 0
  /// The seed of the random numbers.
  public var seed: UInt64 = 1

  /// A rule that hits every operation of this kind; the other properties restrict it.
  public init(_ target: Target, _ effect: Effect) {
    self.target = target
    self.effect = effect
  }

  /// - Parameter text: as in `help`.
  /// - Returns: `nil` for anything else.
  public init?(_ text: String) {
    var words = text.split(separator: ":", omittingEmptySubsequences: false).map(String.init)
    guard words.count >= 2, let target = Target(rawValue: words[0]), let effect = Effect(words[1]) else { return nil }
    if case .short = effect, target == .flush { return nil }
    self.init(target, effect)
    words.removeFirst(2)
    var seen: Set<String> = []
    for word in words {
      let sides = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
      guard sides.count == 2, seen.insert(sides[0]).inserted else { return nil }
      switch sides[0] {
      case "rate":
        guard let rate = Double(sides[1]), (0...1).contains(rate) else { return nil }
        self.rate = rate
      case "range":
        let ends = sides[1].split(separator: "-", omittingEmptySubsequences: false).map { ByteSize.parse(String($0)) }
        guard ends.count == 2, let first = ends[0], let end = ends[1], first < end else { return nil }
        range = first..<end
      case "count":
        guard let count = Int(sides[1]), count > 0 else { return nil }
        self.count = count
      case "after":
        guard let spared = Int(sides[1]), spared >= 0 else { return nil }
        self.spared = spared
      case "seed":
        guard let seed = UInt64(sides[1]) else { return nil }
        self.seed = seed
      default: return nil
      }
    }
  }

  /// The grammar, for --help.
  public static let help = """
    WHICH:FAULT[:CONDITION...]. May be repeated. WHICH is read, write, flush, discard, zero or any. FAULT is an \
    error (\(errors.map(\.name).joined(separator: ", ")), or errno=N), short or short=BYTES (a partial transfer), \
    delay=TIME or delay=TIME-TIME (us, ms or s), reorder=N (N results in random order) or never (it never completes). CONDITION \
    is rate=0.01, range=FROM-TO (bytes of the disk), count=N (at most N), after=N (not the first N) or seed=N. As in \
    write:eio:rate=0.01:range=1M-2M, flush:eio:count=1, any:delay=5ms.
    """

  /// The errors that can be given by name: those of media, file systems and io_uring.
  static let errors: [(name: String, number: Int32)] = [
    ("eio", EIO), ("enospc", ENOSPC), ("eagain", EAGAIN), ("eintr", EINTR), ("einval", EINVAL), ("eopnotsupp", EOPNOTSUPP),
    ("erofs", EROFS), ("edquot", EDQUOT), ("efbig", EFBIG), ("enodev", ENODEV), ("enxio", ENXIO), ("etimedout", ETIMEDOUT),
    ("eremoteio", EREMOTEIO), ("enolink", ENOLINK), ("enodata", ENODATA), ("eilseq", EILSEQ), ("ebade", EBADE),
    ("enomem", ENOMEM), ("ebusy", EBUSY), ("estale", ESTALE), ("ebadf", EBADF), ("eperm", EPERM), ("ecanceled", ECANCELED),
  ]
}

extension FaultRule.Effect {
  init?(_ text: String) {
    if let error = FaultRule.errors.first(where: { $0.name == text }) {
      self = .error(error.number)
      return
    }
    let sides = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
    switch (sides[0], sides.count) {
    case ("never", 1): self = .never
    case ("short", 1): self = .short(bytes: nil)
    case ("short", 2):
      guard let bytes = ByteSize.parse(sides[1]) else { return nil }
      self = .short(bytes: bytes)
    case ("errno", 2):
      guard let number = Int32(sides[1]), (1...4095).contains(number) else { return nil }
      self = .error(number)
    case ("reorder", 2):
      guard let count = Int(sides[1]), (2...1024).contains(count) else { return nil }
      self = .reorder(count)
    case ("delay", 2):
      let ends = sides[1].split(separator: "-", omittingEmptySubsequences: false).map { Self.nanoseconds(String($0)) }
      guard (1...2).contains(ends.count), let first = ends[0], let last = ends[ends.count - 1], first <= last else {
        return nil
      }
      self = .delay(first...last)
    default: return nil
    }
  }

  /// `100us`, `5ms`, `2s`: an hour at most.
  private static func nanoseconds(_ text: String) -> UInt64? {
    for (unit, scale) in [("us", 1000), ("ms", 1_000_000), ("s", 1_000_000_000)] as [(String, UInt64)]
    where text.hasSuffix(unit) {
      guard let number = UInt64(text.dropLast(unit.count)) else { return nil }
      let (time, overflow) = number.multipliedReportingOverflow(by: scale)
      return overflow || time > 3_600_000_000_000 ? nil : time
    }
    return nil
  }
}
