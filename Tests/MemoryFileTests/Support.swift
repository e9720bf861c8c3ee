/// Shared by this module's tests: a device that runs in a thread, and a driver's first steps.
import CLinux
import Foundation
import MemoryFile
import Sockets
import Synchronization
import SystemPackage
import TestSupport
import Testing
import VirtioCore
import VirtioRegisters

/// The program that was built with these tests.
let program = Program.path.path

/// A device on a file, served by a thread until `stop`.
final class ServedFile: Sendable {
  let file: MemoryFile
  let lines = Mutex<[String]>([])
  private let stopBell: OwnedDescriptor
  private let done = DispatchSemaphore(value: 0)
  private let failure = Mutex<String?>(nil)
  private let stopped = Mutex(false)
  /// Queues that the device abandoned.
  let left = Mutex<[Int]>([])

  init(_ file: MemoryFile, _ device: any VirtioDevice, drainLimit: Duration? = nil) throws {
    self.file = file
    let bell = try OwnedDescriptor.eventCounter()
    stopBell = bell
    let started = DispatchSemaphore(value: 0)
    Thread.detachNewThread { [self] in
      do {
        let transport = try MemoryFileDevice(
          file: file, device: device, log: { line in self.lines.withLock { $0.append(line) } })
        started.signal()
        let loop = try EventLoop()
        try transport.open(in: loop)
        let stopping = try loop.add(bell.rawValue) { _ in loop.stop() }
        try loop.run()
        loop.remove(stopping)
        transport.close { loop.stop() }
        if let drainLimit { loop.after(drainLimit) { loop.stop() } }
        try loop.run()
        let queues = transport.abandon()
        left.withLock { $0 = queues }
      } catch {
        failure.withLock { $0 = "\(error)" }
        started.signal()
      }
      done.signal()
    }
    started.wait()
    if let failure = failure.withLock({ $0 }) {
      stopped.withLock { $0 = true }
      throw Failure(description: failure)
    }
  }

  struct Failure: Error, CustomStringConvertible { let description: String }

  /// Returns when the device has left the file.
  func stop() {
    let first = stopped.withLock { stopped in
      defer { stopped = true }
      return !stopped
    }
    guard first else { return }
    EventCounter.signal(stopBell.rawValue)
    done.wait()
  }

  deinit { stop() }
}

/// Offsets by name, so that tests read like the specification.
func offset(_ register: MMIORegisters.Register) -> UInt32 { register.rawValue }

extension MemoryFileDriver {
  func read(_ register: MMIORegisters.Register) throws -> UInt32 { UInt32(try read(register.rawValue)) }
  func write(_ register: MMIORegisters.Register, _ value: UInt32) throws { try write(register.rawValue, UInt64(value)) }

  /// virtio 3.1.1 up to FEATURES_OK with these features, then `queues` rings of 8, 4096 bytes apart, then DRIVER_OK.
  func bringUp(features: FeatureSet = [.version1], queues: Int) throws {
    try write(.status, 0)
    try write(.status, 1)
    try write(.status, 3)
    for word in 0..<UInt32(2) {
      try write(.driverFeaturesSelect, word)
      try write(.driverFeatures, UInt32(truncatingIfNeeded: features.rawValue >> (UInt64(word) * 32)))
    }
    try write(.status, 11)
    #expect(try read(.status) == 11)
    for queue in 0..<queues {
      let base = UInt32(truncatingIfNeeded: memoryBase.rawValue) + UInt32(queue) * 4096
      try write(.queueSelect, UInt32(queue))
      try write(.queueSize, 8)
      try write(.queueDescriptorLow, base)
      try write(.queueDriverLow, base + 1024)
      try write(.queueDeviceLow, base + 2048)
      try write(.queueReady, 1)
    }
    try write(.status, 15)
  }
}

/// Runs a program to its end, and expects it to succeed.
/// - Returns: its output.
@discardableResult
func run(_ program: String, _ arguments: [String], succeeds: Bool = true) throws -> String {
  let process = Process()
  process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
  process.arguments = [program] + arguments
  let output = Pipe()
  process.standardOutput = output
  process.standardError = output
  try process.run()
  let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
  process.waitUntilExit()
  try #require((process.terminationStatus == 0) == succeeds, "\(program) \(arguments): \(text)")
  return text
}
