/// What a driver reads before it has done anything, and accesses without effect.
import Synchronization
import Testing
import VirtioCore
import VirtioRegisters

@Suite struct IdentityTests {
  let made = Made()

  @Test(
    "mmio.1, mmio.2, mmio.4: what every driver reads first",
    arguments: [
      (MMIORegisters.Register.magicValue, 0x7472_6976 as UInt32), (.version, 2), (.deviceID, 2),
      (.vendorID, RegisterFace.ourVendorID), (.interruptStatus, 0), (.status, 0), (.configurationGeneration, 7),
      (.queueSizeMaximum, 256), (.queueReady, 0), (.queueReset, 0),
    ])
  func constants(_ register: MMIORegisters.Register, _ value: UInt32) {
    #expect(made.registers().read(register) == value)
  }

  @Test(
    "i.mmio.feat.1, d.mmio.12: DeviceFeatures follows its selector",
    arguments: [
      (0 as UInt32, 0x3000_0202 as UInt32), (1, 0x0000_0141), (2, 0), (0xffff_ffff, 0),
    ])
  func featureWords(_ select: UInt32, _ value: UInt32) {
    var registers = made.registers()
    registers.write(.deviceFeaturesSelect, select)
    #expect(registers.read(.deviceFeatures) == value)
  }

  @Test("feat.4, i.mmio.adminvq.1: features that are only for PCI or for legacy devices are not offered")
  func untransportable() {
    var registers = made.registers(features: FeatureSet(rawValue: .max))
    #expect(registers.read(.deviceFeatures) == 0xb6ff_ffff)
    registers.write(.deviceFeaturesSelect, 1)
    #expect(registers.read(.deviceFeatures) == 0xffff_fd5f)
  }

  @Test("i.mmio.shm.1: no shared memory region", arguments: [0 as UInt32, 1, 0xffff_ffff])
  func sharedMemory(_ select: UInt32) {
    var registers = made.registers()
    registers.write(.sharedMemorySelect, select)
    for register in [
      MMIORegisters.Register.sharedMemoryLengthLow, .sharedMemoryLengthHigh, .sharedMemoryBaseLow, .sharedMemoryBaseHigh,
    ] {
      #expect(registers.read(register) == 0xffff_ffff)
    }
  }

  @Test("i.mmio.queue.1, row 35: a queue that does not exist", arguments: [3 as UInt32, 0xffff, 0x1_0000, 0xffff_ffff])
  func noSuchQueue(_ select: UInt32) {
    var registers = MMIORegisters.live(made)
    let image = registers.image
    registers.write(.queueSelect, select)
    #expect(registers.read(.queueSizeMaximum) == 0)
    #expect(registers.read(.queueReady) == 0)
    #expect(registers.read(.queueReset) == 0)
    for register in [
      MMIORegisters.Register.queueSize, .queueDescriptorLow, .queueDriverHigh, .queueDeviceLow, .queueReady, .queueReset,
      .queueNotify,
    ] {
      #expect(registers.write(register, register == .queueNotify ? select : 1).isEmpty)
    }
    registers.write(.queueSelect, image.queueSelect)
    #expect(registers.image == image)
  }

  @Test("d.mmio.1, d.mmio.4: holes, odd offsets and other widths read zero and write nothing")
  func strayAccesses() {
    var registers = MMIORegisters.live(made)
    let image = registers.image
    let known = Set(MMIORegisters.Register.allCases.map(\.rawValue))
    for offset in UInt32(0)..<0x100 {
      for width in [0, 1, 2, 3, 4, 8, 16, -1] where width != 4 || !known.contains(offset) {
        #expect(registers.read(offset: offset, width: width) == 0)
        #expect(registers.write(offset: offset, width: width, value: .max).isEmpty)
      }
    }
    #expect(registers.image == image)
  }

  @Test(
    "d.mmio.2: read-only registers cannot be written",
    arguments: [
      MMIORegisters.Register.magicValue, .version, .deviceID, .vendorID, .deviceFeatures, .queueSizeMaximum,
      .interruptStatus, .sharedMemoryLengthLow, .sharedMemoryLengthHigh, .sharedMemoryBaseLow, .sharedMemoryBaseHigh,
      .configurationGeneration,
    ])
  func readOnly(_ register: MMIORegisters.Register) {
    var registers = MMIORegisters.live(made)
    let (image, value) = (registers.image, registers.read(register))
    #expect(registers.write(register, 0x5555_5555).isEmpty)
    #expect(registers.image == image)
    #expect(registers.read(register) == value)
  }

  @Test(
    "d.mmio.3: write-only registers read zero",
    arguments: [
      MMIORegisters.Register.deviceFeaturesSelect, .driverFeatures, .driverFeaturesSelect, .queueSelect, .queueSize,
      .queueNotify, .interruptAcknowledge, .queueDescriptorLow, .queueDescriptorHigh, .queueDriverLow, .queueDriverHigh,
      .queueDeviceLow, .queueDeviceHigh, .sharedMemorySelect,
    ])
  func writeOnly(_ register: MMIORegisters.Register) {
    #expect(MMIORegisters.live(made).read(register) == 0)
  }

  @Test(
    "i.mmio.cfg.1, row 34: configuration reads of any width and offset",
    arguments: [
      (0 as UInt32, 1, 0x10 as UInt64), (1, 1, 0x11), (1, 2, 0x1211), (3, 4, 0x1615_1413), (8, 8, 0x1f1e_1d1c_1b1a_1918),
      (12, 8, 0x1f1e_1d1c), (15, 4, 0x1f), (16, 8, 0), (0xffff_feff, 8, 0), (0, 3, 0), (0, 16, 0), (0, 0, 0), (0, -1, 0),
    ])
  func configurationReads(_ offset: UInt32, _ width: Int, _ value: UInt64) {
    #expect(made.registers().read(offset: 0x100 + offset, width: width) == value)
  }

  @Test(
    "row 34: configuration writes of any width and offset",
    arguments: [
      (0 as UInt32, 1, [0x88] as [UInt8]), (5, 2, [0x88, 0x77]), (32, 4, [0x88, 0x77, 0x66, 0x55]),
      (0xffff_feff, 8, [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]),
    ])
  func configurationWrites(_ offset: UInt32, _ width: Int, _ bytes: [UInt8]) {
    var registers = made.registers()
    #expect(
      registers.write(offset: 0x100 + offset, width: width, value: 0x1122_3344_5566_7788)
        == [.configWrite(offset: Int(offset), bytes: bytes)])
    #expect(registers.write(offset: 0x100 + offset, width: 3, value: 1).isEmpty)
  }

  @Test("mmio.7: ConfigGeneration is the device's")
  func generation() {
    made.generation.withLock { $0 = 0xffff_ffff }
    #expect(made.registers().read(.configurationGeneration) == 0xffff_ffff)
  }
}
