/// Packed queues in a memory file: their positions are recorded when they stop, and unknown after a crash.
import Foundation
import MemoryFile
import RingInspector
import Synchronization
import TestSupport
import Testing
import VirtioCore
import VirtioRegisters

@Suite struct PackedTests {
  private static let features: FeatureSet = [.version1, .packedRing]
  let directory: TemporaryDirectory
  let file: MemoryFile

  init() throws {
    directory = try TemporaryDirectory()
    file = try MemoryFile.create(path: directory.file("guest.mem"), memorySize: 1 << 20, maximumQueues: 2)
  }

  private func device() throws -> FakeDevice { try FakeDevice(features: Self.features) }

  @Test func aNewRingBeginsWithItsRoundsAtOne() throws {
    let device = try device()
    let served = try ServedFile(file, device)
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: file.path)
    try driver.bringUp(features: Self.features, queues: 2)
    #expect(device.running[1]?.position == QueuePosition(available: 0x8000, used: 0x8000))
    #expect(device.running[1]?.kind.isPacked == true)
  }

  @Test func whoeverComesAfterAnOrderlyEndGoesOn() throws {
    let first = try device()
    first.state.withLock { $0.progress = 0x0005 }
    let served = try ServedFile(file, first)
    let driver = try MemoryFileDriver.open(path: file.path)
    try driver.bringUp(features: Self.features, queues: 2)
    served.stop()
    let second = try device()
    let again = try ServedFile(MemoryFile.open(path: file.path), second)
    defer { again.stop() }
    #expect(try driver.read(.status) == 15)
    #expect(second.running[0]?.position == QueuePosition(available: 5, used: 5))
    #expect(second.running[1]?.position == QueuePosition(available: 5, used: 5))
  }

  /// A ring that its driver has set up again counts as new.
  @Test func aRingThatIsMadeReadyAgainIsNew() throws {
    let device = try device()
    device.state.withLock { $0.progress = 0x0005 }
    let served = try ServedFile(file, device)
    defer { served.stop() }
    let driver = try MemoryFileDriver.open(path: file.path)
    try driver.bringUp(features: Self.features, queues: 1)
    try driver.write(.queueReady, 0)
    try driver.write(.queueReady, 1)
    #expect(device.running[0]?.position == QueuePosition(available: 0x8000, used: 0x8000))
    try driver.bringUp(features: Self.features, queues: 1)
    #expect(device.running[0]?.position == QueuePosition(available: 0x8000, used: 0x8000))
  }

  /// The file as a killed device leaves it: registers without a position.
  @Test func afterADeathTheDriverIsAskedForAReset() throws {
    let first = try device()
    let served = try ServedFile(file, first)
    let driver = try MemoryFileDriver.open(path: file.path)
    try driver.bringUp(features: Self.features, queues: 1)
    let copy = directory.file("copy.mem")
    try FileManager.default.copyItem(atPath: file.path, toPath: copy)
    served.stop()
    let second = try device()
    let again = try ServedFile(MemoryFile.open(path: copy), second)
    defer { again.stop() }
    let other = try MemoryFileDriver.open(path: copy)
    #expect(try other.read(.status) == 15 | 64)
    #expect(second.running.isEmpty)
    try other.bringUp(features: Self.features, queues: 1)
    #expect(second.running[0]?.position == QueuePosition(available: 0x8000, used: 0x8000))
  }

  @Test func aPackedRingIsDrawnAsOne() throws {
    let driver = try MemoryFileDriver.open(path: file.path)
    unsafe driver.memory.storeBytes(of: 0x1234, toByteOffset: 16, as: UInt64.self)
    unsafe driver.memory.storeBytes(of: 512 | 7 << 32 | 0x8082 << 48, toByteOffset: 24, as: UInt64.self)
    unsafe driver.memory.storeBytes(of: 2 << 16 | 0x8003, toByteOffset: 1024, as: UInt32.self)
    unsafe driver.memory.storeBytes(of: 1 << 16, toByteOffset: 2048, as: UInt32.self)
    var configuration = QueueConfiguration(0)
    configuration.size = 3
    let memory = try GuestBytes(rawFile: file.path, base: GuestAddress(0))
    let offset = UInt64(file.layout.memoryOffset)
    configuration.descriptorTable = GuestAddress(offset)
    configuration.availableRing = GuestAddress(offset + 1024)
    configuration.usedRing = GuestAddress(offset + 2048)
    let picture = QueuePicture(queue: 0, configuration: configuration, features: Self.features, memory: memory)
    #expect(picture.problems.isEmpty && !picture.isBroken)
    #expect(picture.packed?.slots.map(\.number) == [1])
    let text = QueueDrawing.draw(picture).joined(separator: "\n")
    for words in [
      "calls wanted when slot 3 of round 1 is passed", "kicks wanted never", "slot 1", "+ 512   id 7   WRITE AVAIL USED",
    ] { #expect(text.contains(words), "\(words) in\n\(text)") }
    configuration.size = 0
    let none = QueuePicture(queue: 0, configuration: configuration, features: Self.features, memory: memory)
    #expect(none.problems == [QueueError.badPackedSize(0).description])
  }
}
