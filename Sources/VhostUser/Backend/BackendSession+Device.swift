/// Features, configuration, status and reset: the messages about the device as a whole.
internal import VirtioCore

extension BackendSession {
  /// Bits of the feature word that are offered by the transport and not by the device. Without a log that can be shared,
  /// nothing is logged.
  var betweenEnds: FeatureSet {
    device.protocolFeatures.contains(.sharedLog) ? .betweenEnds : .betweenEnds.subtracting(.logAll)
  }

  /// May be repeated on a live device, for a feature of the transport (dirty logging); so it stops nothing, and the device
  /// is only asked if the choice has changed. Otherwise configuration fields that depend on the choice would be lost: if a
  /// driver chooses write-through before DRIVER_OK, SET_FEATURES comes afterwards.
  mutating func setFeatures(_ message: Message) throws(Refusal) {
    let word = FeatureSet(rawValue: try number(message))
    let chosen = word.subtracting(.betweenEnds)
    guard chosen.isSubset(of: device.features) else { throw .featuresNotOffered(chosen.subtracting(device.features)) }
    if chosen != features {
      featuresAsked = chosen
      steps.append(.effect(.negotiate(chosen)))
    }
    if word.contains(.logAll) != logsBuffers {
      logsBuffers.toggle()
      changeLogging(of: rings.indices)
    }
    forgetTranslationsOfNoRing()
    for index in rings.indices {
      // Without bit 30 nobody will send SET_VRING_ENABLE.
      if !word.contains(.protocolFeatures) { steps.append(.changeRing(index) { $0.isEnabled = true }) }
      steps.append(.startIfReady(index, refuses: false))
    }
  }

  /// The answer to `Effect.negotiate`.
  ///
  /// - Parameter replaces: the device had another choice before, perhaps of another connection.
  public mutating func negotiated(accepted: Bool, replaces: Bool = false) {
    guard let chosen = featuresAsked else { return }
    featuresAsked = nil
    guard accepted else {
      // The following steps relied on this choice.
      steps = [.finish]
      exchange?.refusal = .featuresNotAccepted(chosen)
      return
    }
    let isAnother = replaces || features != nil
    features = chosen
    // The byte that a driver may write depends on the features; a value still to be restored belonged to the previous choice.
    if isAnother { configurationToRestore = nil }
    steps.insert(.keepConfiguration, at: 0)
  }

  mutating func setProtocolFeatures(_ message: Message) throws(Refusal) {
    let chosen = ProtocolFeatures(rawValue: try number(message))
    guard chosen.isSubset(of: device.protocolFeatures) else {
      throw .protocolFeaturesNotOffered(chosen.subtracting(device.protocolFeatures))
    }
    protocolFeatures = chosen
  }

  /// RESET_OWNER is deprecated; its only remaining effect is to stop the rings.
  mutating func disableRings() {
    for index in rings.indices {
      steps.append(.stop(index))
      steps.append(.changeRing(index) { $0.isEnabled = false })
    }
  }

  /// Back to the initial state, except for what belongs to the connection: ownership, memory, protocol features,
  /// descriptors.
  mutating func resetDevice() {
    for index in rings.indices { steps.append(.stop(index)) }
    steps.append(.resetRings)
    steps.append(.effect(.resetDevice))
    features = nil
    status = []
  }

  /// Status 0 is also sent when a virtual machine is paused, so it stops the rings and leaves the rest to RESET_DEVICE.
  mutating func setStatus(_ message: Message) throws(Refusal) {
    let word = try number(message)
    status = DeviceStatus(rawValue: UInt8(truncatingIfNeeded: word))
    guard status.isEmpty else { return }
    for index in rings.indices {
      steps.append(.stop(index))
      steps.append(.changeRing(index) { [isPacked] in $0.stop(isPacked: isPacked) })
    }
    steps.append(.forgetTranslationsOfNoRing)
  }

  func number(_ message: Message) throws(Refusal) -> UInt64 {
    guard let value = NumberPayload.decode(message.payload) else { throw .wrongSize(message.payload.count) }
    return value
  }
}

// MARK: Configuration space

extension BackendSession {
  /// Front-ends read from offset 0, and older ones from the offset of the configuration in the mmio register layout.
  private static let alias: UInt32 = 0x100

  private func range(of asked: ConfigurationPayload) throws(Refusal) -> (offset: Int, count: Int) {
    let offset = asked.offset >= Self.alias ? asked.offset - Self.alias : asked.offset
    let limit = ConfigurationPayload.maximumSize
    guard offset <= limit, asked.size <= limit - offset, asked.contents.count <= limit else {
      throw .configurationOutOfRange(offset: asked.offset, size: asked.size)
    }
    return (Int(offset), Int(asked.size))
  }

