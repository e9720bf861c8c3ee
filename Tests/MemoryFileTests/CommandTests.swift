/// The commands as a user runs them, each as a process: run, inspect, and a driver in Python as the other end.
import CLinux
import Foundation
import MemoryFile
import TestSupport
import Testing
import VirtioCore
import VirtioRegisters

private let driver = Images.folder.deletingLastPathComponent().appending(path: "Examples/driver.py").path

extension Program {
  /// `vmm-blk run` in the background.
  fileprivate static func run(_ arguments: [String]) throws -> Program { try Program(["run"] + arguments) }

  /// Ends the process. - Returns: how, and its output.
  fileprivate func end(_ signal: Int32) -> (status: Int32, reason: Process.TerminationReason, text: String) {
    kill(process.processIdentifier, signal)
    let end = finish()
    return (end.status, process.terminationReason, end.output + end.errors)
  }
}

@Suite struct CommandTests {
  let directory: TemporaryDirectory
  let memory: String
  let disk: String

  init() throws {
    directory = try TemporaryDirectory()
    memory = directory.file("guest.mem")
    disk = directory.file("disk.img")
  }

  private func makeDisk(_ size: Int) throws { try Data(count: size).write(to: URL(fileURLWithPath: disk)) }

  @Test(
    "a driver in Python starts the device, writes, flushes, reads back and verifies",
    arguments: [
      ["--engine", "sync"], ["--engine", "auto", "--num-queues", "2", "--direct", "off"],
    ])
  func pythonDriver(_ options: [String]) throws {
    try makeDisk(4 << 20)
    let device = try Program.run(["--memory", memory, "--create", "1M", "--blk-file", disk, "--serial", "S1"] + options)
    let said = try run("python3", [driver, memory])
    #expect(said.contains("disk: 8192 sectors, serial S1"))
    #expect(said.contains("verified: 256 blocks"))
    let drawing = try run(program, ["inspect", memory])
    #expect(drawing.contains("process \(device.process.processIdentifier)"))
    #expect(drawing.contains("queue 0 ── 128 entries ── ready"))
    #expect(drawing.contains("DRIVER_OK"))
    let (status, reason, text) = device.end(SIGTERM)
    #expect(status == 0 && reason == .exit, "\(text)")
    #expect(text.contains("Serving \(disk) on \(memory)") && text.contains("ending on signal 15"))
  }

  @Test("a device that is killed and restarted loses nothing that was acknowledged, and the driver goes on")
  func killedDevice() throws {
    try makeDisk(4 << 20)
    let first = try Program.run(["--memory", memory, "--create", "1M", "--blk-file", disk])
    let python = Process()
    python.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    python.arguments = ["python3", driver, memory]
    let output = Pipe()
    python.standardOutput = output
    python.standardError = output
    try python.run()
    defer { if python.isRunning { kill(python.processIdentifier, SIGKILL) } }
    // During the writes, if the test is fast enough; at any other moment it has to work as well.
    for _ in 0..<20_000 {
      if let snapshot = try? MemoryFileSnapshot(path: memory), snapshot.doorbells[0].kicks >= 20 { break }
      usleep(100)
    }
    #expect(first.end(SIGKILL).reason == .uncaughtSignal)
    let second = try Program.run(["--memory", memory, "--blk-file", disk])
    let said = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    python.waitUntilExit()
    #expect(python.terminationStatus == 0 && said.contains("verified: 256 blocks"), "\(said)")
    #expect(second.end(SIGINT).status == 0)
    #expect(try MemoryFileSnapshot(path: memory).deviceEpoch == 2)
  }

  @Test("the synthetic guest finds every byte right although its device is killed again and again")
  func killedUnderLoad() throws {
    try makeDisk(4 << 20)
    var device = try Program.run(["--memory", memory, "--create", "16M", "--blk-file", disk, "--num-queues", "2"])
    let guest = Process()
    guest.executableURL = URL(fileURLWithPath: program)
    guest.arguments = ["guest", "--memory", memory, "verify", "--bytes", "4M", "--largest", "16k", "--seed", "1"]
    let output = Pipe()
    guest.standardOutput = output
    guest.standardError = output
    try guest.run()
    defer { if guest.isRunning { kill(guest.processIdentifier, SIGKILL) } }
    for round in 1...3 {
      let kicks = { (try? MemoryFileSnapshot(path: memory))?.doorbells.reduce(0) { $0 + Int($1.kicks) } ?? 0 }
      let before = kicks()
      while guest.isRunning, kicks() < before + 10 { usleep(200) }
      _ = device.end(round % 2 == 0 ? SIGTERM : SIGKILL)
      device = try Program.run(["--memory", memory, "--blk-file", disk])
    }
    let said = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    guest.waitUntilExit()
    #expect(guest.terminationStatus == 0 && said.contains("every byte is right"), "\(said)")
    _ = device.end(SIGTERM)
  }

