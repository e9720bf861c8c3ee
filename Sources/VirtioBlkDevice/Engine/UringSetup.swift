/// How the io_uring engine sets up its ring. The defaults are what is best where the kernel has it; the rest is for those who
/// measure.

public struct UringSetup: Hashable, Sendable {
  /// Who runs the completion side of an operation.
  public enum Completion: Hashable, Sendable {
    /// The queue's thread, when it asks for completions: SINGLE_ISSUER and DEFER_TASKRUN (Linux 6.1).
    case deferred
    /// The queue's thread, at its next system call: COOP_TASKRUN (Linux 5.19).
    case cooperative
    /// The queue's thread, interrupted for it.
    case plain
    /// A kernel thread submits: SQPOLL, on a CPU of its own if one is named.
    case submissionThread(cpu: Int?)
  }

  /// Whether the device is polled for completions instead of waiting for its interrupt (IOPOLL).
  public enum Poll: String, Hashable, Sendable, CaseIterable {
    /// The device interrupts.
    case off
    /// The device is polled while a completion is awaited.
    case on
    /// Sleep for half of the expected time first (Linux 6.13).
    case hybrid
  }

  /// How much is handed over to the kernel at once.
  public enum Handover: Hashable, Sendable {
    /// On a medium that is not memory the first four operations of a turn, then eight, and so on; else all of a turn.
    case growing
    /// All that a turn has.
    case whole
    /// So many; at least 1.
    case every(Int)
  }

  /// Who runs the completion side of an operation.
  public var completion = Completion.deferred
  /// How the kernel learns that the device is done.
  public var poll = Poll.off
  /// The image is file 0 of the ring's own table.
  public var registersFile = true
  /// Guest memory is pinned once instead of at each operation. It counts against the locked-memory limit.
  public var registersBuffers = false
  /// The ring's own descriptor is looked up once.
  public var registersRing = true
  /// How many completions to wait for at once, while at least that many operations are in flight; at least 1.
  public var minimumWait = 1
  /// How many operations are collected before the kernel gets them.
  public var handover = Handover.growing
  /// The submission ring has a second array with the order of its entries; without it they are taken as they come
  /// (NO_SQARRAY, Linux 6.6).
  public var usesIndexArray = true
  /// Kicks come through an epoll set and completions through an eventfd, as in an event loop, instead of through the ring.
  public var kicksThroughEpoll = false

  /// The defaults: the best choices where the kernel supports them.
  public init() {}
}
