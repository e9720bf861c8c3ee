/// Contents are verified, and mismatches are reported.
import Foundation
import Testing
import VirtioBlkDevice

@testable import Bench

@Suite struct VerifyTests {
  @Test(arguments: Verification.allCases, [AccessPattern.write, .randwrite, .randrw, .rw])
  func whatIsWrittenIsReadBack(verification: Verification, pattern: AccessPattern) throws {
    let scratch = try Scratch()
    let result = try Benchmark.run(
      .short(.device(try scratch.device(queues: 2), name: "disk")) {
        $0.pattern = pattern
        $0.jobs = 2
        $0.depth = 4
        $0.verification = verification
      })
    #expect(result.verified > 0)
  }

  @Test(arguments: Verification.allCases)
  func anEarlierRunIsRead(verification: Verification) throws {
    let scratch = try Scratch()
    func run(_ pattern: AccessPattern) throws -> BenchmarkResult {
      try Benchmark.run(
        .short(.device(try scratch.device(), name: "disk")) {
          $0.pattern = pattern
          // Small enough to be written completely.
          $0.size = 64 << 10
          $0.depth = 4
          $0.verification = verification
        })
    }
    #expect(throws: BenchError.self) { try run(.randread) }
    _ = try run(.write)
    #expect(try run(.randread).verified > 0)

    let file = try #require(FileHandle(forUpdatingAtPath: try scratch.imagePath()))
    for block in 0..<16 {
      try file.seek(toOffset: UInt64(block * 4096 + 1000))
      try file.write(contentsOf: Data([0xff, 0xfe, 0xfd, 0xfc, 0xfb, 0xfa, 0xf9, 0xf8, 0xf7, 0xf6]))
    }
    try file.close()
    do {
      _ = try run(.randread)
      Issue.record("damage was not noticed")
    } catch BenchError.wrongData(let mismatch) {
      guard case .damaged = mismatch.kind else {
        Issue.record("\(mismatch)")
        return
      }
    }
  }

  /// A device that transfers no data is detected at the first read.
  @Test func theNullEngineFails() throws {
    let scratch = try Scratch()
    #expect(throws: BenchError.self) {
      try Benchmark.run(
        .short(.device(try scratch.device(engine: .null), name: "disk")) {
          $0.pattern = .randrw
          $0.size = 64 << 10
          $0.verification = .pattern
        })
    }
  }

  @Test(arguments: Verification.allCases)
  func mismatchesAreToldApart(verification: Verification) {
    let content = BlockContent(verification: verification, seed: 7)
    let count = 512
    let data = UnsafeMutableRawPointer.allocate(byteCount: count, alignment: 8)
    defer { unsafe data.deallocate() }
    func check(offset: UInt64 = 4096, wanted: UInt32 = 3) -> Mismatch.Kind? {
      unsafe content.check(data, count: count, offset: offset, wanted: wanted)?.kind
    }
    func rewrite() { unsafe content.write(data, count: count, offset: 4096, generation: 3) }
    rewrite()
    #expect(check() == nil)
    #expect(check(wanted: 0) == nil)
    #expect(check(offset: 8192) == .misplaced(from: 4096))
    #expect(check(wanted: 4) == .stale(found: 3, wanted: 4))
    for place in stride(from: BlockContent.headerSize, to: count, by: 61) {
      rewrite()
      unsafe data.storeBytes(of: data.load(fromByteOffset: place, as: UInt8.self) ^ 0x10, toByteOffset: place, as: UInt8.self)
      #expect(check() == .damaged(at: verification == .pattern ? place / 8 * 8 : nil))
    }
    unsafe data.initializeMemory(as: UInt8.self, repeating: 0, count: count)
    #expect(check() == .stale(found: 0, wanted: 3))
    #expect(check(wanted: 0) == .unknown)
  }

  /// The value that RFC 3720 and every implementation give for these digits.
  @Test func checksumIsTheKnownOne() {
    #expect(unsafe Array("123456789".utf8).withUnsafeBytes { unsafe CRC32C.of($0) } == 0xe306_9283)
    #expect(unsafe [UInt8](repeating: 0, count: 32).withUnsafeBytes { unsafe CRC32C.of($0) } == 0x8a91_36aa)
  }

  @Test func aBlockHasOneRequestAtATime() throws {
    let ledger = try BlockLedger(DiskArea(first: 10, count: 2))
    // A noncopyable value cannot be used in an expectation.
    let taken = [ledger.take(10), ledger.take(10)]
    #expect(taken == [true, false])
    let first = ledger.beginWrite(10)
    let whileBusy = ledger.take(10)
    #expect(first == 1 && !whileBusy)
    ledger.release(10)
    let again = ledger.take(10)
    let generation = ledger.generation(10)
    let second = ledger.beginWrite(10)
    let untouched = ledger.generation(11)
    #expect(again && generation == 1 && second == 2 && untouched == 0)
  }
}
