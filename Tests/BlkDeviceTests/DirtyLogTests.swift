/// The dirty log, against what a driver sees change in its memory.
import CLinux
import Glibc
import GuestDriver
import Synchronization
import Testing
import VirtioBlkDevice
import VirtioCore

/// A log as a front-end keeps it: a shared file whose bits the front-end clears.
private final class Bits: @unchecked Sendable {
  static let page = 4096
  let log: DirtyLog
  private let mapping: Mapping
  private let offset: Int
  private let count: Int

  /// - Parameter offset: where the log begins in its file, bytes.
  init(bytes: Int, offset: Int = 0) throws {
    let number = unsafe memfd_create("log", UInt32(MFD_CLOEXEC))
    try #require(number >= 0 && ftruncate(number, off_t(offset + bytes)) == 0)
    let descriptor = OwnedDescriptor(number)
    mapping = try Mapping(descriptor: number, count: offset + bytes)
    log = try DirtyLog(descriptor: descriptor, offset: UInt64(offset), size: UInt64(bytes))
    self.offset = offset
    count = bytes
  }

  /// Clears all bits. - Returns: the pages that were marked.
  func take() -> Set<Int> {
    var pages: Set<Int> = []
    for index in 0..<count {
      let cell = unsafe (mapping.base + offset + index).assumingMemoryBound(to: Atomic<UInt8>.self)
      guard unsafe cell.pointee.load(ordering: .relaxed) != 0 else { continue }
      let byte = unsafe cell.pointee.exchange(0, ordering: .acquiringAndReleasing)
      for bit in 0..<8 where byte >> bit & 1 == 1 { pages.insert(index * 8 + bit) }
    }
    return pages
  }
}

