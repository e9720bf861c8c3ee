/// This front-end with another project's back-end: what they have in common is the protocol.
import Foundation
import TestSupport
import Testing
import VirtioCore

@testable import VhostUser

@Suite struct OtherBackendTests {
  private static let program = "/usr/bin/qemu-storage-daemon"

  @Test(.enabled(if: FileManager.default.isExecutableFile(atPath: program), "needs qemu-storage-daemon"))
  func qemuStorageDaemonIsSetUpAndStopped() throws {
    try withDirectory { directory in
      let image = directory + "/image"
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: image))
      let daemon = Process()
      daemon.executableURL = URL(fileURLWithPath: Self.program)
      daemon.arguments = [
        "--blockdev", "driver=file,node-name=f,filename=\(image)", "--export",
        "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=\(directory)/q.sock,num-queues=2,writable=on",
      ]
      try daemon.run()
      defer {
        // It may have inherited a blocked SIGTERM from the thread that started it.
        kill(daemon.processIdentifier, SIGKILL)
        daemon.waitUntilExit()
      }
      var frontend: Frontend?
      #expect(
        eventually {
          frontend = try? Frontend(connectingTo: directory + "/q.sock")
          return frontend != nil
        })
      let connected = try #require(frontend)
      let offer = try connected.handshake()
      #expect(offer.queueCount == 2)
      #expect(offer.features.contains(.version1))
      // Capacity, in sectors of 512 bytes.
      #expect(try connected.configuration(at: 0, count: 8).word64(at: 0) == 2048)
      try connected.setFeatures(.version1)
      let memory = TestMemory.file("vhost-other", size: Int(Rig.memorySize))
      try connected.setMemory([FrontendRegion(Rig.region(), descriptor: memory)])
      let address = Rig.address(0)
      let kick = eventCounter()
      try connected.start(
        FrontendQueue(
          index: 0, size: 128, descriptorTable: address.descriptorTable, availableRing: address.availableRing,
          usedRing: address.usedRing, kick: kick, call: eventCounter(), error: eventCounter()))
      EventCounter.signal(kick.rawValue)
      #expect(try connected.stop(queue: 0) == 0)
    }
  }
}
