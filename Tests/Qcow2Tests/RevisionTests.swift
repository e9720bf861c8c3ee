/// Changes of whole images: what is stored, and what happens to hostile images.
import Foundation
import SystemPackage
import Testing

@testable import Qcow2

@Suite struct RevisionTests {
  enum Change: String, CaseIterable, Sendable {
    case create, delete, apply, empty, grow

    func make(_ revision: inout ImageRevision<MemorySource>, _ header: Qcow2Header) throws(Qcow2Fault) {
      switch self {
      case .create: try revision.createSnapshot("new", date: (1, 2))
      case .delete: try revision.deleteSnapshot("snap")
      case .apply: try revision.applySnapshot("snap")
      case .empty: try revision.empty()
      case .grow: try revision.grow(to: header.size + header.geometry.level2Span, over: 0)
      }
    }
  }

  /// - Returns: the image afterwards.
  /// - Throws: why it is refused.
  private func changed(_ bytes: [UInt8], _ body: (inout ImageRevision<MemorySource>) throws -> Void) throws -> [UInt8] {
    let source = MemorySource(bytes)
    var revision = try ImageRevision(try Qcow2Header(source), source)
    try body(&revision)
    var image = bytes
    func apply(_ store: ImageStore) {
      let end = Int(store.offset) + store.bytes.count
      image += [UInt8](repeating: 0, count: max(0, end - image.count))
      image.replaceSubrange(Int(store.offset)..<end, with: store.bytes)
    }
    var places: [Range<UInt64>] = []
    let last = try revision.store { store throws(Qcow2Fault) in
      let range = store.offset..<store.offset + UInt64(store.bytes.count)
      #expect(range.lowerBound >= UInt64(bytes.count) && !places.contains { $0.overlaps(range) }, "\(store.part)")
      places.append(range)
      apply(store)
    }
    #expect(last.offset + UInt64(last.bytes.count) <= 512)
    #expect(try report(image) == report(bytes), "what was stored is to be invisible")
    apply(last)
    // Nothing uses the punched ranges.
    for range in try revision.freed() where range.lowerBound < UInt64(image.count) {
      let end = min(range.upperBound, UInt64(image.count))
      image.replaceSubrange(
        Int(range.lowerBound)..<Int(end), with: repeatElement(0, count: Int(end - range.lowerBound)))
    }
    return image
  }

  private func report(_ bytes: [UInt8]) throws -> Qcow2Report {
    try Qcow2Check.run(MemorySource(bytes), try Qcow2Header(MemorySource(bytes)))
  }

  @Test(arguments: Change.allCases, [false, true]) func aChangedImageIsClean(change: Change, isExtended: Bool) throws {
    let sample = try Sample(extended: isExtended)
    let header = try Qcow2Header(sample.source)
    let image = try changed(sample.bytes) { try change.make(&$0, header) }
    let found = try report(image)
    #expect(found.isClean, "\(found.findings)")
    let after = try Qcow2Header(MemorySource(image))
    #expect(after.snapshotCount == [.create: 2, .delete: 0][change] ?? 1)
    #expect(found.allocatedClusters == (change == .apply || change == .empty ? 0 : 1))
    #expect(after.size == header.size + (change == .grow ? header.geometry.level2Span : 0))
  }

  /// Small clusters: refcount blocks, their table and the snapshot table outgrow their space again and again.
  @Test func manySnapshotsOfManyTables() throws {
    var sample = try Sample(bits: 9, size: 16 << 10)
    for number in 0..<60 {
      sample.bytes = try changed(sample.bytes) { try $0.createSnapshot("number \(number)", date: (UInt32(number), 0)) }
      let found = try report(sample.bytes)
      try #require(found.isClean, "\(number): \(found.findings)")
    }
    let header = try Qcow2Header(sample.source)
    #expect(header.snapshotCount == 61 && header.refcountTableClusters > 1 || sample.bytes.count < 512 * 64 * 256)
    #expect(try header.snapshots(sample.source).last?.id == "61")
    for number in (0..<60).reversed() {
      sample.bytes = try changed(sample.bytes) { try $0.deleteSnapshot("number \(number)") }
    }
    #expect(try report(sample.bytes).isClean)
  }

  /// Leaked clusters stay leaked.
  @Test func whatIsLeakedIsNotTouched() throws {
    var sample = try Sample()
    sample.bytes.put16(3, at: 2 * sample.cluster + 200)
    // Beyond the end of the file, as left by a killed server: new clusters are allocated after it.
    sample.bytes.put16(1, at: 2 * sample.cluster + 2 * 9)
    let before = try report(sample.bytes)
    #expect(before.leaks == 2)
    let image = try changed(sample.bytes) { try $0.createSnapshot("new", date: (1, 2)) }
    let after = try report(image)
    #expect(after.corruptions == 0 && after.findings == before.findings, "\(after.findings)")
  }

