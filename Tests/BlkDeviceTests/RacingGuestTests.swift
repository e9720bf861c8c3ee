/// A guest whose other CPUs rewrite rings, descriptors, headers and tables while the device is using them, on every engine:
/// its own queue may fail, and that is all.
import Foundation
import Synchronization
import Testing
import VirtioCore

@testable import GuestDriver
@testable import VirtioBlkDevice

@Suite struct RacingGuestTests {
  static let engines = EngineKind.allCases.filter { ![.auto, .nbd, .rbd].contains($0) }

  @Test(arguments: engines, [RingFormat.split, .packed])
  func whatIsRewrittenHarmsItsOwnQueueAlone(engine: EngineKind, format: RingFormat) throws {
    let features = format == .packed ? BlockFeature.understood.union(.packedRing) : BlockFeature.understood
    let scratch = try Scratch()
    let image = try ImageFile(ImageOptions(path: scratch.image(size: 1 << 20), direct: .off))
    var options = BlockDeviceOptions()
    options.engine = engine
    options.queueCount = 2
    // Both queues share a thread: whatever one does to its worker, the other would notice.
    options.threads = 1
    options.serial = "the other queue"
    let device = try BlockDevice(image: image, options: options)
    let witness = try HandQueue(device, 1, SharedMemory(size: 1 << 20), features: features)
    try witness.start()
    defer { witness.attended.stopAllAndWait() }
    for round in 1...4 {
      let memory = try SharedMemory(size: 1 << 18)
      let guest = try HandQueue(device, 0, memory, size: 64, features: features, tables: 3, beside: witness)
      #expect(guest.activation.features.contains(.packedRing) == (format == .packed))
      try race(guest, in: memory.driver.regions[0], seed: UInt64(round)) {
        let outcome = try witness.perform(.identify)
        #expect(outcome.status == .ok)
        #expect(outcome.answer.starts(with: Array("the other queue".utf8)))
      }
      // It stops, in whatever state it is.
      #expect(guest.stop() != nil)
    }
    #expect(try witness.perform(.flush).status == .ok)
  }

  /// Starts a queue with requests of every kind on it, has its memory rewritten, and kicks until the rewriter is done.
  private func race(
    _ guest: HandQueue, in region: DriverMemory.Region, seed: UInt64, beside: () throws -> Void
  ) throws {
    try guest.start()
    let requests: [BlockRequest] = [
      .read(sector: 0, bytes: 4096), .write(sector: 8, pattern(4096)), .flush, .identify, .read(sector: 16, bytes: 512),
      .write(sector: 24, pattern(512)),
    ]
    for request in requests { try guest.submit(request) }
    let rewriter = Rewriter(region, guest.ring.layout, seed: seed)
    defer { rewriter.wait() }
    guest.queue.publish()
    while !rewriter.isOver {
      EventCounter.signal(guest.kick.rawValue)
      try beside()
    }
  }
}

/// The other CPU: a number of writes, most of them where they do harm.
private final class Rewriter: Sendable {
  private static let writes = 6000
  private let over = Atomic<Bool>(false)
  private let ended = DispatchSemaphore(value: 0)

  init(_ region: DriverMemory.Region, _ layout: RingLayout, seed: UInt64) {
    Thread.detachNewThread { [self] in
      var random = SeededRandom(seed: seed)
      for count in 0..<Self.writes {
        Self.rewrite(region, layout, &random)
        // A device on the same CPU has to get its turn.
        if count % 32 == 0 { usleep(50) }
      }
      over.store(true, ordering: .releasing)
      ended.signal()
    }
  }

  var isOver: Bool { over.load(ordering: .acquiring) }
  func wait() { ended.wait() }

  private static func rewrite(_ region: DriverMemory.Region, _ layout: RingLayout, _ random: inout SeededRandom) {
    let parts = [layout.descriptorTable, layout.availableRing, layout.usedRing]
    let start = region.start.rawValue
    // Requests and tables are allocated from the beginning of memory on.
    let part = parts[Int(random.next() % 3)].rawValue - start
    let place =
      random.next() % 4 == 0 ? Int(random.next() % 0x4000) : Int(part) + Int(random.next() % 256)
    guard place >= 0, place + 8 <= region.size else { return }
    // Meaningful values: small numbers, a length, an address, flags.
    let number = random.next()
    // In a packed ring flags make a descriptor available or used, besides describing its buffer (virtio 2.7.1); they come
    // after the id, and in a split ring and in a table before the next index.
    let flags = (number % 8) | [0, 0x80, 0x8000, 0x8080][Int((number >> 8) % 4)]
    let values = [
      number % 32, number % 0x1_0000, start + number % UInt64(region.size), number,
      layout.format == .packed ? flags << 48 | ((number >> 16) % 64) << 32 | 16 : (number % 8) << 32 | 16,
    ]
    let value = values[Int(random.next() % 5)]
    let address = unsafe region.host + place
    switch random.next() % 3 {
    case 0: unsafe SharedCell<UInt8>(address).storeRelaxed(UInt8(truncatingIfNeeded: value))
    case 1: unsafe SharedCell<UInt16>(address - place % 2).storeRelaxed(UInt16(truncatingIfNeeded: value))
    default: unsafe SharedCell<UInt64>(address - place % 8).storeRelaxed(value)
    }
  }
}
