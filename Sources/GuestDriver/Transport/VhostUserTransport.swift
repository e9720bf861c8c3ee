/// A device in another process, over a vhost-user socket: what a VMM and a driver do together, in one.
internal import CLinux
internal import Glibc
internal import SystemPackage
public import VhostUser
public import VirtioCore

/// The front-end of any vhost-user back-end. The status is kept here if the back-end does not negotiate STATUS.
public final class VhostUserTransport: DriverTransport {
  public let name = "vhost-user"
  public let memory: DriverMemory
  /// The present connection; a new one after each `recover`.
  public internal(set) var frontend: Frontend
  /// What to do when the back-end goes away; `nil`: nothing.
  public let reconnection: Reconnection?
  /// How often the back-end went away and came back.
  public internal(set) var reconnections = 0
  var offer: Frontend.Offer
  private let regions: [FrontendRegion]
  /// How the driver's addresses are translated if it accepts ACCESS_PLATFORM, and what does that.
  private let translation: TranslationPolicy
  private var translator: Translator?
  var channel: BackendChannel?
  /// The in-flight records of the back-end, kept for its successor.
  var inflight: FrontendInflight?
  /// Where the back-end logs the pages that it writes to; `nil` if it does not.
  let writtenPages: WrittenPages?
  var localStatus = DeviceStatus()
  var accepted = FeatureSet()
  var queues: [Queue] = []
  var memoryIsSet = false

  struct Queue {
    var configuration: QueueConfiguration
    let kick: OwnedDescriptor
    let call: OwnedDescriptor
    let failure: OwnedDescriptor
    var isRunning = false
  }

  /// What was agreed about the protocol.
  public var protocolFeatures: ProtocolFeatures { offer.protocolFeatures }
  var hasStatus: Bool { offer.protocolFeatures.contains(.status) }

  /// - Parameters:
  ///   - memory: every region of it has a file behind it.
  ///   - reconnection: whether, and how, to continue with another back-end when this one goes.
  ///   - logsWrites: have the back-end log all pages that it writes to, as during a live migration.
  public convenience init(
    path: String, memory: DriverMemory, reconnection: Reconnection? = nil, logsWrites: Bool = false,
    translation: TranslationPolicy = TranslationPolicy()
  ) throws(DriverError) {
    let frontend: Frontend
    do { frontend = try Frontend(connectingTo: path) } catch { throw .noDevice("\(error)") }
    var reconnection = reconnection
    reconnection?.path = path
    try self.init(
      frontend, memory: memory, reconnection: reconnection, logsWrites: logsWrites, translation: translation)
  }

  public init(
    _ frontend: Frontend, memory: DriverMemory, reconnection: Reconnection? = nil, logsWrites: Bool = false,
    translation: TranslationPolicy = TranslationPolicy()
  ) throws(DriverError) {
    self.frontend = frontend
    self.translation = translation
    self.reconnection = reconnection
    self.memory = memory
    writtenPages = logsWrites ? try WrittenPages(of: memory) : nil
    (offer, channel) = try Self.meet(frontend)
    guard !logsWrites || offer.keepsLog else {
      throw .refused("the back-end offers no log of the pages that it writes to (LOG_SHMFD and VHOST_F_LOG_ALL)")
    }
    // User addresses that are neither guest addresses nor any that this process has: a back-end that confuses them fails.
    var userAddress: UInt64 = 0x4000_0000_0000
    var regions: [FrontendRegion] = []
    for region in memory.regions {
      guard let descriptor = region.descriptor else {
        throw .badRequest("guest memory for vhost-user has to be a file that can be handed over")
      }
      regions.append(
        FrontendRegion(
          MemoryRegion(
            guestAddress: region.start, size: UInt64(region.size), userAddress: userAddress, offset: region.fileOffset),
          descriptor: descriptor))
      userAddress += UInt64(region.size) + 0x10_0000
    }
    guard regions.count <= offer.memorySlots else {
      throw .refused("the back-end accepts \(offer.memorySlots) memory regions, not \(regions.count)")
    }
    self.regions = regions
  }

  deinit { translator?.stop() }

  /// The first messages of a connection.
  static func meet(_ frontend: Frontend) throws(DriverError) -> (Frontend.Offer, BackendChannel?) {
    let offer = try ask { () throws(FrontendError) in try frontend.handshake() }
    guard offer.protocolFeatures.contains(.configuration) else {
      throw .refused("the back-end does not offer the protocol feature CONFIG, without which a disk has no size")
    }
    guard offer.protocolFeatures.contains(.backendRequests) else { return (offer, nil) }
    return (offer, try ask { () throws(FrontendError) in try frontend.openBackendChannel() })
  }