  mutating func getConfiguration(_ message: Message) throws(Refusal) {
    guard let asked = ConfigurationPayload(decoding: message.payload) else { throw .wrongSize(message.payload.count) }
    let (offset, count) = try range(of: asked)
    configurationAsked = asked
    steps.append(.effect(.readConfiguration(offset: offset, count: count)))
  }

  /// The answer to `Effect.readConfiguration`. The reply is as long as the request, padded with zeroes.
  public mutating func configurationRead(_ bytes: [UInt8]) {
    if let place = keptByteAsked {
      keptByteAsked = nil
      return keep(bytes.first.map { KeptConfiguration(offset: place, value: $0) })
    }
    guard var payload = configurationAsked else { return }
    configurationAsked = nil
    for index in payload.contents.indices { payload.contents[index] = index < bytes.count ? bytes[index] : 0 }
    steps.insert(.effect(replyEffect(payload.bytes)), at: 0)
  }

  /// Flags distinguish a guest's write from a migration's, but front-ends number them differently: each of 0, 1 and 2 can be
  /// a guest's write, and 1 and 2 can be a migration's.
  mutating func setConfiguration(_ message: Message) throws(Refusal) {
    guard let asked = ConfigurationPayload(decoding: message.payload) else { throw .wrongSize(message.payload.count) }
    let (offset, count) = try range(of: asked)
    guard count > 0, asked.flags <= 2 else {
      throw .configurationNotWritable(offset: asked.offset, size: asked.size)
    }
    configurationAsked = asked
    steps.append(
      .effect(
        .writeConfiguration(offset: offset, Array(asked.contents[..<count]), restores: asked.flags != 0)))
  }

  /// The answer to `Effect.writeConfiguration`, of a message or of a configuration that is restored.
  public mutating func configurationWritten(_ written: Bool) {
    if let restored = configurationInRestoration {
      configurationInRestoration = nil
      return keep(written ? restored : nil)
    }
    guard let asked = configurationAsked else { return }
    configurationAsked = nil
    guard written else {
      exchange?.refusal = .configurationNotWritable(offset: asked.offset, size: asked.size)
      return
    }
    noteConfiguration(asked)
  }

  /// Kept for the server after a crash, because front-ends do not repeat what a driver wrote.
  private mutating func noteConfiguration(_ asked: ConfigurationPayload) {
    guard let place = device.writableByte, let (first, count) = try? range(of: asked),
      (first..<first + count).contains(Int(place))
    else { return }
    configurationToRestore = nil
    keep(KeptConfiguration(offset: place, value: asked.contents[Int(place) - first]))
  }

  private mutating func keep(_ configuration: KeptConfiguration?) {
    writtenConfiguration = configuration
    inflight?.keep(configuration)
  }

  /// Used after a takeover: the previous server may have kept nothing. Its effects follow from `nextEffect`.
  mutating func keepConfiguration() { steps.append(.keepConfiguration) }

  /// Asks the device for the byte, whose value is the current one unless another one is still to be restored. Before a driver
  /// has chosen its features it is meaningless.
  mutating func askForKeptByte() -> Effect? {
    guard inflight != nil || writtenConfiguration != nil, configurationToRestore == nil, features != nil,
      let place = device.writableByte
    else { return nil }
    keptByteAsked = place
    return .readConfiguration(offset: Int(place), count: 1)
  }

  mutating func setChannel(_ message: Message) throws(Refusal) {
    let descriptors = message.descriptors
    guard let channel = descriptors.first, descriptors.count == 1 else {
      throw .wrongDescriptorCount(descriptors.count, expected: 1)
    }
    whenExamined = { session, examined in
      guard case .channel(let socket) = examined else { return }
      session.hasChannel = true
      session.steps.insert(contentsOf: ([.openChannel(socket)] + session.questionsAgain()).map { .effect($0) }, at: 0)
    }
    steps.append(.effect(.examine(DescriptorExamination(purpose: .channel, descriptor: channel))))
  }

  /// The device's configuration changed. Its effects follow from `nextEffect`.
  public mutating func configurationChanged() {
    owesConfigurationChange = true
    tellConfigurationChange()
  }

  /// "Suspended device state": no message may be sent while all rings are stopped, so this is checked again at each start.
  mutating func tellConfigurationChange() {
    guard owesConfigurationChange, hasChannel, rings.contains(where: \.isStarted) else { return }
    owesConfigurationChange = false
    steps.append(.effect(.send(Message(request: BackendRequest.configurationChanged.rawValue))))
  }
}
