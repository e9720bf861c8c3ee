/// virtio-mmio version 1: which registers exist, which do not, and a legacy driver from start to stop.
import Synchronization
import Testing
import VirtioCore
import VirtioRegisters

@Suite struct LegacyMMIOTests {
  let made = Made()
  typealias Register = LegacyMMIORegisters.Register

  @Test(
    "i.legacy.mmio.1: what every driver reads first",
    arguments: [
      (Register.magicValue, 0x7472_6976 as UInt32), (.version, 1), (.deviceID, 2), (.vendorID, RegisterFace.ourVendorID),
      (.interruptStatus, 0), (.status, 0), (.queueSizeMaximum, 256), (.queuePageNumber, 0),
    ])
  func constants(_ register: Register, _ value: UInt32) { #expect(made.legacy().read(register) == value) }

  @Test("legacy.rfb.3, legacy.rfb.4, zoned.init.2: ANY_LAYOUT is offered, ZONED and features beyond the first word are not")
  func offer() {
    var registers = made.legacy(features: FeatureSet(rawValue: .max))
    #expect(registers.read(.hostFeatures) == 0xbefd_ffff)
    for select in [1, 2, 0xffff_ffff] as [UInt32] {
      registers.write(.hostFeaturesSelect, select)
      #expect(registers.read(.hostFeatures) == 0)
    }
  }

  @Test("i.legacy.mmio.1: registers of version 2 only read zero and ignore writes")
  func absent() {
    var registers = LegacyMMIORegisters.live(made)
    let image = registers.image
    let known = Set(Register.allCases.map(\.rawValue))
    for offset in UInt32(0)..<0x100 {
      for width in [0, 1, 2, 3, 4, 8, -1] where width != 4 || !known.contains(offset) {
        #expect(registers.read(offset: offset, width: width) == 0)
        #expect(registers.write(offset: offset, width: width, value: .max).isEmpty)
      }
    }
    #expect(registers.image == image)
  }

  @Test("legacy.vq.1: one region, found by page number, page size and alignment", arguments: [64, 4096, 65536] as [UInt32])
  func bringUp(_ alignment: UInt32) {
    var registers = made.legacy()
    for pageSize in [4096, 16384] as [UInt32] {
      registers.negotiate([.eventIndex])
      registers.write(.guestPageSize, pageSize)
      registers.write(.queueSelect, 1)
      registers.write(.queueSize, 64)
      registers.write(.queueAlign, alignment)
      #expect(registers.write(.queuePageNumber, 0x1234_5678).isEmpty)
      #expect(registers.read(.queuePageNumber) == 0x1234_5678)
      let queue = QueueConfiguration.legacySample(
        page: 0x1234_5678, pageSize: UInt64(pageSize), size: 64, alignment: UInt64(alignment))
      #expect(registers.write(.status, 7) == [.featuresFixed([.eventIndex]), .live, .startQueue(1, queue)])
      // A page number in use keeps its meaning.
      registers.write(.guestPageSize, 8192)
      #expect(registers.read(.queuePageNumber) == 0x1234_5678)
      #expect(registers.write(.queueNotify, 1) == [.notify(1)])
      #expect(registers.write(.queueNotify, 0).isEmpty)
      #expect(registers.write(.status, 0) == [.reset])
      registers.write(.queueSelect, 1)
      #expect(registers.read(.queuePageNumber) == 0, "i.legacy.mmio.2")
    }
  }

  @Test("page number 0 stops the queue once, and another one starts it again")
  func stop() {
    var registers = LegacyMMIORegisters.live(made)
    registers.write(.queueSelect, 2)
    #expect(registers.write(.queuePageNumber, 77).isEmpty, "a running queue keeps its address")
    #expect(registers.write(.queuePageNumber, 0) == [.stopQueue(2)])
    #expect(registers.write(.queuePageNumber, 0).isEmpty)
    #expect(registers.read(.queuePageNumber) == 0)
    #expect(registers.write(.queuePageNumber, 77) == [.startQueue(2, .legacySample(page: 77))])
  }

  @Test(
    "a page number without a page size, or with an invalid one, makes no queue",
    arguments: [0, 3, 4097, 0xffff_ffff] as [UInt32])
  func noPageSize(_ size: UInt32) {
    var registers = made.legacy()
    registers.write(.status, 3)
    registers.write(.guestPageSize, size)
    registers.write(.queueAlign, size)
    #expect(registers.write(.queuePageNumber, 1).isEmpty)
    #expect(registers.read(.queuePageNumber) == 0)
    #expect(registers.write(.status, 7) == [.featuresFixed([]), .live])
    #expect(registers.image.queues[0].alignment == 4096)
  }

  @Test("virtio 3.1.2: there is no FEATURES_OK, and what was not offered is left out")
  func negotiation() {
    var registers = made.legacy()
    registers.negotiate([.eventIndex, .packedRing, .version1, FeatureSet(bit: 3), .anyLayout])
    registers.write(.status, 11)
    #expect(registers.read(.status) == 3)
    #expect(registers.features == [.eventIndex])
    #expect(registers.write(.status, 15) == [.featuresFixed([.eventIndex]), .live])
    #expect(registers.read(.status) == 7)
  }

  @Test("features that the device cannot work with keep DRIVER_OK from being set")
  func refused() {
    made.accepts.withLock { $0 = false }
    var registers = made.legacy()
    registers.negotiate([])
    #expect(registers.write(.status, 7).isEmpty)
    #expect(registers.read(.status) == 3)
  }

  @Test("legacy.init.2: a driver that uses its queues before DRIVER_OK is served, and DRIVER_OK changes nothing")
  func early() {
    var registers = made.legacy()
    registers.negotiate([.eventIndex])
    registers.setUp(queue: 0)
    registers.setUp(queue: 1)
    #expect(!registers.isInUse)
    #expect(
      registers.write(.queueNotify, 1) == [
        .featuresFixed([.eventIndex]), .live, .startQueue(0, .legacySample(page: 0x100)),
        .startQueue(1, .legacySample(page: 0x101)), .notify(1),
      ])
    #expect(registers.isInUse && registers.isLive)
    // It is too late for other features.
    registers.write(.guestFeatures, 0)
    #expect(registers.setUp(queue: 2) == [.startQueue(2, .legacySample(page: 0x102))])
    #expect(registers.write(.status, 7).isEmpty)
    #expect(registers.features == [.eventIndex])
    #expect(registers.read(.status) == 7)
    #expect(registers.write(.status, 0) == [.reset])
    #expect(!registers.isInUse)
  }

