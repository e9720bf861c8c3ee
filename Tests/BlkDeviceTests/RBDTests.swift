/// Disks on images of a real Ceph cluster: all request types, who holds the image, and what other clients do to it.
import Foundation
import GuestDriver
import Synchronization
import SystemPackage
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite(.serialized, .enabled(if: Host.hasCeph, "Ceph is not installed: Scripts/setup.sh ceph")) struct RBDTests {
  private static func rig(
    _ cluster: RBDCluster, _ image: String, queues: Int = 1, blockSize: Int = 512, isReadOnly: Bool = false
  ) throws -> Rig {
    var options = RigOptions()
    options.rbd = try cluster.options(image)
    (options.blockSize, options.isReadOnly) = (blockSize, isReadOnly)
    options.device.queueCount = queues
    return try Rig(options)
  }

  @Test(arguments: [(1, 512), (4, 512), (2, 4096)]) func everyAcknowledgedWriteIsThere(queues: Int, blockSize: Int) throws {
    let cluster = try RBDCluster.shared.get()
    let rig = try Self.rig(cluster, cluster.image(), queues: queues, blockSize: blockSize)
    #expect(rig.device.engine == .rbd)
    rig.client.depth = 16
    var verifier = try Verifier(
      rig.client, VerifyOptions(seed: .random(in: 0 ... .max), limit: .bytes(2 << 20), cuts: .all))
    _ = try verifier.run()
    #expect(rig.device.counters.failures == 0)
  }

  /// Checked through another client of the cluster.
  @Test func whatIsFlushedIsInTheCluster() throws {
    let cluster = try RBDCluster.shared.get()
    let image = try cluster.image()
    let rig = try Self.rig(cluster, image)
    let place = 4 << 20 - 4096  // across two objects
    try rig.expect(.write(sector: UInt64(place / 512), pattern(16384)))
    try rig.expect(.flush)
    let file = rig.scratch.path + "/exported"
    try cluster.rbd("export", "rbd/" + image, file)
    let found = try rig.scratch.contents(file, at: place, count: 16384)
    #expect(firstDifference(found, pattern(16384)) == nil)
    #expect(rig.device.image.flush() == nil)
  }

  @Test func aSnapshotIsReadAsItWas() throws {
    let cluster = try RBDCluster.shared.get()
    let image = try cluster.image()
    var rig: Rig? = try Self.rig(cluster, image)
    try rig?.expect(.write(sector: 8, pattern(4096, seed: 1)))
    try rig?.expect(.flush)
    try cluster.rbd("snap", "create", "rbd/\(image)@before")
    try rig?.expect(.write(sector: 8, pattern(4096, seed: 2)))
    try rig?.expect(.flush)
    rig = nil
    #expect { try ImageFile(Self.imageOptions(cluster.options(image + "@before"))) } throws: {
      "\($0)".contains("--read-only")
    }
    let old = try Self.rig(cluster, image + "@before", isReadOnly: true)
    #expect(try firstDifference(old.expect(.read(sector: 8, bytes: 4096)).answer, pattern(4096, seed: 1)) == nil)
    try old.expect(.write(sector: 8, pattern(4096)), .ioError)
    let new = try Self.rig(cluster, image, isReadOnly: true)
    #expect(try firstDifference(new.expect(.read(sector: 8, bytes: 4096)).answer, pattern(4096, seed: 2)) == nil)
    #expect(old.device.serial != new.device.serial)
  }

  @Test func discardsAndZeroes() throws {
    let cluster = try RBDCluster.shared.get()
    let rig = try Self.rig(cluster, cluster.image())
    // The library keeps ranges that are smaller than its granularity.
    #expect(rig.client.config.discard?.alignment == 128)
    for request: BlockRequest in [
      .discard([BlockRange(sector: 128, sectors: 256)]), .writeZeroes([BlockRange(sector: 128, sectors: 256)]),
      .writeZeroes([BlockRange(sector: 128, sectors: 256, flags: 1)]),
    ] {
      try rig.expect(.write(sector: 0, pattern(512 * 512)))
      try rig.expect(request)
      let found = try rig.expect(.read(sector: 0, bytes: 512 * 512)).answer
      let expected = pattern(512 * 512)
      #expect(firstDifference(Array(found[..<65536]), Array(expected[..<65536])) == nil, "\(request)")
      #expect(firstDifference(Array(found[65536..<196608]), zeroes(131072)) == nil, "\(request)")
      #expect(firstDifference(Array(found[196608...]), Array(expected[196608...])) == nil, "\(request)")
    }
    // A range that is not aligned is exact all the same.
    try rig.expect(.write(sector: 0, pattern(8192)))
    try rig.expect(.writeZeroes([BlockRange(sector: 3, sectors: 5)]))
    let found = try rig.expect(.read(sector: 0, bytes: 8192)).answer
    #expect(Array(found[1536..<4096]) == zeroes(2560) && Array(found[4096...]) == Array(pattern(8192)[4096...]))
  }

  /// Without a write cache each write is stable when it is answered.
  @Test func stableWrites() throws {
    let cluster = try RBDCluster.shared.get()
    let rig = try Self.rig(cluster, cluster.image())
    let calls = { rig.device.counters.systemCalls }
    try rig.expect(.write(sector: 0, pattern(4096)))
    #expect(rig.device.writeConfiguration(at: 32, [0]))
    _ = calls()
    try rig.expect(.write(sector: 8, pattern(4096)))
    #expect(try firstDifference(rig.expect(.read(sector: 8, bytes: 4096)).answer, pattern(4096)) == nil)
    #expect(rig.device.counters.failures == 0)
  }

  // MARK: Images that are refused

  private static func imageOptions(_ rbd: RBDOptions, isReadOnly: Bool = false, blockSize: Int = 512) -> ImageOptions {
    var options = ImageOptions(path: "", isReadOnly: isReadOnly, logicalBlockSize: blockSize)
    options.rbd = rbd
    return options
  }

  @Test(arguments: [
    ("rbd:none/image?conf=CONF", "has no pool none"),
    ("rbd:rbd/none?conf=CONF", "rbd create --size 1G rbd/none"),
    ("rbd:rbd/none?conf=/none/ceph.conf", "/none/ceph.conf cannot be used"),
    ("rbd:rbd/odd?conf=CONF", "not a multiple of the logical block size"),
    ("rbd:rbd/plain?conf=CONF", "exclusive-lock"),
  ]) func whatCannotBeServed(name: String, sentence: String) throws {
    let cluster = try RBDCluster.shared.get()
    if name.contains("/odd") { try cluster.rbd("create", "rbd/odd", "--size", "100B") }
    if name.contains("/plain") { try cluster.rbd("create", "rbd/plain", "--size", "1M", "--image-feature", "layering") }
    let options = RBDOptions(try RBDLocation(name.replacingOccurrences(of: "CONF", with: cluster.configuration)))
    #expect { try ImageFile(Self.imageOptions(options)) } throws: { "\($0)".contains(sentence) }
  }

  /// Settings of the image and of its pool override a client's.
  @Test(arguments: [
    ("rbd_cache", "true"), ("rbd_disable_zero_copy_writes", "false"), ("rbd_non_blocking_aio", "false"),
    ("rbd_blocklist_on_break_lock", "false"),
  ]) func settingsOfAnImageThatLoseWritesOrHang(setting: String, value: String) throws {
    let cluster = try RBDCluster.shared.get()
    let image = try cluster.image()
    try cluster.rbd("config", "image", "set", "rbd/" + image, setting, value)
    let options = try cluster.options(image)
    #expect { try ImageFile(Self.imageOptions(options)) } throws: {
      "\($0)".contains("'rbd config image rm rbd/\(image) \(setting)'")
    }
    try cluster.rbd("config", "image", "rm", "rbd/" + image, setting)
    try Self.rig(cluster, image).expect(.write(sector: 0, pattern(512)))
  }

  /// The caller has given up: an opening that goes on without it takes no lock from another client.
  @Test func anOpeningThatIsGivenUpBreaksNoLock() throws {
    let cluster = try RBDCluster.shared.get()
    let image = try cluster.image()
    let rig = try Self.rig(cluster, image)
    try rig.expect(.write(sector: 0, pattern(512)))
    let options = try cluster.options(image, breaksLock: true)
    var handles = RBDHandles(try RBDLibrary.find())
    defer { handles.close() }
    try handles.connect(options)
    try handles.open(options, isReadOnly: false)
    #expect(throws: RBDFailure.givenUp(uri: options.location.text)) { try handles.lock(options) { false } }
    try rig.expect(.write(sector: 0, pattern(512, seed: 2)))
    var imageOptions = Self.imageOptions(options)
    imageOptions.patience = OpeningPatience { true }
    #expect(throws: ImageError.rbd(.givenUp(uri: options.location.text))) { try ImageFile(imageOptions) }
  }

  /// No cluster, or one that does not speak: an error after a limit.
  @Test func aClusterThatIsAway() throws {
    let scratch = try Scratch()
    try Data("[global]\nmon host = [v2:127.0.0.1:1]\n".utf8).write(to: URL(fileURLWithPath: scratch.path + "/ceph.conf"))
    var options = RBDOptions(try RBDLocation("rbd:rbd/image?conf=\(scratch.path)/ceph.conf"))
    options.connectTimeout = 1
    #expect { try ImageFile(Self.imageOptions(options)) } throws: { "\($0)".contains("does not answer") }
    // A user who cannot wait that long can say so.
    var imageOptions = Self.imageOptions(options)
    imageOptions.rbd?.connectTimeout = 3600
    imageOptions.patience = OpeningPatience()
    imageOptions.patience.giveUp()
    #expect(throws: ImageError.rbd(.givenUp(uri: options.location.text))) { try ImageFile(imageOptions) }
  }

  @Test(arguments: [EngineKind.uring, .aio, .sync, .threads, .mapped, .cached, .nbd]) func enginesOfOthersAreForOthers(
    engine: EngineKind
  ) throws {
    let cluster = try RBDCluster.shared.get()
    var options = RigOptions()
    (options.rbd, options.engine) = (try cluster.options(cluster.image()), engine)
    #expect { try Rig(options) } throws: { "\($0)".contains("leave --engine out") }
  }

  @Test func faultsOnPurpose() throws {
    let cluster = try RBDCluster.shared.get()
    var options = RigOptions()
    options.rbd = try cluster.options(cluster.image())
    options.device.faults = [try #require(FaultRule("write:eio:count=1"))]
    let rig = try Rig(options)
    try rig.expect(.write(sector: 0, pattern(4096)), .ioError)
    try rig.expect(.write(sector: 0, pattern(4096)))
  }

  // MARK: The lock

  @Test func whoHasTheImageKeepsIt() throws {
    let cluster = try RBDCluster.shared.get()
    let image = try cluster.image()
    let rig = try Self.rig(cluster, image)
    try rig.expect(.write(sector: 0, pattern(512)))
    #expect { try ImageFile(Self.imageOptions(cluster.options(image))) } throws: {
      "\($0)".contains("is in use by") && "\($0)".contains("--break-lock")
    }
    // A client that would share the lock does not get it, either.
    let other = try ChildProgram([
      "/usr/bin/env", "rbd", "-c", cluster.configuration, "bench", "--io-type", "write", "--io-size", "4K", "--io-total", "4K",
      "rbd/" + image,
    ])
    #expect(other.wait().status != 0)
    let found = try rig.expect(.read(sector: 0, bytes: 512)).answer
    #expect(found == pattern(512))
    // Reading needs no lock.
    let reader = try Self.rig(cluster, image, isReadOnly: true)
    #expect(try reader.expect(.read(sector: 0, bytes: 512)).answer == pattern(512))
  }

  /// Once the image is closed, the next client gets the lock at once.
  @Test func theLockGoesWithTheImage() throws {
    let cluster = try RBDCluster.shared.get()
    let image = try cluster.image()
    for number in 0..<3 {
      let rig = try Self.rig(cluster, image)
      try rig.expect(.write(sector: 0, pattern(512, seed: number)))
      try rig.client.shutDown()
      rig.device.image.finish()
      #expect(rig.device.image.flush() == .badFileDescriptor)
    }
  }

  /// If a client loses the lock, its queues stop, and it acknowledges no write that was not done.
  @Test(arguments: [1, 2]) func whoLosesTheLockIsFenced(queues: Int) throws {
    let cluster = try RBDCluster.shared.get()
    let image = try cluster.image()
    var deviceOptions = BlockDeviceOptions()
    deviceOptions.queueCount = queues
    let device = try BlockDevice(image: ImageFile(Self.imageOptions(cluster.options(image))), options: deviceOptions)
    let memory = try SharedMemory()
    let first = try HandQueue(device, 0, memory)
    let hands = try [first] + (1..<queues).map { try HandQueue(device, $0, memory, beside: first) }
    for hand in hands {
      try hand.start()
      #expect(try hand.perform(.write(sector: 0, pattern(4096))).status == .ok)
    }
    var options = RigOptions()
    options.rbd = try cluster.options(image, breaksLock: true)
    let next = try Rig(options)
    try next.expect(.write(sector: 0, pattern(4096, seed: 2)))
    for hand in hands {
      try hand.submit(.write(sector: 0, pattern(4096, seed: 3)))
      try hand.submit(.read(sector: 0, bytes: 512))
      hand.queue.publish()
    }
    var events: [DeviceEvent] = []
    try waitUntil("all queues stop: \(events)") {
      events += first.attended.takeEvents()
      return hands.allSatisfy { events.contains(.queueFailed(queue: $0.activation.queue, .mediumLost)) }
    }
    for hand in hands {
      while let outcome = try hand.queue.reap() { #expect(outcome.status == .ioError, "nothing of it was done") }
      _ = hand.stop()
    }
    let words = events.compactMap { if case .notice(let text) = $0 { text } else { nil } }
    #expect(words.count { $0.contains("has fenced this client") } == 1, "\(words)")
    #expect(try firstDifference(next.expect(.read(sector: 0, bytes: 4096)).answer, pattern(4096, seed: 2)) == nil)
    // That client cannot recover.
    #expect(throws: QueueError.mediumLost) { try first.start() }
  }

  // MARK: Changes by other clients

  @Test func anImageIsResizedElsewhere() throws {
    let cluster = try RBDCluster.shared.get()
    let image = try cluster.image(size: "16M")
    let rig = try Self.rig(cluster, image)
    for (size, words) in [(32 << 20, ["32M"]), (8 << 20, ["8M", "--allow-shrink"])] {
      // The owner of the lock, which is this process, is asked to resize.
      let child = try ChildProgram(
        ["/usr/bin/env", "rbd", "-c", cluster.configuration, "resize", "--no-progress", "rbd/" + image, "--size"] + words)
      let (status, output) = child.wait()
      #expect(status == 0, "\(output)")
      try waitUntil("the driver is told of \(size)") {
        _ = rig.transport.waitForConfigurationChange(milliseconds: 100)
        return rig.device.image.size == UInt64(size)
      }
      #expect(try rig.device.image.measure() == UInt64(size))
      let end = UInt64(size / 512)
      try rig.expect(.write(sector: end - 8, pattern(4096)))
      try rig.expect(.write(sector: end, pattern(512)), .ioError)
    }
    #expect(throws: ImageError.self) { try rig.device.image.setLength(64 << 20) }
  }

  /// However many changes there are, the last size reported is the current one.
  @Test func manyResizesOneAfterTheOther() throws {
    let cluster = try RBDCluster.shared.get()
    let image = try cluster.image(size: "1M")
    let rig = try Self.rig(cluster, image)
    for size in 2...9 { try cluster.rbd("resize", "--no-progress", "rbd/" + image, "--size", "\(size)M") }
    try waitUntil("the driver is told of the last one") {
      _ = rig.transport.waitForConfigurationChange(milliseconds: 100)
      return rig.device.image.size == 9 << 20
    }
    try rig.expect(.write(sector: (9 << 20) / 512 - 8, pattern(4096)))
  }

  /// Between the opening of an image and its first use as a disk.
  @Test func aResizeBeforeAnybodyListens() throws {
    let cluster = try RBDCluster.shared.get()
    let name = try cluster.image(size: "1M")
    let image = try RBDImage(cluster.options(name), isReadOnly: false, isLocked: true)
    try cluster.rbd("resize", "--no-progress", "rbd/" + name, "--size", "3M")
    let told = Atomic<UInt64>(0)
    image.whenResized { told.store($0, ordering: .relaxed) }
    try waitUntil("the size is told") { told.load(ordering: .relaxed) == 3 << 20 }
    image.close()
  }
}
