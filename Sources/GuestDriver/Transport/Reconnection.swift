/// A front-end whose back-end has ended, however that happened, continues with the next one, as a VMM does with `reconnect=`.
internal import CLinux
internal import Glibc
internal import VhostUser
public import VirtioCore

/// How to continue.
public struct Reconnection: Sendable {
  /// Where a ring resumes; front-ends differ.
  public enum Base: String, CaseIterable, Sendable {
    /// After what is used, like QEMU: right if the back-end publishes in order, or keeps records. A packed ring whose back-end
    /// answered out of order can continue only with records: answers lie over descriptors.
    case used
    /// After what is available, like Cloud Hypervisor: right only for a back-end that keeps records.
    case available
  }

  /// The socket of the next back-end; set by `VhostUserTransport.init(path:)`.
  public internal(set) var path = ""
  /// How long to wait for the next back-end.
  public var limit: Duration
  public var base: Base
  /// Whether to keep the back-end's in-flight records, if it offers that.
  public var keepsRecords: Bool

  public init(limit: Duration = Patience.limit, base: Base = .used, keepsRecords: Bool = true) {
    self.limit = limit
    self.base = base
    self.keepsRecords = keepsRecords
  }
}

extension VhostUserTransport {
  /// The time between two attempts to connect, in microseconds.
  private static let pause: UInt32 = 2000

  public var connectionDescriptor: Int32? { reconnection == nil ? nil : frontend.descriptor }

  /// Starts the rings for the first time. A back-end that goes away in the meantime counts as one that went away.
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

  /// Call it before rings are started: requests memory for in-flight records, once, as VMMs do, and hands it over.
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
        throw .noDevice("the back-end went away and did not come back within \(reconnection.limit): \(failure)")
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
      // Kicks in the meantime were lost.
      EventCounter.signal(queues[index].kick.rawValue)
    }
    if hasStatus { try Self.ask { () throws(FrontendError) in try frontend.setStatus(localStatus) } }
  }

  private var format: RingFormat { RingFormat(accepted) }

  /// Where a ring resumes that nobody serves at present. For a packed ring both halves are given, and its used half has only
  /// one value.
  private func base(_ standing: QueueStanding, _ choice: Reconnection.Base) -> UInt32 {
    let available = choice == .used ? standing.used : standing.available
    return UInt32(available) | (format == .packed ? UInt32(standing.used) << 16 : 0)
  }
}
