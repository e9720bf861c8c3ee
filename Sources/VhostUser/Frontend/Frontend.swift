/// The front-end's end of the socket: what a VMM does to set up a device in another process.
internal import CLinux
internal import Glibc
internal import Sockets
internal import Synchronization
internal import SystemPackage
public import VirtioCore

/// A connection to a vhost-user back-end. Every method sends one request and waits for its answer, if one is due.
///
///     let frontend = try Frontend(connectingTo: "/run/disk.sock")
///     let offer = try frontend.handshake()
///     let config = try frontend.configuration(at: 0, count: 60)
///     try frontend.setFeatures(offer.features.intersection([.version1, .eventIndex]))
///     try frontend.setMemory([.init(region, descriptor: memfd)])
///     try frontend.start(FrontendQueue(index: 0, size: 128, …))      // kick, call and err are eventfds
///     … the rings are in shared memory; write 8 bytes to the kick …
///     let base = try frontend.stop(queue: 0)                         // answered when everything in flight is done
///
/// Methods are called from one thread at a time, except `ask` and methods that only call it: there, another thread waits for
/// its turn. Descriptors that are passed in are shared, not consumed: the kernel duplicates them.
public final class Frontend {
  /// The offer of a back-end.
  public struct Offer: Hashable, Sendable {
    /// The device's feature bits, without those of the transport (26 and 30).
    public var features: FeatureSet
    /// The protocol features that were negotiated, not those that were offered.
    public var protocolFeatures: ProtocolFeatures
    /// 1 if the back-end has no MQ.
    public var queueCount: Int
    /// How many memory regions it accepts; 8 without CONFIGURE_MEM_SLOTS.
    public var memorySlots: Int
    /// It can keep a dirty log: VHOST_F_LOG_ALL is offered and LOG_SHMFD was negotiated.
    public var keepsLog: Bool
  }

  public var session = FrontendSession()
  /// How long an answer may take.
  public var patience: Duration
  /// Bit 30 was acknowledged in SET_FEATURES, so rings wait for SET_VRING_ENABLE.
  public private(set) var enablesRings = false
  private var offersProtocolFeatures = false
  private let socket: OwnedDescriptor
  private var reader = MessageReader()
  private var writer = MessageWriter()
  /// One exchange at a time.
  private let turn = Mutex(())

  public init(connectingTo path: String, patience: Duration = Patience.limit) throws(FrontendError) {
    do { self.socket = try UnixSocket.connect(to: path) } catch { throw .socket(error) }
    self.patience = patience
  }

  /// Uses a socket that is connected already.
  public init(socket: OwnedDescriptor, patience: Duration = Patience.limit) {
    self.socket = socket
    self.patience = patience
  }

  /// The socket, for callers that wait for its end or break the protocol on purpose.
  public var descriptor: Int32 { socket.rawValue }
}

extension Frontend {
  /// The first messages of every front-end: become the owner, ask for features, agree on the protocol.
  ///
  /// - Parameter wanted: protocol features to acknowledge if they are offered.
  public func handshake(wanting wanted: ProtocolFeatures = .served) throws(FrontendError) -> Offer {
    try tell(.setOwner)
    let features = FeatureSet(rawValue: try number(.getFeatures))
    offersProtocolFeatures = features.contains(.protocolFeatures)
    if offersProtocolFeatures {
      let offered = ProtocolFeatures(rawValue: try number(.getProtocolFeatures))
      try setProtocolFeatures(offered.intersection(wanted))
    }
    let agreed = session.protocolFeatures
    return Offer(
      features: features.subtracting(.betweenEnds), protocolFeatures: agreed,
      queueCount: agreed.contains(.multiqueue) ? Int(clamping: try number(.getQueueCount)) : 1,
      memorySlots: agreed.contains(.memorySlots) ? Int(clamping: try number(.getMaximumMemorySlots)) : 8,
      keepsLog: features.contains(.logAll) && agreed.contains(.sharedLog))
  }

  public func setProtocolFeatures(_ features: ProtocolFeatures) throws(FrontendError) {
    try tell(.setProtocolFeatures, NumberPayload.encode(features.rawValue))
    session.protocolFeatures = features
  }

  /// GET_FEATURES, including bit 30.
  public func features() throws(FrontendError) -> FeatureSet { FeatureSet(rawValue: try number(.getFeatures)) }

  /// Fixes the device's features.
  ///
  /// - Parameter enablesRings: acknowledge bit 30 as well if it is offered, as all except very old front-ends do.
  public func setFeatures(_ features: FeatureSet, enablesRings: Bool = true) throws(FrontendError) {
    let acknowledges = enablesRings && offersProtocolFeatures
    try tell(
      .setFeatures, NumberPayload.encode((acknowledges ? features.union(.protocolFeatures) : features).rawValue))
    self.enablesRings = acknowledges
  }

  /// GET_QUEUE_NUM, whether MQ was negotiated or not.
  public func queueCount() throws(FrontendError) -> UInt64 { try number(.getQueueCount) }

  /// GET_STATUS (needs STATUS).
  public func status() throws(FrontendError) -> DeviceStatus {
    DeviceStatus(rawValue: UInt8(truncatingIfNeeded: try number(.getStatus)))
  }

  /// SET_STATUS (needs STATUS).
  public func setStatus(_ status: DeviceStatus) throws(FrontendError) {
    try tell(.setStatus, NumberPayload.encode(UInt64(status.rawValue)))
  }

