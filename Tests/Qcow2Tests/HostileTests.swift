/// Images with one fault each: every fault is reported in a sentence that names it, and none does any harm.
import Testing

@testable import Qcow2

@Suite struct HostileTests {
  struct Fault: Sendable, CustomTestStringConvertible {
    var name: String
    /// Part of the sentence.
    var words: String
    var isExtended = false
    var backing: String?
    var edit: @Sendable (inout [UInt8]) -> Void
    var testDescription: String { name }

    init(
      _ name: String, _ words: String, extended: Bool = false, backing: String? = nil,
      _ edit: @escaping @Sendable (inout [UInt8]) -> Void
    ) {
      (self.name, self.words, self.edit) = (name, words, edit)
      (isExtended, self.backing) = (extended, backing)
    }
  }

  private static let cluster = 65536
  private static let table = cluster
  private static let block = 2 * cluster
  private static let level1 = 3 * cluster
  private static let level2 = 4 * cluster
  private static let snapshots = 6 * cluster

  /// Puts an extension in place of the feature name table.
  private static func put(_ bytes: inout [UInt8], _ type: UInt32, _ length: UInt32, _ data: [UInt8] = []) {
    for index in 104..<1024 { bytes[index] = 0 }
    bytes.put32(type, at: 104)
    bytes.put32(length, at: 108)
    bytes.replaceSubrange(112..<112 + data.count, with: data)
  }

  /// Puts a directory with one bitmap in place of the snapshot's L1 table.
  private static func put(_ bytes: inout [UInt8], bitmapsAt place: Int) {
    var data = [UInt8](repeating: 0, count: 24)
    data.put32(1, at: 0)
    data.put64(24, at: 8)
    data.put64(UInt64(place), at: 16)
    put(&bytes, 0x2385_2875, 24, data)
    bytes.put64(1, at: 88)
    bytes.put32(0, at: 60)
    bytes.put32(1, at: place + 8)
  }