@Suite struct DirtyLogTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var engine = EngineKind.sync
    var inOrder = false
    var features = BlockFeature.understood
    var direct = ImageOptions.Direct.off
    var testDescription: String {
      "\(engine.rawValue)\(inOrder ? ", in order" : "")\(features.contains(.eventIndex) ? "" : ", flags")"
        + "\(direct == .auto ? ", direct" : "")"
    }
  }

  static let cases = [
    Case(), Case(inOrder: true), Case(features: BlockFeature.understood.subtracting([.eventIndex, .indirectDescriptors])),
    Case(engine: .uring), Case(engine: .uring, direct: .auto), Case(engine: .threads), Case(engine: .mapped),
    Case(engine: .cached), Case(engine: .aio, direct: .auto),
  ]

  /// Where the used ring's pages are logged: far from any page of the guest.
  private static let usedRingPage = 1 << 16
  private static let memorySize = 8 << 20

  private static func rig(_ test: Case, _ scratch: Scratch, _ bits: Bits) throws -> (HandQueue, SharedMemory) {
    let image = try ImageFile(ImageOptions(path: scratch.image(size: 4 << 20), direct: test.direct))
    var options = BlockDeviceOptions()
    options.engine = test.engine
    let memory = try SharedMemory(size: memorySize)
    // The used ring has another address in the log, at the same offset in its page.
    let queue = try HandQueue(
      BlockDevice(image: image, options: options), 0, memory, size: 128, features: test.features,
      publishesInOrder: test.inOrder)
    let used = queue.ring.layout.usedRing.rawValue
    queue.log(
      QueueLog(log: bits.log, coversBuffers: true, usedRing: UInt64(usedRingPage * Bits.page) + used % UInt64(Bits.page)))
    return (queue, memory)
  }

  /// A page of the guest's memory.
  @safe
  private struct Page {
    let number: Int
    let base: UnsafeMutableRawPointer
    var contents: [UInt8] { unsafe [UInt8](UnsafeRawBufferPointer(start: base, count: Bits.page)) }
  }

  private static func pages(_ memory: SharedMemory) -> [Page] {
    memory.driver.regions.flatMap { region in
      (0..<region.size / Bits.page).map { page in
        unsafe Page(
          number: Int(region.start.rawValue) / Bits.page + page,
          base: region.mapping.base + region.offset + page * Bits.page)
      }
    }
  }

  private static func request(_ random: inout SeededRandom) -> BlockRequest {
    let sector = UInt64.random(in: 0..<8000, using: &random)
    let bytes = 512 * Int.random(in: 1...40, using: &random)
    switch Int.random(in: 0..<12, using: &random) {
    case 0...5: return .read(sector: min(sector, 8100), bytes: bytes)
    case 6, 7: return .write(sector: sector, pattern(bytes))
    case 8: return .flush
    case 9: return .identify
    case 10: return .read(sector: 1 << 40, bytes: bytes)
    default: return .writeZeroes([BlockRange(sector: sector, sectors: 8)])
    }
  }

  /// Every page that the device changed is marked, and no page that it had no reason to touch.
  @Test(arguments: cases) func everyPageThatChangedIsMarked(test: Case) throws {
    let scratch = try Scratch()
    let bits = try Bits(bytes: 16 << 10, offset: 64)
    var random = SeededRandom(seed: 7)
    for round in 0..<6 {
      let (queue, memory) = try Self.rig(test, scratch, bits)
      let count = round == 0 ? 1 : 30
      var added: UInt16 = 0
      for _ in 0..<count where try queue.queue.submit(Self.request(&random), framing: nil) != nil { added += 1 }
      queue.queue.publish()
      let pages = Self.pages(memory)
      let before = pages.map(\.contents)
      #expect(bits.take().isEmpty)
      try queue.start()
      try waitUntil("all are answered") { queue.usedIndex == added }
      #expect(queue.stop() == QueuePosition(available: added, used: added))
      let marked = bits.take()
      let ring = Int(queue.ring.layout.usedRing.rawValue)
      let used = ring / Bits.page
      let usedEnd = (ring + RingLayout.usedRingBytes(128) - 1) / Bits.page
      var usedRingPages: Set<Int> = []
      let changed = zip(pages, before).filter { $0.contents != $1 }.map(\.0.number)
      for page in changed {
        // The ring is logged at another address, unless a buffer shares its page.
        let isRing = (used...usedEnd).contains(page)
        if isRing { usedRingPages.insert(page - used + Self.usedRingPage) }
        #expect(isRing || marked.contains(page), "page \(page) of round \(round)")
      }
      #expect(usedRingPages.isSubset(of: marked))
      // The others are read buffers that contained the same data before.
      let others = marked.subtracting(changed).filter { $0 < Self.usedRingPage }
      #expect(others.count <= marked.count / 4, "\(others)")
      // After the stop it writes nothing and logs nothing.
      #expect(bits.take().isEmpty)
    }
  }

  /// The memory is copied elsewhere at the same time, page by page as pages are marked: at the end the copy equals the memory.
  @Test(arguments: cases) func aCopyByTheLogIsWhole(test: Case) throws {
    let scratch = try Scratch()
    let bits = try Bits(bytes: 16 << 10)
    var random = SeededRandom(seed: 11)
    for round in 0..<20 {
      let (queue, memory) = try Self.rig(test, scratch, bits)
      var added: UInt16 = 0
      while added < 40, try queue.queue.submit(Self.request(&random)) != nil { added += 1 }
      queue.queue.publish()
      let pages = Self.pages(memory)
      let place = Dictionary(uniqueKeysWithValues: pages.map { ($0.number, $0) })
      var copy = place.mapValues(\.contents)
      let used = Int(queue.ring.layout.usedRing.rawValue) / Bits.page
      func copyMarked() {
        for page in bits.take() {
          let page = page >= Self.usedRingPage ? page - Self.usedRingPage + used : page
          if let found = place[page] { copy[page] = found.contents }
        }
      }
      try queue.start()
      try waitUntil("all are answered") {
        copyMarked()
        return queue.usedIndex == added
      }
      #expect(queue.stop() != nil)
      copyMarked()
      for (page, found) in place where copy[page] != found.contents {
        Issue.record("page \(page) of round \(round) was not copied after it was written")
      }
    }
  }

  /// Only what was requested is logged: the ring without the buffers, and only pages that fit in the log.
  @Test func aLogOfTheRingAloneAndAShortOne() throws {
    let scratch = try Scratch()
    let bits = try Bits(bytes: 16 << 10)
    let (queue, _) = try Self.rig(Case(), scratch, bits)
    queue.log(QueueLog(log: bits.log, coversBuffers: false, usedRing: UInt64(Self.usedRingPage * Bits.page)))
    try queue.start()
    #expect(try queue.perform(.read(sector: 0, bytes: 4096)).status == .ok)
    _ = queue.stop()
    let marked = bits.take()
    #expect(!marked.isEmpty && marked.allSatisfy { $0 >= Self.usedRingPage })
    // A log of one byte: eight pages. Pages beyond it, the used ring's among them, are not logged, and nothing is overwritten.
    let short = try Bits(bytes: 1, offset: 4095)
    let again = try HandQueue(
      queue.device, 0, SharedMemory(), log: QueueLog(log: short.log, coversBuffers: true, usedRing: .max))
    try again.start()
    #expect(try again.perform(.read(sector: 0, bytes: 4096)).status == .ok)
    _ = again.stop()
    #expect(short.take().allSatisfy { $0 < 8 })
  }

  /// Several threads set bits of one byte while another one clears them: no mark is lost.
  @Test func marksAreNotLostBesideEachOther() throws {
    let bits = try Bits(bytes: 1)
    let rounds = 5000
    let log = bits.log
    var seen = false
    let marker = try SystemThread(name: "marker") {
      for _ in 0..<rounds { log.mark(3 * 4096, count: 1) }
    }
    // Two pages at a time.
    for _ in 0..<rounds {
      log.mark(4 * 4096 + 4095, count: 2)
      let taken = bits.take()
      #expect(taken.isSuperset(of: [4, 5]))
      seen = seen || taken.contains(3)
    }
    marker.join()
    #expect(seen || bits.take().contains(3))
  }
}