  @Test("a notification for no valid queue does not make the device live", arguments: [2, 3, 0xffff_ffff] as [UInt32])
  func earlyNothing(_ queue: UInt32) {
    var registers = made.legacy()
    registers.negotiate([])
    registers.setUp(queue: 0)
    #expect(registers.write(.queueNotify, queue).isEmpty)
    #expect(!registers.isInUse)
  }

  @Test("legacy.init.1: configuration writes are accepted before features are negotiated")
  func earlyConfiguration() {
    var registers = made.legacy()
    #expect(registers.write(offset: 0x120, width: 1, value: 1) == [.configWrite(offset: 32, bytes: [1])])
    #expect(registers.read(offset: 0x103, width: 4) == 0x1615_1413)
  }

  @Test("every stage of the initialization is restored", arguments: 0...4)
  func roundTrip(_ stage: Int) {
    var registers = made.legacy()
    if stage >= 1 { registers.negotiate([.eventIndex, .anyLayout]) }
    if stage >= 2 {
      registers.write(.queueSelect, 1)
      registers.write(.queueAlign, 128)
      registers.setUp(queue: 1)
    }
    if stage == 3 { registers.write(.queueNotify, 1) }
    if stage == 4 { registers.write(.status, 7) }
    let decoded = RegisterImage(
      decoding: registers.image.encoded(queueCount: 8, interface: .mmioLegacy), queueCount: 8, interface: .mmioLegacy)
    #expect(decoded == registers.image)
    let (restored, effects, restoration) = LegacyMMIORegisters.restore(decoded, face: made.face())
    #expect(restoration == .complete)
    #expect(restored.image == registers.image)
    let live: [RegisterEffect] = [
      .featuresFixed([.eventIndex]), .live, .startQueue(1, .legacySample(page: 0x101, alignment: 128)),
    ]
    #expect(effects == (stage >= 3 ? live : []))
  }

  @Test("a device without a negotiated feature sets NEEDS_RESET", arguments: [false, true])
  func lesserDevice(_ isEarly: Bool) {
    var registers = made.legacy()
    registers.negotiate([.eventIndex])
    registers.setUp(queue: 2)
    registers.write(isEarly ? .queueNotify : .status, isEarly ? 2 : 7)
    for face in [made.face(features: [.version1]), made.face(queues: 2), made.face(size: 32)] {
      let (restored, effects, restoration) = LegacyMMIORegisters.restore(registers.image, face: face)
      #expect(restoration == .refused)
      #expect(restored.status.contains(.needsReset))
      #expect(!effects.contains { if case .startQueue = $0 { true } else { false } })
    }
    made.accepts.withLock { $0 = false }
    #expect(LegacyMMIORegisters.restore(registers.image, face: made.face()).restoration == .refused)
  }

  @Test("status.5: a driver that is served before DRIVER_OK is notified of NEEDS_RESET")
  func needsReset() {
    var registers = made.legacy()
    registers.negotiate([])
    registers.setUp(queue: 0)
    registers.write(.queueNotify, 0)
    let (first, second) = (registers.needReset(), registers.needReset())
    #expect(first && !second)
    #expect(registers.write(.queueNotify, 0).isEmpty)
    let (restored, effects, restoration) = LegacyMMIORegisters.restore(registers.image, face: made.face())
    #expect(restoration == .complete && restored.status.contains(.needsReset))
    #expect(!effects.contains { if case .startQueue = $0 { true } else { false } })
  }
}

extension LegacyMMIORegisters {
  func read(_ register: Register) -> UInt32 { UInt32(read(offset: register.rawValue, width: 4)) }

  @discardableResult mutating func write(_ register: Register, _ value: UInt32) -> [Effect] {
    write(offset: register.rawValue, width: 4, value: UInt64(value))
  }

  /// virtio 3.1.2.
  mutating func negotiate(_ features: FeatureSet) {
    for status in [0, 1, 3] as [UInt32] { write(.status, status) }
    write(.guestPageSize, 4096)
    for word in [1, 0] as [UInt32] {
      write(.guestFeaturesSelect, word)
      write(.guestFeatures, UInt32(truncatingIfNeeded: features.rawValue >> (UInt64(word) * 32)))
    }
  }

  @discardableResult mutating func setUp(queue: Int) -> [Effect] {
    write(.queueSelect, UInt32(queue))
    return write(.queuePageNumber, 0x100 + UInt32(queue))
  }

  static func live(_ made: Made) -> LegacyMMIORegisters {
    var registers = made.legacy()
    registers.negotiate([])
    for queue in 0..<3 { registers.setUp(queue: queue) }
    registers.write(.status, 7)
    return registers
  }
}