  static func ask<Result>(_ body: () throws(FrontendError) -> Result) throws(DriverError) -> Result {
    do { return try body() } catch {
      switch error {
      case .closed, .socket, .stream: throw .noDevice("\(error)")
      case .timedOut: throw .timeout("\(error)")
      default: throw .refused("\(error)")
      }
    }
  }

  /// vhost-user does not tell which device is served on the socket; a driver of block devices assumes one.
  public func deviceID() -> UInt32 { 2 }

  public func readConfiguration(at offset: Int, count: Int) throws(DriverError) -> [UInt8] {
    try Self.ask { () throws(FrontendError) in
      try frontend.configuration(at: UInt32(clamping: offset), count: count)
    }
  }

  public func writeConfiguration(at offset: Int, _ bytes: [UInt8]) throws(DriverError) {
    try Self.ask { () throws(FrontendError) in
      try frontend.setConfiguration(at: UInt32(clamping: offset), bytes)
    }
  }

  public func configurationGeneration() -> UInt32 { 0 }

  public func status() throws(DriverError) -> DeviceStatus {
    guard hasStatus else { return localStatus }
    return try Self.ask { () throws(FrontendError) in try frontend.status() }
  }

  public func setStatus(_ status: DeviceStatus) throws(DriverError) {
    // Rings are set up with DRIVER_OK and not before: a back-end may serve a ring from the moment it is enabled.
    if status.contains(.driverOK), !localStatus.contains(.driverOK) {
      try startAll()
    }
    localStatus = status
    if hasStatus { try Self.ask { () throws(FrontendError) in try frontend.setStatus(status) } }
  }

  public func reset() throws(DriverError) {
    try stopQueues()
    // After a reset, the rings are different ones.
    inflight = nil
    localStatus = []
    translator?.turn(on: false)
    try Self.ask { () throws(FrontendError) in
      if offer.protocolFeatures.contains(.resetDevice) { try frontend.resetDevice() }
      if hasStatus { try frontend.setStatus([]) }
    }
  }

  public func offeredFeatures() -> FeatureSet { offer.features }

  public func acceptFeatures(_ features: FeatureSet) throws(DriverError) {
    accepted = features
    try sendFeatures()
  }

  /// The driver's choice, and that of this end of the socket.
  func sendFeatures() throws(DriverError) {
    let features = writtenPages == nil ? accepted : accepted.union(.logAll)
    try Self.ask { () throws(FrontendError) in try frontend.setFeatures(features) }
    translator?.turn(on: isTranslated)
  }

  public func queueCount() -> Int { offer.queueCount }
  /// vhost-user does not report it; a back-end refuses a ring that is too large.
  public func maximumQueueSize(_ queue: Int) -> UInt16 { queue < offer.queueCount ? 32768 : 0 }

  public func findQueues(_ configurations: [QueueConfiguration]) throws(DriverError) -> [QueueLines] {
    queues = []
    for configuration in configurations {
      do {
        queues.append(
          Queue(
            configuration: configuration, kick: try .eventCounter(), call: try .eventCounter(), failure: try .eventCounter()))
      } catch { throw .system("eventfd", error) }
    }
    try setMemory()
    return queues.map { .eventCounters(kick: $0.kick, call: $0.call) }
  }

  func setMemory() throws(DriverError) {
    guard !memoryIsSet else { return }
    let regions = sharedRegions
    try Self.ask { () throws(FrontendError) in
      if offer.protocolFeatures.contains(.memorySlots) {
        for region in regions { try frontend.addMemory(region) }
      } else {
        try frontend.setMemory(regions)
      }
      if let writtenPages { try frontend.setLog(writtenPages.area, writtenPages.descriptor) }
    }
    memoryIsSet = true
    try translate()
  }

  /// The driver's addresses are translated.
  private var isTranslated: Bool { accepted.contains(.accessPlatform) }

  /// Guest memory as it is shared. Behind an IOMMU, the guest-physical addresses differ from those that the driver uses, so a
  /// back-end that confuses them fails.
  private var sharedRegions: [FrontendRegion] {
    guard isTranslated else { return regions }
    return regions.map { region in
      var moved = region
      moved.region.guestAddress = GuestAddress(region.region.offset &+ 0x20_0000)
      return moved
    }
  }

  /// The previous back-end's translation has ended.
  private func translate() throws(DriverError) {
    translator?.stop()
    translator = nil
    guard isTranslated, let channel else { return }
    let ranges = regions.map { shared in
      Translator.Range(
        address: shared.region.guestAddress.rawValue, size: shared.region.size, user: shared.region.userAddress)
    }
    translator = try Translator(frontend, channel, ranges: ranges, policy: translation)
  }

