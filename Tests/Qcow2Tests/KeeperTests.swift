/// Which stores a change of an image needs, and in which order.
import Foundation
import Testing

@testable import Qcow2

@Suite struct KeeperTests {
  /// A file to which stores are applied.
  private struct File {
    var bytes: [UInt8]
    var source: MemorySource { MemorySource(bytes) }

    init(size: UInt64, bits: UInt32, isExtended: Bool = false) throws {
      let layout = try Qcow2Layout(size: size, geometry: Qcow2Geometry(clusterBits: bits, isExtended: isExtended))
      bytes = [UInt8](repeating: 0, count: Int(layout.fileSize))
      for piece in layout.pieces { store(ImageStore(.header, piece.offset, piece.bytes)) }
    }

    init(_ sample: Sample) { bytes = sample.bytes }

    mutating func store(_ store: ImageStore) {
      bytes.replaceSubrange(Int(store.offset)..<Int(store.offset) + store.bytes.count, with: store.bytes)
    }

    func report() throws -> Qcow2Report { try Qcow2Check.run(source, try Qcow2Header(source)) }

    /// - Parameter check: after each group of stores the image has at most leaks.
    mutating func apply(_ plan: StorePlan, _ keeper: ImageKeeper) throws {
      if let length = plan.length { bytes += [UInt8](repeating: 0, count: Int(length) - bytes.count) }
      for group in plan.groups {
        for one in group {
          #expect(keeper.mayStore(one), "\(one.part) at \(one.offset)")
          store(one)
        }
        let found = try report()
        #expect(found.corruptions == 0 && found.failures == 0, "\(found.findings.prefix(3))")
      }
    }
  }

  /// With small clusters, refcount blocks and tables are soon full.
  @Test(arguments: [(9, 700, 30), (9, 20_000, 2), (10, 3000, 8), (16, 16, 3)] as [(UInt32, UInt64, Int)])
  func countingGoesOnInAnOrderThatSurvives(bits: UInt32, wanted: UInt64, rounds: Int) throws {
    var file = try File(size: 1 << 20, bits: bits)
    let header = try Qcow2Header(file.source)
    var keeper = try ImageKeeper(header, file.source)
    let length = file.bytes.count
    var places: Set<UInt64> = []
    for _ in 0..<rounds {
      #expect(!keeper.hasFree)
      var (one, other) = (keeper, keeper)
      let plan = try one.grow(by: wanted)
      // A caller that could not apply the plan asks again, and gets the same one.
      let same = try other.grow(by: wanted)
      #expect(same == plan)
      keeper = one
      try file.apply(plan, keeper)
      var count: UInt64 = 0
      while let place = keeper.claim() {
        #expect(place >= UInt64(length) && places.insert(place).inserted && !keeper.metadata.contains(place >> UInt64(bits)))
        #expect(file.bytes[Int(place)..<Int(place) + 1 << Int(bits)].allSatisfy { $0 == 0 })
        count += 1
      }
      #expect(count >= wanted)
    }
    // Nothing refers to any of them.
    for place in places { keeper.abandon(place) }
    for store in keeper.settle(keeper.takeDropped()) { file.store(store) }
    let (stores, end) = keeper.finish()
    for store in stores { file.store(store) }
    if let end { file.bytes.removeLast(file.bytes.count - Int(end)) }
    let report = try file.report()
    #expect(report.isClean, "\(report.findings.prefix(3))")
    // Empty blocks stay, and the next keeper reuses them.
    var next = try ImageKeeper(try Qcow2Header(file.source), file.source)
    try file.apply(try next.grow(by: wanted), next)
  }

  @Test func whatIsNotUsedIsGivenBack() throws {
    var file = try File(size: 1 << 30, bits: 16)
    let before = file.bytes
    var keeper = try ImageKeeper(try Qcow2Header(file.source), file.source)
    try file.apply(try keeper.grow(by: 16), keeper)
    #expect(try file.report().leaks == 16)
    let (stores, end) = keeper.finish()
    for store in stores { file.store(store) }
    #expect(end == UInt64(before.count) && Array(file.bytes[..<before.count]) == before)
  }

