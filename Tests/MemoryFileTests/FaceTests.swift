/// The guarantees of a memory file, with every register interface.
import Foundation
import MemoryFile
import RingInspector
import Sockets
import Synchronization
import TestSupport
import Testing
import VirtioCore
import VirtioRegisters

@Suite struct FaceTests {
  let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  private func file(_ face: Face) throws -> MemoryFile {
    try MemoryFile.create(
      path: directory.file("guest.mem"), memorySize: 1 << 20, maximumQueues: 2, interface: face.interface)
  }

  private func serve(
    _ face: Face, features: FeatureSet = [.version1, .eventIndex]
  ) throws -> (file: MemoryFile, device: FakeDevice, served: ServedFile) {
    let file = try file(face)
    let device = try FakeDevice(features: features)
    return (file, device, try ServedFile(file, device))
  }

  @Test("the header tells which registers the mailbox reaches", arguments: RegisterInterface.allCases)
  func header(_ interface: RegisterInterface) throws {
    let made = try file(Face(interface: interface))
    let opened = try MemoryFile.open(path: made.path)
    #expect(opened.layout == made.layout && opened.layout.interface == interface)
    let bytes = try #require(FileManager.default.contents(atPath: made.path))
    #expect(Array(bytes[0x50..<0x54]) == [UInt8(interface.rawValue), 0, 0, 0])
    #expect(bytes.dropFirst(0x54).allSatisfy { $0 == 0 })
    let picture = MemoryFilePicture(try MemoryFileSnapshot(path: made.path)).draw().joined(separator: "\n")
    #expect(picture.contains("registers") == (interface != .mmio))
  }

  @Test("an unknown register interface is refused", arguments: [5, 255, 0xffff_ffff] as [UInt32])
  func unknownRegisters(_ number: UInt32) throws {
    let made = try file(Face(interface: .mmio))
    var bytes = try #require(FileManager.default.contents(atPath: made.path))
    for index in 0..<4 { bytes[0x50 + index] = UInt8(truncatingIfNeeded: number >> UInt32(index * 8)) }
    try bytes.write(to: URL(fileURLWithPath: made.path))
    let error = #expect(throws: MemoryFileError.self) { try MemoryFile.open(path: made.path) }
    #expect("\(String(describing: error))".contains("registers are of kind \(number)"))
  }

