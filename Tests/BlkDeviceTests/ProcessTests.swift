/// What the device costs its process: no CPU time while it is idle, and nothing is left behind.
import CLinux
import Foundation
import Testing
import VirtioCore

@testable import GuestDriver
@testable import VirtioBlkDevice

/// This process, as /proc describes it.
enum ThisProcess {
  static func names(_ folder: String) -> Set<String> {
    Set((try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/" + folder)) ?? [])
  }

  static var descriptors: Int { names("fd").count }
  static var threads: Set<String> { names("task") }

  /// Clock ticks of a thread, in user mode and in the kernel.
  static func ticks(of thread: String) throws -> Int {
    let text = try String(contentsOfFile: "/proc/self/task/\(thread)/stat", encoding: .utf8)
    // The name in parentheses may hold anything; what follows it are numbers.
    let fields = try #require(text.split(separator: ")").last).split(separator: " ")
    return try #require(Int(fields[11])) + #require(Int(fields[12]))
  }
}

@Suite struct ProcessTests {
  static let engines: [EngineKind] = [.uring, .cached, .aio, .sync, .threads, .mapped, .null]

  private static func device(_ scratch: Scratch, _ change: (inout BlockDeviceOptions) -> Void) throws -> BlockDevice {
    var options = BlockDeviceOptions()
    change(&options)
    let path = try scratch.image(UUID().uuidString, size: 1 << 20)
    return try BlockDevice(image: ImageFile(ImageOptions(path: path, direct: .off)), options: options)
  }

  /// Every engine, with every way of waiting that ends in sleep, at the same time.
  @Test func idleQueuesCostNothing() async {
    await #expect(processExitsWith: .success) {
      let scratch = try Scratch()
      let memory = try SharedMemory(size: 8 << 20)
      var devices: [(name: String, BlockDevice, HandQueue, threads: Set<String>)] = []
      func add(_ name: String, usesDoorbell: Bool = false, _ change: (inout BlockDeviceOptions) -> Void) throws {
        let before = ThisProcess.threads
        let device = try Self.device(scratch, change)
        let queue = try HandQueue(device, 0, memory, usesDoorbell: usesDoorbell)
        try queue.start()
        for _ in 0..<3 { #expect(try queue.perform(.read(sector: 0, bytes: 512)).status == .ok) }
        devices.append((name, device, queue, ThisProcess.threads.subtracting(before)))
      }
      for engine in Self.engines { try add("\(engine)") { $0.engine = engine } }
      for engine in [EngineKind.uring, .aio, .sync] {
        try add("\(engine) with a doorbell", usesDoorbell: true) { $0.engine = engine }
        try add("\(engine) after polling") {
          $0.engine = engine
          $0.waiting = .poll(microseconds: 500)
        }
        try add("\(engine) after polling adaptively") {
          $0.engine = engine
          $0.waiting = .adaptive(maximumMicroseconds: 500)
        }
        try add("\(engine) with calls coalesced") {
          $0.engine = engine
          $0.notification = .coalesce(count: 8, microseconds: 1000)
        }
      }
      try add("uring through epoll") {
        $0.engine = .uring
        $0.uring.kicksThroughEpoll = true
      }
      usleep(200_000)
      let before = try devices.map { device in
        (device.1.counters.turns, try device.threads.map { try ThisProcess.ticks(of: $0) })
      }
      sleep(5)
      for (device, old) in zip(devices, before) {
        #expect(!device.threads.isEmpty, "\(device.name)")
        #expect(device.1.counters.turns == old.0, "\(device.name)")
        #expect(try device.threads.map { try ThisProcess.ticks(of: $0) } == old.1, "\(device.name)")
      }
      // They were asleep, not dead.
      for device in devices {
        #expect(try device.2.perform(.read(sector: 0, bytes: 512)).status == .ok, "\(device.name)")
        #expect(device.2.stop() != nil)
      }
    }
  }

  @Test func nothingStaysBehind() async {
    await #expect(processExitsWith: .success) {
      let scratch = try Scratch()
      let memory = try SharedMemory()
      for (engine, usesDoorbell) in Self.engines.flatMap({ [($0, false), ($0, true)] }) {
        // What the first use of an engine allocates once per process.
        try cycles(5, on: Self.device(scratch) { $0.engine = engine })
        let device = try Self.device(scratch) { $0.engine = engine }
        let descriptors = ThisProcess.descriptors
        let threads = ThisProcess.threads.count
        try cycles(100, on: device)
        // A worker ends after it has reported that its last queue has stopped, and reports that as well.
        try waitUntil("the threads and descriptors of \(engine) are gone") {
          _ = device.takeEvents()
          return ThisProcess.threads.count <= threads && ThisProcess.descriptors <= descriptors
        }

        func cycles(_ count: Int, on device: BlockDevice) throws {
          let queue = try HandQueue(device, 0, memory, usesDoorbell: usesDoorbell)
          defer { queue.ring.release(to: memory.driver) }
          var position = QueuePosition()
          for _ in 0..<count {
            try queue.start(at: position)
            #expect(try queue.perform(.read(sector: 0, bytes: 512)).status == .ok)
            position = try #require(queue.stop())
          }
        }
      }
    }
  }

  /// Devices that are created and destroyed, with queues that still run when the last reference is dropped.
  @Test func devicesLeaveNothingBehind() async {
    await #expect(processExitsWith: .success) {
      let scratch = try Scratch()
      let memory = try SharedMemory()
      for engine in Self.engines {
        func life() throws {
          let device = try Self.device(scratch) {
            $0.engine = engine
            $0.queueCount = 2
          }
          let queue = try HandQueue(device, 1, memory)
          try queue.start()
          #expect(try queue.perform(.read(sector: 0, bytes: 512)).status == .ok)
          queue.ring.release(to: memory.driver)
        }
        for _ in 0..<3 { try life() }
        let descriptors = ThisProcess.descriptors
        let threads = ThisProcess.threads.count
        for _ in 0..<20 { try life() }
        try waitUntil("the threads and descriptors of \(engine) are gone") {
          ThisProcess.threads.count <= threads && ThisProcess.descriptors <= descriptors
        }
      }
    }
  }
}
