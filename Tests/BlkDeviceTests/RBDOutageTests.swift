/// Clusters whose daemons are killed or paused, that are full, or that never come back.
import Foundation
import GuestDriver
import Synchronization
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite(.serialized, .enabled(if: Host.hasCeph, "Ceph is not installed: Scripts/setup.sh ceph")) struct RBDOutageTests {
  private static func rig(_ cluster: RBDCluster, queues: Int = 1) throws -> Rig {
    var options = RigOptions()
    options.rbd = try cluster.options(cluster.image())
    options.device.queueCount = queues
    return try Rig(options)
  }

  /// Requests wait for the cluster, and go on by themselves.
  @Test(arguments: ["osd.0", "mon.a"]) func killedUnderVerifiedLoad(daemon: String) throws {
    let cluster = try RBDCluster.victim.get()
    let rig = try Self.rig(cluster, queues: 2)
    try rig.verifyThroughKills(
      2, after: 50_000...200_000, for: 0...200_000, kill: { try cluster.kill(daemon) }, start: { try cluster.resume() })
    #expect(rig.device.counters.failures == 0)
  }

  /// Data that is only in this process is lost with it: nothing is acknowledged before the cluster has it.
  @Test func noWriteIsAcknowledgedWithoutTheCluster() throws {
    let cluster = try RBDCluster.victim.get()
    var options = ImageOptions(path: "")
    options.rbd = try cluster.options(cluster.image())
    let hand = try HandQueue(BlockDevice(image: ImageFile(options)), 0, SharedMemory())
    try hand.start()
    // A cache would write through until the first flush.
    #expect(try hand.perform(.write(sector: 0, pattern(4096))).status == .ok)
    #expect(try hand.perform(.flush).status == .ok)
    try cluster.stop("osd.0")
    defer { try? cluster.goOn("osd.0") }
    try hand.submit(.write(sector: 8, pattern(4096)))
    hand.queue.publish()
    for _ in 0..<50 {
      usleep(2000)
      #expect(try hand.queue.reap() == nil)
    }
    try cluster.goOn("osd.0")
    var outcome: BlockOutcome?
    try waitUntil("the write is answered") {
      outcome = try hand.queue.reap()
      return outcome != nil
    }
    #expect(outcome?.status == .ok)
    _ = hand.stop()
  }

  /// A queue that was left stays abandoned, and the rest of the process goes on without the cluster.
  @Test func aClusterThatIsGoneForGood() throws {
    let cluster = try RBDCluster()
    let memory = try SharedMemory()
    var hand: HandQueue? = try HandQueue(
      BlockDevice(
        image: {
          var options = ImageOptions(path: "")
          options.rbd = try cluster.options(cluster.image())
          return try ImageFile(options)
        }()), 0, memory)
    try hand?.start()
    #expect(try hand?.perform(.write(sector: 0, pattern(4096))).status == .ok)
    try cluster.kill("osd.0")
    try hand?.submit(.write(sector: 0, pattern(4096)))
    try hand?.submit(.flush)
    hand?.queue.publish()
    usleep(10_000)
    #expect(try hand?.queue.reap() == nil)
    hand?.device.leave(queue: 0)
    // Releasing it does not wait.
    let start = ContinuousClock.now
    hand = nil
    #expect(ContinuousClock.now - start < Patience.limit)
  }

  /// Writes that do not fit into the cluster wait until there is room, as Ceph's clients do.
  @Test func aFullCluster() throws {
    let cluster = try RBDCluster.victim.get()
    var options = ImageOptions(path: "")
    options.rbd = try cluster.options(cluster.image())
    let hand = try HandQueue(BlockDevice(image: ImageFile(options)), 0, SharedMemory())
    try hand.start()
    #expect(try hand.perform(.write(sector: 0, pattern(4096))).status == .ok)
    func setRatios(_ ratios: [(String, String)]) throws { for (word, ratio) in ratios { try cluster.ceph("osd", word, ratio) } }
    let usual = [("set-full-ratio", "0.95"), ("set-backfillfull-ratio", "0.9"), ("set-nearfull-ratio", "0.85")]
    try setRatios([
      ("set-nearfull-ratio", "0.0000001"), ("set-backfillfull-ratio", "0.0000002"), ("set-full-ratio", "0.0000003"),
    ])
    defer { try? setRatios(usual) }
    try waitUntil("the cluster knows that it is full") { try cluster.ceph("health", "detail").contains("POOL_FULL") }
    #expect(try hand.perform(.read(sector: 0, bytes: 4096)).status == .ok)
    try hand.submit(.write(sector: 8, pattern(4096)))
    hand.queue.publish()
    // No event tells that it is not answered; an error would come at once.
    usleep(100_000)
    let early = try hand.queue.reap()
    #expect(early == nil || early?.status == .ok)
    try setRatios(usual)
    if early == nil {
      var outcome: BlockOutcome?
      try waitUntil("there is room again") {
        outcome = try hand.queue.reap()
        return outcome != nil
      }
      #expect(outcome?.status == .ok)
    }
    #expect(try firstDifference(hand.perform(.read(sector: 8, bytes: 4096)).answer, pattern(4096)) == nil)
    #expect(hand.stop() != nil)
  }
}