  @Test("DRIVER_OK starts the queues, at the used index of their rings", arguments: Face.all)
  func bringUp(_ face: Face) throws {
    let (file, device, served) = try serve(face)
    defer { served.stop() }
    let driver = try FaceDriver(file.path, face)
    let used = Int(face.configuration(1).usedRing.rawValue)
    unsafe driver.driver.memory.storeBytes(of: 0xfffe, toByteOffset: used + 2, as: UInt16.self)
    try driver.bringUp(features: .eventIndex, queues: 2)
    #expect(try driver.status() == face.driverOK)
    #expect(
      device.calls.suffix(3) == [
        .negotiated(face.least.union(.eventIndex)), .start(0, face.configuration(0), available: 0),
        .start(1, face.configuration(1), available: 0xfffe),
      ])
    #expect(try driver.readConfiguration(8, 8) == 0x0f0e_0d0c_0b0a_0908)
  }

  @Test(
    "row 36: a reset is answered when every queue has stopped, and clears pending bits", arguments: Face.all)
  func reset(_ face: Face) throws {
    let (file, device, served) = try serve(face)
    defer { served.stop() }
    let driver = try FaceDriver(file.path, face)
    try driver.bringUp(queues: 2)
    try #require(device.running[0]).call.signal()
    #expect(driver.driver.interruptStatus == 1)
    try driver.setStatus(0)
    #expect(device.running.isEmpty && device.calls.last == .reset)
    #expect(driver.driver.interruptStatus == 0)
    #expect(try driver.status() == 0)
    try driver.bringUp(queues: 1)
    #expect(device.running.count == 1)
  }

  @Test("kicks ring the queue's doorbell, directly or through the notification register", arguments: Face.all)
  func kicks(_ face: Face) throws {
    let (file, device, served) = try serve(face)
    defer { served.stop() }
    let driver = try FaceDriver(file.path, face)
    try driver.bringUp(queues: 2)
    guard case .doorbell(let bell)? = device.running[1]?.kick else { throw ServedFile.Failure(description: "no doorbell") }
    let seen = bell.counter.loadAcquire()
    driver.driver.kick(queue: 1)
    #expect(bell.counter.loadAcquire() == seen &+ 1)
    try driver.notify(1)
    #expect(bell.counter.loadAcquire() == seen &+ 2)
    try driver.notify(0)
    try driver.notify(17)
    #expect(bell.counter.loadAcquire() == seen &+ 2)
  }

  @Test("a call sets bit 0 and rings; it is acknowledged in the interface's way", arguments: Face.all)
  func calls(_ face: Face) throws {
    let (file, device, served) = try serve(face)
    defer { served.stop() }
    let driver = try FaceDriver(file.path, face)
    try driver.bringUp(queues: 2)
    let (seen, other) = (driver.driver.callCount(queue: 1), driver.driver.callCount(queue: 0))
    try #require(device.running[1]).call.signal()
    #expect(driver.driver.waitForCall(queue: 1, whileEquals: seen, milliseconds: patientMilliseconds) == seen &+ 1)
    #expect(driver.driver.callCount(queue: 0) == other)
    #expect(try driver.interrupts() == 1)
    try driver.acknowledge(1)
    #expect(try driver.interrupts() == 0)
  }

  @Test("status.5: a queue that fails sets NEEDS_RESET and notifies; a reset clears it", arguments: Face.all)
  func queueFailure(_ face: Face) throws {
    let (file, device, served) = try serve(face)
    defer { served.stop() }
    let driver = try FaceDriver(file.path, face)
    try driver.bringUp(queues: 2)
    let seen = driver.driver.configurationCount
    device.raise(.queueFailed(queue: 1, .headOutOfRange(77)))
    #expect(driver.driver.waitForConfigurationChange(whileEquals: seen, milliseconds: patientMilliseconds) == seen &+ 1)
    #expect(try driver.status() == face.driverOK | 64)
    #expect(try driver.interrupts() == 2)
    try driver.bringUp(queues: 2)
    #expect(try driver.status() == face.driverOK)
    #expect(device.running.count == 2)
  }

  @Test("configuration changes are reported, and a driver's writes are accepted", arguments: Face.all)
  func configuration(_ face: Face) throws {
    let (file, device, served) = try serve(face)
    defer { served.stop() }
    let driver = try FaceDriver(file.path, face)
    // legacy.init.1: before anything else.
    try driver.enable()
    try driver.writeConfiguration(32, 1, 9)
    try driver.writeConfiguration(0, 8, .max)
    #expect(try driver.readConfiguration(32, 1) == 9)
    #expect(device.calls == [.wrote(32, [9])])
    try driver.bringUp(queues: 1)
    let seen = driver.driver.configurationCount
    device.raise(.configurationChanged)
    #expect(driver.driver.waitForConfigurationChange(whileEquals: seen, milliseconds: patientMilliseconds) == seen &+ 1)
    #expect(try driver.interrupts() == 2)
  }

  @Test("a restarted device continues where its predecessor stopped", arguments: Face.all)
  func successor(_ face: Face) throws {
    let (file, _, served) = try serve(face)
    let driver = try FaceDriver(file.path, face)
    try driver.bringUp(features: .eventIndex, queues: 2)
    try driver.writeConfiguration(32, 1, 5)
    let image = try MemoryFileSnapshot(path: file.path).registers
    served.stop()
    let used = Int(face.configuration(0).usedRing.rawValue)
    unsafe driver.driver.memory.storeBytes(of: 3, toByteOffset: used + 2, as: UInt16.self)
    let calls = driver.driver.callCount(queue: 1)
    let second = try FakeDevice()
    let again = try ServedFile(try MemoryFile.open(path: file.path), second)
    defer { again.stop() }
    #expect(try driver.status() == face.driverOK)
    // A legacy driver's features are fixed by DRIVER_OK, which comes after its configuration writes.
    let told: [FakeDevice.Call] = [.negotiated(face.least.union(.eventIndex)), .wrote(32, [5])]
    #expect(
      second.calls == (face.isLegacy ? told.reversed() : told) + [
        .start(0, face.configuration(0), available: 3), .start(1, face.configuration(1), available: 0),
      ])
    #expect(driver.driver.callCount(queue: 1) == calls &+ 1)
    var now = try MemoryFileSnapshot(path: file.path).registers
    now.pci?.generation = image.pci?.generation ?? 0
    #expect(now == image)
    try driver.notify(1)
    try driver.setStatus(0)
    #expect(second.running.isEmpty)
  }

  @Test("a successor with fewer features sets NEEDS_RESET", arguments: Face.all)
  func lesserSuccessor(_ face: Face) throws {
    let (file, _, served) = try serve(face)
    let driver = try FaceDriver(file.path, face)
    try driver.bringUp(features: .eventIndex, queues: 2)
    served.stop()
    let seen = driver.driver.configurationCount
    let lesser = try FakeDevice(features: [.version1])
    let again = try ServedFile(try MemoryFile.open(path: file.path), lesser)
    defer { again.stop() }
    #expect(driver.driver.waitForConfigurationChange(whileEquals: seen, milliseconds: patientMilliseconds) == seen &+ 1)
    #expect(try driver.status() & 64 == 64)
    #expect(lesser.running.isEmpty)
    try driver.bringUp(queues: 1)
    #expect(lesser.running.count == 1)
  }

  @Test(
    "legacy.init.2: a successor serves a driver that works without DRIVER_OK", arguments: Face.all.filter(\.isLegacy))
  func early(_ face: Face) throws {
    let (file, device, served) = try serve(face)
    let driver = try FaceDriver(file.path, face)
    try driver.enable()
    try driver.setStatus(3)
    if face.interface == .mmioLegacy { try driver.driver.write(0x28, 4096) }
    try driver.setUp(1)
    try driver.notify(0)
    #expect(device.running.isEmpty)
    try driver.notify(1)
    #expect(device.calls.suffix(2) == [.negotiated([]), .start(1, face.configuration(1), available: 0)])
    served.stop()
    let second = try FakeDevice()
    let again = try ServedFile(try MemoryFile.open(path: file.path), second)
    defer { again.stop() }
    #expect(try driver.status() == 3)
    #expect(second.running.keys.sorted() == [1])
    let seen = driver.driver.configurationCount
    second.raise(.configurationChanged)
    #expect(driver.driver.waitForConfigurationChange(whileEquals: seen, milliseconds: patientMilliseconds) == seen &+ 1)
    try driver.setStatus(7)
    #expect(second.running.count == 1)
  }

  @Test("random bytes in the control block never trap, and after a reset it works", arguments: Face.all, 0..<8 as Range<UInt64>)
  func hostileControlBlock(_ face: Face, _ seed: UInt64) throws {
    let file = try file(face)
    var bytes = try #require(FileManager.default.contents(atPath: file.path))
    var generator = SplitMix(state: seed)
    for at in 4096..<Int(file.layout.memoryOffset) where seed % 2 == 0 || generator.next() % 16 == 0 {
      bytes[at] = UInt8(truncatingIfNeeded: generator.next() >> 7)
    }
    try bytes.write(to: URL(fileURLWithPath: file.path))
    #expect(!MemoryFilePicture(try MemoryFileSnapshot(path: file.path)).draw().isEmpty)
    let device = try FakeDevice()
    let served = try ServedFile(try MemoryFile.open(path: file.path), device)
    defer { served.stop() }
    let driver = try FaceDriver(file.path, face)
    try driver.bringUp(queues: 2)
    #expect(try driver.status() == face.driverOK)
    #expect(device.running.count == 2)
  }

  // MARK: PCI

  @Test(
    "a message rings the doorbell without a bit in ISR; a masked one is held back until it is unmasked", arguments: Face.pci)
  func messages(_ face: Face) throws {
    let (file, device, served) = try serve(face)
    defer { served.stop() }
    let driver = try FaceDriver(file.path, face)
    try driver.bringUp(queues: 2, messages: true)
    func calls() -> [UInt32] { [0, 1].map { driver.driver.callCount(queue: $0) } }
    func signal(_ queue: Int) throws { try #require(device.running[queue]).call.signal() }
    let before = calls()
    try signal(1)
    #expect(calls() == [before[0], before[1] &+ 1])
    #expect(driver.driver.interruptStatus == 0)
    // Masked, and pending.
    try driver.mask(2, true)
    let masked = calls()
    try signal(1)
    try signal(0)
    #expect(calls() == [masked[0] &+ 1, masked[1]])
    #expect(try driver.pci(.bar(1), 0x800, 8) == 4)
    try driver.mask(2, false)
    #expect(calls()[1] == masked[1] &+ 1)
    #expect(try driver.pci(.bar(1), 0x800, 8) == 0)
    // pci.intr.1: no vector, no interrupt.
    try driver.select(1)
    try driver.setPCI(face.isLegacy ? .bar(0) : .bar(4), face.isLegacy ? 0x16 : 0x1a, 2, 0xffff)
    let none = calls()
    try signal(1)
    #expect(calls() == none)
    // Back to INTx, which reports what may have been missed.
    try driver.setPCI(.configuration, 0x9a, 2, 0)
    #expect(calls()[1] == none[1] &+ 1)
    #expect(try driver.interrupts() == 1)
  }

  @Test(
    "pci.isr.2, pci.intr.3: a configuration change is sent to its vector, waits while that is masked, or is not sent",
    arguments: Face.pci)
  func configurationMessages(_ face: Face) throws {
    let (file, device, served) = try serve(face)
    defer { served.stop() }
    let driver = try FaceDriver(file.path, face)
    try driver.bringUp(queues: 1, messages: true)
    /// The bit is set in any case, as the second to last step.
    func change() throws {
      device.raise(.configurationChanged)
      try wait(until: "the device has noticed") { driver.driver.interruptStatus == 2 }
    }
    var count = driver.driver.configurationCount
    try change()
    // The next access is answered after the device has done the last step.
    #expect(try driver.interrupts() == 2)
    #expect(driver.driver.configurationCount == count &+ 1)
    try driver.mask(0, true)
    try change()
    #expect(try driver.interrupts() == 2)
    #expect(driver.driver.configurationCount == count &+ 1)
    #expect(try driver.pci(.bar(1), 0x800, 4) == 1)
    try driver.mask(0, false)
    #expect(driver.driver.configurationCount == count &+ 2)
    #expect(try driver.pci(.bar(1), 0x800, 4) == 0)
    try driver.setPCI(face.isLegacy ? .bar(0) : .bar(4), face.isLegacy ? 0x14 : 0x10, 2, 0xffff)
    count = driver.driver.configurationCount
    try change()
    #expect(try driver.interrupts() == 2)
    #expect(driver.driver.configurationCount == count)
  }

  @Test("with INTx disabled no driver is woken, and the bits are set all the same", arguments: Face.pci)
  func disabledLine(_ face: Face) throws {
    let (file, device, served) = try serve(face)
    defer { served.stop() }
    let driver = try FaceDriver(file.path, face)
    try driver.bringUp(queues: 1)
    try driver.setPCI(.configuration, 4, 2, 0x407)
    let (calls, changes) = (driver.driver.callCount(queue: 0), driver.driver.configurationCount)
    try #require(device.running[0]).call.signal()
    device.raise(.configurationChanged)
    try wait(until: "the device has noticed") { driver.driver.interruptStatus == 3 }
    #expect(try driver.status() == face.driverOK)
    #expect(driver.driver.callCount(queue: 0) == calls && driver.driver.configurationCount == changes)
    #expect(try driver.pci(.configuration, 6, 2) == 0x18)
    try driver.setPCI(.configuration, 4, 2, 7)
    #expect(driver.driver.callCount(queue: 0) == calls &+ 1 && driver.driver.configurationCount == changes &+ 1)
  }

  @Test("without bus mastering a function stops its queues, and continues at their positions", arguments: [false, true])
  func busMaster(_ isPacked: Bool) throws {
    let face = Face(interface: .pci)
    let features: FeatureSet = isPacked ? [.version1, .packedRing] : [.version1]
    let (file, device, served) = try serve(face, features: features)
    defer { served.stop() }
    let driver = try FaceDriver(file.path, face)
    try driver.bringUp(features: features, queues: 1)
    device.state.withLock { $0.progress = 5 }
    let used = Int(face.configuration(0).usedRing.rawValue)
    if !isPacked { unsafe driver.driver.memory.storeBytes(of: 5, toByteOffset: used + 2, as: UInt16.self) }
    try driver.setPCI(.configuration, 4, 2, 2)
    #expect(device.running.isEmpty)
    try driver.setPCI(.configuration, 4, 2, 6)
    #expect(device.running[0]?.position == QueuePosition(available: 5, used: 5))
  }

  @Test("vectors and masks are kept for the next device", arguments: Face.pci)
  func messagesOfASuccessor(_ face: Face) throws {
    let (file, _, served) = try serve(face)
    let driver = try FaceDriver(file.path, face)
    try driver.bringUp(queues: 2, messages: true)
    try driver.mask(1, true)
    served.stop()
    let calls = [0, 1].map { driver.driver.callCount(queue: $0) }
    let second = try FakeDevice()
    let again = try ServedFile(try MemoryFile.open(path: file.path), second)
    defer { again.stop() }
    #expect(try driver.status() == face.driverOK)
    // Calls that the predecessor may have owed: held back for queue 0, sent for queue 1.
    #expect([0, 1].map { driver.driver.callCount(queue: $0) } == [calls[0], calls[1] &+ 1])
    #expect(driver.driver.interruptStatus & 1 == 0)
    #expect(try driver.pci(.bar(1), 0x800, 4) == 2)
    try driver.mask(1, false)
    #expect(driver.driver.callCount(queue: 0) == calls[0] &+ 1)
  }

  // MARK: Hand-over

  @Test("one device takes over from another, and the driver notices only a pause", arguments: Face.all)
  func handOver(_ face: Face) throws {
    let file = try file(face)
    let loop = try EventLoop()
    func turn(until isSo: () -> Bool) throws {
      let end = ContinuousClock.now + Patience.limit
      while !isSo() {
        try #require(ContinuousClock.now < end, "timed out waiting for the condition")
        loop.after(.milliseconds(1)) { loop.stop() }
        try loop.run()
      }
    }
    let old = try FakeDevice()
    let first = try MemoryFileDevice(file: file, device: old)
    try first.open(in: loop)
    let driver = try FaceDriver(file.path, face)
    let bringUp = SideThread { try driver.bringUp(features: .eventIndex, queues: 2) }
    try turn { bringUp.isOver }
    try bringUp.end()
    var isPaused = false
    first.pauseForHandOver { isPaused = true }
    try turn { isPaused }
    let late = SideThread { try driver.writeConfiguration(32, 1, 7) }
    let new = try FakeDevice()
    let second = try MemoryFileDevice(
      file: MemoryFile.adopt(file.descriptor, path: file.path), device: new, takesOver: true)
    var answer: MemoryFileError?? = .none
    try second.prepare(for: first.offer, in: loop) { answer = .some($0) }
    try turn { answer != nil }
    #expect(try #require(answer) == nil)
    answer = .none
    try second.hold(in: loop) { answer = .some($0) }
    try turn { answer != nil }
    #expect(try #require(answer) == nil)
    #expect(new.running.mapValues(\.configuration) == [0: face.configuration(0), 1: face.configuration(1)])
    #expect(!late.isOver)
    first.handOver()
    second.release()
    try turn { late.isOver }
    try late.end()
    #expect(new.calls.last == .wrote(32, [7]))
    let status = Mutex<UInt32>(0)
    let look = SideThread {
      let seen = try driver.status()
      status.withLock { $0 = seen }
    }
    try turn { look.isOver }
    try look.end()
    #expect(status.withLock { $0 } == face.driverOK)
    var isClosed = false
    second.close { isClosed = true }
    try turn { isClosed }
  }
}