  static let inHeader: [Fault] = [
    Fault("empty", "does not start") { $0 = [] },
    Fault("three bytes", "does not start") { $0 = Array($0.prefix(3)) },
    Fault("another format", "does not start") { $0[3] = 0 },
    Fault("cut within the header of version 2", "shorter than its header") { $0 = Array($0.prefix(71)) },
    Fault("cut within the header of version 3", "shorter than its header") { $0 = Array($0.prefix(103)) },
    Fault("cut within a longer header", "shorter than its header") {
      $0.put32(4096, at: 100)
      $0 = Array($0.prefix(4095))
    },
    Fault("version 0", "version is 0") { $0.put32(0, at: 4) },
    Fault("version 1", "version is 1") { $0.put32(1, at: 4) },
    Fault("version 4", "version is 4") { $0.put32(4, at: 4) },
    Fault("clusters of 256 bytes", "2^8") { $0.put32(8, at: 20) },
    Fault("clusters of 4 MiB", "2^22") { $0.put32(22, at: 20) },
    Fault("clusters of 2^4294967295", "2^4294967295") { $0.put32(.max, at: 20) },
    Fault("header of 103 bytes", "103 bytes long") { $0.put32(103, at: 100) },
    Fault("header of 96 bytes", "96 bytes long") { $0.put32(96, at: 100) },
    Fault("header of 108 bytes", "108 bytes long") { $0.put32(108, at: 100) },
    Fault("header longer than a cluster", "bytes long") { $0.put32(65544, at: 100) },
    Fault("header of 4 GiB", "bytes long") { $0.put32(0xffff_fff8, at: 100) },
    Fault("an unknown feature", "0x20") {
      put(&$0, 0, 0)
      $0.put64(0x20, at: 72)
    },
    Fault("the last feature", "0x8000000000000000") {
      put(&$0, 0, 0)
      $0.put64(1 << 63, at: 72)
    },
    Fault("an unknown feature with a name", "time travel") {
      put(&$0, 0x6803_f857, 48, [0, 5] + Array("time travel".utf8))
      $0.put64(0x20, at: 72)
    },
    Fault("AES", "encrypted") { $0.put32(1, at: 32) },
    Fault("LUKS", "encrypted") { $0.put32(2, at: 32) },
    Fault("no such encryption", "encrypted") { $0.put32(77, at: 32) },
    Fault("no such compression", "compression type") {
      put(&$0, 0, 0)
      $0.put32(112, at: 100)
      $0[104] = 2
      $0.put64(8, at: 72)
    },
    Fault("zstd without its bit", "contradicts itself about the compression type") {
      put(&$0, 0, 0)
      $0.put32(112, at: 100)
      $0[104] = 1
    },
    Fault("the bit of compression with zlib", "contradicts itself about the compression type") { $0.put64(8, at: 72) },
    Fault("subclusters in clusters of 8 KiB", "clusters of at least 16 KiB", extended: true) { $0.put32(13, at: 20) },
    Fault("refcounts of 128 bits", "2^7 bits") { $0.put32(7, at: 96) },
    Fault("refcounts of 2^4294967295 bits", "2^4294967295 bits") { $0.put32(.max, at: 96) },
    Fault("backing name past the cluster", "backing file") {
      $0.put64(65536, at: 8)
      $0.put32(10, at: 16)
    },
    Fault("backing name across the cluster's end", "backing file") {
      $0.put64(65530, at: 8)
      $0.put32(10, at: 16)
    },
    Fault("backing name at 2^64 − 1", "backing file") {
      $0.put64(.max, at: 8)
      $0.put32(10, at: 16)
    },
    Fault("backing name in the header", "backing file") {
      $0.put64(8, at: 8)
      $0.put32(10, at: 16)
    },
    Fault("backing name of 1024 bytes", "backing file") {
      $0.put64(1024, at: 8)
      $0.put32(1024, at: 16)
    },
    Fault("backing name of 4 GiB", "backing file") {
      $0.put64(1024, at: 8)
      $0.put32(.max, at: 16)
    },
    Fault("backing name without a length", "backing file", backing: "base") { $0.put32(0, at: 16) },
    Fault("backing name with a NUL", "backing file", backing: "base") { bytes in
      bytes[Int(bytes.word64(8)) + 1] = 0
    },
    Fault("extension past the cluster", "does not fit into the header") { put(&$0, 0x1234, 65536 - 111) },
    Fault("extension of 4 GiB", "does not fit into the header") { put(&$0, 0x1234, .max) },
    Fault("extension into the backing name", "does not fit into the header", backing: "base") { bytes in
      let name = Int(bytes.word64(8))
      bytes.put32(UInt32(name - 111), at: 108)
    },
    Fault("backing format of 16 bytes", "invalid contents") {
      put(&$0, 0xe279_2aca, 16, [UInt8](repeating: 65, count: 16))
    },
    Fault("backing format twice", "more than once") {
      put(&$0, 0xe279_2aca, 3, Array("raw".utf8))
      $0.put32(0xe279_2aca, at: 120)
      $0.put32(3, at: 124)
    },
    Fault("data file without a name", "invalid contents") { put(&$0, 0x4441_5441, 0) },
    Fault("data file with a NUL", "invalid contents") { put(&$0, 0x4441_5441, 4, [97, 0, 97, 97]) },
    Fault("bitmaps of another length", "invalid contents") { put(&$0, 0x2385_2875, 16) },
    Fault("bitmaps with a reserved word", "invalid contents") { put(&$0, 0x2385_2875, 24, [0, 0, 0, 1, 0, 0, 0, 1]) },
    Fault("a directory of bitmaps past the end", "directory of bitmaps") {
      var data = [UInt8](repeating: 0, count: 24)
      data.put32(1, at: 0)
      data.put64(32, at: 8)
      data.put64(1 << 40, at: 16)
      put(&$0, 0x2385_2875, 24, data)
      $0.put64(1, at: 88)
    },
    Fault("a disk of 2^64 − 1 bytes", "larger than is supported") { $0.put64(.max, at: 24) },
    Fault("a disk of 2^62 bytes", "larger than is supported") { $0.put64(1 << 62, at: 24) },
    Fault("a disk larger than its L1 table", "needs 2") { $0.put64(1 << 30, at: 24) },
    Fault("no L1 table", "has 0 entries") { $0.put32(0, at: 36) },
    Fault("an L1 table of 2^32 − 1 entries", "4294967295 entries") { $0.put32(.max, at: 36) },
    Fault("an L1 table past the end", "L1 table at 1099511627776") { $0.put64(1 << 40, at: 40) },
    Fault("an L1 table at 2^63", "L1 table at 9223372036854775808") { $0.put64(1 << 63, at: 40) },
    Fault("an L1 table at 2^64 − 65536", "L1 table at") { $0.put64(0 &- 65536, at: 40) },
    Fault("an L1 table across the end", "beyond the end of the file") {
      $0.put64(UInt64(7 * cluster), at: 40)
      $0.put32(8193, at: 36)
    },
    Fault("an L1 table within a cluster", "not the start of a cluster") { $0.put64(UInt64(level1 + 512), at: 40) },
    Fault("an L1 table in the header", "overlap") { $0.put64(0, at: 40) },
    Fault("an L1 table in the refcount table", "overlap") { $0.put64(UInt64(table), at: 40) },
    Fault("no refcount table", "no refcount table") { $0.put32(0, at: 56) },
    Fault("a refcount table of 4 GiB", "maximum is 8 MiB") { $0.put32(65536, at: 56) },
    Fault("a refcount table past the end", "refcount table at") { $0.put64(1 << 50, at: 48) },
    Fault("a refcount table in the header", "overlap") { $0.put64(0, at: 48) },
    Fault("a refcount table within a cluster", "not the start of a cluster") { $0.put64(UInt64(table + 8), at: 48) },
    Fault("65537 snapshots", "65537 snapshots") { $0.put32(65537, at: 60) },
    Fault("a snapshot table past the end", "snapshot table") { $0.put64(1 << 45, at: 64) },
    Fault("a snapshot table in the L1 table", "overlap") { $0.put64(UInt64(level1), at: 64) },
    Fault("a snapshot table within a cluster", "not the start of a cluster") { $0.put64(UInt64(snapshots + 16), at: 64) },
  ]

