/// Data written to disks of qcow2 images is there for this program and for QEMU, and the image is consistent afterwards.
import Foundation
import Glibc
import GuestDriver
import Qcow2
import Synchronization
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite(.enabled(if: Host.hasQemuImg, "qemu-img is not installed")) struct Qcow2WriteTests {
  private static let size = 4 << 20

  private func check(_ folder: ImageFolder, _ name: String, _ place: SourceLocation = #_sourceLocation) throws {
    let end = try ChildProgram(["/usr/bin/env", "qemu-img", "check", "-f", "qcow2", folder.place(name)]).wait()
    #expect(end.status == 0, "\(end.output)", sourceLocation: place)
  }

  /// Changes a disk at random, and applies the same changes to an array of bytes.
  private func history(
    _ disk: Qcow2Disk, _ content: inout [UInt8], steps: Int, _ chance: inout Chance, most: Int = 300
  ) throws {
    for number in 0..<steps {
      let from = Int.random(in: 0..<content.count / 512, using: &chance) * 512
      let count = min(content.count - from, Int.random(in: 1...most, using: &chance) * 512)
      let range = from..<from + count
      switch Int.random(in: 0..<8, using: &chance) {
      case 0:
        try #require(disk.change(.punchHole, at: from, count: count) == 0)
        content.replaceSubrange(range, with: repeatElement(0, count: count))
      case 1:
        try #require(disk.change(.zeroRange, at: from, count: count) == 0)
        content.replaceSubrange(range, with: repeatElement(0, count: count))
      case 2: try #require(disk.change(.flush, at: 0, count: 0) == 0)
      default:
        let value = UInt8(number % 250 + 1)
        try #require(
          disk.change(.write, at: from, count: count, value: value, pieces: Int.random(in: 1...70, using: &chance)) == 0)
        content.replaceSubrange(range, with: repeatElement(value, count: count))
      }
    }
  }

  @Test(arguments: Qcow2ReadTests.kinds) func anyHistoryIsReadByQEMU(kind: String) throws {
    var chance = Chance(UInt64(kind.utf8.reduce(3) { $0 &* 31 &+ UInt64($1) }))
    let folder = try ImageFolder(in: Medium.memory.folder)
    let cluster = kind.contains("512") ? 512 : kind.contains("16k") ? 16 << 10 : kind.contains("2M") ? 2 << 20 : 64 << 10
    try folder.create("a", "\(Self.size)", kind.isEmpty ? [] : ["-o", kind])
    try folder.io(
      "a",
      Qcow2ReadTests.history(20, size: Self.size, compressed: kind.contains("preallocation") ? nil : cluster, &chance))
    var then: [UInt8]? = nil
    if kind != "refcount_bits=1" {
      try folder.run(["qemu-img", "snapshot", "-c", "then", folder.place("a")])
      then = try folder.content("a")
      try folder.io("a", Qcow2ReadTests.history(8, size: Self.size, compressed: nil, &chance))
    }
    var content = try folder.content("a")
    // The second round continues with what the first one left.
    for _ in 0..<2 {
      try folder.writing("DIR/a") { disk in
        try history(disk, &content, steps: 40, &chance)
        #expect(firstDifference(try disk.bytes(at: 0, count: content.count), content) == nil)
      }
    }
    try check(folder, "a")
    #expect(firstDifference(try folder.content("a"), content) == nil)
    if let then { #expect(firstDifference(try folder.content("a", snapshot: "then"), then) == nil) }
    try folder.io("a", ["write -P 77 0 300k", "discard 1M 1M"])
    try check(folder, "a")
  }

  @Test(arguments: ["", "extended_l2=on", "cluster_size=512", "compat=0.10"], [false, true])
  func anyOverlayIsReadByQEMU(kind: String, isRaw: Bool) throws {
    var chance = Chance(UInt64(kind.utf8.count * 2 + (isRaw ? 1 : 0)))
    let folder = try ImageFolder(in: Medium.memory.folder)
    let words = kind.isEmpty ? [] : ["-o", kind]
    if isRaw {
      try folder.run(["qemu-img", "create", "-q", "-f", "raw", folder.place("0"), "1000448"])
      try folder.io("0", ["write -P 9 0 900k", "write -P 8 999936 512"], format: "raw")
    } else {
      try folder.create("0", "3M", words)
      try folder.io("0", Qcow2ReadTests.history(30, size: 3 << 20, compressed: nil, &chance))
    }
    try folder.create("1", "\(Self.size)", words + ["-b", folder.place("0"), "-F", isRaw ? "raw" : "qcow2"])
    let under = try folder.bytes("0")
    var content = try folder.content("1")
    try folder.writing("DIR/1?backing-folder=DIR") { disk in
      try history(disk, &content, steps: 60, &chance)
      #expect(firstDifference(try disk.bytes(at: 0, count: content.count), content) == nil)
    }
    try check(folder, "1")
    #expect(firstDifference(try folder.content("1"), content) == nil)
    #expect(try folder.bytes("0") == under)
  }

  /// Several queues of one disk write to the same clusters.
  @Test(arguments: [false, true], [false, true]) func severalThreadsAllocateTheSameClusters(
    isExtended: Bool, hasBacking: Bool
  ) throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    let (threads, size) = (4, 256 << 10)
    try Data([UInt8](repeating: 250, count: size)).write(to: URL(fileURLWithPath: folder.place("base")))
    try folder.make(
      "a", size: UInt64(size), clusterBits: isExtended ? 15 : 13, isExtended: isExtended, over: hasBacking ? "base" : nil)
    let failures = Mutex(0)
    try folder.writing(hasBacking ? "DIR/a?backing=raw:DIR/base" : "DIR/a") { disk in
      let workers = try (0..<threads).map { thread in
        try SystemThread(name: "writer \(thread)") {
          var chance = Chance(UInt64(thread))
          // Each thread has its own sectors, in the same clusters as those of the others.
          for sector in stride(from: thread, to: size / 512, by: threads).shuffled(using: &chance) where chance.next() % 4 != 0
          {
            let kind: IOOperation.Kind = sector % 7 == 0 ? .punchHole : .write
            if disk.change(kind, at: sector * 512, count: 512, value: UInt8(thread + 1)) != 0 { failures.withLock { $0 += 1 } }
            if sector % 97 == 0, disk.change(.flush, at: 0, count: 0) != 0 { failures.withLock { $0 += 1 } }
          }
        }
      }
      for worker in workers { worker.join() }
    }
    #expect(failures.withLock { $0 } == 0)
    try check(folder, "a")
    let content = try folder.content("a")
    var expected = [UInt8](repeating: hasBacking ? 250 : 0, count: size)
    for thread in 0..<threads {
      var chance = Chance(UInt64(thread))
      for sector in stride(from: thread, to: size / 512, by: threads).shuffled(using: &chance) where chance.next() % 4 != 0 {
        let value = sector % 7 == 0 ? 0 : UInt8(thread + 1)
        expected.replaceSubrange(sector * 512..<sector * 512 + 512, with: repeatElement(value, count: 512))
      }
    }
    #expect(firstDifference(content, expected) == nil)
  }

  @Test func whatCannotBeWrittenToIsSaid() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.create("a", "4M")
    try folder.io("a", ["write 0 1M"])
    try folder.run(["qemu-img", "snapshot", "-c", "then", folder.place("a")])
    #expect { try folder.openToWrite("DIR/a?snapshot=then") } throws: { "\($0)".contains("cannot be written to") }
    try folder.create("data", "4M", ["-o", "data_file=DIR/raw"])
    #expect { try folder.openToWrite("DIR/data?data-file=DIR/raw") } throws: { "\($0)".contains("supported for reading only") }
    for (bits, sentence) in [(1, "may be wrong"), (2, "marked as corrupt")] {
      try folder.put("a", 72, [0, 0, 0, 0, 0, 0, 0, UInt8(bits)])
      #expect { try folder.openToWrite("DIR/a") } throws: { "\($0)".contains(sentence) && "\($0)".contains("qemu-img check") }
      #expect(try folder.open("DIR/a").size == 4 << 20)
    }
  }

  /// Either program may write, but not both; and neither reads while the other writes.
  @Test func aWriterIsAlone() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.create("a", "4M")
    do {
      let image = try folder.openToWrite("DIR/a")
      for words in [["write 0 64k"], ["read 0 64k"]] {
        let end = try ChildProgram(["/usr/bin/env", "qemu-io", "-f", "qcow2", "-c", words[0], folder.place("a")]).wait()
        #expect(end.status != 0 && end.output.contains("lock"), "\(end)")
      }
      #expect(throws: ImageError.locked(path: folder.place("a"))) { try folder.openToWrite("DIR/a") }
      #expect(throws: ImageError.locked(path: folder.place("a"))) { try folder.open("DIR/a") }
      image.finish()
    }
    let writer = try ChildProgram([
      "/usr/bin/env", "qemu-io", "-f", "qcow2", "-c", "write 1M 64k", "-c", "flush", "-c", "sleep 3600000", folder.place("a"),
    ])
    defer { _ = writer.end(SIGKILL) }
    try waitUntil("qemu-io writes: \(writer.output)") { try folder.length("a") > 0x50000 }
    #expect(throws: ImageError.locked(path: folder.place("a"))) { try folder.openToWrite("DIR/a") }
  }

  /// An image whose tables point at its own tables is refused where that is found, and marked as corrupt.
  @Test(arguments: [0x0_0000, 0x1_0000, 0x2_0000, 0x3_0000, 0x4_0000, 0x100_0000] as [UInt64])
  func tablesAreNotWrittenToAsData(place: UInt64) throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.create("a", "4M")
    try folder.io("a", ["write -P 1 0 64k"])
    // 0 alone would mean unallocated; with the copied bit it means the header.
    var entry = [UInt8](repeating: 0, count: 8)
    for index in 0..<8 { entry[index] = UInt8(truncatingIfNeeded: (place | 1 << 63) >> UInt64(56 - index * 8)) }
    try folder.put("a", 0x40000 + 8 * 8, entry)
    let before = try folder.bytes("a")
    do {
      let image = try folder.openToWrite("DIR/a")
      let disk = try #require(image.chain)
      if place == 0 {
        // An unallocated entry: the write allocates a cluster.
        #expect(disk.change(.write, at: 512 << 10, count: 65536, value: 7) == 0)
        return
      }
      #expect(disk.change(.write, at: 512 << 10, count: 65536, value: 7) == -EIO)
      #expect(disk.change(.write, at: 0, count: 65536, value: 7) == -EIO)
    }
    let after = try folder.bytes("a")
    #expect(Array(after[80...]) == Array(before[80...]) && after[79] == 2)
    #expect { try folder.openToWrite("DIR/a") } throws: { "\($0)".contains("marked as corrupt") }
  }

  /// A failed sync stays failed: the kernel reports an error once.
  @Test func aFailedSyncStays() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.create("a", "4M")
    let log = Qcow2Log()
    let image = try folder.openToWrite("DIR/a", log)
    let disk = try #require(image.chain)
    #expect(disk.change(.write, at: 0, count: 4096, value: 1) == 0)
    log.fail { _, call in call == .sync ? EIO : 0 }
    #expect(disk.change(.flush, at: 0, count: 0) == -EIO)
    log.fail { _, _ in 0 }
    #expect(disk.change(.flush, at: 0, count: 0) == -EIO)
    #expect(image.flush() != nil)
    #expect(disk.change(.write, at: 1 << 20, count: 4096, value: 1) == -EIO)
    #expect(try disk.bytes(at: 0, count: 4096) == [UInt8](repeating: 1, count: 4096))
  }

  /// The kernel reports this error once as well: if metadata may be lost, all further writes fail.
  @Test func aPartThatCannotBeMadeStableStaysSo() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.create("a", "64M")
    let log = Qcow2Log()
    let image = try folder.openToWrite("DIR/a", log)
    let disk = try #require(image.chain)
    #expect(disk.change(.write, at: 0, count: 4096, value: 1) == 0)
    log.fail { _, call in call.isStable ? EIO : 0 }
    let results = (1..<64).map { disk.change(.write, at: $0 << 20, count: 1 << 20, value: 1) }
    let first = try #require(results.firstIndex { $0 != 0 })
    #expect(results[first...].allSatisfy { $0 == -EIO }, "\(results)")
    log.fail { _, _ in 0 }
    #expect(disk.change(.flush, at: 0, count: 0) == -EIO)
    #expect(image.flush() != nil)
    #expect(try disk.bytes(at: 0, count: 4096) == [UInt8](repeating: 1, count: 4096))
  }

  /// The kernel reports a write-back error of any page to whoever asks first: a flush beside a failing partial sync would not
  /// see it.
  @Test func aPartAndEverythingAreNotMadeStableAtOnce() throws {
    final class Overlap: Qcow2Witness {
      let running = Mutex<(syncs: Int, parts: Int, overlaps: Int)>((0, 0, 0))

      func witness(_ call: Qcow2Call, _ perform: () -> Int) -> Int {
        let (syncs, parts) = (call == .sync ? 1 : 0, call.isStable ? 1 : 0)
        running.withLock {
          $0.syncs += syncs
          $0.parts += parts
          if syncs + parts > 0, $0.syncs > 0, $0.parts > 0 { $0.overlaps += 1 }
        }
        defer {
          running.withLock {
            $0.syncs -= syncs
            $0.parts -= parts
          }
        }
        // The longer a sync takes, the likelier another one overlaps.
        if syncs + parts > 0 { usleep(500) }
        return perform()
      }
    }
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.create("a", "1G")
    let witness = Overlap()
    try folder.writing("DIR/a", witness) { disk in
      DispatchQueue.concurrentPerform(iterations: 2) { side in
        for number in 0..<200 {
          let result =
            side == 0
            ? disk.change(.flush, at: 0, count: 0) : disk.change(.write, at: number << 20, count: 1 << 20, value: 1)
          #expect(result == 0)
        }
      }
    }
    #expect(witness.running.withLock { $0.overlaps } == 0)
  }

  /// Writes that wait for the medium have threads that share its syncs; writes that only store into the page cache have few.
  @Test func onlyWritesThatWaitForNothingAreSaidToStore() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.create("a", "4M", ["-o", "cluster_size=128k,extended_l2=on"])
    func stores(_ disk: Qcow2Disk, _ offset: UInt64, isDurable: Bool = false) -> Bool {
      var operation = unsafe IOOperation(kind: .write)
      (operation.offset, operation.length, operation.isDurable) = (offset, 4096, isDurable)
      return disk.onlyStores(operation)
    }
    try folder.writing("DIR/a") { disk in
      #expect(stores(disk, 0) && !stores(disk, 0, isDurable: true))
      #expect(disk.change(.write, at: 0, count: 4096, value: 1) == 0)
      #expect(stores(disk, 0) && stores(disk, 4096))
    }
    // After the image is opened again, the rest of the cluster is not known to be a hole.
    try folder.writing("DIR/a") { disk in
      // Its table has not been read yet.
      #expect(!stores(disk, 0))
      let bytes = try disk.bytes(at: 0, count: 4096)
      #expect(bytes == [UInt8](repeating: 1, count: 4096))
      #expect(stores(disk, 0) && !stores(disk, 4096) && stores(disk, 1 << 20))
    }
    try folder.overlay("b", over: "a", "qcow2")
    try folder.writing("DIR/b?backing=qcow2:DIR/a") { disk in #expect(!stores(disk, 0)) }
  }

  /// If only metadata has to be stable, guest data in the page cache is not synced.
  @Test func aNewRunWaitsForItsRefcountsOnly() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.create("a", "256M")
    let log = Qcow2Log()
    try folder.writing("DIR/a", log) { disk in
      for number in 0..<64 { #expect(disk.change(.write, at: number << 20, count: 1 << 20, value: 1) == 0) }
      #expect(!log.calls.contains(.sync) && log.calls.contains { $0.isStable })
    }
  }

  /// A medium that is full, and then has room again.
  @Test func afterAFullMediumItGoesOn() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.create("a", "5M", ["-o", "cluster_size=16k"])
    let log = Qcow2Log()
    let offsets = stride(from: 0, to: 5 << 20, by: 200 << 10).filter { $0 + (100 << 10) <= 5 << 20 }
    try folder.writing("DIR/a", log) { disk in
      log.fail { number, call in
        guard case .store = call else { return 0 }
        return number % 7 == 0 ? ENOSPC : 0
      }
      let results = offsets.map { disk.change(.write, at: $0, count: 100 << 10, value: 1) }
      #expect(results.contains(-ENOSPC) && results.allSatisfy { $0 == 0 || $0 == -ENOSPC }, "\(results)")
      log.fail { _, _ in 0 }
      for offset in offsets {
        #expect(disk.change(.write, at: offset, count: 100 << 10, value: 2) == 0)
        let bytes = try disk.bytes(at: offset, count: 100 << 10)
        #expect(bytes == [UInt8](repeating: 2, count: 100 << 10))
      }
    }
    try check(folder, "a")
  }

  /// A disk that is used and closed again and again does not grow from that.
  @Test func whatIsAllocatedAheadIsGivenBack() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.create("a", "64M")
    var lengths: [Int] = []
    for _ in 0..<3 {
      try folder.writing("DIR/a") { disk in #expect(disk.change(.write, at: 0, count: 4096, value: 1) == 0) }
      lengths.append(try folder.length("a"))
    }
    #expect(Set(lengths).count == 1 && lengths[0] < 1 << 20, "\(lengths)")
    try check(folder, "a")
  }

  /// Bitmaps that this writer does not maintain are marked, so that programs that use them do not trust them.
  @Test func staleBitmapsAreMarked() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.create("a", "4M")
    try folder.run(["qemu-img", "bitmap", "--add", folder.place("a"), "marks"])
    #expect(try folder.bytes("a")[95] == 1)
    try folder.writing("DIR/a") { disk in #expect(disk.change(.write, at: 0, count: 4096, value: 1) == 0) }
    #expect(try folder.bytes("a")[95] == 0)
  }

  /// The whole path from a driver, on a medium that may block and on one that does not.
  @Test(arguments: Medium.allCases, [EngineKind.auto, .cached, .sync, .threads]) func aDriverWrites(
    medium: Medium, engine: EngineKind
  ) throws {
    let folder = try ImageFolder(in: medium.folder)
    try folder.make("a", size: 8 << 20, clusterBits: 17, isExtended: true)
    var options = RigOptions(engine: engine)
    options.qcow2 = try folder.location("DIR/a")
    let written = [UInt8](repeating: 3, count: 12 << 10)
    do {
      let rig = try Rig(options)
      #expect(rig.device.features.contains(BlockFeature.discard) && rig.device.features.contains(BlockFeature.writeZeroes))
      #expect(!BlockDevice.featuresOnRequest(of: rig.device.image).contains(BlockFeature.secureErase))
      try rig.expect(.write(sector: 100, written), .ok)
      try rig.expect(.flush, .ok)
      #expect(
        try rig.perform(.read(sector: 96, bytes: 8192)).answer == [UInt8](repeating: 0, count: 2048) + written.prefix(6144))
      try rig.expect(.writeZeroes([BlockRange(sector: 104, sectors: 4)]), .ok)
      try rig.expect(.discard([BlockRange(sector: 108, sectors: 4)]), .ok)
      #expect(try rig.perform(.read(sector: 104, bytes: 2048)).answer == [UInt8](repeating: 0, count: 2048))
      // Beyond the end of the file, which is shorter than the disk.
      try rig.expect(.write(sector: 16000, written), .ok)
    }
    try check(folder, "a")
    let content = try folder.content("a")
    #expect(content[112 * 512] == 3 && Array(content[16000 * 512..<16024 * 512]) == written)
  }

  /// A write that is longer than a step, over clusters that are contiguous for one step only: what lies behind them in the file
  /// belongs to another part of the disk.
  @Test(arguments: [EngineKind.auto, .sync], [1, 2, 61])
  func aLongWriteStaysInItsClusters(engine: EngineKind, pieces: Int) throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.make("a", size: 32 << 20, clusterBits: 16, isExtended: false)
    let step = 4 << 20
    // In the file, what is third on the disk comes before what is second.
    try folder.writing("DIR/a") { disk in
      try #require(disk.change(.write, at: 0, count: step, value: 1) == 0)
      try #require(disk.change(.write, at: 4 * step, count: 2 * step, value: 2) == 0)
      try #require(disk.change(.write, at: step, count: 2 * step, value: 3) == 0)
    }
    do {
      var options = ImageOptions(path: folder.place("a"))
      options.qcow2 = try folder.location("DIR/a")
      var deviceOptions = BlockDeviceOptions()
      deviceOptions.engine = engine
      let device = try BlockDevice(image: ImageFile(options), options: deviceOptions)
      let features = BlockFeature.understood.subtracting([.blockSizeMax, .blockSegMax])
      let queue = try HandQueue(device, 0, SharedMemory(size: 64 << 20), size: 128, features: features)
      try queue.start()
      let data = pattern(3 * step)
      let write = BlockRequest.write(sector: UInt64(4 * step / 512), data)
      #expect(try queue.queue.perform(write, framing: .pieces(pieces, write)).status == .ok)
      let read = BlockRequest.read(sector: 0, bytes: 7 * step)
      let answer = try queue.queue.perform(read, framing: .pieces(pieces, read)).answer
      let before = [UInt8](repeating: 1, count: step) + [UInt8](repeating: 3, count: 2 * step) + zeroes(step)
      #expect(firstDifference(answer, before + data) == nil)
      #expect(queue.stop() != nil)
    }
    try check(folder, "a")
  }

  /// A discard that the image format cannot express allocates nothing.
  @Test func aDiscardTakesNoSpace() throws {
    let folder = try ImageFolder(in: Medium.memory.folder)
    try folder.create("0", "4M")
    try folder.io("0", ["write -P 5 0 4M"])
    try folder.create("1", "4M", ["-o", "compat=0.10", "-b", folder.place("0"), "-F", "qcow2"])
    let before = try folder.bytes("1")
    try folder.writing("DIR/1?backing-folder=DIR") { disk in
      #expect(disk.change(.blockDiscard, at: 1000 * 512, count: 1 << 20) == 0)
      let bytes = try disk.bytes(at: 1 << 20, count: 4096)
      #expect(bytes == [UInt8](repeating: 5, count: 4096))
    }
    #expect(try folder.bytes("1") == before)
  }
}
