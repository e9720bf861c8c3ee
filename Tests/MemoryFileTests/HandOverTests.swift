/// One device replaces another while a driver works: what the driver notices, and what happens when a takeover fails.
import CLinux
import Foundation
import MemoryFile
import Sockets
import Synchronization
import TestSupport
import Testing
import VirtioBlkDevice
import VirtioCore
import VirtioRegisters

@Suite struct HandOverTests {
  let directory: TemporaryDirectory
  let file: MemoryFile
  let loop: EventLoop

  init() throws {
    directory = try TemporaryDirectory()
    file = try MemoryFile.create(path: directory.file("guest.mem"), memorySize: 1 << 20, maximumQueues: 2)
    loop = try EventLoop()
  }

  // MARK: Helpers

  /// Runs the loop until the condition holds.
  private func turn(until isSo: () -> Bool) throws {
    let end = ContinuousClock.now + Patience.limit
    while !isSo() {
      try #require(ContinuousClock.now < end, "timed out waiting for the condition")
      loop.after(.milliseconds(1)) { [loop] in loop.stop() }
      try loop.run()
    }
  }

  /// Lets a driver do something while the loop runs, and expects it to succeed.
  private func drive(_ body: @escaping @Sendable () throws -> Void) throws {
    let access = SideThread(body)
    try turn { access.isOver }
    try access.end()
  }

  private func pause(_ device: MemoryFileDevice) throws {
    var isPaused = false
    device.pauseForHandOver { isPaused = true }
    try turn { isPaused }
  }

  private func end(_ device: MemoryFileDevice) throws {
    var isClosed = false
    device.close { isClosed = true }
    try turn { isClosed }
  }

  /// A held device on the file that another device serves.
  private func successor(of file: MemoryFile, _ device: any VirtioDevice) throws -> MemoryFileDevice {
    let taken = try MemoryFile.adopt(file.descriptor, path: file.path)
    return try MemoryFileDevice(file: taken, device: device, takesOver: true)
  }

  private func prepare(_ device: MemoryFileDevice, for offer: MemoryFileDevice.Offer) throws -> MemoryFileError? {
    var answer: MemoryFileError?? = .none
    try device.prepare(for: offer, in: loop) { answer = .some($0) }
    try turn { answer != nil }
    return try #require(answer)
  }

  private func hold(_ device: MemoryFileDevice, running: [Int] = []) throws -> MemoryFileError? {
    var answer: MemoryFileError?? = .none
    try device.hold(in: loop, running: running) { answer = .some($0) }
    try turn { answer != nil }
    return try #require(answer)
  }

  /// Whether an outsider finds the file served.
  private func isServed() throws -> Bool {
    do {
      _ = try MemoryFileDevice(file: try MemoryFile.open(path: file.path), device: try FakeDevice())
      return false
    } catch MemoryFileError.deviceAlreadyThere { return true }
  }

  // MARK: Tests