  /// RESET_DEVICE (needs RESET_DEVICE). Rings have to be set up again afterwards.
  public func resetDevice() throws(FrontendError) { try tell(.resetDevice) }

  /// A piece of the configuration space (needs CONFIG).
  public func configuration(at offset: UInt32, count: Int, flags: UInt32 = 0) throws(FrontendError) -> [UInt8] {
    let asked = ConfigurationPayload(
      offset: offset, flags: flags, contents: [UInt8](repeating: 0, count: max(count, 0)))
    let reply = try ask(.getConfiguration, asked.bytes)
    return Array(reply[ConfigurationPayload.headerSize...])
  }

  /// The driver's write to the configuration space (needs CONFIG). Without acknowledgements a refusal goes unnoticed.
  public func setConfiguration(at offset: UInt32, _ bytes: [UInt8], flags: UInt32 = 0) throws(FrontendError) {
    try tell(.setConfiguration, ConfigurationPayload(offset: offset, flags: flags, contents: bytes).bytes)
  }

  /// Opens the channel for requests of the back-end (needs BACKEND_REQ).
  public func openBackendChannel() throws(FrontendError) -> BackendChannel {
    let (ours, theirs) = try BackendChannel.pair()
    try tell(.setBackendRequestDescriptor, [], [theirs])
    return ours
  }
}

// MARK: One request

extension Frontend {
  /// Sends a request that has no reply of its own, and waits for its acknowledgement if one is due.
  public func tell(
    _ request: FrontendRequest, _ payload: [UInt8] = [], _ descriptors: [OwnedDescriptor] = []
  ) throws(FrontendError) {
    _ = try ask(request, payload, descriptors)
  }

  /// Sends a request and waits for its answer.
  /// - Returns: the payload of the answer; empty if none was due.
  public func ask(
    _ request: FrontendRequest, _ payload: [UInt8] = [], _ descriptors: [OwnedDescriptor] = []
  ) throws(FrontendError) -> [UInt8] {
    try exchange(request, payload, descriptors).payload
  }

  private func exchange(
    _ request: FrontendRequest, _ payload: [UInt8], _ descriptors: [OwnedDescriptor]
  ) throws(FrontendError) -> (payload: [UInt8], descriptors: [OwnedDescriptor]) {
    try turn.withLock { _ throws(FrontendError) in try exchangeNow(request, payload, descriptors) }
  }

  private func exchangeNow(
    _ request: FrontendRequest, _ payload: [UInt8], _ descriptors: [OwnedDescriptor]
  ) throws(FrontendError) -> (payload: [UInt8], descriptors: [OwnedDescriptor]) {
    let (message, expectation) = session.message(request, payload: payload, descriptors: descriptors)
    let limit = ContinuousClock.now + patience
    writer.enqueue(message)
    while true {
      do { try writer.flush(socket.rawValue) } catch { throw connectionError(error, request) }
      if writer.isIdle { break }
      try wait(POLLOUT, until: limit, request)
    }
    guard expectation != .nothing else { return ([], []) }
    let reply = try receive(until: limit, request)
    return (try session.accept(reply, to: request, expectation), reply.descriptors)
  }

  /// Sends a request and waits for its answer, with the descriptor that came with it.
  func askForDescriptor(
    _ request: FrontendRequest, _ payload: [UInt8]
  ) throws(FrontendError) -> (payload: [UInt8], descriptor: OwnedDescriptor?) {
    let (payload, descriptors) = try exchange(request, payload, [])
    return (payload, descriptors.first)
  }

  /// Sends any message unchanged, without waiting for an answer.
  public func send(_ message: Message) throws(FrontendError) {
    writer.enqueue(message)
    do { try writer.flush(socket.rawValue) } catch { throw .stream(error) }
  }

  /// Waits for the next message of the back-end, whatever it is; for callers of `send`.
  public func receive(after request: FrontendRequest) throws(FrontendError) -> Message {
    try receive(until: .now + patience, request)
  }

  func number(_ request: FrontendRequest) throws(FrontendError) -> UInt64 {
    let reply = try ask(request)
    guard let value = NumberPayload.decode(reply) else { preconditionFailure("\(request.name) has a reply of a number") }
    return value
  }

  private func receive(until limit: ContinuousClock.Instant, _ request: FrontendRequest) throws(FrontendError) -> Message {
    while true {
      let progress: MessageReader.Progress
      do { progress = try reader.read(socket.rawValue) } catch { throw connectionError(error, request) }
      switch progress {
      case .message(let reply): return reply
      case .ended: throw .closed(during: request)
      case .nothingYet: try wait(POLLIN, until: limit, request)
      }
    }
  }

  /// A peer that is gone shows as a broken pipe or as an end within a message; both mean the same to the caller.
  private func connectionError(_ error: StreamError, _ request: FrontendRequest) -> FrontendError {
    switch error {
    case .cutOff, .system(.brokenPipe): .closed(during: request)
    default: .stream(error)
    }
  }

  private func wait(
    _ events: Int32, until limit: ContinuousClock.Instant, _ request: FrontendRequest
  ) throws(FrontendError) {
    let left = limit - .now
    guard left > .zero else { throw .timedOut(waitingFor: request, seconds: patience / .seconds(1)) }
    var entry = pollfd(fd: socket.rawValue, events: Int16(events), revents: 0)
    _ = unsafe poll(&entry, 1, Int32(clamping: Int(left / .milliseconds(1)) + 1))
  }
}
