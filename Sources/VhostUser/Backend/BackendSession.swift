/// The back-end's half of the protocol as a value: a message goes in, and effects come out, one at a time.
public import VirtioCore

/// The protocol state of one connection. It does no I/O and knows no device: it returns what has to be done, in order, and is
/// given the outcomes.
///
///     session.receive(message)
///     while let effect = session.nextEffect() { … }      // do it; report the answer where the effect has one
///
/// A message is handled completely before the next one is received. Effects are pulled, not returned in a list, because what
/// follows a stop or a mapping depends on its outcome.
public struct BackendSession: Sendable {
  /// What the session has to know about its device.
  public struct DeviceDescription: Hashable, Sendable {
    public var features: FeatureSet
    /// At least 1; a vhost-user queue index has 8 bits, so more than 256 cannot be used.
    public var queueCount: Int
    /// A power of two.
    public var maximumQueueSize: UInt16
    /// Bytes of guest memory that one front-end may have mapped.
    public var memoryBudget: UInt64
    /// Queues without an in-flight record publish in order, so that the used index alone says what is done.
    public var publishesInOrder: Bool

    /// The protocol features that are offered.
    public var protocolFeatures: ProtocolFeatures
    /// The offset in the configuration space of the byte that a driver may write (`VirtioDevice.writableByte`).
    public var writableByte: UInt8?

    public init(
      features: FeatureSet, queueCount: Int, maximumQueueSize: UInt16, memoryBudget: UInt64 = .max,
      publishesInOrder: Bool = false, protocolFeatures: ProtocolFeatures = .served, writableByte: UInt8? = nil
    ) {
      self.protocolFeatures = protocolFeatures
      self.writableByte = writableByte
      self.features = features
      self.queueCount = queueCount
      self.maximumQueueSize = maximumQueueSize
      self.memoryBudget = memoryBudget
      self.publishesInOrder = publishesInOrder
    }
  }

  /// A step that remains for the current message. A step that depends on the outcome of earlier ones looks at the state when
  /// its turn comes.
  enum Step {
    case effect(Effect)
    case stop(Int)
    /// Start the ring if it is ready; `refuses`: a failure is the message's failure too.
    case startIfReady(Int, refuses: Bool)
    case changeRing(Int, @Sendable (inout Ring) -> Void)
    case replyBase(Int)
    case resetRings
    case forgetTranslationsOfNoRing
    /// Keep the present value of the byte that a driver may write.
    case keepConfiguration
    case finish
  }

  /// The current message.
  struct Exchange {
    var request: UInt32
    var wantsReply: Bool
    var refusal: Refusal?
  }

  let device: DeviceDescription
  public internal(set) var protocolFeatures = ProtocolFeatures()
  /// The features that the front-end chose, without the bits of the transport; `nil` before.
  public internal(set) var features: FeatureSet?
  public internal(set) var status = DeviceStatus()
  public internal(set) var table = MemoryTable()
  var rings: [Ring]
  /// For a driver behind an IOMMU: the front-end's translations, and their last resolved form.
  var translations: TranslationTable
  var madeTranslations: Translations?
  /// The number of the last question.
  var lastWait: UInt64 = 0
  /// The dirty log; `nil` before the front-end sent one.
  var log: DirtyLog?
  /// Writes to buffers are logged, too.
  var logsBuffers = false
  /// The in-flight records; `nil` before SET_INFLIGHT_FD.
  public internal(set) var inflight: InflightMemory?
  /// What the driver wrote to the configuration space; the device has it.
  var writtenConfiguration: KeptConfiguration?
  /// What the driver had written while another server served it: to be written to the device before a ring runs.
  var configurationToRestore: KeptConfiguration?
  /// The device is being asked to write this.
  var configurationInRestoration: KeptConfiguration?
  /// The device is being asked for the byte to be kept, at this offset.
  var keptByteAsked: UInt8?
  var hasChannel = false
  /// A configuration change that has not been sent yet, because nothing may be sent while every ring is stopped.
  var owesConfigurationChange = false
  var steps: [Step] = []
  var exchange: Exchange?
  /// A pending read of the configuration.
  var configurationAsked: ConfigurationPayload?
  /// Whether a failure of the current start fails the current message.
  var startRefuses = false
  /// What to do with the current descriptor once it has been found suitable.
  var whenExamined: (@Sendable (inout BackendSession, ExaminedDescriptor) -> Void)?
  /// Features that the device is being asked about.
  var featuresAsked: FeatureSet?