  /// The last cluster that a refcount table with clusters of 2 MiB can cover.
  @Test func aCountFarBeyondAnyFileLeavesNoRoom() throws {
    var sample = try Sample(bits: 21)
    let size = sample.cluster
    sample.bytes += [UInt8](repeating: 0, count: size)
    sample.bytes.put16(1, at: 2 * size + 8 * 2)
    sample.bytes.put64(UInt64(8 * size), at: 2 * size - 8)
    sample.bytes.put16(1, at: 9 * size - 2)
    #expect(try report(sample.bytes).corruptions == 0)
    #expect(throws: Qcow2Fault.isFull) { try changed(sample.bytes) { try $0.createSnapshot("new", date: (1, 2)) } }
  }

  /// A change does not make a faulty image worse: it is refused, or the image keeps its fault.
  @Test(arguments: HostileTests.inHeader + HostileTests.inTables) func aFaultIsRefusedOrKept(fault: HostileTests.Fault) throws {
    var sample = try Sample(extended: fault.isExtended, backing: fault.backing)
    fault.edit(&sample.bytes)
    for change in Change.allCases {
      guard let header = try? Qcow2Header(sample.source), let before = try? report(sample.bytes),
        let image = try? changed(sample.bytes, { try change.make(&$0, header) })
      else { continue }
      #expect(before.corruptions == 0 && before.failures == 0, "\(change): \(before.findings)")
      let after = try report(image)
      #expect(after.corruptions == 0 && after.leaks <= before.leaks, "\(change): \(after.findings)")
    }
    // Names: the header stays valid.
    guard let header = try? Qcow2Header(sample.source),
      let plan = try? BackingChange(header, sample.source).plan(Array("other".utf8), format: "raw")
    else { return }
    var bytes = sample.bytes
    for store in plan.groups.joined() {
      bytes.replaceSubrange(Int(store.offset)..<Int(store.offset) + store.bytes.count, with: store.bytes)
      _ = try Qcow2Header(MemorySource(bytes))
    }
    #expect(try Qcow2Header(MemorySource(bytes)).backingText == "other")
  }

  /// The feature name table survives a change of the backing file if there is room.
  @Test(arguments: [10, 12, 16], [nil, "base", String(repeating: "b", count: 300)]) func aNameIsChanged(
    bits: UInt32, first: String?
  ) throws {
    let sample = try Sample(bits: bits, size: 64 << 10, backing: first)
    for name in ["x", String(repeating: "y", count: 300), nil] as [String?] {
      let header = try Qcow2Header(sample.source)
      let change = try BackingChange(header, sample.source)
      guard let plan = try? change.plan(name.map { Array($0.utf8) }, format: name == nil ? nil : "qcow2") else {
        // Two long names do not fit into a cluster of 1 KiB.
        #expect(bits == 10 && (name?.utf8.count ?? 0) > 100)
        continue
      }
      var bytes = sample.bytes
      for store in plan.groups.joined() {
        bytes.replaceSubrange(Int(store.offset)..<Int(store.offset) + store.bytes.count, with: store.bytes)
        #expect(plan.groups.allSatisfy { $0.count == 1 } && (store.offset >= 512 || store.bytes.count == 512))
      }
      let after = try Qcow2Header(MemorySource(bytes))
      #expect(after.backingText == name && after.backingFormat == (name == nil ? nil : "qcow2"))
      #expect(try report(bytes).isClean)
      // An unknown feature is reported by the name that the image gives it.
      bytes.put64(1 << 1 | bytes.word64(72), at: 72)
      if bits > 10 { #expect(Data(bytes[..<sample.cluster]).range(of: Data("corrupt bit".utf8)) != nil) }
    }
  }

  @Test func whatHasNoRoomIsRefused() throws {
    let sample = try Sample(bits: 9, size: 16 << 10)
    let change = try BackingChange(try Qcow2Header(sample.source), sample.source)
    #expect(throws: Qcow2Fault.noRoomForName) {
      try change.plan([UInt8](repeating: 97, count: 500), format: "raw")
    }
    for name in [[], [UInt8](repeating: 97, count: 1024), [97, 0, 97]] {
      #expect(throws: Qcow2Fault.backingName) { try change.plan(name, format: "raw") }
    }
  }

  /// A file that changes while it is read: its content is replaced after a number of reads.
  private final class Turning: ImageSource {
    let first: [UInt8]
    let then: [UInt8]
    var left: Int
    var byteCount: UInt64 { UInt64(first.count) }

    init(_ first: [UInt8], _ then: [UInt8], after reads: Int) { (self.first, self.then, left) = (first, then, reads) }

    func read(at offset: UInt64, count: Int) throws(Errno) -> [UInt8] {
      left -= 1
      return try MemorySource(left < 0 ? then : first).read(at: offset, count: count)
    }
  }

  enum Turn: String, CaseIterable, Sendable {
    case longName, longExtra, farBacking, longExtension