  /// The number of translations given to the back-end, and how often all of them were invalidated.
  public var translationCounts: (answers: Int, invalidations: Int) { translator?.counts ?? (0, 0) }

  public func noteAnswers() { translator?.noteAnswers() }

  /// The page of an address is not translated from now on; it is for addresses that the back-end does not know yet.
  public func withholdTranslation(of address: GuestAddress) { translator?.withhold(address.rawValue) }

  /// The back-end has asked for a translation that is withheld.
  public func hasAskedForTranslation(of address: GuestAddress) -> Bool { translator?.wasAsked(address.rawValue) ?? false }

  /// Translates a page that was withheld.
  public func releaseTranslation(of address: GuestAddress) throws(DriverError) {
    do { try translator?.release(address.rawValue) } catch { throw .refused("\(error)") }
  }

  /// Invalidates the translation of a page, and puts another page in its place. Returns when the back-end has acknowledged
  /// that.
  public func moveTranslation(of address: GuestAddress, to other: GuestAddress) throws(DriverError) {
    do { try translator?.move(address.rawValue, to: other.rawValue) } catch { throw .refused("\(error)") }
  }

  /// A ring address as the front-end knows it; one outside guest memory is passed on unchanged, and the back-end refuses it.
  private func userAddress(_ address: GuestAddress) -> UInt64 {
    // Unchanged, because the driver's addresses are translated by the IOMMU.
    guard !isTranslated else { return address.rawValue }
    for region in regions.map(\.region) where address >= region.guestAddress {
      let distance = address.rawValue - region.guestAddress.rawValue
      if distance < region.size { return region.userAddress + distance }
    }
    return address.rawValue
  }

  /// - Parameter base: where to begin, as in SET_VRING_BASE.
  func start(_ index: Int, base: UInt32) throws(DriverError) {
    let queue = queues[index]
    let configuration = queue.configuration
    try Self.ask { () throws(FrontendError) in
      try frontend.start(
        FrontendQueue(
          index: UInt8(clamping: index), size: configuration.size,
          descriptorTable: userAddress(configuration.descriptorTable),
          availableRing: userAddress(configuration.availableRing), usedRing: userAddress(configuration.usedRing),
          usedRingLog: writtenPages == nil ? nil : configuration.usedRing.rawValue, base: base, kick: queue.kick,
          call: queue.call, error: queue.failure))
    }
    queues[index].isRunning = true
  }

  private func stopQueues() throws(DriverError) {
    for index in queues.indices where queues[index].isRunning { _ = try stopQueue(index) }
  }

  /// GET_VRING_BASE: returns when everything in flight on the ring has completed.
  /// - Returns: where it stands: the available index, or both halves of a packed ring's state.
  public func stopQueue(_ index: Int) throws(DriverError) -> UInt32 {
    queues[index].isRunning = false
    return try Self.ask { () throws(FrontendError) in try frontend.stop(queue: UInt8(clamping: index)) }
  }

  /// Starts a ring again that was stopped, with the descriptors that it had. - Parameter base: what `stopQueue` returned, or
  /// another one.
  public func startQueue(_ index: Int, base: UInt32) throws(DriverError) { try start(index, base: base) }

  /// What a front-end does with a queue that its driver resets: the back-end sees only that the ring stops and another one
  /// starts.
  public func resetQueue(_ index: Int) throws(DriverError) { _ = try stopQueue(index) }

  public func enableQueue(_ index: Int, _ configuration: QueueConfiguration) throws(DriverError) {
    queues[index].configuration = configuration
    let start = QueueStanding.start(RingFormat(accepted))
    try self.start(index, base: RingFormat(accepted) == .packed ? UInt32(start.available) | UInt32(start.used) << 16 : 0)
  }

  public func deleteQueues() throws(DriverError) {
    try stopQueues()
    queues = []
  }

  public func waitForConfigurationChange(milliseconds: Int) throws(DriverError) -> Bool {
    if let translator {
      guard Self.isReadable(translator.changes.rawValue, milliseconds: milliseconds) else { return false }
      EventCounter.drain(translator.changes.rawValue)
      return true
    }
    guard let channel, Self.isReadable(channel.descriptor, milliseconds: milliseconds) else { return false }
    do { return try channel.next() != nil } catch { throw .noDevice("the back-end's channel broke: \(error)") }
  }

  public func waitForFailure(queue: Int, milliseconds: Int) throws(DriverError) -> Bool {
    guard queue < queues.count else { return false }
    return Self.isReadable(queues[queue].failure.rawValue, milliseconds: milliseconds)
  }

  private static func isReadable(_ descriptor: Int32, milliseconds: Int) -> Bool {
    var one = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    return unsafe poll(&one, 1, Int32(clamping: milliseconds)) > 0
  }
}