  static let inTables: [Fault] = [
    Fault("L1 entry with a low bit", "bits that have to be 0") { $0[level1 + 7] |= 1 },
    Fault("L1 entry with a high bit", "bits that have to be 0") { $0[level1] |= 0x40 },
    Fault("L2 table within a cluster", "not the start of a cluster") { $0.put64(1 << 63 | UInt64(level2 + 512), at: level1) },
    Fault("L2 table past the end", "beyond the end of the file") { $0.put64(1 << 63 | 1 << 50, at: level1) },
    Fault("L2 table across the end", "end of the file") { bytes in
      bytes.put64(1 << 63 | UInt64(7 * cluster), at: level1)
      bytes = Array(bytes.dropLast(cluster - 8))
    },
    Fault("L2 table in the L1 table", "bits that have to be 0|in use as something else|refcount=1 reference=") {
      $0.put64(1 << 63 | UInt64(level1), at: level1)
    },
    Fault("L2 entry with a reserved bit", "bits that have to be 0") { $0[level2 + 7] |= 2 },
    Fault("L2 entry with a high bit", "bits that have to be 0") { $0[level2] |= 0x20 },
    Fault("zero flag in version 2", "bits that have to be 0") {
      $0.put32(2, at: 4)
      for index in 72..<1024 { $0[index] = 0 }
      $0[level2 + 7] |= 1
    },
    Fault("zero flag beside subclusters", "bits that have to be 0", extended: true) { $0[level2 + 7] |= 1 },
    Fault("data within a cluster", "not the start of a cluster") { $0.put64(1 << 63 | UInt64(5 * cluster + 512), at: level2) },
    Fault("data past the end", "exceeds the end") { $0.put64(1 << 63 | 1 << 45, at: level2) },
    Fault("data at 32 PiB", "exceeds the end") { $0.put64(1 << 63 | 1 << 55, at: level2) },
    Fault("data in the header's place as subclusters", "contradicts itself about subclusters", extended: true) {
      $0.put64(1 << 63, at: level2)
    },
    Fault("subclusters that are both", "contradicts itself about subclusters", extended: true) {
      $0.put64(0x0000_0001_ffff_ffff, at: level2 + 8)
    },
    Fault("subclusters of a compressed cluster", "contradicts itself about subclusters", extended: true) {
      $0.put64(1 << 62 | UInt64(5 * cluster), at: level2)
    },
    Fault("compressed past the end", "exceeds the end") { $0.put64(1 << 62 | 1 << 50, at: level2) },
    Fault("compressed and copied", "OFLAG_COPIED compressed") { $0.put64(3 << 62 | UInt64(5 * cluster), at: level2) },
    Fault("data in the refcount block", "refcount=1 reference=2") { $0.put64(1 << 63 | UInt64(block), at: level2) },
    Fault("data twice", "refcount=1 reference=2") { $0.put64(1 << 63 | UInt64(5 * cluster), at: level2 + 8) },
    Fault("a refcount block as data, counted twice", "in use as something else") {
      $0.put64(UInt64(block), at: level2)
      $0.put16(2, at: block + 4)
      $0.put16(0, at: block + 10)
    },
    Fault("data that is not counted", "OFLAG_COPIED data") { $0.put16(0, at: block + 10) },
    Fault("an L2 table that is not counted", "OFLAG_COPIED L2") { $0.put16(0, at: block + 8) },
    Fault("a header that is not counted", "cluster 0 refcount=0") { $0.put16(0, at: block) },
    Fault("data without its copied bit", "OFLAG_COPIED data") { $0.put64(UInt64(5 * cluster), at: level2) },
    Fault("a leaked cluster", "Leaked cluster 100") { $0.put16(1, at: block + 200) },
    Fault("a cluster counted too often", "Leaked cluster 6 refcount=9") { $0.put16(9, at: block + 12) },
    Fault("no refcount block", "OFLAG_COPIED|refcount=0") { $0.put64(0, at: table) },
    Fault("a refcount block within a cluster", "OFLAG_COPIED|refcount block 0") { $0.put64(UInt64(block + 8), at: table) },
    Fault("a refcount block past the end", "OFLAG_COPIED|refcount block 0") { $0.put64(1 << 50, at: table) },
    Fault("a second refcount block past the end", "refcount block 1") { $0.put64(1 << 50, at: table + 8) },
    Fault("a refcount block that is there twice", "refcount=1 reference=2") { $0.put64(UInt64(block), at: table + 8) },
    Fault("a million refcount blocks in one place", "refcount=1 reference=") { bytes in
      for index in 0..<8192 { bytes.put64(UInt64(block), at: table + index * 8) }
    },
    Fault("a snapshot with 1025 bytes more", "snapshot number 1") { $0.put32(1025, at: snapshots + 36) },
    Fault("a snapshot with 4 GiB more", "snapshot number 1") { $0.put32(.max, at: snapshots + 36) },
    Fault("a snapshot whose name is past the end", "snapshot table") { bytes in
      bytes.put64(UInt64(7 * cluster), at: 64)
      bytes.put16(.max, at: 7 * cluster + 14)
      bytes.put64(UInt64(6 * cluster), at: 7 * cluster)
      bytes = Array(bytes.dropLast(cluster - 4096))
    },
    Fault("a snapshot's L1 table past the end", "L1 table of a snapshot") { $0.put64(1 << 50, at: snapshots) },
    Fault("a snapshot's L1 table within a cluster", "not the start of a cluster") {
      $0.put64(UInt64(7 * cluster + 8), at: snapshots)
    },
    Fault("a snapshot's L1 table of 2^32 − 1 entries", "snapshot number 1") { $0.put32(.max, at: snapshots + 8) },
    Fault("a snapshot of a larger disk than its table is for", "needs 2") { $0.put64(1 << 30, at: snapshots + 48) },
    Fault("a snapshot of 2^63 bytes", "snapshot number 1") { $0.put64(1 << 63, at: snapshots + 48) },
    Fault("a bitmap's table at 2^64 − 65536", "table of a bitmap") { bytes in
      put(&bytes, bitmapsAt: 7 * cluster)
      bytes.put64(0 &- 65536, at: 7 * cluster)
    },
    Fault("a bitmap's table past the end", "exceeds the end") { bytes in
      put(&bytes, bitmapsAt: 7 * cluster)
      bytes.put64(1 << 50, at: 7 * cluster)
    },
    Fault("a bitmap's data in the L1 table", "in use as something else|refcount=1 reference=") { bytes in
      put(&bytes, bitmapsAt: 7 * cluster)
      bytes.put64(UInt64(level1), at: 7 * cluster)
    },
    Fault("more bitmaps than their directory has", "too short") { bytes in
      put(&bytes, bitmapsAt: 7 * cluster)
      bytes.put32(2, at: 112)
      bytes.put32(0, at: 7 * cluster + 8)
    },
    Fault("two snapshots where there is one", "needs|snapshot") {
      $0.put32(2, at: 60)
      $0.put32(.max, at: snapshots + 64 + 36)
    },
    Fault("a snapshot's L2 table that is not counted so often", "refcount=1 reference=2") {
      $0.put64(UInt64(level2), at: 7 * cluster)
    },
  ]

