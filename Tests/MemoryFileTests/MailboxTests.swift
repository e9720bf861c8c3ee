/// The mailbox between two threads: registers, effects on the device, notifications.
import CLinux
import Foundation
import MemoryFile
import Synchronization
import TestSupport
import Testing
import VirtioCore
import VirtioRegisters

@Suite struct MailboxTests {
  let directory: TemporaryDirectory
  let file: MemoryFile

  init() throws {
    directory = try TemporaryDirectory()
    file = try MemoryFile.create(path: directory.file("guest.mem"), memorySize: 1 << 20, maximumQueues: 4)
  }

  @Test func identityIsReadThroughTheMailbox() throws {
    let served = try ServedFile(file, FakeDevice())
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: file.path)
    #expect(try driver.read(.magicValue) == 0x7472_6976)
    #expect(try driver.read(.version) == 2)
    #expect(try driver.read(.deviceID) == 2)
    #expect(try driver.read(0x100 + 8, width: 8) == 0x0f0e_0d0c_0b0a_0908)
    #expect(driver.isDeviceThere)
  }

  @Test func bringUpStartsTheQueuesInOrderAtDriverOK() throws {
    let device = try FakeDevice()
    let served = try ServedFile(file, device)
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: file.path)
    try driver.bringUp(queues: 2)
    #expect(
      device.calls.suffix(3) == [
        .negotiated([.version1]), .start(0, QueueConfiguration(0), available: 0),
        .start(1, QueueConfiguration(1), available: 0),
      ])
    #expect(device.running[0]?.publishesInOrder == true)
  }

  @Test("a queue starts at the used index of its ring")
  func startsAtUsedIndex() throws {
    let device = try FakeDevice()
    let served = try ServedFile(file, device)
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: file.path)
    unsafe driver.memory.storeBytes(of: 0xfffe, toByteOffset: 2048 + 2, as: UInt16.self)
    try driver.bringUp(queues: 1)
    #expect(device.calls.last == .start(0, QueueConfiguration(0), available: 0xfffe))
    #expect(device.running[0]?.position == QueuePosition(available: 0xfffe, used: 0xfffe))
  }

  @Test("row 36: a reset is answered when every queue has stopped, and clears pending bits")
  func reset() throws {
    let device = try FakeDevice()
    let served = try ServedFile(file, device)
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: file.path)
    try driver.bringUp(queues: 2)
    try #require(device.running[0]).call.signal()
    #expect(try driver.read(.interruptStatus) == 1)
    try driver.write(.status, 0)
    #expect(device.running.isEmpty)
    #expect(device.calls.last == .reset)
    #expect(try driver.read(.interruptStatus) == 0)
    #expect(try driver.read(.status) == 0)
  }

  @Test("QueueReady 0 is answered when the queue has stopped")
  func stopQueue() throws {
    let device = try FakeDevice()
    let served = try ServedFile(file, device)
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: file.path)
    try driver.bringUp(queues: 2)
    try driver.write(.queueSelect, 1)
    try driver.write(.queueReady, 0)
    #expect(device.running.keys.sorted() == [0])
    #expect(try driver.read(.queueReady) == 0)
  }

  /// The driver's thread waits for its answer, and the device keeps working: its events are handled in the meantime.
  @Test("a register write whose queue does not stop is answered when it does", arguments: [UInt32(0), 2])
  func slowStop(_ way: UInt32) throws {
    let features: FeatureSet = [.version1, .ringReset]
    let device = try FakeDevice(features: features)
    let served = try ServedFile(file, device)
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: file.path, timeout: 120_000)
    try driver.bringUp(features: features, queues: 2)
    try driver.write(.queueSelect, 1)
    device.holdStops()
    let access = SideThread {
      switch way {
      case 0: try driver.write(.queueReady, 0)
      default: try driver.write(.status, 0)
      }
    }
    let stops: [FakeDevice.Call] = way == 2 ? [.stop(0), .stop(1)] : [.stop(1)]
    try wait(until: "the device is asked to stop") { Array(device.calls.suffix(stops.count)) == stops }
    device.raise(.notice("the device goes on"))
    try wait(until: "the device's notice arrives") { served.lines.withLock { $0.contains("the device goes on") } }
    #expect(!access.isOver)
    device.finishStop(1)
    device.finishStop(0)
    try access.end()
    // The mailbox is served again.
    #expect(try driver.read(.queueReady) == 0)
  }

  @Test("a device that is told to end abandons a queue that does not stop, and reports which")
  func endDoesNotWait() throws {
    let device = try FakeDevice()
    let served = try ServedFile(file, device, drainLimit: .milliseconds(10))
    let driver = try MemoryFileDriver.open(path: file.path)
    try driver.bringUp(queues: 2)
    device.holdStops()
    served.stop()
    #expect(served.left.withLock { $0 } == [0, 1])
    #expect(device.leftQueues == [0, 1])
    #expect(!driver.isDeviceThere)
  }

  @Test("QueueReset reads 1 until the queue has stopped, and everything else continues")
  func queueReset() throws {
    let features: FeatureSet = [.version1, .ringReset]
    let device = try FakeDevice(features: features)
    let served = try ServedFile(file, device)
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: file.path, timeout: 120_000)
    try driver.bringUp(features: features, queues: 2)
    device.holdStops()
    try driver.write(.queueSelect, 1)
    try driver.write(.queueReset, 1)
    #expect(device.calls.last == .stop(1))
    // Another reset, or any other write for such a queue, has no effect.
    for (register, value) in [
      (MMIORegisters.Register.queueReset, 1), (.queueReset, 0), (.queueReady, 0), (.queueReady, 1), (.queueSize, 4),
      (.queueNotify, 1), (.queueDescriptorLow, 64),
    ] as [(MMIORegisters.Register, UInt32)] {
      try driver.write(register, value)
      #expect(try driver.read(.queueReset) == 1, "\(register)")
    }
    #expect(device.calls.last == .stop(1) && device.running[0] != nil)
    try driver.write(.queueSelect, 0)
    #expect(try driver.read(.queueReset) == 0 && driver.read(.queueReady) == 1)
    device.finishStop(1)
    try driver.write(.queueSelect, 1)
    try wait(until: "the reset is over") { try driver.read(.queueReset) == 0 }
    #expect(try driver.read(.queueReady) == 0)
    // With another size, at another address.
    try driver.write(.queueSize, 4)
    let base = UInt32(truncatingIfNeeded: driver.memoryBase.rawValue) + 16384
    try driver.write(.queueDescriptorLow, base)
    try driver.write(.queueDriverLow, base + 1024)
    try driver.write(.queueDeviceLow, base + 2048)
    try driver.write(.queueReady, 1)
    #expect(device.running[1]?.configuration.size == 4)
    #expect(device.running[1]?.configuration.descriptorTable == GuestAddress(UInt64(base)))
    #expect(try driver.read(.status) == 15)
    device.finishStop(0)
    device.finishStop(1)
  }

  @Test("a reset of the device ends its queues' resets", arguments: [false, true])
  func resetDuringQueueReset(isHandedOver: Bool) throws {
    let features: FeatureSet = [.version1, .ringReset]
    let device = try FakeDevice(features: features)
    let served = try ServedFile(file, device)
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: file.path, timeout: 120_000)
    try driver.bringUp(features: features, queues: 2)
    device.holdStops()
    try driver.write(.queueSelect, 1)
    try driver.write(.queueReset, 1)
    guard !isHandedOver else {
      // The next device finds a queue that is not ready.
      device.finishStop(1)
      device.state.withLock { $0.isHoldingStops = false }
      served.stop()
      let next = try FakeDevice(features: features)
      let other = try ServedFile(file, next)
      defer { other.stop() }
      try driver.write(.queueSelect, 1)
      #expect(try driver.read(.queueReset) == 0 && driver.read(.queueReady) == 0)
      #expect(next.running[1] == nil && next.running[0] != nil)
      return
    }
    let access = SideThread { try driver.write(.status, 0) }
    try wait(until: "the other queue is asked to stop") { device.calls.contains(.stop(0)) }
    device.finishStop(0)
    device.finishStop(1)
    try access.end()
    try driver.bringUp(features: features, queues: 2)
    #expect(device.running.count == 2)
    device.finishStop(0)
    device.finishStop(1)
  }

  @Test("mmio.3: a call sets bit 0 and rings; acknowledged through the register or directly")
  func calls() throws {
    let device = try FakeDevice()
    let served = try ServedFile(file, device)
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: file.path)
    try driver.bringUp(queues: 2)
    let activation = try #require(device.running[1])
    for acknowledge in [{ try driver.write(.interruptAcknowledge, 1) }, { driver.acknowledgeInterrupt(1) }] {
      let (seen, other) = (driver.callCount(queue: 1), driver.callCount(queue: 0))
      activation.call.signal()
      #expect(driver.waitForCall(queue: 1, whileEquals: seen, milliseconds: patientMilliseconds) == seen &+ 1)
      #expect(driver.callCount(queue: 0) == other)
      #expect(driver.interruptStatus == 1)
      try acknowledge()
      #expect(driver.interruptStatus == 0)
    }
    let seen = driver.callCount(queue: 1)
    #expect(driver.waitForCall(queue: 1, whileEquals: seen, milliseconds: 0) == seen)
  }

  @Test("kicks ring the queue's doorbell, directly or through QueueNotify")
  func kicks() throws {
    let device = try FakeDevice()
    let served = try ServedFile(file, device)
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: file.path)
    try driver.bringUp(queues: 2)
    guard case .doorbell(let bell)? = device.running[1]?.kick else { throw ServedFile.Failure(description: "no doorbell") }
    let seen = bell.counter.loadAcquire()
    driver.kick(queue: 1)
    #expect(bell.counter.loadAcquire() == seen &+ 1)
    try driver.write(.queueNotify, 1)
    #expect(bell.counter.loadAcquire() == seen &+ 2)
    try driver.write(.queueNotify, 0)
    try driver.write(.queueNotify, 17)
    #expect(bell.counter.loadAcquire() == seen &+ 2)
  }

  @Test("status.5: a queue that fails sets NEEDS_RESET and notifies; a reset clears it")
  func queueFailure() throws {
    let device = try FakeDevice()
    let served = try ServedFile(file, device)
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: file.path)
    try driver.bringUp(queues: 2)
    let seen = driver.configurationCount
    device.raise(.queueFailed(queue: 1, .headOutOfRange(77)))
    #expect(driver.waitForConfigurationChange(whileEquals: seen, milliseconds: patientMilliseconds) == seen &+ 1)
    #expect(try driver.read(.status) == 15 | 64)
    #expect(driver.interruptStatus == 2)
    #expect(served.lines.withLock { $0 }.count == 1)
    #expect(served.lines.withLock { $0 }[0].contains("descriptor head 77"))
    // The other queue still runs.
    #expect(device.running[0] != nil)
    try driver.bringUp(queues: 2)
    #expect(try driver.read(.status) == 15)
  }

  @Test("row 14: a queue that cannot be started sets NEEDS_RESET")
  func startFailure() throws {
    let served = try ServedFile(file, FakeDevice(broken: [1]))
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: file.path)
    try driver.bringUp(queues: 2)
    #expect(try driver.read(.status) == 15 | 64)
    #expect(driver.interruptStatus == 2)
  }

  @Test("a configuration change is notified after DRIVER_OK, and not before")
  func configurationChange() throws {
    let device = try FakeDevice()
    let served = try ServedFile(file, device)
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: file.path)
    let early = driver.configurationCount
    device.raise(.configurationChanged)
    // The device handles its events before its mailbox, so the second answer follows the event.
    for _ in 0..<2 { _ = try driver.read(.status) }
    #expect(driver.configurationCount == early)
    try driver.bringUp(queues: 1)
    device.raise(.configurationChanged)
    #expect(driver.waitForConfigurationChange(whileEquals: early, milliseconds: patientMilliseconds) == early &+ 1)
    #expect(driver.interruptStatus == 2)
  }

  @Test("row 34: configuration writes are passed to the device, which accepts its own fields")
  func configurationWrites() throws {
    let device = try FakeDevice()
    let served = try ServedFile(file, device)
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: file.path)
    try driver.write(0x100 + 32, width: 1, 9)
    try driver.write(0x100, width: 8, .max)
    try driver.write(0xffff_fff8, width: 8, .max)
    #expect(try driver.read(0x120, width: 1) == 9)
    #expect(try driver.read(0x100, width: 4) == 0x0302_0100)
    #expect(try driver.read(0xffff_fff8, width: 8) == 0)
    #expect(device.calls == [.wrote(32, [9])])
  }

  @Test("an invalid access is refused and changes nothing", arguments: [0, 3, 16, -1, 1 << 32])
  func badWidth(_ width: Int) throws {
    let device = try FakeDevice()
    let served = try ServedFile(file, device)
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: file.path)
    #expect(throws: MemoryFileError.accessRefused(path: file.path, offset: 0x70, width: width)) {
      try driver.write(0x70, width: width, 1)
    }
    #expect(try driver.read(.status) == 0)
    #expect(device.calls.isEmpty)
  }

  @Test func manyAccessesInARow() throws {
    let served = try ServedFile(file, FakeDevice())
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: file.path)
    for index in 0..<2000 as Range<UInt32> {
      try driver.write(.queueSelect, index % 3)
      #expect(try driver.read(.queueSizeMaximum) == (index % 3 < 2 ? 256 : 0))
    }
  }
}

extension QueueConfiguration {
  /// The configuration that `bringUp` sets up.
  init(_ queue: Int, base: UInt64 = 0) {
    let base = base + UInt64(queue) * 4096
    self.init(
      size: 8, descriptorTable: GuestAddress(base), availableRing: GuestAddress(base + 1024),
      usedRing: GuestAddress(base + 2048))
  }
}