  @Test("a guest detects the register interface, even after the device was killed", arguments: RegisterInterface.allCases)
  func registers(_ interface: RegisterInterface) throws {
    try makeDisk(4 << 20)
    let first = try Program.run(
      ["--memory", memory, "--create", "16M", "--blk-file", disk, "--num-queues", "2", "--registers", interface.name])
    let info = try run(program, ["guest", "--memory", memory, "info"])
    #expect((info.contains("memory file, virtio-") || info.contains("memory file, legacy")) == (interface != .mmio), "\(info)")
    #expect(info.contains("VERSION_1") == interface.hasModern, "\(info)")
    let guest = Process()
    guest.executableURL = URL(fileURLWithPath: program)
    guest.arguments = ["guest", "--memory", memory, "verify", "--bytes", "2M", "--largest", "16k", "--seed", "1"]
    let output = Pipe()
    guest.standardOutput = output
    guest.standardError = output
    try guest.run()
    defer { if guest.isRunning { kill(guest.processIdentifier, SIGKILL) } }
    let kicks = { (try? MemoryFileSnapshot(path: memory))?.doorbells.reduce(0) { $0 + Int($1.kicks) } ?? 0 }
    let before = kicks()
    while guest.isRunning, kicks() < before + 10 { usleep(200) }
    let drawing = try run(program, ["inspect", memory])
    #expect(first.end(SIGKILL).reason == .uncaughtSignal)
    let second = try Program.run(["--memory", memory, "--blk-file", disk])
    let said = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    guest.waitUntilExit()
    #expect(guest.terminationStatus == 0 && said.contains("every byte is right"), "\(said)")
    #expect(drawing.contains("MSI-X     3 vectors") == interface.isPCI, "\(drawing)")
    #expect(drawing.contains("  registers   ") == (interface != .mmio), "\(drawing)")
    let json = try run(program, ["inspect", "--json", memory])
    let account = try #require(JSONSerialization.jsonObject(with: Data(json.utf8)) as? [String: Any])
    #expect(account["registers"] as? String == interface.name)
    #expect((account["function"] != nil) == interface.isPCI)
    #expect(second.end(SIGTERM).status == 0)
  }

  @Test(
    "an invalid register interface, or one for an existing file, is refused in one sentence",
    arguments: [
      (["--create", "1M", "--registers", "isa"], "pci-transitional"), (["--registers", "pci"], "--registers is for --create"),
    ])
  func badRegisters(_ options: [String], _ sentence: String) throws {
    try makeDisk(1 << 20)
    let said = try run(program, ["run", "--memory", memory, "--blk-file", disk] + options, succeeds: false)
    #expect(said.contains(sentence), "\(said)")
    #expect(!FileManager.default.fileExists(atPath: memory))
  }

  @Test("--once accounts for each request, as a table and as JSON", arguments: [false, true])
  func once(_ json: Bool) throws {
    let (memory, disk) = try Images.copy("read-write", to: directory)
    let said = try run(
      program, ["run", "--memory", memory, "--blk-file", disk, "--once", "--serial", "X"] + (json ? ["--json"] : []))
    if json {
      let account = try #require(JSONSerialization.jsonObject(with: Data(said.utf8)) as? [String: Any])
      let requests = try #require(account["requests"] as? [[String: Any]])
      #expect(requests.map { $0["type"] as? String } == ["OUT", "IN", "GET_ID", "FLUSH"])
      #expect(requests.map { $0["status"] as? String } == ["OK", "OK", "OK", "OK"])
      #expect(requests.map { $0["usedLength"] as? Int } == [1, 513, 21, 1])
      #expect(requests.map { $0["usedID"] as? Int } == [0, 3, 6, 9])
    } else {
      #expect(said.contains("queue 0: 4 of 4 available requests used"))
      #expect(said.split(separator: "\n").contains { $0.contains("GET_ID") && $0.contains("OK") && $0.contains("21") })
    }
    #expect(try Data(contentsOf: URL(fileURLWithPath: disk))[1536..<2048].allSatisfy { $0 == 0xab })
  }

  @Test("--once reports what stopped a queue, and fails")
  func onceBroken() throws {
    let (memory, disk) = try Images.copy("two-queues", to: directory)
    let said = try run(program, ["run", "--memory", memory, "--blk-file", disk, "--once"], succeeds: false)
    #expect(said.contains("queue 0 stopped: the chain at head 2"))
    #expect(said.contains("queue 1: 1 of 1 available requests used"))
    #expect(said.contains("not used"))
  }

  @Test(
    "--once reports why nothing was processed",
    arguments: [
      ("before-driver-ok", [], "has not set DRIVER_OK"),
      ("two-queues", ["--num-queues", "1"], "what this disk does not offer"),
    ])
  func onceNothing(_ name: String, _ options: [String], _ words: String) throws {
    let (memory, disk) = try Images.copy(name, to: directory)
    let before = try Data(contentsOf: URL(fileURLWithPath: disk))
    let said = try run(
      program, ["run", "--memory", memory, "--blk-file", disk, "--once"] + options, succeeds: false)
    #expect(said.contains(words))
    #expect(try Data(contentsOf: URL(fileURLWithPath: disk)) == before)
  }

