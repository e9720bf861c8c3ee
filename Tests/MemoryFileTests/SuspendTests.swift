/// SUSPEND with a memory file: the next device sets NEEDS_RESET, and a suspended device cannot be taken over.
import Foundation
import MemoryFile
import Sockets
import Synchronization
import TestSupport
import Testing
import VirtioCore
import VirtioRegisters

@Suite struct SuspendTests {
  let directory: TemporaryDirectory
  private static let features: FeatureSet = [.version1, .eventIndex, .packedRing, .suspend]

  init() throws { directory = try TemporaryDirectory() }

  private func serve(_ interface: RegisterInterface = .mmio) throws -> (device: FakeDevice, served: ServedFile) {
    let file = try MemoryFile.create(
      path: directory.file("guest.mem"), memorySize: 1 << 20, maximumQueues: 2, interface: interface)
    let device = try FakeDevice(features: Self.features)
    return (device, try ServedFile(file, device, drainLimit: .milliseconds(50)))
  }

  /// The device has NEEDS_RESET, no queue runs, and after a reset it works.
  ///
  /// - Parameters:
  ///   - calls: calls counted for each queue before.
  ///   - pending: a register access that the next device answers.
  private func expectNeedsReset(
    _ driver: MemoryFileDriver, _ path: String, _ accepted: FeatureSet, calls: [UInt32], pending: SideThread<Void>? = nil
  ) throws {
    let device = try FakeDevice(features: Self.features)
    let served = try ServedFile(try MemoryFile.open(path: path), device)
    defer { served.stop() }
    if let pending {
      try wait(until: "the access that the predecessor left is answered") { pending.isOver }
      try pending.end()
    }
    #expect(driver.waitForConfigurationChange(whileEquals: 0, milliseconds: patientMilliseconds) == 1)
    #expect(try driver.read(.status) == 15 | 64)
    // Calls that may have been owed for elements used before.
    #expect([0, 1].map { driver.callCount(queue: $0) } == calls.map { $0 &+ 1 })
    for status in [31, 15] as [UInt32] {
      try driver.write(.status, status)
      #expect(try driver.read(.status) == 15 | 64)
    }
    #expect(device.running.isEmpty)
    #expect(served.lines.withLock { $0.contains { $0.contains("had suspended the device") } })
    try driver.bringUp(features: accepted, queues: 2)
    #expect(device.running.count == 2)
    try driver.write(.status, 31)
    #expect(try driver.read(.status) == 27)
  }

  @Test("after a restart or a crash, a device that was suspended needs a reset", arguments: [false, true], [false, true])
  func nextDevice(isKilled: Bool, isPacked: Bool) throws {
    let accepted: FeatureSet = isPacked ? [.version1, .packedRing, .suspend] : [.version1, .suspend]
    let (_, served) = try serve()
    defer { served.stop() }
    let path = served.file.path
    let driver = try MemoryFileDriver.open(path: path)
    try driver.bringUp(features: accepted, queues: 2)
    try driver.write(.status, 31)
    #expect(try driver.read(.status) == 27)
    let calls = [0, 1].map { driver.callCount(queue: $0) }
    if isKilled {
      // The file as it is when the device dies.
      let copy = directory.file("dead.mem")
      try FileManager.default.copyItem(atPath: path, toPath: copy)
      try expectNeedsReset(MemoryFileDriver.open(path: copy), copy, accepted, calls: calls)
    } else {
      served.stop()
      try expectNeedsReset(driver, path, accepted, calls: calls)
    }
  }

  @Test("a device that is abandoned before its queues have drained needs a reset, and does not suspend itself again")
  func abandonedInTheDrain() throws {
    let accepted: FeatureSet = [.version1, .suspend]
    let (device, served) = try serve()
    let path = served.file.path
    let driver = try MemoryFileDriver.open(path: path, timeout: patientMilliseconds)
    try driver.bringUp(features: accepted, queues: 2)
    let calls = [0, 1].map { driver.callCount(queue: $0) }
    device.holdStops()
    let access = SideThread { try driver.write(.status, 31) }
    // One at a time: the second is not asked to stop before the first has.
    try wait(until: "a queue is stopping") { device.calls.contains(.stop(0)) }
    served.stop()
    #expect(served.left.withLock { $0 } == [0, 1])
    try expectNeedsReset(driver, path, accepted, calls: calls, pending: access)
  }

  // MARK: Interrupts

  @Test("a call held back for a queue, and unmasked while it is suspended, is sent when the driver resumes the device")
  func heldBack() throws {
    let (device, served) = try serve(.pci)
    defer { served.stop() }
    let driver = try FaceDriver(served.file.path, Face(interface: .pci))
    try driver.bringUp(features: [.version1, .suspend], queues: 2, messages: true)
    func calls() -> [UInt32] { [0, 1].map { driver.driver.callCount(queue: $0) } }
    let before = calls()
    for _ in 0..<2 {
      try driver.mask(2, true)
      let masked = calls()
      try #require(device.running[1]).call.signal()
      try driver.setStatus(31)
      #expect(try driver.status() == 27)
      try driver.mask(2, false)
      #expect(calls() == masked, "a suspended device sends no calls")
      try driver.setStatus(15)
      #expect(try driver.status() == 15)
      #expect(calls() == [masked[0], masked[1] &+ 1])
      #expect(try driver.pci(.bar(1), 0x800, 8) == 0)
    }
    // Nothing was held back.
    try driver.setStatus(31)
    try driver.mask(2, true)
    try driver.mask(2, false)
    try driver.setStatus(15)
    #expect(try driver.status() == 15)
    #expect(calls() == [before[0], before[1] &+ 2])
  }

  @Test("a call missed while INTx was disabled is sent when the driver resumes the device")
  func disabledLine() throws {
    let (device, served) = try serve(.pci)
    defer { served.stop() }
    let driver = try FaceDriver(served.file.path, Face(interface: .pci))
    try driver.bringUp(features: [.version1, .suspend], queues: 1)
    try driver.setPCI(.configuration, 4, 2, 0x407)
    let calls = driver.driver.callCount(queue: 0)
    try #require(device.running[0]).call.signal()
    try driver.setStatus(31)
    try driver.setPCI(.configuration, 4, 2, 7)
    #expect(try driver.status() == 27)
    #expect(driver.driver.callCount(queue: 0) == calls)
    try driver.setStatus(15)
    #expect(try driver.status() == 15)
    #expect(driver.driver.callCount(queue: 0) == calls &+ 1)
  }

  @Test("a configuration change that was held back waits until the driver resumes the device, too")
  func heldBackConfiguration() throws {
    let (device, served) = try serve(.pci)
    defer { served.stop() }
    let driver = try FaceDriver(served.file.path, Face(interface: .pci))
    try driver.bringUp(features: [.version1, .suspend], queues: 1, messages: true)
    try driver.mask(0, true)
    device.raise(.configurationChanged)
    try wait(until: "the device has noticed") { driver.driver.interruptStatus == 2 }
    let count = driver.driver.configurationCount
    try driver.setStatus(31)
    try driver.mask(0, false)
    #expect(try driver.status() == 27)
    #expect(driver.driver.configurationCount == count)
    try driver.setStatus(15)
    #expect(try driver.status() == 15)
    #expect(driver.driver.configurationCount == count &+ 1)
  }
}
