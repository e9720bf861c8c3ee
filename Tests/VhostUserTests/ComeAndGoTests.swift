/// Front-ends that connect and disconnect in every state of a connection leave nothing behind in the program.
import Foundation
import Glibc
import TestSupport
import Testing
import VirtioCore

@testable import VhostUser

@Suite struct ComeAndGoTests {
  /// When a front-end disconnects.
  private enum Moment: CaseIterable {
    case connected, inAMessage, greeted, featuresFixed, memoryGiven, running, inFlight, stopped, reset, refused
  }

  /// Resources that a process holds.
  private struct Holdings: CustomStringConvertible {
    let descriptors: Int
    let threads: Int
    let maps: Int
    /// KiB.
    let resident: Int

    init(_ process: pid_t) throws {
      let files = FileManager.default
      let place = "/proc/\(process)"
      descriptors = try files.contentsOfDirectory(atPath: place + "/fd").count
      threads = try files.contentsOfDirectory(atPath: place + "/task").count
      maps = try String(contentsOfFile: place + "/maps", encoding: .utf8).split(separator: "\n").count
      let pages = try String(contentsOfFile: place + "/statm", encoding: .utf8).split(separator: " ")
      resident = (Int(pages[1]) ?? 0) * Int(getpagesize()) / 1024
    }

    var description: String { "\(descriptors) descriptors, \(threads) threads, \(maps) maps, \(resident) KiB" }
  }

  /// Number of front-ends: `VMM_BLK_FRONT_ENDS`, or a few hundred.
  private static let count = ProcessInfo.processInfo.environment["VMM_BLK_FRONT_ENDS"].flatMap { Int($0) } ?? 300

  @Test(arguments: ["sync", "auto"]) func nothingStaysBehind(engine: String) throws {
    let directory = NSTemporaryDirectory() + "vmm-blk-come-" + UUID().uuidString
    try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: directory) }
    let image = directory + "/disk"
    try Data(count: 1 << 20).write(to: URL(fileURLWithPath: image))
    let socket = directory + "/sock"
    let program = try Program([
      "serve", "--blk-file", image, "--socket-path", socket, "--engine", engine, "--log-level", "critical",
    ])
    defer { kill(program.process.processIdentifier, SIGKILL) }
    #expect(program.firstLine().hasPrefix("Serving"))
    let process = program.process.processIdentifier
    // One-time costs of the first front-end of each kind, and what the allocator keeps.
    for _ in 0..<20 { try comeAndGo(socket) }
    try greet(socket)
    let before = try Holdings(process)
    for _ in 0..<max(1, Self.count / Moment.allCases.count) { try comeAndGo(socket) }
    try greet(socket)
    var after = before
    try wait(until: "nothing is left: \(before) before, \(after) now") {
      guard let now = try? Holdings(process) else { return false }
      after = now
      // The C library keeps stacks and arenas for later threads, which differ by a few; a leak per front-end would be more.
      return now.descriptors <= before.descriptors && now.threads <= before.threads && now.maps <= before.maps + 16
        && now.resident <= before.resident + 2048
    }
    // And it still works.
    #expect(try HandDisk(socket).read(sector: 0) == [UInt8](repeating: 0, count: 512))
    kill(process, SIGTERM)
    #expect(program.finish().status == 0)
  }

  private func comeAndGo(_ socket: String) throws {
    for moment in Moment.allCases { try come(socket, andGo: moment) }
  }

  /// When this one is answered, the previous one is gone.
  private func greet(_ socket: String) throws { _ = try Frontend(connectingTo: socket).handshake() }

  private func come(_ socket: String, andGo moment: Moment) throws {
    switch moment {
    case .running, .inFlight, .stopped, .reset:
      let disk = try HandDisk(socket)
      switch moment {
      case .inFlight:
        disk.prepareRead(sector: 0)
        disk.offer([0])
      case .stopped: _ = try disk.stop()
      case .reset: try disk.frontend.resetDevice()
      default: break
      }
    default:
      let frontend = try Frontend(connectingTo: socket)
      guard moment != .connected else { return }
      guard moment != .inAMessage else {
        let part: [UInt8] = [1, 0, 0, 0, 1]
        #expect(unsafe write(frontend.descriptor, part, part.count) == part.count)
        return
      }
      let offer = try frontend.handshake()
      switch moment {
      case .greeted: return
      case .refused:
        // Not a message: the back-end closes the connection.
        let noise = [UInt8](repeating: 0xff, count: 64)
        #expect(unsafe write(frontend.descriptor, noise, noise.count) == noise.count)
        var rest = [UInt8](repeating: 0, count: 64)
        while unsafe read(frontend.descriptor, &rest, rest.count) > 0 {}
      default:
        try frontend.setFeatures(offer.features.subtracting(.packedRing))
        guard moment == .memoryGiven else { return }
        let memory = TestMemory.file("vhost-come", size: 1 << 20)
        try frontend.setMemory([FrontendRegion(Rig.region(size: 1 << 20), descriptor: memory)])
      }
    }
  }
}