  @Test("--raw: a file with guest memory only, and rings given by options")
  func raw() throws {
    let (memory, disk) = try Images.copy("read-write", to: directory)
    let layout = try MemoryFileSnapshot(path: memory).layout
    let guest = try Data(contentsOf: URL(fileURLWithPath: memory)).dropFirst(Int(layout.memoryOffset))
    try guest.write(to: URL(fileURLWithPath: memory))
    let rings = ["--raw", "--memory-base", "0", "--queue", "size=16,desc=0,avail=0x100,used=0x200"]
    let drawing = try run(program, ["inspect", memory] + rings)
    #expect(drawing.contains("● available #0   head 0   OUT  sector 3, 512 bytes"))
    let said = try run(program, ["run", "--memory", memory, "--blk-file", disk, "--once"] + rings)
    #expect(said.contains("queue 0: 4 of 4 available requests used"))
    let again = try run(program, ["inspect", memory, "--json"] + rings)
    let description = try #require(JSONSerialization.jsonObject(with: Data(again.utf8)) as? [String: Any])
    let queue = try #require((description["queues"] as? [[String: Any]])?.first)
    #expect(queue["pendingCount"] as? Int == 0)
    #expect((queue["usedElements"] as? [[String: Any]])?.count == 4)
  }

  @Test("inspect --json has the content of the drawing")
  func inspectJSON() throws {
    let (memory, _) = try Images.copy("indirect", to: directory)
    let said = try run(program, ["inspect", memory, "--json"])
    let description = try #require(JSONSerialization.jsonObject(with: Data(said.utf8)) as? [String: Any])
    #expect(description["features"] as? [String] == ["RING_INDIRECT_DESC", "VERSION_1"])
    let queue = try #require((description["queues"] as? [[String: Any]])?.first)
    let pending = try #require(queue["pending"] as? [[String: Any]])
    #expect(pending.map { ($0["indirect"] as? [Any])?.count } == [3, 2])
  }

  @Test(
    "invalid options are refused in one sentence, and leave nothing behind",
    arguments: [
      (["--blk-file", "disk"], "there is no memory file"),
      (["--create", "1M", "--blk-file", "nowhere"], "there is no image"),
      (["--create", "1M"], "there is no disk"),
      (["--create", "1000", "--blk-file", "disk"], "multiple of 4096"),
      (["--create", "lots", "--blk-file", "disk"], "create"),
      (["--json", "--blk-file", "disk"], "--once"),
      (["--raw", "--blk-file", "disk"], "--once"),
      (["--raw", "--once", "--blk-file", "disk"], "--queue"),
      (["--once", "--queue", "size=8", "--blk-file", "disk"], "queue"),
      (["--create", "1M", "--num-queues", "0", "--blk-file", "disk"], "queues"),
      (["--create", "1M", "--engine", "warp", "--blk-file", "disk"], "engine"),
      (["--create", "1M", "--serial", "123456789012345678901", "--blk-file", "disk"], "serial"),
      (["--create", "1M", "--pin-cpus", "0,x", "--blk-file", "disk"], "pin-cpus"),
    ])
  func refusals(_ arguments: [String], _ words: String) throws {
    try makeDisk(65536)
    let said = try run(
      program, ["run", "--memory", memory] + arguments.map { $0 == "disk" ? disk : $0 == "nowhere" ? disk + "x" : $0 },
      succeeds: false)
    #expect(said.contains(words))
    #expect(said.hasPrefix("Error: "))
    #expect(!FileManager.default.fileExists(atPath: memory))
  }

  @Test("a file that is in use, or is no memory file, is refused in one sentence")
  func otherFiles() throws {
    try makeDisk(65536)
    let file = try MemoryFile.create(path: memory, memorySize: 65536, maximumQueues: 1)
    #expect(
      try run(program, ["run", "--memory", memory, "--create", "1M", "--blk-file", disk], succeeds: false)
        .contains("exists already"))
    #expect(
      try run(program, ["run", "--memory", memory, "--blk-file", disk, "--num-queues", "2"], succeeds: false)
        .contains("ask for fewer with --num-queues"))
    #expect(try run(program, ["run", "--memory", disk, "--blk-file", disk], succeeds: false).contains("memory file"))
    #expect(try run(program, ["inspect", disk], succeeds: false).contains("cannot be used as a memory file"))
    let served = try ServedFile(file, FakeDevice(queues: 1))
    defer { served.stop() }
    #expect(try run(program, ["run", "--memory", memory, "--blk-file", disk], succeeds: false).contains("already: stop it"))
  }
}