  public init(_ device: DeviceDescription) {
    self.device = device
    self.rings = Array(repeating: Ring(), count: min(device.queueCount, 256))
    self.translations = TranslationTable(queues: rings.count)
  }

  /// Takes the next message. Its effects follow from `nextEffect`.
  public mutating func receive(_ message: Message) {
    precondition(steps.isEmpty, "the previous message has effects that were not pulled yet")
    exchange = Exchange(request: message.request, wantsReply: message.flags.contains(.needReply), refusal: nil)
    if message.request == FrontendRequest.iotlb.rawValue {
      // Its handler checks everything before it changes anything, and it comes too often to copy the table each time.
      do { try handle(message) } catch { exchange?.refusal = error }
    } else {
      // A refused message changes nothing: this undoes what the handler had changed before it found the fault.
      let before = self
      do { try handle(message) } catch {
        self = before
        exchange?.refusal = error
        announce(error, to: message)
      }
    }
    steps.append(.finish)
  }

  /// What to do next; `nil` when the message has been handled.
  public mutating func nextEffect() -> Effect? {
    while !steps.isEmpty {
      if let effect = perform(steps.removeFirst()) { return effect }
    }
    // A message about every ring has many steps; their memory would stay with each connection.
    steps = []
    return nil
  }

  private mutating func handle(_ message: Message) throws(Refusal) {
    guard let request = FrontendRequest(rawValue: message.request) else { throw .notServed }
    switch request.payloadRule {
    case .atLeast(let size):
      guard message.payload.count >= size else { throw .wrongSize(message.payload.count) }
    case .memoryTable, .configuration: break
    case .any: throw .notServed
    }
    switch request {
    case .setOwner: break
    case .resetOwner: disableRings()
    case .getFeatures: reply(device.features.union(betweenEnds).rawValue)
    case .setFeatures: try setFeatures(message)
    case .getProtocolFeatures: reply(device.protocolFeatures.rawValue)
    case .setProtocolFeatures: try setProtocolFeatures(message)
    case .getQueueCount: reply(UInt64(rings.count))
    case .getMaximumMemorySlots: reply(UInt64(GuestMemory.maximumRegions))
    case .setMemoryTable: try setMemoryTable(message)
    case .addMemoryRegion: try addMemoryRegion(message)
    case .removeMemoryRegion: try removeMemoryRegion(message)
    case .setLogBase: try setLogBase(message)
    case .setVringSize: try setSize(message)
    case .setVringAddress: try setAddress(message)
    case .setVringBase: try setBase(message)
    case .getVringBase: try getBase(message)
    case .setVringKick: try setKick(message)
    case .setVringCall: try setCall(message)
    case .setVringError: try setError(message)
    case .setVringEnable: try setEnable(message)
    case .setBackendRequestDescriptor: try setChannel(message)
    case .getConfiguration: try getConfiguration(message)
    case .setConfiguration: try setConfiguration(message)
    case .getInflight: try getInflight(message)
    case .setInflight: try setInflight(message)
    case .resetDevice: resetDevice()
    case .setStatus: try setStatus(message)
    case .getStatus: reply(UInt64(status.rawValue))
    case .iotlb: try translation(message)
    default: throw .notServed
    }
  }