  @Test("the driver gets another device, which answers the request made during the pause")
  func takeover() throws {
    let old = try FakeDevice()
    let first = try MemoryFileDevice(file: file, device: old)
    try first.open(in: loop)
    let driver = try MemoryFileDriver.open(path: file.path)
    try drive {
      try driver.bringUp(features: [.version1, .eventIndex], queues: 2)
      try driver.write(0x120, width: 1, 5)
    }
    let epoch = driver.deviceEpoch
    try pause(first)
    #expect(old.running.isEmpty)
    #expect(driver.isDeviceThere)
    #expect(try isServed())
    // Three requests of queue 0 are done.
    unsafe driver.memory.storeBytes(of: 3, toByteOffset: 2048 + 2, as: UInt16.self)
    let calls = driver.callCount(queue: 0)
    // Requested during the pause.
    let late = SideThread { try driver.write(0x120, width: 1, 7) }

    let new = try FakeDevice()
    let second = try successor(of: file, new)
    #expect(try hold(second) == nil)
    #expect(
      new.calls == [
        .negotiated([.version1, .eventIndex]), .wrote(32, [5]), .start(0, QueueConfiguration(0), available: 3),
        .start(1, QueueConfiguration(1), available: 0),
      ])
    #expect(new.running.values.allSatisfy { $0.isHeld })
    #expect(driver.isDeviceThere && driver.deviceEpoch == epoch && driver.callCount(queue: 0) == calls)
    #expect(!late.isOver)
    first.handOver()
    second.release()
    try turn { late.isOver }
    try late.end()
    #expect(new.calls.suffix(3) == [.release(0), .release(1), .wrote(32, [7])])
    #expect(!old.calls.contains(.wrote(32, [7])))
    #expect(driver.deviceEpoch == epoch &+ 1)
    #expect(driver.configurationCount == 0)
    #expect(try isServed())
    try end(second)
    #expect(!driver.isDeviceThere)
    #expect(try !isServed())
  }

  enum Fault: String, CaseIterable {
    case givesUpBeforeHolding, givesUpWhileHolding, abandonsWhileHolding, queueDoesNotStart, canDoLess
  }

  @Test("after a failed takeover the old device serves, and the driver notices nothing", arguments: Fault.allCases)
  func failed(_ fault: Fault) throws {
    let old = try FakeDevice()
    let first = try MemoryFileDevice(file: file, device: old)
    try first.open(in: loop)
    let driver = try MemoryFileDriver.open(path: file.path)
    try drive { try driver.bringUp(features: [.version1, .eventIndex], queues: 2) }
    let epoch = driver.deviceEpoch
    try pause(first)
    let late = SideThread { try driver.write(0x120, width: 1, 9) }

    let new = try FakeDevice(
      features: fault == .canDoLess ? [.version1] : [.version1, .eventIndex],
      broken: fault == .queueDoesNotStart ? [1] : [])
    do {
      let second = try successor(of: file, new)
      switch fault {
      case .givesUpBeforeHolding: break
      case .givesUpWhileHolding:
        #expect(try hold(second) == nil)
        try end(second)
      case .abandonsWhileHolding:
        #expect(try hold(second) == nil)
        #expect(second.abandon() == [0, 1])
      case .queueDoesNotStart:
        #expect(try hold(second) == .queueNotTakenOver(path: file.path, queue: 1, .badSize(8)))
      case .canDoLess: #expect(try hold(second) == .driverNotTakenOver(path: file.path))
      }
    }
    #expect(fault == .abandonsWhileHolding || new.running.isEmpty)
    #expect(driver.isDeviceThere && driver.deviceEpoch == epoch && driver.configurationCount == 0)
    #expect(try isServed())
    first.resume()
    try turn { late.isOver }
    try late.end()
    #expect(old.running.count == 2 && old.running.values.allSatisfy { !$0.isHeld })
    #expect(old.calls.last == .wrote(32, [9]))
    #expect(new.calls.allSatisfy { if case .release = $0 { false } else { true } })
    try drive { try #require(try driver.read(.status) == 15) }
    // And the next one succeeds.
    try pause(first)
    let third = try successor(of: file, try FakeDevice())
    #expect(try hold(third) == nil)
    first.handOver()
    third.release()
    try drive { try #require(try driver.read(0x120, width: 1) == 9) }
    try end(third)
  }

  @Test("queues beside a failed one continue, with the old device and with the new one")
  func besideAFailedQueue() throws {
    let old = try FakeDevice()
    let first = try MemoryFileDevice(file: file, device: old)
    try first.open(in: loop)
    let driver = try MemoryFileDriver.open(path: file.path)
    try drive { try driver.bringUp(queues: 2) }
    old.raise(.queueFailed(queue: 1, .headOutOfRange(77)))
    try turn { driver.configurationCount == 1 }
    try pause(first)
    #expect(first.offer.running == [0])
    first.resume()
    try turn { old.running.keys.sorted() == [0] }
    try pause(first)
    let new = try FakeDevice()
    let second = try successor(of: file, new)
    #expect(try hold(second, running: first.offer.running) == nil)
    #expect(new.running.keys.sorted() == [0])
    first.handOver()
    second.release()
    #expect(new.calls.last == .release(0))
    try drive { try #require(try driver.read(.status) == 15 | 64) }
    // After a reset it works.
    try drive { try driver.bringUp(queues: 2) }
    #expect(new.running.keys.sorted() == [0, 1])
    try end(second)
  }

  @Test("a device prepared while the old one serves includes what the driver has done since")
  func prepared() throws {
    let first = try MemoryFileDevice(file: file, device: try FakeDevice())
    try first.open(in: loop)
    let driver = try MemoryFileDriver.open(path: file.path)
    try drive { try driver.bringUp(features: [.version1, .eventIndex], queues: 2) }
    let new = try FakeDevice()
    let second = try successor(of: file, new)
    #expect(try prepare(second, for: first.offer) == nil)
    try drive {
      try driver.bringUp(features: [.version1], queues: 1)
      try driver.write(0x120, width: 1, 5)
    }
    try pause(first)
    let mark = new.calls.count
    #expect(try hold(second, running: first.offer.running) == nil)
    #expect(
      new.calls.suffix(from: mark) == [
        .negotiated([.version1]), .wrote(32, [5]), .start(0, QueueConfiguration(0), available: 0),
      ])
    first.handOver()
    second.release()
    try drive { try #require(try driver.read(.status) == 15) }
    try end(second)
  }

  @Test("what a successor did before it died is kept by the old device")
  func begunAndGone() throws {
    let old = try FakeDevice()
    let first = try MemoryFileDevice(file: file, device: old)
    try first.open(in: loop)
    let driver = try MemoryFileDriver.open(path: file.path)
    try drive { try driver.bringUp(queues: 2) }
    try pause(first)
    let second = try successor(of: file, try FakeDevice())
    #expect(try hold(second) == nil)
    first.leaveRole()
    second.release()
    // Two requests of queue 0, and a configuration write of the driver.
    unsafe driver.memory.storeBytes(of: 2, toByteOffset: 2048 + 2, as: UInt16.self)
    try drive { try driver.write(0x120, width: 1, 7) }
    // Released as the kernel does for a killed process, except for the role, which the first device has as well.
    try pause(second)
    second.handOver()
    let mark = old.calls.count
    first.resumeFromFile()
    try turn { old.running.count == 2 }
    #expect(
      old.calls.suffix(from: mark) == [
        .reset, .negotiated([.version1]), .wrote(32, [7]), .start(0, QueueConfiguration(0), available: 2),
        .start(1, QueueConfiguration(1), available: 0),
      ])
    try drive {
      try driver.write(0x120, width: 1, 9)
      try #require(try driver.read(0x120, width: 1) == 9)
    }
    #expect(try isServed())
    try end(first)
    #expect(try !isServed())
  }

  @Test("a disk that would look changed to the driver is refused before anything is paused")
  func otherOffer() throws {
    let first = try MemoryFileDevice(file: file, device: try FakeDevice())
    try first.open(in: loop)
    let changes: [(String, (inout MemoryFileDevice.Offer) -> Void)] = [
      ("set of features", { $0.features |= 1 << 9 }), ("number of queues", { $0.queues = 3 }),
      ("largest ring size", { $0.maximumQueueSize = 8 }), ("configuration space", { $0.configuration[20] ^= 1 }),
      ("configuration space", { $0.configuration.removeLast() }),
    ]
    for (what, change) in changes {
      var offer = first.offer
      change(&offer)
      let second = try successor(of: file, try FakeDevice())
      #expect("\(what)") {
        try second.prepare(for: offer, in: loop) { _ in }
      } throws: { error in
        guard case .otherDisk(_, let found, _, _) = error as? MemoryFileError else { return false }
        return found == what
      }
    }
    #expect(first.isServing)
    try end(first)
  }

  @Test("a pause that is cancelled while queues stop restarts them once they have stopped")
  func resumedEarly() throws {
    let device = try FakeDevice()
    let served = try MemoryFileDevice(file: file, device: device)
    try served.open(in: loop)
    let driver = try MemoryFileDriver.open(path: file.path)
    try drive { try driver.bringUp(queues: 2) }
    device.holdStops()
    var isPaused = false
    served.pauseForHandOver { isPaused = true }
    device.finishStop(0)
    served.resume()
    device.finishStop(1)
    try turn { device.running.count == 2 }
    #expect(!isPaused)
    try drive { try #require(try driver.read(.status) == 15) }
    #expect(device.calls.suffix(4).map { if case .start = $0 { true } else { false } } == [false, false, true, true])
    served.abandon()
  }

  @Test("a request made before the pause is answered before it, however long that takes")
  func requestBeforePause() throws {
    let device = try FakeDevice()
    let served = try MemoryFileDevice(file: file, device: device)
    try served.open(in: loop)
    let driver = try MemoryFileDriver.open(path: file.path)
    try drive {
      try driver.bringUp(queues: 2)
      try driver.write(.queueSelect, 1)
    }
    device.holdStops()
    let access = SideThread { try driver.write(.queueReady, 0) }
    try turn { device.calls.last == .stop(1) }
    var isPaused = false
    served.pauseForHandOver { isPaused = true }
    #expect(!device.calls.contains(.stop(0)))
    device.finishStop(1)
    try turn { device.calls.contains(.stop(0)) }
    #expect(!isPaused)
    device.finishStop(0)
    try turn { isPaused && access.isOver }
    try access.end()
    served.resume()
    try turn { device.running.count == 1 }
    served.abandon()
  }

  @Test("a file that is not the one at the path is refused")
  func otherFile() throws {
    let other = try MemoryFile.create(path: directory.file("other.mem"), memorySize: 65536, maximumQueues: 1)
    #expect(throws: MemoryFileError.notTheSame(path: file.path)) {
      _ = try MemoryFile.adopt(other.descriptor, path: file.path)
    }
  }

  @Test("the synthetic guest finds every byte right although its device is replaced again and again")
  func underLoad() throws {
    let disk = directory.file("disk.img")
    try Data(count: 4 << 20).write(to: URL(fileURLWithPath: disk))
    let path = directory.file("load.mem")
    func makeDevice() throws -> BlockDevice {
      var options = BlockDeviceOptions()
      options.queueCount = 2
      return try BlockDevice(image: try ImageFile(ImageOptions(path: disk, isLocked: false)), options: options)
    }
    let file = try MemoryFile.create(path: path, memorySize: 16 << 20, maximumQueues: 2)
    var current = try MemoryFileDevice(file: file, device: try makeDevice())
    try current.open(in: loop)
    let guest = Process()
    guest.executableURL = URL(fileURLWithPath: program)
    guest.arguments = ["guest", "--memory", path, "verify", "--bytes", "8M", "--largest", "16k", "--seed", "1"]
    let said = directory.file("said")
    try Data().write(to: URL(fileURLWithPath: said))
    let log = try #require(FileHandle(forWritingAtPath: said))
    guest.standardOutput = log
    guest.standardError = log
    try guest.run()
    defer { if guest.isRunning { kill(guest.processIdentifier, SIGKILL) } }
    var takeovers = 0
    for round in 0..<20 {
      let kicks = { (try? MemoryFileSnapshot(path: path))?.doorbells.reduce(0) { $0 + Int($1.kicks) } ?? 0 }
      let before = kicks()
      try turn { !guest.isRunning || kicks() >= before + 5 }
      let next = try successor(of: current.file, try makeDevice())
      try pause(current)
      #expect(try hold(next) == nil)
      // Every fourth takeover fails at the last moment.
      if round % 4 == 3 {
        try end(next)
        current.resume()
        continue
      }
      current.handOver()
      next.release()
      current = next
      takeovers += 1
    }
    try turn { !guest.isRunning }
    let words = try String(contentsOfFile: said, encoding: .utf8)
    #expect(guest.terminationStatus == 0 && words.contains("every byte is right"), "\(words)")
    #expect(takeovers == 15)
    try end(current)
    #expect(try MemoryFileSnapshot(path: path).deviceEpoch == 16)
  }
}