  @Test func theSamplesHaveNoFault() throws {
    for isExtended in [false, true] {
      #expect(firstFault(try Sample(extended: isExtended).source) == nil)
      #expect(firstFault(try Sample(extended: isExtended, backing: "base").source) == nil)
    }
  }

  @Test(arguments: inHeader + inTables) func eachFaultHasASentence(fault: Fault) throws {
    var sample = try Sample(extended: fault.isExtended, backing: fault.backing)
    fault.edit(&sample.bytes)
    let found = firstFault(sample.source) ?? "nothing"
    #expect(fault.words.split(separator: "|").contains { found.contains($0) }, "\(found)")
  }

  @Test(arguments: inHeader) func aHeaderWithAFaultIsNotOpened(fault: Fault) throws {
    var sample = try Sample(extended: fault.isExtended, backing: fault.backing)
    fault.edit(&sample.bytes)
    #expect(throws: Qcow2Fault.self) { try Qcow2Header(sample.source) }
  }

  @Test func thereAreManyKinds() { #expect(Self.inHeader.count + Self.inTables.count >= 60) }

  /// Two L1 entries with the same table would use memory that the file does not account for.
  @Test func anL2TableIsThereOnce() throws {
    var sample = try Sample(size: 1 << 30)
    sample.bytes.put64(sample.bytes.word64(3 * sample.cluster), at: 3 * sample.cluster + 8)
    let header = try Qcow2Header(sample.source)
    #expect(throws: Qcow2Fault.sharedTable(offset: UInt64(4 * sample.cluster))) { try header.level1(sample.source) }
  }

  /// Clusters of 2 MiB with 1-bit refcounts: the last cluster that a refcount table could cover would be at 2^65.
  @Test func aCountOfAClusterThatNoFileCanHave() throws {
    var source = MemorySource([UInt8](repeating: 0, count: 10 << 20))
    source.bytes.put32(Qcow2Header.magic, at: 0)
    source.bytes.put32(3, at: 4)
    source.bytes.put32(21, at: 20)
    source.bytes.put64(2 << 20, at: 48)
    source.bytes.put32(4, at: 56)
    source.bytes.put32(104, at: 100)
    // The table's last entry points to a block with one bit set.
    source.bytes.put64(8 << 20, at: (10 << 20) - 8)
    let report = try Qcow2Check.run(source, try Qcow2Header(source))
    #expect(report.imageEnd == .max && report.leaks == 1 && report.corruptions > 0, "\(report)")
    #expect(report.findings.contains { $0.contains("cluster \(1 << 44 - 64 + 47) ") }, "\(report.findings)")
  }

  /// Many snapshots or bitmaps may refer to the same clusters, so a small file can have more entries than can be checked.
  @Test func whatCannotBeLookedAtIsToldAsAFailure() throws {
    let snapshot = try Sample()
    var bitmap = snapshot
    Self.put(&bitmap.bytes, bitmapsAt: 7 * Self.cluster)
    for (sample, what) in [(snapshot, "L1 tables of snapshots"), (bitmap, "bitmaps")] {
      let header = try Qcow2Header(sample.source)
      func failures(_ budget: UInt64) throws -> [String] {
        let report = try Qcow2Check.run(sample.source, header, budget: budget)
        return report.failures == 0 ? [] : report.findings.filter { $0.contains("\(what) have more entries") }
      }
      #expect(try failures(1).count == 1)
      #expect(try failures(2) == [])
    }
  }

  /// A fault of a cluster is reported once, however often it occurs, and takes memory once.
  @Test func aClusterThatABitmapNamesAHundredTimes() throws {
    var sample = try Sample()
    let (directory, table) = (7 * Self.cluster, 5 * Self.cluster)
    Self.put(&sample.bytes, bitmapsAt: directory)
    sample.bytes.put64(UInt64(table), at: directory)
    sample.bytes.put32(100, at: directory + 8)
    for index in 0..<100 { sample.bytes.put64(UInt64(Self.level1), at: table + index * 8) }
    let findings = try Qcow2Check.run(sample.source, try Qcow2Header(sample.source)).findings
    #expect(findings.count { $0.contains("at \(Self.level1) is in use as something else") } == 1, "\(findings)")
    #expect(findings.contains { $0.contains("cluster 3 refcount=1 reference=101") }, "\(findings)")
  }

  /// Whatever bytes change, there is a result, and nothing traps.
  @Test(arguments: [false, true]) func anyBytesAreSurvived(isExtended: Bool) throws {
    let sample = try Sample(extended: isExtended, bits: isExtended ? 14 : 9, size: isExtended ? 1 << 20 : 16 << 10)
    let places = Array(0..<120) + (1..<8).flatMap { base in (0..<64).map { base * sample.cluster + $0 } }
    var chance = Chance(isExtended ? 2 : 1)
    var faults = 0
    for _ in 0..<3000 {
      var source = sample.source
      for _ in 0..<Int.random(in: 1...4, using: &chance) {
        let place = places.randomElement(using: &chance) ?? 0
        source.bytes[place] =
          Bool.random(using: &chance)
          ? [0, 1, 0x7f, 0x80, 0xff].randomElement(using: &chance) ?? 0 : .random(in: 0...255, using: &chance)
      }
      if Int.random(in: 0..<10, using: &chance) == 0 {
        source.bytes = Array(source.bytes.prefix(.random(in: 0...source.bytes.count, using: &chance)))
      }
      if firstFault(source) != nil { faults += 1 }
    }
    #expect(faults > 1000)
  }
}
