/// The ring reader with rings that no image has: large, hostile, out of order, wrapped.
import Foundation
import MemoryFile
import RingInspector
import SystemPackage
import TestSupport
import Testing
import VirtioCore

/// Guest memory in an array, written to a file for the reader.
private struct Guest {
  var bytes: [UInt8]
  let configuration: QueueConfiguration

  /// A ring of `size` whose three parts follow each other from address 0, each page-aligned.
  init(size: UInt16, memory: Int = 1 << 20) {
    bytes = [UInt8](repeating: 0, count: memory)
    let table = (16 * Int(size) + 4095) / 4096 * 4096
    let available = (6 + 2 * Int(size) + 4095) / 4096 * 4096
    configuration = QueueConfiguration(
      size: size, descriptorTable: GuestAddress(0), availableRing: GuestAddress(UInt64(table)),
      usedRing: GuestAddress(UInt64(table + available)))
  }

  mutating func put<Word: FixedWidthInteger>(_ word: Word, at offset: Int) {
    for index in 0..<Word.bitWidth / 8 { bytes[offset + index] = UInt8(truncatingIfNeeded: word >> Word(index * 8)) }
  }

  mutating func descriptor(_ index: Int, address: UInt64 = 0x1000, length: UInt32 = 16, flags: UInt16, next: Int = 0) {
    put(address, at: 16 * index)
    put(length, at: 16 * index + 8)
    put(flags, at: 16 * index + 12)
    put(UInt16(next), at: 16 * index + 14)
  }

  mutating func available(_ heads: [UInt16], from first: UInt16 = 0) {
    let ring = Int(configuration.availableRing.rawValue)
    for (place, head) in heads.enumerated() {
      put(head, at: ring + 4 + 2 * Int((first &+ UInt16(place)) % configuration.size))
    }
    put(first &+ UInt16(truncatingIfNeeded: heads.count), at: ring + 2)
  }

  mutating func used(_ ids: [UInt32], from first: UInt16 = 0) {
    let ring = Int(configuration.usedRing.rawValue)
    for (place, id) in ids.enumerated() {
      put(id, at: ring + 4 + 8 * Int((first &+ UInt16(place)) % configuration.size))
    }
    put(first &+ UInt16(ids.count), at: ring + 2)
  }

  func picture(_ features: FeatureSet = [.version1, .indirectDescriptors]) throws -> QueuePicture {
    let directory = try TemporaryDirectory()
    try Data(bytes).write(to: URL(fileURLWithPath: directory.file("raw")))
    let memory = try GuestBytes(rawFile: directory.file("raw"), base: GuestAddress(0))
    return QueuePicture(queue: 0, configuration: configuration, features: features, memory: memory)
  }
}

@Suite struct InspectorTests {
  /// An empty descriptor may have any address, even one that is not a position in any file.
  @Test(arguments: [UInt64.max, 1 << 63, 1 << 62, 0]) func anEmptyDescriptorAnywhere(address: UInt64) throws {
    var guest = Guest(size: 16)
    guest.descriptor(0, address: address, length: 0, flags: 1, next: 1)
    guest.descriptor(1, address: 0x8000, length: 16, flags: 1, next: 2)
    guest.descriptor(2, address: 0x9000, length: 1, flags: 2)
    guest.available([0])
    let picture = try guest.picture()
    #expect(picture.pending.first?.chain.header.count == 16)
    #expect(picture.problems.isEmpty)
  }

  @Test("the largest ring can be drawn with every chain looping through all of it")
  func hostileLoops() throws {
    var guest = Guest(size: 32768)
    for index in 0..<32768 { guest.descriptor(index, flags: 1, next: (index + 1) % 32768) }
    guest.available((0..<32768).map { UInt16($0) })
    let picture = try guest.picture()
    #expect(picture.pendingCount == 32768)
    #expect(picture.pending.reduce(0) { $0 + $1.chain.descriptors.count } < 200_000)
    #expect(picture.pending[0].chain.problems.contains { $0.contains("it loops") })
    let drawing = QueueDrawing.draw(picture)
    #expect(drawing.count < 400)
    #expect(drawing.contains { $0.contains("and 32764 more available") })
  }

  @Test("one head made available 32768 times is one problem")
  func hostileDuplicates() throws {
    var guest = Guest(size: 32768)
    guest.descriptor(7, flags: 2)
    guest.available([UInt16](repeating: 7, count: 32768))
    let picture = try guest.picture()
    #expect(picture.problems == [QueueError.headAlreadyInFlight(7).description])
    #expect(QueueDrawing.draw(picture).count < 200)
  }