  private mutating func perform(_ step: Step) -> Effect? {
    switch step {
    case .effect(let effect): return effect
    case .stop(let index): return rings[index].isRunning ? .stop(queue: index) : nil
    case .startIfReady(let index, let refuses): return startIfReady(index, refuses: refuses)
    case .changeRing(let index, let change):
      change(&rings[index])
      return nil
    case .replyBase(let index):
      let position = position(of: rings[index])
      // For a packed ring both halves: the used position is not in memory.
      let base = UInt32(position.available) | (isPacked ? UInt32(position.used ?? 0) << 16 : 0)
      rings[index].stop(isPacked: isPacked)
      // As in other back-ends, a stopped ring sends no notifications, and a front-end sends a new call descriptor before it
      // starts the ring again.
      rings[index].call = .none
      forgetTranslationsOfNoRing()
      let reply = replyEffect(VringState(index: UInt32(index), number: base).bytes)
      // The driver may set up a new ring after a ring reset: it starts at the front-end's position, unless one was saved for
      // it.
      guard features?.contains(.ringReset) == true, let inflight else { return reply }
      steps.insert(.effect(reply), at: 0)
      return .forgetInflight(inflight, queue: index)
    case .resetRings:
      for index in rings.indices { rings[index].reset() }
      (writtenConfiguration, configurationToRestore) = (nil, nil)
      translations.removeAll()
      // The rings that follow are new ones, whose heads mean other requests.
      return inflight.map { .forgetInflight($0, queue: nil) }
    case .forgetTranslationsOfNoRing:
      forgetTranslationsOfNoRing()
      return nil
    case .keepConfiguration: return askForKeptByte()
    case .finish: return finish()
    }
  }
}

// MARK: Answers

extension BackendSession {
  mutating func reply(_ value: UInt64) { steps.append(.effect(replyEffect(NumberPayload.encode(value)))) }

  /// The reply to the current message.
  func replyEffect(_ payload: [UInt8]) -> Effect {
    guard let exchange else { preconditionFailure("a reply belongs to a message") }
    return .reply(Message(replyTo: exchange.request, payload: payload))
  }

  /// The last step of a message: reports the outcome to the front-end, if it asked for that. This is decided only now, since
  /// SET_PROTOCOL_FEATURES may have just negotiated it.
  private mutating func finish() -> Effect? {
    guard let exchange else { return nil }
    self.exchange = nil
    let request = FrontendRequest(rawValue: exchange.request)
    let hasOwnReply = request?.hasOwnReply ?? false
    let acknowledges = exchange.wantsReply && protocolFeatures.contains(.replyAck) && !hasOwnReply
    guard let refusal = exchange.refusal else {
      return acknowledges ? .reply(Message(replyTo: exchange.request, payload: NumberPayload.encode(0))) : nil
    }
    if acknowledges {
      steps.append(.effect(.refused(request: exchange.request, refusal)))
      return .reply(Message(replyTo: exchange.request, payload: NumberPayload.encode(1)))
    }
    // Otherwise the front-end would wait for a reply forever. For an empty configuration, the base of a ring that does not
    // exist, unavailable records and a refused translation there are replies that say so; for other messages there are none.
    switch (request, refusal) {
    case (.getConfiguration, _):
      steps.append(.effect(.refused(request: exchange.request, refusal)))
      return .reply(Message(replyTo: exchange.request, payload: []))
    case (.getInflight, _):
      steps.append(.effect(.refused(request: exchange.request, refusal)))
      return .reply(
        Message(replyTo: exchange.request, payload: InflightDescription(queueCount: 0, queueSize: 0).bytes))
    case (.iotlb, _):
      steps.append(.effect(.refused(request: exchange.request, refusal)))
      return .reply(Message(replyTo: exchange.request, payload: NumberPayload.encode(1)))
    case (.getVringBase, .noSuchQueue(let index, _)):
      steps.append(.effect(.refused(request: exchange.request, refusal)))
      return .reply(Message(replyTo: exchange.request, payload: VringState(index: index, number: 0).bytes))
    default: break
    }
    if hasOwnReply || refusal.endsConnectionUnlessAcknowledged {
      steps = []
      return .close(request: exchange.request, refusal)
    }
    return .refused(request: exchange.request, refusal)
  }
}
