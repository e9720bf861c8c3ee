/// A front-end whose back-end ended, in whatever way, continues with the next one: what a VMM does with `reconnect=`.
internal import CLinux
internal import Glibc
internal import VhostUser
public import VirtioCore

/// How to continue.
public struct Reconnection: Sendable {
  /// Where a ring is to begin again; front-ends differ.
  public enum Base: String, CaseIterable, Sendable {
    /// Behind what is used, as QEMU says it: right where a back-end publishes in order, or keeps records.
    /// A packed ring whose back-end answered out of order can continue only with records: answers lie over descriptors.
    case used
    /// Behind what is available, as Cloud Hypervisor says it: right only for a back-end that keeps records.
    case available
  }

  /// The socket of the next back-end; set by `VhostUserTransport.init(path:)`.
  public internal(set) var path = ""
  /// How long there may be nobody.
  public var limit: Duration
  public var base: Base
  /// Whether to keep the back-end's records of what is in flight, where it offers that.
  public var keepsRecords: Bool

  public init(limit: Duration = Patience.limit, base: Base = .used, keepsRecords: Bool = true) {
    self.limit = limit
    self.base = base
    self.keepsRecords = keepsRecords
  }
}

extension VhostUserTransport {
  /// Between two attempts to connect, microseconds.
  private static let pause: UInt32 = 2000

  public var connectionDescriptor: Int32? { reconnection == nil ? nil : frontend.descriptor }

  /// Rings that are started for the first time. A back-end that goes in the meantime is one that went.
  func startAll() throws(DriverError) {
    do {
      try keepRecords()
      for index in queues.indices { try start(index, base: base(.start(format), .used)) }
    } catch {
      guard case .noDevice = error, reconnection != nil else { throw error }
      for index in queues.indices { queues[index].isRunning = true }
      guard try recover({ _ in .start(format) }) > 0 else { throw error }
    }
  }

  /// Before rings are started: asks for memory for records, once, as VMMs do, and hands it over.
  private func keepRecords() throws(DriverError) {
    guard let reconnection, reconnection.keepsRecords, offer.protocolFeatures.contains(.inflight) else { return }
    let size = queues.map(\.configuration.size).max() ?? 0
    let count = UInt16(clamping: queues.count)
    if inflight == nil {
      inflight = try Self.ask { () throws(FrontendError) in try frontend.getInflight(queues: count, size: size) }
    }
    if let inflight { try Self.ask { () throws(FrontendError) in try frontend.setInflight(inflight) } }
  }

  public func recover(_ standing: (_ queue: Int) -> QueueStanding) throws(DriverError) -> Int {
    guard let reconnection, isLost else { return 0 }
    var met = 0
    let end = ContinuousClock.now + reconnection.limit
    while true {
      let failure: DriverError
      do {
        try goOn(reconnection, standing, &met)
        reconnections += 1
        return met
      } catch { failure = error }
      switch failure {
      case .noDevice, .timeout: break
      default: throw failure
      }
      guard .now < end else {
        throw .noDevice("the back-end went and did not come back within \(reconnection.limit): \(failure)")
      }
      usleep(Self.pause)
    }
  }

  /// The other end of a UNIX socket is gone.
  private var isLost: Bool {
    var one = pollfd(fd: frontend.descriptor, events: 0, revents: 0)
    return unsafe poll(&one, 1, 0) > 0 && one.revents & Int16(POLLHUP | POLLERR) != 0
  }

  private func goOn(
    _ reconnection: Reconnection, _ standing: (_ queue: Int) -> QueueStanding, _ met: inout Int
  ) throws(DriverError) {
    do { frontend = try Frontend(connectingTo: reconnection.path) } catch { throw .noDevice("\(error)") }
    met += 1
    (offer, channel) = try Self.meet(frontend)
    guard accepted.isSubset(of: offer.features), queues.count <= offer.queueCount,
      inflight == nil || offer.protocolFeatures.contains(.inflight), writtenPages == nil || offer.keepsLog
    else { throw .refused("the back-end that came back offers less than the one before it") }
    memoryIsSet = false
    try sendFeatures()
    try setMemory()
    try keepRecords()
    for index in queues.indices where queues[index].isRunning {
      try start(index, base: base(standing(index), reconnection.base))
      // What was kicked in the meantime, nobody took.
      EventCounter.signal(queues[index].kick.rawValue)
    }
    if hasStatus { try Self.ask { () throws(FrontendError) in try frontend.setStatus(localStatus) } }
  }

  private var format: RingFormat { RingFormat(accepted) }

  /// Nobody serves the ring, so it stalls. Of a packed ring both halves are said, and of its used half there is only one.
  private func base(_ standing: QueueStanding, _ choice: Reconnection.Base) -> UInt32 {
    let available = choice == .used ? standing.used : standing.available
    return UInt32(available) | (format == .packed ? UInt32(standing.used) << 16 : 0)
  }
}
