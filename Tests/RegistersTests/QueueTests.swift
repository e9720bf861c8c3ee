/// Queues: set-up, notification, stop and reset.
import Testing
import VirtioCore
import VirtioRegisters

@Suite struct QueueTests {
  let made = Made()

  @Test("status.2, mmio.8: ready queues start at DRIVER_OK and not before")
  func startAtDriverOK() {
    var registers = made.registers()
    registers.negotiate()
    #expect(registers.setUp(queue: 2).isEmpty)
    #expect(registers.setUp(queue: 0, size: 1).isEmpty)
    #expect(
      registers.write(.status, 15) == [.live, .startQueue(0, .sample(0, size: 1)), .startQueue(2, .sample(2))])
    #expect(registers.write(.status, 15).isEmpty)
  }

  @Test("a queue made ready after DRIVER_OK starts at once, one made ready earlier waits")
  func startLateOrEarly() {
    var registers = made.registers()
    #expect(registers.setUp(queue: 1).isEmpty)
    #expect(registers.read(.queueReady) == 1)
    // The initialization's reset would clear the ready queue; without a reset it is started.
    registers.negotiate()
    #expect(registers.write(.status, 15) == [.live])
    #expect(registers.setUp(queue: 1) == [.startQueue(1, .sample(1))])
  }

  @Test("i.mmio.queue.2, d.mmio.17: QueueReady reads back and stops the queue once")
  func stop() {
    var registers = MMIORegisters.live(made)
    registers.write(.queueSelect, 1)
    #expect(registers.read(.queueReady) == 1)
    #expect(registers.write(.queueReady, 1).isEmpty)
    #expect(registers.write(.queueReady, 0) == [.stopQueue(1)])
    #expect(registers.read(.queueReady) == 0)
    #expect(registers.write(.queueReady, 0).isEmpty)
    #expect(registers.write(.queueNotify, 1).isEmpty)
    #expect(registers.write(.queueReady, 1) == [.startQueue(1, .sample(1))])
  }

  @Test("a queue stopped while the device needs a reset is released, and not restarted")
  func stopInNeedOfReset() {
    var registers = MMIORegisters.live(made)
    _ = registers.needReset()
    registers.write(.queueSelect, 0)
    #expect(registers.write(.queueReady, 0) == [.stopQueue(0)])
    #expect(registers.write(.queueReady, 1).isEmpty)
    #expect(registers.write(.queueNotify, 1).isEmpty)
  }

  @Test(
    "d.mmio.14, row 15: an invalid size changes nothing",
    arguments: [
      0 as UInt32, 3, 24, 255, 257, 512, 0x1_0000, 0x1_0040, 0x8000_0000, 0xffff_ffff,
    ])
  func badSizes(_ size: UInt32) {
    var registers = made.registers()
    registers.negotiate()
    registers.setUp(queue: 0, size: 128)
    registers.write(.queueReady, 0)
    registers.write(.queueSize, size)
    #expect(registers.image.queues[0].configuration.size == 128)
  }

  @Test("every valid size", arguments: (0...15).map { UInt32(1) << $0 })
  func goodSizes(_ size: UInt32) {
    var registers = made.registers(size: 32768)
    registers.negotiate()
    registers.setUp(queue: 0, size: size)
    #expect(registers.write(.status, 15) == [.live, .startQueue(0, .sample(0, size: UInt16(size)))])
  }

  @Test("any size for a packed queue, and only powers of two for a split one", arguments: [1, 3, 100, 255, 256])
  func packedSizes(_ size: UInt32) {
    for isPacked in [false, true] {
      var registers = made.registers(features: Made.features.union(.packedRing))
      registers.negotiate(isPacked ? [.version1, .packedRing] : .version1)
      registers.setUp(queue: 0, size: size)
      let isSize = isPacked || size.nonzeroBitCount == 1
      #expect(registers.image.queues[0].configuration.size == (isSize ? UInt16(size) : 256))
      registers.write(.queueReady, 0)
      for wrong: UInt32 in [0, 257, 0x1_0001] {
        registers.write(.queueSize, wrong)
        #expect(registers.image.queues[0].configuration.size == (isSize ? UInt16(size) : 256))
      }
    }
  }

  @Test(
    "d.mmio.15, row 15: a ready queue's parameters are latched",
    arguments: [
      MMIORegisters.Register.queueSize, .queueDescriptorLow, .queueDescriptorHigh, .queueDriverLow, .queueDriverHigh,
      .queueDeviceLow, .queueDeviceHigh,
    ])
  func latched(_ register: MMIORegisters.Register) {
    var registers = MMIORegisters.live(made)
    let image = registers.image
    #expect(registers.write(register, 2).isEmpty)
    #expect(registers.image == image)
    registers.write(.queueReady, 0)
    registers.write(register, 2)
    #expect(registers.image != image)
  }

  @Test("a queue without a chosen size has the largest")
  func defaultSize() {
    var registers = made.registers()
    registers.write(.queueReady, 1)
    #expect(registers.image.queues[0].configuration.size == 256)
  }

  @Test(
    "rows 32, 35: a notification reaches only a queue that is served",
    arguments: [
      (0, [.notify(0)]), (2, [.notify(2)]), (3, []), (0x1_0000, []), (0xffff_ffff, []),
    ] as [(UInt32, [MMIORegisters.Effect])])
  func notify(_ value: UInt32, _ effects: [MMIORegisters.Effect]) {
    var registers = made.registers()
    registers.negotiate()
    for queue in 0..<3 { registers.setUp(queue: queue) }
    #expect(registers.write(.queueNotify, value).isEmpty)
    registers.write(.status, 15)
    #expect(registers.write(.queueNotify, value) == effects)
  }

  @Test("virtio 4.2.3.3: with NOTIFICATION_DATA the index is in the low half")
  func notificationData() {
    var registers = MMIORegisters.live(made, features: [.version1, .notificationData])
    #expect(registers.write(.queueNotify, 0xabcd_0002) == [.notify(2)])
    #expect(registers.write(.queueNotify, 0x0000_0003).isEmpty)
  }

  @Test("mmio.10 to mmio.13: QueueReset reads 1 while the reset runs, then it and QueueReady read 0")
  func queueReset() {
    var registers = MMIORegisters.live(made, features: [.version1, .ringReset])
    registers.write(.queueSelect, 1)
    #expect(registers.read(.queueReset) == 0)
    #expect(registers.write(.queueReset, 1) == [.resetQueue(1)])
    #expect(registers.read(.queueReset) == 1)
    // No other write has an effect on it in the meantime.
    #expect(registers.write(.queueReset, 1).isEmpty)
    #expect(registers.write(.queueReady, 0).isEmpty)
    #expect(registers.write(.queueNotify, 1).isEmpty)
    #expect(registers.image.queues[1].ready == false)
    registers.queueResetFinished(1)
    #expect(registers.read(.queueReset) == 0)
    #expect(registers.read(.queueReady) == 0)
    #expect(registers.setUp(queue: 1, size: 8) == [.startQueue(1, .sample(1, size: 8))])
    #expect(registers.read(.queueReset) == 0)
  }

  @Test("QueueReset without RING_RESET, or on a queue that is not ready, has no effect")
  func queueResetNotNegotiated() {
    var plain = MMIORegisters.live(made)
    plain.write(.queueSelect, 0)
    #expect(plain.write(.queueReset, 1).isEmpty)
    #expect(plain.read(.queueReady) == 1)
    var registers = made.registers()
    registers.negotiate([.version1, .ringReset])
    #expect(registers.write(.queueReset, 1).isEmpty)
    registers.setUp(queue: 0)
    #expect(registers.write(.queueReset, 2).isEmpty)
    registers.queueResetFinished(0)
    registers.queueResetFinished(17)
    #expect(registers.read(.queueReady) == 1)
  }
}
