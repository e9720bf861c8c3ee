/// How the io_uring engine sets up its ring. The defaults are the best choices that the kernel supports; the others are for
/// measurements.

public struct UringSetup: Hashable, Sendable {
  /// Who runs the completion side of an operation.
  public enum Completion: Hashable, Sendable {
    /// The queue's thread, when it asks for completions: SINGLE_ISSUER and DEFER_TASKRUN (Linux 6.1).
    case deferred
    /// The queue's thread, at its next system call: COOP_TASKRUN (Linux 5.19).
    case cooperative
    /// The queue's thread, which is interrupted for it.
    case plain
    /// A kernel thread submits: SQPOLL, pinned to a CPU if one is given.
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

  /// How much is submitted to the kernel at once.
  public enum Handover: Hashable, Sendable {
    /// On a medium other than memory, the first four operations of a turn, then eight, and so on; otherwise all of a turn.
    case growing
    /// All operations of a turn.
    case whole
    /// This many; at least 1.
    case every(Int)
  }

  /// Who runs the completion side of an operation.
  public var completion = Completion.deferred
  /// How the kernel learns that the device is done.
  public var poll = Poll.off
  /// Whether the image is registered as file 0 of the ring's own table.
  public var registersFile = true
  /// Whether guest memory is pinned once instead of for each operation. It counts against the limit of locked memory.
  public var registersBuffers = false
  /// Whether the ring's own descriptor is registered, so that it is looked up only once.
  public var registersRing = true
  /// How many completions to wait for at once, while at least that many operations are in flight; at least 1.
  public var minimumWait = 1
  /// How many operations are collected before they are submitted.
  public var handover = Handover.growing
  /// Whether the submission ring has an index array with the order of its entries; without it they are taken in place
  /// (NO_SQARRAY, Linux 6.6).
  public var usesIndexArray = true
  /// Whether kicks come through an epoll set and completions through an eventfd, as in an event loop, instead of through the
  /// ring.
  public var kicksThroughEpoll = false

  /// The defaults: the best choices that the kernel supports.
  public init() {}
}