  @Test func aTableIsKnownWhenItIsThere() throws {
    var file = try File(size: 1 << 30, bits: 16)
    var keeper = try ImageKeeper(try Qcow2Header(file.source), file.source)
    #expect(keeper.entryStore(0, 1, 0) == nil)
    try file.apply(try keeper.grow(by: 4), keeper)
    let first = keeper.claim()
    let place = try #require(first)
    #expect(!keeper.mayStore(.table(at: place, [1])))
    file.store(keeper.adopt(place, 0))
    #expect(keeper.mayStore(.table(at: place, [1])))
    keeper.setLevel1(0, place)
    let second = keeper.claim()
    let data = try #require(second)
    #expect(!keeper.mayStore(ImageStore(.level2, data, [1])))
    file.store(try #require(keeper.entryStore(3 << 16, data | 1 << 63, 0)))
    let (stores, end) = keeper.finish()
    for store in stores { file.store(store) }
    file.bytes.removeLast(file.bytes.count - Int(try #require(end)))
    let report = try file.report()
    #expect(report.isClean && report.allocatedClusters == 1, "\(report.findings)")
  }

  /// The refcount of a cluster that a snapshot shares is decremented, and that of an unused cluster becomes 0.
  @Test(arguments: [false, true]) func whatLostItsPointerIsCountedDown(isExtended: Bool) throws {
    let sample = try Sample(extended: isExtended)
    var file = File(sample)
    var keeper = try ImageKeeper(try Qcow2Header(file.source), file.source)
    let cluster = UInt64(sample.cluster)
    try file.apply(try keeper.grow(by: 2), keeper)
    let first = keeper.claim()
    let place = try #require(first)
    keeper.drop(5 * cluster, bytes: 1)
    file.store(try #require(keeper.entryStore(0, place | 1 << 63, isExtended ? 0xffff_ffff : 0)))
    #expect(try file.report().leaks == 2)
    let dropped = keeper.takeDropped()
    #expect(dropped == [5: 1] && !keeper.hasDropped)
    for (index, block) in keeper.blocksNeeded(for: dropped) {
      keeper.supply(try file.source.read(at: block, count: sample.cluster), block: index)
    }
    for store in keeper.settle(dropped) { file.store(store) }
    for store in keeper.finish().stores { file.store(store) }
    #expect(try file.report().isClean)
  }

  @Test func whatIsNoImageToWriteToIsRefused() throws {
    let sample = try Sample()
    func fault(_ change: (inout [UInt8]) -> Void) -> Qcow2Fault? {
      var bytes = sample.bytes
      change(&bytes)
      let source = MemorySource(bytes)
      do throws(Qcow2Fault) {
        _ = try ImageKeeper(try Qcow2Header(source), source)
        return nil
      } catch { return error }
    }
    let cluster = UInt64(sample.cluster)
    #expect(fault { _ in } == nil)
    #expect(fault { $0[79] = 1 } == .isDirty)
    #expect(fault { $0[79] = 2 } == .isCorrupt)
    #expect(fault { $0[79] = 4 } == .externalData)
    let table = sample.cluster
    #expect(fault { $0.put64(3 * cluster, at: table) } == .overlapsMetadata(.refcountBlock, offset: 3 * cluster))
    #expect(fault { $0.put64(cluster + 512, at: table) } == .misplaced(.refcountBlock, offset: cluster + 512))
    #expect(fault { $0.put64(99 * cluster, at: table) } == .misplaced(.refcountBlock, offset: 99 * cluster))
    #expect(fault { $0.put64(2 * cluster | 1 << 63, at: 3 * table) } == .overlapsMetadata(.level2, offset: 2 * cluster))
    #expect(fault { $0.put64(4 * cluster, at: 6 * table) } == .overlapsMetadata(.snapshotLevel1, offset: 4 * cluster))
    #expect(fault { $0.put64(2 * cluster, at: 7 * table) } == .overlapsMetadata(.level2, offset: 2 * cluster))
    #expect(fault { $0.put64(99 * cluster, at: 7 * table) } == .pastEnd(.level2, offset: 99 * cluster))
  }

  /// A snapshot's own tables count as tables; it may also share one with the disk.
  @Test(arguments: [4, 5] as [UInt64]) func tablesOfSnapshotsAreKnown(number: UInt64) throws {
    var sample = try Sample()
    sample.bytes.put64(number * UInt64(sample.cluster), at: 7 * sample.cluster)
    var keeper = try ImageKeeper(try Qcow2Header(sample.source), sample.source)
    #expect(keeper.metadata.contains(number))
    // An entry that uses it as data does not decrement its refcount.
    keeper.supply([UInt8](sample.bytes[2 * sample.cluster..<3 * sample.cluster]), block: 0)
    let stores = keeper.settle([number: 1])
    #expect(stores.isEmpty)
  }

  /// Refcounts beyond the end of the file are kept.
  @Test func countsPastTheEndStay() throws {
    var sample = try Sample()
    sample.bytes.put16(1, at: 2 * sample.cluster + 12 * 2)
    var keeper = try ImageKeeper(try Qcow2Header(sample.source), sample.source)
    let plan = try keeper.grow(by: 1)
    let place = keeper.claim()
    #expect(plan.length == UInt64(14 * sample.cluster) && place == UInt64(13 * sample.cluster))
  }

  @Test func unknownAutoclearBitsAreCleared() throws {
    var sample = try Sample()
    var keeper = try ImageKeeper(try Qcow2Header(sample.source), sample.source)
    let none = keeper.begin()
    #expect(none.isEmpty)
    sample.bytes[88] = 0x80
    keeper = try ImageKeeper(try Qcow2Header(sample.source), sample.source)
    let plan = keeper.begin()
    #expect(plan.groups == [[ImageStore(.header, 88, [UInt8](repeating: 0, count: 8))]])
    let (again, mark, twice) = (keeper.begin(), keeper.markCorrupt(), keeper.markCorrupt())
    #expect(again.isEmpty && mark.groups.first?.first?.bytes.last == 2 && twice.isEmpty)
  }

  // MARK: Clusters

  private static let own: UInt64 = 1 << 63
  private static let place: UInt64 = 0x50000

  /// An entry, the range written of 64 KiB, the range stored and where, and the entry afterwards.
  @Test(
    arguments: [
      (false, 0, 0, 512..<1024, 0..<65536, nil, 0),
      (false, 1, 0, 512..<1024, 0..<65536, nil, 0),
      (false, own | place | 1, 0, 512..<1024, 0..<65536, place, 0),
      (false, place, 0, 512..<1024, 0..<65536, nil, 0),
      (true, 0, 0, 512..<1024, 0..<2048, nil, 1),
      (true, 0, 0, 2048..<65536, 2048..<65536, nil, 0xffff_fffe),
      (true, 0, 0x2_0000_0000, 3000..<6000, 2048..<6144, nil, 6),
      (true, own | place, 0x8_0000_0002, 3000..<9000, 3000..<10240, place, 0x1e),
      (true, own | place, 0x1_0000_0000, 0..<65536, 0..<65536, place, 0xffff_ffff),
      (true, place, 1, 4096..<4608, 0..<65536, nil, 0xffff_ffff),
      (true, 1 << 62 | 0x1234, 0, 4096..<4608, 0..<65536, nil, 0xffff_ffff),
    ] as [(Bool, UInt64, UInt64, Range<UInt64>, Range<UInt64>, UInt64?, UInt64)])
  func whatIsStored(
    isExtended: Bool, entry: UInt64, bitmap: UInt64, asked: Range<UInt64>, stored: Range<UInt64>, place: UInt64?, after: UInt64
  ) throws {
    let sample = try Sample(extended: isExtended)
    let header = try Qcow2Header(sample.source)
    let old = try ClusterEntry(entry, bitmap, Qcow2Entries(header))
    let change = ClusterChange(old, writing: asked, header.geometry)
    #expect(change.stored == stored && change.ownPlace == place)
    let new = change.entry(0x90000)
    #expect(new.entry == 0x90000 | Self.own && new.bitmap == after)
    _ = try ClusterEntry(new.entry, new.bitmap, Qcow2Entries(header))
  }

  @Test(
    arguments: [
      (false, 0, 0, 0..<65536, 1, 0, false), (false, 0, 0, 0..<512, nil, 0, false), (false, place, 0, 0..<65536, 1, 0, true),
      (true, 0, 0, 0..<65536, 0, 0xffff_ffff_0000_0000, false), (true, 0, 0, 2048..<4096, 0, 0x2_0000_0000, false),
      (true, own | place, 1, 2048..<4096, own | place, 0x2_0000_0001, false), (true, own | place, 1, 0..<4096, nil, 0, false),
      (true, 0, 0, 2048..<4000, nil, 0, false), (true, place, 1, 2048..<4096, nil, 0, false),
      (true, place, 1, 0..<65536, 0, 0xffff_ffff_0000_0000, true),
      (true, 1 << 62, 0, 0..<65536, 0, 0xffff_ffff_0000_0000, true),
    ] as [(Bool, UInt64, UInt64, Range<UInt64>, UInt64?, UInt64, Bool)])
  func whatIsZeroedBySayingSo(
    isExtended: Bool, entry: UInt64, bitmap: UInt64, asked: Range<UInt64>, after: UInt64?, bits: UInt64, drops: Bool
  ) throws {
    let sample = try Sample(extended: isExtended)
    let header = try Qcow2Header(sample.source)
    let old = try ClusterEntry(entry, bitmap, Qcow2Entries(header))
    let new = old.zeroed(asked, header.geometry, hasZeroFlag: true)
    #expect(new?.entry == after)
    if let new { #expect(new.bitmap == bits && new.drops == drops) }
    if !isExtended { #expect(old.zeroed(asked, header.geometry, hasZeroFlag: false) == nil) }
  }
}