  @Test("IN_ORDER: one element stands for those before it, too", arguments: [0 as UInt16, 65534])
  func batches(_ first: UInt16) throws {
    var guest = Guest(size: 8)
    for index in 0..<5 { guest.descriptor(index, flags: 2) }
    guest.available([3, 1, 0, 2, 4], from: first)
    // A batch of three, and one of one.
    guest.used([0, 77, 78, 2], from: first)
    let picture = try guest.picture([.version1, .inOrder])
    #expect(picture.problems.isEmpty)
    #expect(picture.pending.map(\.chain.head) == [4])
    // A wrapped low index looks like one that has not wrapped, so fewer are shown.
    guard first == 0 else { return }
    #expect(picture.used.map(\.id) == [3, 1, 0, 2])
    #expect(picture.used.map(\.length) == [16, 16, 0, 0])
    let other = try guest.picture()
    #expect(other.used.map(\.id) == [0, 77, 78, 2])
  }

  @Test("used out of order: the chains that no element names are pending", arguments: [0 as UInt16, 65533])
  func outOfOrder(_ first: UInt16) throws {
    var guest = Guest(size: 8)
    for index in 0..<4 { guest.descriptor(index, flags: 2) }
    guest.available([0, 1, 2, 3], from: first)
    guest.used([2, 0], from: first)
    let picture = try guest.picture()
    // After a wrap the low index hides the first lap, so the newest chains are considered pending.
    #expect(picture.pending.map(\.chain.head) == (first == 0 ? [1, 3] : [2, 3]))
    #expect(picture.pendingCount == 2)
  }

  @Test("used elements that name no descriptor are a problem, not a trap", arguments: [8 as UInt32, 0xffff_ffff])
  func usedOutOfRange(_ id: UInt32) throws {
    var guest = Guest(size: 8)
    guest.available([0, 1])
    guest.used([id])
    let picture = try guest.picture()
    #expect(picture.problems == ["used element 0 names descriptor \(id), outside the table"])
    #expect(picture.used[0].chain == nil)
  }

  @Test("after an index that jumped, no chain is shown", arguments: [9 as UInt16, 0x8000, 0xffff])
  func jumped(_ index: UInt16) throws {
    var guest = Guest(size: 8)
    guest.put(index, at: Int(guest.configuration.availableRing.rawValue) + 2)
    let picture = try guest.picture()
    #expect(picture.pending.isEmpty)
    #expect(picture.problems == [QueueError.availableIndexJumped(from: 0, to: index, size: 8).description])
    #expect(!QueueDrawing.draw(picture).isEmpty)
  }

  @Test(
    "lengths whose sum leaves 32 bits, addresses whose sum leaves 64",
    arguments: [
      (0xffff_ffff_ffff_fff0, 0x100), (0, 0xffff_ffff), (0xf_0000, 0x1_0001), (.max, 1),
    ] as [(UInt64, UInt32)])
  func outside(_ address: UInt64, _ length: UInt32) throws {
    var guest = Guest(size: 8)
    guest.descriptor(0, address: address, length: length, flags: 3, next: 1)
    guest.descriptor(1, address: address, length: length, flags: 2)
    guest.available([0])
    let problems = try guest.picture().pending[0].chain.problems
    #expect(problems.contains("descriptor 0 has \(length) bytes at \(GuestAddress(address)), not all inside guest memory"))
    #expect(problems.contains(QueueError.chainTooLarge(head: 0).description) == (length == 0xffff_ffff))
  }

  @Test("random memory always gives a drawing of at most 100 columns", arguments: 0..<60 as Range<UInt64>)
  func random(_ seed: UInt64) throws {
    var generator = SplitMix(state: seed)
    var guest = Guest(size: 1 << UInt16(generator.next() % 6), memory: 32768)
    for at in guest.bytes.indices {
      let word = generator.next()
      guest.bytes[at] = seed % 3 != 0 && word % 4 != 0 ? UInt8(word >> 8 & 3) : UInt8(truncatingIfNeeded: word >> 16)
    }
    let picture = try guest.picture(FeatureSet(rawValue: generator.next()))
    for line in QueueDrawing.draw(picture) { #expect(line.count <= 80) }
  }

  @Test("a status byte has the specification's name") func statusNames() {
    let names = (0...7 as ClosedRange<UInt8>).map(BlockWords.status)
    #expect(
      names == [
        "OK", "IOERR", "UNSUPP", "ZONE_INVALID_CMD", "ZONE_UNALIGNED_WP", "ZONE_OPEN_RESOURCE", "ZONE_ACTIVE_RESOURCE", "0x7",
      ])
  }
}