    func edit(_ sample: inout Sample) {
      let table = 6 * sample.cluster
      switch self {
      case .longName: sample.bytes.put16(.max, at: table + 14)
      case .longExtra: sample.bytes.put32(.max, at: table + 36)
      case .farBacking: sample.bytes.put64(.max, at: 8)
      case .longExtension: sample.bytes.put32(0x7fff_fff0, at: 108)
      }
    }
  }

  @Test(arguments: Turn.allCases, [9, 16]) func aFileThatChangesWhileItIsReadIsNoTrap(turn: Turn, bits: UInt32) throws {
    let sample = try Sample(bits: bits, size: 16 << 10, backing: "base")
    let header = try Qcow2Header(sample.source)
    var other = sample
    turn.edit(&other)
    // The table is at the end of the file, so a longer one would end beyond it.
    for reads in 0..<40 {
      let source = Turning(sample.bytes, other.bytes, after: reads)
      if var revision = try? ImageRevision(header, source), (try? revision.deleteSnapshot("snap")) != nil {
        _ = try? revision.store { _ in }
      }
      let again = Turning(sample.bytes, other.bytes, after: reads)
      if let change = try? BackingChange(header, again) { _ = try? change.plan(Array("other".utf8), format: "raw") }
    }
  }

  /// Clusters far apart may each need their own refcount block in memory.
  @Test func theMemoryForRefcountsIsBounded() throws {
    let sample = try Sample(bits: 9, size: 16 << 10)
    let header = try Qcow2Header(sample.source)
    var book = try RefcountBook(sample.source, header, mostMemory: 2 * 512)
    try book.add(1, at: 0)
    try book.add(1, at: 256 * 512)
    #expect(throws: Qcow2Fault.tooManyTables) { try book.add(1, at: 512 * 512) }
    #expect(throws: Qcow2Fault.tooManyTables) { try book.count(512) }
    try book.add(1, at: 256 * 512)
  }

  /// A snapshot without a disk size has the disk's own, which therefore cannot change.
  @Test func aSnapshotWithoutSizeKeepsTheSizeOfTheDisk() throws {
    var sample = try Sample()
    let table = 6 * sample.cluster
    // The second entry has only the fixed part.
    let second = table + 64
    sample.bytes.put32(2, at: 60)
    sample.bytes.put16(1, at: second + 12)
    sample.bytes.put16(3, at: second + 14)
    sample.bytes.replaceSubrange(second + 40..<second + 44, with: Array("2old".utf8))
    #expect(try report(sample.bytes).isClean)
    _ = try changed(sample.bytes) { try $0.applySnapshot("snap") }
    sample.bytes.put64(512 << 10, at: table + 48)
    #expect(throws: Qcow2Fault.snapshotsWithoutSize) { try changed(sample.bytes) { try $0.applySnapshot("snap") } }
  }

  /// Two snapshots with the same name: programs differ in which of them they use.
  @Test func aNameThatMeansTwoSnapshotsIsRefused() throws {
    var bytes = try changed(try Sample().bytes) { try $0.createSnapshot("1", date: (1, 2)) }
    for body in [
      { try $0.deleteSnapshot("1") }, { try $0.applySnapshot("1") },
    ] as [(inout ImageRevision<MemorySource>) throws -> Void] {
      #expect(throws: Qcow2Fault.ambiguousSnapshot("1")) { try changed(bytes, body) }
    }
    let header = try Qcow2Header(MemorySource(bytes))
    #expect(throws: Qcow2Fault.ambiguousSnapshot("1")) { try header.snapshot("1", MemorySource(bytes)) }
    #expect(try header.snapshot("2", MemorySource(bytes)).name == "1" && header.snapshot("snap", MemorySource(bytes)).id == "1")
    // The same text as other bytes is another name.
    bytes = try changed(bytes) { try $0.createSnapshot("\u{e9}", date: (1, 2)) }
    bytes = try changed(bytes) { try $0.createSnapshot("e\u{301}", date: (1, 2)) }
    bytes = try changed(bytes) { try $0.deleteSnapshot("e\u{301}") }
    let names = try Qcow2Header(MemorySource(bytes)).snapshots(MemorySource(bytes)).map { Array($0.name.utf8) }
    #expect(names == ["snap", "1", "\u{e9}"].map { Array($0.utf8) })
  }

  @Test(arguments: [9, 16]) func onlyWhatIsKnownStaysTrue(bits: UInt32) throws {
    var sample = try Sample(bits: bits, size: 16 << 10, backing: "base")
    sample.bytes.put64(1 << 63 | 3, at: 88)
    let plan = try BackingChange(try Qcow2Header(sample.source), sample.source).plan(nil, format: nil)
    for store in plan.groups.joined() where store.offset == 0 { #expect(store.bytes.word64(88) == 1) }
    sample.bytes.put64(sample.bytes.word64(72) | 4, at: 72)
    let header = try Qcow2Header(sample.source)
    #expect(throws: Qcow2Fault.externalData) { try BackingChange(header, sample.source) }
  }
}
