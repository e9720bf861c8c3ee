/// Files that are truncated under their mappings, and the address space that mappings use up.
import CLinux
import Foundation
import Glibc
import SystemPackage
import Testing
import VirtioCore

/// A file in memory and a mapping of it.
private struct Victim {
  let file: OwnedDescriptor
  let mapping: Mapping

  init(pages: Int) throws {
    let number = unsafe memfd_create("victim", UInt32(MFD_CLOEXEC))
    try #require(number >= 0)
    file = OwnedDescriptor(number)
    try #require(ftruncate(number, off_t(pages * PageSize.bytes)) == 0)
    mapping = try Mapping(descriptor: number, count: pages * PageSize.bytes)
  }

  func cut(to pages: Int) throws { try #require(ftruncate(file.rawValue, off_t(pages * PageSize.bytes)) == 0) }

  subscript(page: Int) -> UInt8 {
    get { unsafe mapping.base.load(fromByteOffset: page * PageSize.bytes, as: UInt8.self) }
    nonmutating set { unsafe mapping.base.storeBytes(of: newValue, toByteOffset: page * PageSize.bytes, as: UInt8.self) }
  }

  /// How many of the process's mappings are within this one's range.
  func pieces() throws -> Int {
    let start = unsafe UInt(bitPattern: mapping.base)
    let range = start..<start + UInt(mapping.count)
    let lines = try String(contentsOfFile: "/proc/self/maps", encoding: .utf8).split(separator: "\n")
    return lines.count { line in
      UInt(line.prefix { $0 != "-" }, radix: 16).map { range.contains($0) } ?? false
    }
  }
}

@Suite struct FaultGuardTests {
  enum Order: CaseIterable { case forwards, backwards, everySecond, scattered }

  /// Each separate mapping is one of the 65,530 that a process can have.
  @Test(arguments: Order.allCases) func manyLostPagesAreFewPieces(_ order: Order) throws {
    let pages = 40_000
    let victim = try Victim(pages: pages)
    for page in stride(from: 0, to: pages, by: 1000) { victim[page] = 7 }
    try victim.cut(to: 1)
    var touched: [Int]
    switch order {
    case .forwards: touched = Array(1..<pages)
    case .backwards: touched = (1..<pages).reversed()
    case .everySecond: touched = Array(stride(from: 2, to: pages, by: 2))
    case .scattered: touched = (1..<pages).map { $0 &* 7919 % (pages - 1) + 1 }
    }
    for page in touched {
      guard victim[page] == 0 else {
        Issue.record("page \(page) is lost and not zero")
        break
      }
    }
    #expect(victim.mapping.faults > 0)
    #expect(victim.mapping.faults < 100)
    #expect(try victim.pieces() < 100)
  }

  /// In a separate process: how much is replaced depends on what the process has lost before.
  @Test func oneLostPageLeavesTheRestTheFiles() async {
    await #expect(processExitsWith: .success) {
      let victim = try Victim(pages: 64)
      try victim.cut(to: 32)
      let before = FaultGuard.counter.loadAfterLoads()
      precondition(victim[40] == 0)
      precondition(FaultGuard.counter.loadAfterLoads() > before)
      precondition(victim.mapping.faults == 1)
      for page in 0..<32 {
        victim[page] = UInt8(page + 1)
        var byte: UInt8 = 0
        precondition(unsafe pread(victim.file.rawValue, &byte, 1, off_t(page * PageSize.bytes)) == 1)
        precondition(byte == UInt8(page + 1))
      }
      precondition(victim.mapping.faults == 1)
    }
  }

  @Test func aBusErrorThatSomebodySentEndsTheProcess() async {
    await #expect(processExitsWith: .signal(SIGBUS)) {
      // The guard is installed, and has a mapping to guard.
      let victim = try Victim(pages: 4)
      try victim.cut(to: 0)
      precondition(victim[2] == 0)
      kill(getpid(), SIGBUS)
      // Another thread may have received the signal.
      sleep(UInt32(Patience.limit.components.seconds))
    }
  }

  @Test func aBusErrorOfNobodysMappingEndsTheProcess() async {
    await #expect(processExitsWith: .signal(SIGBUS)) {
      let victim = try Victim(pages: 4)
      let size = PageSize.bytes
      let other = unsafe mmap(nil, size, PROT_READ, MAP_SHARED, victim.file.rawValue, 0)
      try victim.cut(to: 0)
      precondition(victim[2] == 0)
      let byte = unsafe other?.load(as: UInt8.self)
      print(byte as Any)
    }
  }
}

@Suite struct AddressSpaceTests {
  @Test func aBudgetHasAnEnd() throws {
    let space = AddressSpace(bytes: 100, mappings: 3)
    try space.reserve(60)
    #expect(throws: Errno.noMemory) { try space.reserve(41) }
    try space.reserve(30)
    try space.reserve(10)
    #expect(throws: Errno.noMemory) { try space.reserve(0) }
    space.release(60)
    #expect(throws: Errno.noMemory) { try space.reserve(61) }
    try space.reserve(60)
    for count in [60, 30, 10] { space.release(count) }
    try space.reserve(100)
  }

  /// One front-end maps as much as the kernel allows; the rest of the process continues.
  @Test func whoMapsAllThereIsLeavesRoomForTheProgram() async {
    await #expect(processExitsWith: .success) {
      let file = unsafe memfd_create("huge", UInt32(MFD_CLOEXEC))
      precondition(file >= 0 && ftruncate(file, 1 << 46) == 0)
      var mappings: [Mapping] = []
      for shift in stride(from: 46, through: 12, by: -1) {
        while mappings.count < 60_000, let mapping = try? Mapping(descriptor: file, count: 1 << shift) {
          mappings.append(mapping)
        }
      }
      precondition(!mappings.isEmpty)
      // Room for many small allocations, for a large one, and for threads.
      let pieces = (0..<1000).map { [UInt8](repeating: UInt8(truncatingIfNeeded: $0), count: 1 << 16) }
      let large = [UInt8](repeating: 1, count: 256 << 20)
      let threads = try (0..<100).map { try SystemThread(name: "room \($0)") { usleep(1000) } }
      for thread in threads { thread.join() }
      precondition(pieces.count == 1000 && large[large.count - 1] == 1)
    }
  }

  @Test func mappingsThatAreManyLeaveRoomForTheProgram() async {
    await #expect(processExitsWith: .success) {
      let file = unsafe memfd_create("many", UInt32(MFD_CLOEXEC))
      precondition(file >= 0 && ftruncate(file, off_t(2 * PageSize.bytes)) == 0)
      var mappings: [Mapping] = []
      // Of two kinds alternately, so that the kernel cannot merge neighbours.
      while let mapping = try? Mapping(descriptor: file, count: PageSize.bytes, readOnly: mappings.count % 2 == 0) {
        mappings.append(mapping)
        precondition(mappings.count < 1 << 20)
      }
      precondition(mappings.count > 10_000)
      let threads = try (0..<100).map { try SystemThread(name: "room \($0)") { usleep(1000) } }
      for thread in threads { thread.join() }
      let large = (0..<100).map { _ in [UInt8](repeating: 1, count: 1 << 20) }
      precondition(large.count == 100)
    }
  }
}
