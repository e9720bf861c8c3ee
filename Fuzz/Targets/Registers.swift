/// Register models under a driver that reads and writes anything anywhere, and stored register states of unknown origin.
internal import VirtioCore

@testable internal import VirtioRegisters

/// Every register interface: accesses of any kind; sometimes the device restarts from its stored state, forged or not.
func attackRegisters(_ shaper: inout Shaper) {
  let interface = RegisterInterface.allCases[shaper.choice(RegisterInterface.allCases.count)]
  let queues = 1 + shaper.choice(8)
  var features: FeatureSet = [.version1, .eventIndex, .indirectDescriptors, .packedRing, .ringReset, .notificationData]
  if shaper.mistake() { features = FeatureSet(rawValue: shaper.oddNumber()) }
  let refuses = shaper.mistake()
  let face = RegisterFace(
    deviceID: 2, features: features, queueCount: queues, maximumQueueSize: 256, interruptStatus: { 1 },
    configurationGeneration: { 7 },
    readConfiguration: { offset, count in
      check(offset >= 0 && count <= 8, "a read of configuration at \(offset) of \(count) bytes reached the device")
      return Array(repeating: 0x5a, count: count)
    }, accepts: { _ in !refuses })
  var registers = RegisterModel(interface, face: face)
  var served: Set<Int> = []
  if shaper.mistake() {
    let forged = RegisterImage(decoding: shaper.bytes(upTo: 1024), queueCount: queues, interface: interface)
    checkCopies(forged, interface, queues: queues)
    let restored = RegisterModel.restore(forged, interface, face: face)
    registers = restored.registers
    follow(restored.effects, &registers, &served)
  }
  var steps = 0
  while !shaper.isOver, steps < 400 {
    steps += 1
    switch shaper.choice(8) {
    case 0: follow(registers.read(offset: offset(&shaper, interface), width: width(&shaper)).effects, &registers, &served)
    case 1: bringUp(&registers, &shaper, &served)
    case 2:
      // A device that is restored from its stored state is where it was.
      let image = registers.image
      checkCopies(image, interface, queues: queues)
      let (restored, effects, restoration) = RegisterModel.restore(image, interface, face: face)
      if restoration == .complete {
        // A restarted device has a new configuration, as far as its driver can tell.
        var expected = image
        if let generation = restored.image.pci?.generation { expected.pci?.generation = generation }
        check(
          restored.image == expected,
          "\(interface.name) registers differ from their stored state: \(restored.image) instead of \(image)")
        served = []
        registers = restored
        follow(effects, &registers, &served)
      }
    case 3 where shaper.mistake(): _ = registers.needReset()
    default:
      let (offset, width) = (offset(&shaper, interface), width(&shaper))
      let value = shaper.flag() ? UInt64(shaper.byte()) : shaper.oddNumber()
      let before = registers.status
      let effects = registers.write(offset: offset, width: width, value: value)
      if !effects.contains(.reset) {
        check(registers.status.isSuperset(of: before), "a write cleared bits of the status")
      }
      follow(effects, &registers, &served)
    }
    check(!registers.isLive || registers.features.isSubset(of: features), "a driver has features that were not offered")
  }
}

/// A state survives encoding and decoding.
private func checkCopies(_ image: RegisterImage, _ interface: RegisterInterface, queues: Int) {
  let bytes = image.encoded(queueCount: queues, interface: interface)
  check(bytes.count == RegisterImage.size(queueCount: queues, interface: interface), "a stored state has the wrong size")
  let copy = RegisterImage(decoding: bytes, queueCount: queues, interface: interface)
  check(
    copy.encoded(queueCount: queues, interface: interface) == bytes, "a stored state changes when it is decoded and encoded")
}

private func offset(_ shaper: inout Shaper, _ interface: RegisterInterface) -> UInt32 {
  // An offset in the configuration space, or in a BAR.
  if interface.isPCI, !shaper.mistake() {
    return UInt32(shaper.choice(7)) << 28 | UInt32(shaper.choice(3)) << 12 | UInt32(shaper.byte())
  }
  return switch shaper.choice(4) {
  case 0, 1: MMIORegisters.Register.allCases[shaper.choice(MMIORegisters.Register.allCases.count)].rawValue
  case 2: 0x100 + UInt32(shaper.byte())
  default: UInt32(truncatingIfNeeded: shaper.oddNumber())
  }
}

private func width(_ shaper: inout Shaper) -> Int {
  shaper.mistake() ? Int(truncatingIfNeeded: shaper.oddNumber()) : shaper.pick([4, 1, 2, 8])
}

/// The start of a driver, up to a random point.
private func bringUp(_ registers: inout RegisterModel, _ shaper: inout Shaper, _ served: inout Set<Int>) {
  let writes: [(MMIORegisters.Register, UInt32)] = [
    (.status, 0), (.status, 1), (.status, 3), (.driverFeaturesSelect, 0), (.driverFeatures, 1 << 28 | 1 << 29),
    (.driverFeaturesSelect, 1), (.driverFeatures, 1), (.status, 11), (.queueSelect, 0), (.queueSize, 64),
    (.queueDescriptorLow, 0x1000), (.queueDriverLow, 0x2000), (.queueDeviceLow, 0x3000), (.queueReady, 1), (.status, 15),
    (.queueNotify, 0),
  ]
  for (register, value) in writes.prefix(writes.count - shaper.choice(writes.count)) {
    follow(registers.write(offset: register.rawValue, width: 4, value: UInt64(value)), &registers, &served)
  }
}

/// What the owner of the registers does, as far as it can be checked: a queue is not started twice, and a notified queue runs.
private func follow(_ effects: [RegisterEffect], _ registers: inout RegisterModel, _ served: inout Set<Int>) {
  for effect in effects {
    switch effect {
    case .startQueue(let queue, let configuration):
      check(registers.device.queues.indices.contains(queue), "a queue was started that does not exist")
      check((1...256).contains(configuration.size), "a queue of \(configuration.size) entries was started")
      check(served.insert(queue).inserted, "a queue was started twice")
    case .stopQueue(let queue), .pauseQueue(let queue): served.remove(queue)
    case .resetQueue(let queue):
      served.remove(queue)
      registers.queueResetFinished(queue)
    case .reset: served = []
    case .configWrite(let offset, let bytes): registers.configurationWritten(at: offset, bytes)
    case .notify(let queue): check(served.contains(queue), "a queue was notified that is not served")
    case .featuresFixed, .live, .acknowledgeInterrupt, .configurationChanged, .interruptRoutesChanged: break
    }
  }
}
