/// The file of in-flight records: its layout, and files made by others.
import CLinux
import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import VirtioCore

@Suite struct InflightMemoryTests {
  /// A region is a header of 16 bytes and an entry of 16 for each descriptor, rounded up to 64.
  @Test(
    arguments: [
      (1, 1, 64), (1, 2, 64), (1, 3, 64), (1, 4, 128), (1, 128, 2112), (4, 256, 16640), (256, 32768, 134_234_112),
    ] as [(Int, UInt16, UInt64)]) func sizesAreThoseOfTheStandardLayout(queues: Int, size: UInt16, bytes: UInt64) throws
  {
    #expect(try InflightMemory.bytes(queueCount: queues, queueSize: size) == bytes)
  }

  @Test func newFileIsZeroedSealedAndClosedOnExec() throws {
    let memory = try InflightMemory.create(queueCount: 3, queueSize: 128)
    #expect(
      memory.size == 3 * 2112 + InflightMemory.keepingBytes && memory.offset == 0 && memory.queueCount == 3
        && memory.queueSize == 128)
    let file = memory.descriptor.rawValue
    var information = stat()
    try #require(unsafe fstat(file, &information) == 0)
    #expect(information.st_size == off_t(memory.size))
    #expect(fcntl(file, F_GET_SEALS) == F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
    #expect(fcntl(file, F_GETFD) & FD_CLOEXEC != 0)
    #expect(ftruncate(file, 0) != 0)
    #expect(!memory.bytes(ofQueue: 0).isEmpty && memory.bytes(ofQueue: 2).allSatisfy { $0 == 0 })
    #expect(!memory.hasFaulted)
  }

  @Test(arguments: [(0, 128), (257, 128), (1, 0), (1, 32769), (1, 65535)] as [(Int, UInt16)])
  func countsOutOfRangeAreRefused(queues: Int, size: UInt16) throws {
    #expect(throws: InflightError.self) { try InflightMemory.create(queueCount: queues, queueSize: size) }
  }

  /// What was written through one mapping is visible in the next one, at its offset.
  @Test(arguments: [0, 1, 5]) func anotherHolderSeesTheSameRegions(pages: Int) throws {
    let file = try file(bytes: 8 * PageSize.bytes)
    let offset = UInt64(pages * PageSize.bytes)
    let one = try InflightMemory(descriptor: file, size: 4224, offset: offset, queueCount: 2, queueSize: 128)
    let other = try InflightMemory(
      descriptor: OwnedDescriptor(dup(file.rawValue)), size: 4224, offset: offset, queueCount: 2, queueSize: 128)
    unsafe try #require(one.region(ofQueue: 1)).storeBytes(of: 0x1234, as: UInt16.self)
    #expect(unsafe try #require(other.region(ofQueue: 1)).load(as: UInt16.self) == 0x1234)
    var seen: UInt16 = 0
    try #require(unsafe pread(file.rawValue, &seen, 2, off_t(offset) + 2112) == 2)
    #expect(seen == 0x1234)
  }

  /// The bytes that a driver wrote are kept after the regions, where no other back-end looks.
  @Test(arguments: [false, true]) func whatADriverWroteIsKept(isPacked: Bool) throws {
    let memory = try InflightMemory.create(queueCount: 3, queueSize: 4, isPacked: isPacked)
    #expect(memory.keptConfiguration == nil)
    memory.keep(KeptConfiguration(offset: 32, value: 0))
    let place = off_t(memory.size - InflightMemory.keepingBytes)
    var before = [UInt8](repeating: 1, count: Int(place))
    try #require(unsafe pread(memory.descriptor.rawValue, &before, before.count, 0) == before.count)
    #expect(before.allSatisfy { $0 == 0 })
    func other(_ size: UInt64) throws -> InflightMemory {
      try InflightMemory(
        descriptor: OwnedDescriptor(dup(memory.descriptor.rawValue)), size: size, offset: 0, queueCount: 3, queueSize: 4,
        isPacked: isPacked)
    }
    let next = try other(memory.size)
    #expect(next.keptConfiguration == KeptConfiguration(offset: 32, value: 0))
    next.keep(KeptConfiguration(offset: 255, value: 255))
    #expect(memory.keptConfiguration == KeptConfiguration(offset: 255, value: 255))
    // A front-end that does not reserve the room, or a file without it.
    #expect(try other(memory.size - InflightMemory.keepingBytes).keptConfiguration == nil)
    let small = try InflightMemory(
      descriptor: file(bytes: 3 * 128), size: 1 << 20, offset: 0, queueCount: 3, queueSize: 4)
    small.keep(KeptConfiguration(offset: 32, value: 0))
    #expect(small.keptConfiguration == nil && !small.hasFaulted)
    next.forget()
    #expect(memory.keptConfiguration == nil)
  }

  @Test func queuesBeyondTheLastHaveNoRegion() throws {
    let memory = try InflightMemory.create(queueCount: 2, queueSize: 4)
    #expect(unsafe memory.region(ofQueue: 2) == nil && memory.region(ofQueue: -1) == nil)
  }

  struct Offer: Sendable {
    var name: String
    var fileBytes = 2112
    var size: UInt64 = 2112
    var offset: UInt64 = 0
  }

  @Test(arguments: [
    Offer(name: "less than the queue needs", size: 2111), Offer(name: "nothing", size: 0),
    Offer(name: "a file that is shorter", fileBytes: 2111), Offer(name: "an empty file", fileBytes: 0),
    Offer(name: "an offset past the end", offset: 4096), Offer(name: "no page", fileBytes: 1 << 20, offset: 64),
    Offer(name: "a range that wraps", size: .max, offset: 4096), Offer(name: "an offset that wraps", offset: .max - 4095),
    Offer(name: "more than a file can have", size: 1 << 62, offset: 1 << 62),
  ]) func offersThatDoNotHoldAreRefused(_ offer: Offer) throws {
    let file = try file(bytes: offer.fileBytes)
    #expect(throws: InflightError.self, "\(offer.name)") {
      try InflightMemory(
        descriptor: file, size: offer.size, offset: offer.offset, queueCount: 1, queueSize: 128)
    }
  }

  /// A size larger than the queues need is accepted, even if the file is shorter than it.
  @Test func largerSizeThanNeededIsTaken() throws {
    let memory = try InflightMemory(
      descriptor: try file(bytes: 2112), size: 1 << 20, offset: 0, queueCount: 1, queueSize: 128)
    #expect(memory.size == 1 << 20)
  }

  @Test(arguments: ["/dev/null", "/dev/zero", "/"]) func whatIsNoFileIsRefused(path: String) throws {
    let number = unsafe open(path, O_RDONLY)
    try #require(number >= 0)
    let file = OwnedDescriptor(number)
    #expect(throws: InflightError.self) {
      try InflightMemory(descriptor: file, size: 2112, offset: 0, queueCount: 1, queueSize: 128)
    }
  }

  @Test func readOnlyFileIsRefused() throws {
    let writable = try file(bytes: 4096)
    let number = unsafe open("/proc/self/fd/\(writable.rawValue)", O_RDONLY)
    try #require(number >= 0)
    let file = OwnedDescriptor(number)
    #expect(throws: InflightError.notMappable(.permissionDenied)) {
      try InflightMemory(descriptor: file, size: 2112, offset: 0, queueCount: 1, queueSize: 128)
    }
  }

  @Test func cutFileIsNoticed() throws {
    let file = try file(bytes: 4 * PageSize.bytes)
    let memory = try InflightMemory(
      descriptor: file, size: UInt64(4 * PageSize.bytes), offset: 0, queueCount: 1, queueSize: 128)
    try #require(ftruncate(file.rawValue, 0) == 0)
    let region = unsafe try #require(memory.region(ofQueue: 0))
    unsafe region.storeBytes(of: 1, toByteOffset: 16, as: UInt8.self)
    #expect(memory.hasFaulted)
  }

  /// The file's owner may delay closing and unmapping.
  @Test func disposerDoesWhatMayTakeForEver() throws {
    final class Counter: Disposer {
      let count = Atomic<Int>(0)
      func dispose(_ errand: @escaping @Sendable () -> Void) {
        count.wrappingAdd(1, ordering: .relaxed)
        errand()
      }
    }
    let counter = Counter()
    let file = try file(bytes: 4096)
    let duplicate = dup(file.rawValue)
    do {
      let memory = try InflightMemory(
        descriptor: OwnedDescriptor(duplicate, closedBy: counter), size: 2112, offset: 0, queueCount: 1, queueSize: 128)
      #expect(memory.queueCount == 1 && counter.count.load(ordering: .relaxed) == 0)
    }
    #expect(counter.count.load(ordering: .relaxed) == 2, "the descriptor and the mapping")
  }

  /// A control thread reads and writes the kept bytes, so never in a file system that may depend on another process.
  @Test func nothingIsKeptInAFileThatIsNotInMemory() throws {
    var name = Array("/var/tmp/vmm-blk-inflight-XXXXXX".utf8CString)
    let number = unsafe mkstemp(&name)
    try #require(number >= 0)
    let file = OwnedDescriptor(number)
    try #require(unsafe unlink(name) == 0 && ftruncate(number, off_t(2 * PageSize.bytes)) == 0)
    let word = UInt64(0x766d_6d62_6c6b) << 16 | 32 << 8
    try #require(unsafe withUnsafeBytes(of: word) { unsafe pwrite(number, $0.baseAddress, 8, 2112) } == 8)
    let memory = try InflightMemory(descriptor: file, size: 4096, offset: 0, queueCount: 1, queueSize: 128)
    guard !memory.isInMemory else { return }
    #expect(memory.keptConfiguration == nil)
    memory.keep(KeptConfiguration(offset: 32, value: 1))
    var seen: UInt64 = 0
    try #require(unsafe pread(number, &seen, 8, 2112) == 8)
    #expect(seen == word)
    #expect(try InflightMemory.create(queueCount: 1, queueSize: 128).isInMemory)
  }

  private func file(bytes: Int) throws -> OwnedDescriptor {
    let number = unsafe memfd_create("inflight-test", UInt32(MFD_CLOEXEC))
    try #require(number >= 0)
    let file = OwnedDescriptor(number)
    try #require(ftruncate(number, off_t(bytes)) == 0)
    return file
  }
}

extension InflightMemory {
  /// A copy of a queue's region.
  func bytes(ofQueue queue: Int) -> [UInt8] {
    guard let region = unsafe region(ofQueue: queue) else { return [] }
    let count = Int(size) / queueCount
    return unsafe Array(UnsafeRawBufferPointer(start: region, count: count))
  }
}
