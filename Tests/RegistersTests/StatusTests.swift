/// Status, features, reset and interrupts.
import Synchronization
import Testing
import VirtioCore
import VirtioRegisters

@Suite struct StatusTests {
  let made = Made()

  @Test(
    "feat.2, feat.5: any subset of the offer with VERSION_1 is accepted, again after a reset",
    arguments: [
      [.version1] as FeatureSet, [.version1, .eventIndex], [.version1, .indirectDescriptors, FeatureSet(bit: 9)],
      Made.features,
    ])
  func acceptable(_ features: FeatureSet) {
    var registers = made.registers()
    for _ in 0..<2 {
      registers.negotiate(features)
      #expect(registers.read(.status) == 11)
      #expect(registers.features == features)
      #expect(registers.write(.status, 15) == [.live])
      #expect(registers.write(.status, 0) == [.reset])
    }
  }

  @Test(
    "feat.3: FEATURES_OK is not kept for features that were not offered, or without VERSION_1",
    arguments: [
      [] as FeatureSet, [.eventIndex], [.version1, .packedRing], [.version1, FeatureSet(bit: 63)],
      [.version1, .singleRootIO],
    ])
  func unacceptable(_ features: FeatureSet) {
    var registers = made.registers()
    registers.negotiate(features)
    #expect(registers.read(.status) == 3)
    // Without FEATURES_OK, DRIVER_OK cannot be set, neither alone nor with another attempt.
    #expect(registers.write(.status, 7).isEmpty)
    #expect(registers.write(.status, 15).isEmpty)
    #expect(registers.read(.status) == 3)
  }

  @Test("feat.3: FEATURES_OK is not kept if the device refuses")
  func refusedByTheDevice() {
    made.accepts.withLock { $0 = false }
    var registers = made.registers()
    registers.negotiate()
    #expect(registers.read(.status) == 3)
  }

  @Test("feat.3: a bit above 63 is never acceptable")
  func strayFeatureWord() {
    var registers = made.registers()
    registers.write(.driverFeaturesSelect, 2)
    registers.write(.driverFeatures, 1)
    registers.write(.driverFeaturesSelect, 1)
    registers.write(.driverFeatures, 1)
    registers.write(.status, 11)
    #expect(registers.read(.status) == 3)
    registers.write(.status, 0)
    registers.negotiate()
    #expect(registers.read(.status) == 11)
  }

  @Test("virtio 2.2: features are fixed after FEATURES_OK")
  func fixedFeatures() {
    var registers = made.registers()
    registers.negotiate([.version1, .eventIndex])
    registers.write(.driverFeaturesSelect, 0)
    registers.write(.driverFeatures, 0)
    registers.write(.driverFeaturesSelect, 5)
    registers.write(.driverFeatures, 1)
    #expect(registers.features == [.version1, .eventIndex])
    #expect(!registers.image.strayFeatures)
  }

  @Test("FEATURES_OK and DRIVER_OK in one write do both, in order")
  func allAtOnce() {
    var registers = made.registers()
    registers.write(.driverFeaturesSelect, 1)
    registers.write(.driverFeatures, 1)
    registers.setUp(queue: 1)
    #expect(registers.write(.status, 15) == [.featuresFixed([.version1]), .live, .startQueue(1, .sample(1))])
  }

  @Test("status.1, reset.1, i.mmio.reset.1, mmio.6, mmio.9: reset from every state", arguments: [0, 1, 2, 3])
  func reset(_ stage: Int) {
    var registers = made.registers()
    if stage >= 1 { registers.negotiate([.version1, .ringReset]) }
    if stage >= 2 { for queue in 0..<3 { registers.setUp(queue: queue) } }
    if stage >= 3 {
      registers.write(.status, 15)
      _ = registers.needReset()
    }
    #expect(registers.write(.status, 0) == [.reset])
    #expect(registers.image == made.registers().image)
    for queue in 0..<3 as Range<UInt32> {
      registers.write(.queueSelect, queue)
      #expect(registers.read(.queueReady) == 0)
      #expect(registers.read(.queueReset) == 0)
    }
  }

  @Test(
    "a status write beyond the eight bits, or of DRIVER_OK alone, is not a reset",
    arguments: [
      0x100 as UInt32, 0xffff_ff00, 4,
    ])
  func notAReset(_ value: UInt32) {
    var registers = made.registers()
    registers.write(.status, 3)
    #expect(registers.write(.status, value).isEmpty)
    #expect(registers.read(.status) == 3)
  }

  @Test("status.4, status.5: the device sets NEEDS_RESET, which stays until a reset and is notified once")
  func needsReset() {
    var registers = MMIORegisters.live(made)
    let first = registers.needReset()
    let second = registers.needReset()
    #expect(first && !second)
    #expect(registers.read(.status) == 15 | 64)
    registers.write(.status, 15)
    #expect(registers.read(.status) == 15 | 64)
    #expect(!registers.isLive)
    registers.write(.status, 0)
    registers.write(.status, 64 | 1)
    #expect(registers.read(.status) == 1)
  }

  @Test("status.5: no notification of NEEDS_RESET before DRIVER_OK")
  func needsResetEarly() {
    var registers = made.registers()
    registers.negotiate()
    let due = registers.needReset()
    #expect(!due)
    // DRIVER_OK then sets the bit but serves nothing.
    registers.setUp(queue: 0)
    #expect(registers.write(.status, 15) == [.live])
  }

  @Test(
    "mmio.3, mmio.4, i.mmio.intr.1: InterruptStatus has the two bits, and the line is their level",
    arguments: [
      (0 as UInt32, 0 as UInt32, false), (1, 1, true), (2, 2, true), (3, 3, true), (0xffff_fffc, 0, false),
      (0xffff_ffff, 3, true),
    ])
  func interruptStatus(_ word: UInt32, _ shown: UInt32, _ asserted: Bool) {
    made.interruptStatus.withLock { $0 = word }
    let registers = made.registers()
    #expect(registers.read(.interruptStatus) == shown)
    #expect(registers.read(.interruptStatus) == shown)
    #expect(registers.isInterruptAsserted == asserted)
  }

  @Test(
    "mmio.3, d.mmio.20: InterruptACK clears those of the two bits that are written",
    arguments: [
      (0, []), (1, [.acknowledgeInterrupt(1)]), (2, [.acknowledgeInterrupt(2)]),
      (0xffff_ffff, [.acknowledgeInterrupt(3)]), (0xffff_fffc, []),
    ] as [(UInt32, [MMIORegisters.Effect])])
  func acknowledge(_ value: UInt32, _ effects: [MMIORegisters.Effect]) {
    var registers = MMIORegisters.live(made)
    #expect(registers.write(.interruptAcknowledge, value) == effects)
  }
}
