/// The mailbox between two threads: registers, effects on the device, notifications, and the end of either side.
import Foundation
import MemoryFile
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
    #expect(device.calls.suffix(3) == [
      .negotiated([.version1]),
      .start(0, QueueConfiguration(0), available: 0),
      .start(1, QueueConfiguration(1), available: 0),
    ])
    #expect(device.running[0]?.publishesInOrder == true)
  }
}

extension QueueConfiguration {
  /// What `bringUp` sets up.
  init(_ queue: Int, base: UInt64 = 0) {
    let base = base + UInt64(queue) * 4096
    self.init(
      size: 8, descriptorTable: GuestAddress(base), availableRing: GuestAddress(base + 1024),
      usedRing: GuestAddress(base + 2048))
  }
}
