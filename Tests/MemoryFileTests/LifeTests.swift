/// Devices and drivers that start, stop and die: who may use the file, what is waited for, and how a successor continues.
import CLinux
import Foundation
import MemoryFile
import RingInspector
import Synchronization
import TestSupport
import Testing
import VirtioCore
import VirtioRegisters

@Suite struct LifeTests {
  let directory: TemporaryDirectory
  let file: MemoryFile

  init() throws {
    directory = try TemporaryDirectory()
    file = try MemoryFile.create(path: directory.file("guest.mem"), memorySize: 1 << 20, maximumQueues: 2)
  }

  @Test func aSecondDeviceIsRefused() throws {
    let served = try ServedFile(file, FakeDevice())
    defer { served.stop() }
    let other = try MemoryFile.open(path: file.path)
    let device = try FakeDevice()
    #expect(throws: MemoryFileError.self) { _ = try MemoryFileDevice(file: other, device: device) }
    served.stop()
    _ = try MemoryFileDevice(file: other, device: device)
  }

  @Test func aSecondDriverIsRefused() throws {
    let driver = try MemoryFileDriver.open(path: file.path)
    #expect(throws: MemoryFileError.driverAlreadyThere(path: file.path)) {
      _ = try MemoryFileDriver.open(path: file.path, timeout: 0)
    }
    withExtendedLifetime(driver) {}
  }

  @Test func aDeviceWithMoreQueuesThanTheFileIsRefused() throws {
    let device = try FakeDevice(queues: 3)
    #expect(throws: MemoryFileError.tooManyQueues(path: file.path, device: 3, file: 2)) {
      _ = try MemoryFileDevice(file: file, device: device)
    }
  }

  @Test func withoutADeviceAnAccessEndsWithASentence() throws {
    let driver = try MemoryFileDriver.open(path: file.path, timeout: 30)
    #expect(throws: MemoryFileError.noDevice(path: file.path)) { try driver.read(.status) }
    #expect(!driver.isDeviceThere)
  }

  @Test("an abandoned access is carried out by the next device, before any other")
  func pendingAccess() throws {
    let driver = try MemoryFileDriver.open(path: file.path, timeout: 30)
    #expect(throws: MemoryFileError.noDevice(path: file.path)) { try driver.write(.status, 1) }
    let served = try ServedFile(file, FakeDevice())
    defer { served.stop() }
    // The same driver first waits for the answer to its old request, within its limit, which is short here.
    var status: UInt32? = nil
    for _ in 0..<200 where status == nil { status = try? driver.read(.status) }
    #expect(status == 1)
  }

  @Test("a driver may start first: it waits for the file")
  func earlyDriver() throws {
    let path = directory.file("late.mem")
    let opening = SideThread { _ = try MemoryFileDriver.open(path: path, timeout: patientMilliseconds) }
    // For a moment there is an empty file, while its creator is still at work.
    try Data().write(to: URL(fileURLWithPath: path))
    usleep(10_000)
    try FileManager.default.removeItem(atPath: path)
    _ = try MemoryFile.create(path: path, memorySize: 4096, maximumQueues: 1)
    try opening.end()
  }

  @Test("a restarted device continues where its predecessor stopped")
  func takeOver() throws {
    let first = try FakeDevice()
    let served = try ServedFile(file, first)
    let driver = try MemoryFileDriver.open(path: file.path)
    try driver.bringUp(features: [.version1, .eventIndex], queues: 2)
    try driver.write(0x120, width: 1, 5)
    try driver.write(.queueSelect, 1)
    let epoch = driver.deviceEpoch
    served.stop()
    #expect(first.running.isEmpty)
    #expect(!driver.isDeviceThere)
    // In the meantime three requests of queue 0 are done; it does not matter by whom.
    unsafe driver.memory.storeBytes(of: 3, toByteOffset: 2048 + 2, as: UInt16.self)
    let calls = (driver.callCount(queue: 0), driver.callCount(queue: 1))

    let second = try FakeDevice()
    let again = try ServedFile(try MemoryFile.open(path: file.path), second)
    defer { again.stop() }
    #expect(try driver.read(.status) == 15)
    #expect(
      second.calls == [
        .negotiated([.version1, .eventIndex]), .wrote(32, [5]), .start(0, QueueConfiguration(0), available: 3),
        .start(1, QueueConfiguration(1), available: 0),
      ])
    #expect(driver.deviceEpoch == epoch &+ 1)
    // Calls that its predecessor may have owed.
    #expect(driver.callCount(queue: 0) == calls.0 &+ 1)
    #expect(driver.callCount(queue: 1) == calls.1 &+ 1)
    #expect(driver.interruptStatus & 1 == 1)
    // QueueSel was recorded, too.
    #expect(try driver.read(.queueReady) == 1)
    try driver.write(.queueReady, 0)
    #expect(second.running.keys.sorted() == [0])
  }

  @Test("a new state is written beside the active one, and then becomes active")
  func stateCopies() throws {
    let served = try ServedFile(file, FakeDevice())
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: file.path)
    func states() throws -> (active: UInt8, copies: [Data]) {
      let bytes = try #require(FileManager.default.contents(atPath: file.path))
      // Docs/memory-file.md: room for two queues, so copies of 0x280 bytes at 0x1100 of the control block.
      return (bytes[4096 + 0x140], [0, 1].map { bytes[4096 + 0x1100 + $0 * 0x280..<4096 + 0x1100 + ($0 + 1) * 0x280] })
    }
    // The answer arrives once the device has adopted the file.
    _ = try driver.read(.status)
    for status in [1, 3] as [UInt32] {
      let before = try states()
      try driver.write(.status, status)
      let after = try states()
      #expect(after.active == 1 - before.active)
      #expect(after.copies[Int(before.active)] == before.copies[Int(before.active)])
      #expect(Array(after.copies[Int(after.active)].prefix(4)) == [UInt8(status), 0, 0, 0])
    }
  }

  @Test("a successor with fewer features sets NEEDS_RESET")
  func lesserSuccessor() throws {
    let served = try ServedFile(file, FakeDevice())
    let driver = try MemoryFileDriver.open(path: file.path)
    try driver.bringUp(features: [.version1, .eventIndex], queues: 2)
    served.stop()
    let seen = driver.configurationCount
    let lesser = try FakeDevice(features: [.version1])
    let again = try ServedFile(try MemoryFile.open(path: file.path), lesser)
    defer { again.stop() }
    #expect(driver.waitForConfigurationChange(whileEquals: seen, milliseconds: patientMilliseconds) == seen &+ 1)
    #expect(try driver.read(.status) & 64 == 64)
    #expect(lesser.running.isEmpty)
    #expect(again.lines.withLock { $0 }.count == 1)
    try driver.bringUp(features: [.version1], queues: 1)
    #expect(lesser.running.count == 1)
  }

  @Test("random bytes in the control block never trap, and after a reset it works", arguments: 0..<40 as Range<UInt64>)
  func hostileControlBlock(_ seed: UInt64) throws {
    let path = file.path
    var bytes = try #require(FileManager.default.contents(atPath: path))
    var generator = SplitMix(state: seed)
    let control = 4096..<Int(file.layout.memoryOffset)
    for at in control where seed % 2 == 0 || generator.next() % 16 == 0 {
      bytes[at] = UInt8(truncatingIfNeeded: generator.next() >> 7)
    }
    // Valid requests, and states that were live.
    if seed % 4 == 1 { bytes.replaceSubrange(4096 + 0x48..<4096 + 0x4c, with: [4, 0, 0, 0]) }
    try bytes.write(to: URL(fileURLWithPath: path))
    #expect(!MemoryFilePicture(try MemoryFileSnapshot(path: path)).draw().isEmpty)
    let device = try FakeDevice()
    let served = try ServedFile(try MemoryFile.open(path: path), device)
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: path)
    try driver.bringUp(queues: 2)
    #expect(try driver.read(.status) == 15)
    #expect(device.running.count == 2)
  }

  @Test("a driver that overwrites the control block while it is served breaks only its own queues")
  func scribblingDriver() throws {
    let served = try ServedFile(file, FakeDevice())
    let descriptor = OwnedDescriptor(unsafe open(file.path, O_RDWR))
    let mapping = try Mapping(descriptor: descriptor.rawValue, count: Int(file.layout.memoryOffset))
    let request = unsafe Doorbell(SharedCell(mapping.base + 4096 + 0x40))
    var generator = SplitMix(state: 7)
    for _ in 0..<20000 {
      let offset = 4096 + Int(generator.next() % 0x600) * 4
      unsafe SharedCell<UInt32>(mapping.base + offset).storeRelaxed(UInt32(truncatingIfNeeded: generator.next()))
      unsafe SharedCell<UInt32>(mapping.base + 4096 + 0x48).storeRelaxed(4)
      unsafe SharedCell<UInt32>(mapping.base + 4096 + 0x4c).storeRelaxed(1)
      if generator.next() % 4 == 0 { request.ring() }
    }
    served.stop()
    let again = try ServedFile(try MemoryFile.open(path: file.path), FakeDevice())
    defer { again.stop() }
    let driver = try MemoryFileDriver.open(path: file.path)
    try driver.bringUp(queues: 2)
    #expect(try driver.read(.status) == 15)
  }
}
