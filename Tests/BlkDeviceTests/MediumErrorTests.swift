/// What a driver gets when the medium transfers less, answers late, or fails: one answer for each request, the right bytes, the
/// right length (row 41 of the list of bad input).
import CLinux
import Foundation
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct ScriptedMediumTests {
  struct Case: CustomTestStringConvertible, Sendable {
    var name: String
    var isRead: Bool
    var actions: [Script.Action]
    var last = Script.Action.whole
    var status = BlockStatusCode.ok
    /// Bytes of the request that are transferred.
    var transferred = 8192
    var testDescription: String { (isRead ? "read, " : "write, ") + name }
  }

  private static func both(
    _ name: String, _ actions: [Script.Action], last: Script.Action = .whole, status: BlockStatusCode = .ok,
    transferred: Int = 8192
  ) -> [Case] {
    [true, false].map {
      Case(name: name, isRead: $0, actions: actions, last: last, status: status, transferred: transferred)
    }
  }

  private static let interruptions = [Script.Action](repeating: .result(-EINTR), count: 9)

  static let cases: [Case] =
    both("whole", [])
    + both("one block short", [.short(7680)])
    + both("block by block", Array(repeating: .short(512), count: 16))
    + both("ends inside a block", [.short(1000)])
    + both("ends inside a block again and again", [.short(700), .short(900), .short(1300)])
    + both("interrupted", [.result(-EINTR), .short(512), .result(-EINTR)])
    + both("busy three times", Array(repeating: .result(-EAGAIN), count: 3))
    + both("interrupted 135 times, with progress between", (0..<15).flatMap { _ in interruptions + [.short(512)] })
    + both("busy forever", [], last: .result(-EAGAIN), status: .ioError, transferred: 0)
    + both("broken", [.result(-EIO)], status: .ioError, transferred: 0)
    + both("broken in the middle", [.short(4096), .result(-EIO)], status: .ioError, transferred: 4096)
    + both("gone", [], last: .result(-ENODEV), status: .ioError, transferred: 0)
    + [
      Case(name: "past the end", isRead: true, actions: [.result(0)], status: .ioError, transferred: 0),
      Case(
        name: "end in the middle", isRead: true, actions: [.short(2048), .result(0)], status: .ioError, transferred: 2048),
      Case(
        name: "end inside a block", isRead: true, actions: [.short(1000), .result(0)], status: .ioError, transferred: 512),
      Case(
        name: "full in the middle", isRead: false, actions: [.short(1024), .result(-ENOSPC)], status: .ioError,
        transferred: 1024),
      Case(name: "nothing forever", isRead: false, actions: [], last: .result(0), status: .ioError, transferred: 0),
    ]

  static let buffers = ["one piece", "five pieces", "misaligned"]

  @Test(arguments: cases, [false, true]) func oneAnswerWithTheRightBytes(_ test: Case, completesLater: Bool) throws {
    for buffer in Self.buffers {
      let script = try Script(test.actions, then: test.last, completesLater: completesLater)
      let rig = try Rig(RigOptions(size: 1 << 20, script: script))
      let old = pattern(8192, seed: 5)
      let handle = try #require(FileHandle(forWritingAtPath: rig.path))
      try handle.seek(toOffset: 64 << 9)
      try handle.write(contentsOf: old)
      let new = pattern(8192, seed: 9)
      let request: BlockRequest = test.isRead ? .read(sector: 64, bytes: 8192) : .write(sector: 64, new)
      let framing: Framing? =
        switch buffer {
        case "five pieces": .pieces(5, request)
        case "misaligned": .classic(request, alignment: 1)
        default: nil
        }
      let note = "\(test.testDescription), \(buffer)"
      let outcome = try rig.expect(request, test.status, framing: framing, note)
      #expect(rig.client.queues[0].outstanding == 0, "\(note)")
      #expect(rig.device.counters.requests == 1, "\(note)")
      #expect(rig.device.counters.failures == (test.status == .ok ? 0 : 1), "\(note)")
      let count = test.transferred
      if test.isRead {
        #expect(firstDifference(Array(outcome.answer[..<count]), Array(old[..<count])) == nil, "\(note)")
        if test.status != .ok { #expect(outcome.length <= UInt32(count), "\(note)") }
      } else {
        #expect(outcome.length == 1, "\(note)")
        let disk = try rig.contents(at: 64 << 9, count: 8192)
        #expect(firstDifference(Array(disk[..<count]), Array(new[..<count])) == nil, "\(note)")
        #expect(firstDifference(Array(disk[count...]), Array(old[count...])) == nil, "\(note)")
      }
    }
  }

  /// Direct I/O with a buffer that goes through a copy: the short counts are counts of the copy.
  @Test(
    .enabled(if: Host.refusesOddBuffers, "direct I/O takes any buffer in the temporary folder"), arguments: [false, true],
    [false, true])
  func shortThroughACopy(isRead: Bool, completesLater: Bool) throws {
    let data = pattern(640 << 10)
    let script = try Script(
      [.short(4096), .result(-EINTR), .short(512 * 9), .result(-EAGAIN)], completesLater: completesLater)
    let rig = try Rig(RigOptions(size: 1 << 20, direct: .auto, script: script))
    if isRead {
      let handle = try #require(FileHandle(forWritingAtPath: rig.path))
      try handle.write(contentsOf: data)
      try handle.synchronize()
      let request = BlockRequest.read(sector: 0, bytes: data.count)
      let framing = Framing(readableCuts: [], writableCuts: [1001, data.count])
      #expect(try firstDifference(rig.expect(request, framing: framing).answer, data) == nil)
    } else {
      let request = BlockRequest.write(sector: 0, data)
      try rig.expect(request, framing: Framing(readableCuts: [15, 16, 16 + 1001], writableCuts: []))
      #expect(try firstDifference(rig.contents(at: 0, count: data.count), data) == nil)
    }
    #expect(rig.device.counters.bounces == 1)
  }

  struct Refusal: CustomTestStringConvertible, Sendable {
    var name: String
    var request: BlockRequest
    var actions: [Script.Action]
    var status: BlockStatusCode
    /// Operations that reach the engine.
    var kinds: [IOKind]
    var testDescription: String { name }
  }
  typealias IOKind = String

  static let range = [BlockRange(sector: 8, sectors: 8)]
  static let unmapped = [BlockRange(sector: 8, sectors: 8, flags: 1)]
  static let refused = Script.Action.result(-EOPNOTSUPP)
  static let refusals: [Refusal] = [
    Refusal(name: "flush", request: .flush, actions: [.result(-EIO)], status: .ioError, kinds: ["flush"]),
    Refusal(
      name: "flush, interrupted", request: .flush, actions: [.result(-EINTR)], status: .ok, kinds: ["flush", "flush"]),
    Refusal(name: "discard", request: .discard(range), actions: [], status: .ok, kinds: ["punchHole"]),
    Refusal(
      name: "discard, not possible after all", request: .discard(range), actions: [refused], status: .ok,
      kinds: ["punchHole"]),
    Refusal(
      name: "discard, broken", request: .discard(range), actions: [.result(-EIO)], status: .ioError,
      kinds: ["punchHole"]),
    Refusal(name: "zero", request: .writeZeroes(range), actions: [], status: .ok, kinds: ["zeroRange"]),
    Refusal(
      name: "zero, may unmap", request: .writeZeroes(unmapped), actions: [], status: .ok, kinds: ["punchHole"]),
    Refusal(
      name: "zero, no ZERO_RANGE", request: .writeZeroes(range), actions: [refused], status: .ok,
      kinds: ["zeroRange", "punchHole", "allocate"]),
    Refusal(
      name: "zero, no space to keep", request: .writeZeroes(range), actions: [refused, .whole, .result(-ENOSPC)],
      status: .ok, kinds: ["zeroRange", "punchHole", "allocate"]),
    Refusal(
      name: "zero, nothing but writing", request: .writeZeroes(range), actions: [refused, refused], status: .ok,
      kinds: ["zeroRange", "punchHole", "write"]),
    Refusal(
      name: "zero, may unmap, nothing but writing", request: .writeZeroes(unmapped), actions: [refused, refused],
      status: .ok, kinds: ["punchHole", "zeroRange", "write"]),
    Refusal(
      name: "zero, written in parts", request: .writeZeroes(range),
      actions: [refused, refused, .short(1024), .short(700), .result(-EINTR)], status: .ok,
      kinds: ["zeroRange", "punchHole", "write", "write", "write", "write"]),
    Refusal(
      name: "zero, broken", request: .writeZeroes(range), actions: [.result(-EIO)], status: .ioError,
      kinds: ["zeroRange"]),
    Refusal(
      name: "zero, full", request: .writeZeroes(range), actions: [refused, refused, .result(-ENOSPC)],
      status: .ioError, kinds: ["zeroRange", "punchHole", "write"]),
    Refusal(
      name: "zero, the second of two broken",
      request: .writeZeroes(range + [BlockRange(sector: 32, sectors: 8)]), actions: [.whole, .result(-EIO)],
      status: .ioError, kinds: ["zeroRange", "zeroRange"]),
  ]

  @Test(arguments: refusals, [false, true]) func rangesGoTheNextBestWay(_ test: Refusal, completesLater: Bool) throws {
    let script = try Script(test.actions, completesLater: completesLater)
    let rig = try Rig(RigOptions(size: 1 << 20, script: script))
    let old = pattern(64 << 9)
    let handle = try #require(FileHandle(forWritingAtPath: rig.path))
    try handle.write(contentsOf: old)
    try rig.expect(test.request, test.status)
    #expect(script.records.map { "\($0.kind)" } == test.kinds)
    guard test.status == .ok, test.request.type == .writeZeroes else { return }
    let disk = try rig.contents(at: 0, count: 64 << 9)
    #expect(firstDifference(Array(disk[..<4096]), Array(old[..<4096])) == nil)
    #expect(firstDifference(Array(disk[4096..<8192]), zeroes(4096)) == nil)
    #expect(firstDifference(Array(disk[8192...]), Array(old[8192...])) == nil)
  }

  /// An operation that the medium turned out not to support is not tried again.
  @Test func remembersWhatTheMediumCannotDo() throws {
    let script = try Script([Self.refused, Self.refused])
    let rig = try Rig(RigOptions(size: 1 << 20, script: script))
    for _ in 0..<2 { try rig.expect(.writeZeroes(Self.range)) }
    #expect(script.records.map { "\($0.kind)" } == ["zeroRange", "punchHole", "write", "write"])
  }

  /// If the medium refuses one range as invalid, that says nothing about the next one.
  @Test func anInvalidRangeIsNotRemembered() throws {
    let script = try Script([.result(-EINVAL), .result(-EINVAL)])
    let rig = try Rig(RigOptions(size: 1 << 20, script: script))
    for _ in 0..<2 { try rig.expect(.writeZeroes(Self.range)) }
    #expect(script.records.map { "\($0.kind)" } == ["zeroRange", "punchHole", "write", "zeroRange"])
  }

  /// More than one buffer of zeroes.
  @Test func writesZeroesInChunks() throws {
    let script = try Script([Self.refused, Self.refused])
    let rig = try Rig(RigOptions(size: 4 << 20, script: script))
    let handle = try #require(FileHandle(forWritingAtPath: rig.path))
    try handle.write(contentsOf: Data(repeating: 7, count: 4 << 20))
    try rig.expect(.writeZeroes([BlockRange(sector: 1, sectors: 5000)]))
    #expect(try firstDifference(rig.contents(at: 0, count: 512), [UInt8](repeating: 7, count: 512)) == nil)
    #expect(try firstDifference(rig.contents(at: 512, count: 5000 * 512), zeroes(5000 * 512)) == nil)
    #expect(try firstDifference(rig.contents(at: 5001 * 512, count: 512), [UInt8](repeating: 7, count: 512)) == nil)
    #expect(script.records.map(\.length).max() == 5000 * 512)
    let written: [UInt64] = script.records.filter { $0.kind == .write }.map(\.length)
    #expect(written == [1_048_576, 1_048_576, 462_848])
  }
}
