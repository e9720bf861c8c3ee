/// Configuration fields that the operator set: the device reports the limits that it enforces.
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct ConfigurationTests {
  private static func options(_ fields: [(ConfigurationField, UInt32)], blockSize: Int = 512) -> RigOptions {
    var options = RigOptions(size: 16 << 20, blockSize: blockSize)
    options.device.requestedFeatures = .blockSecureErase
    for (field, value) in fields { options.device.configuration[field] = value }
    return options
  }

  /// Each field's offset (virtio 5.2.4) and size in bytes, independently of the device's own list.
  static let places: [ConfigurationField: (offset: Int, bytes: Int)] = [
    .sizeMax: (8, 4), .segMax: (12, 4), .physicalBlockExponent: (24, 1), .alignmentOffset: (25, 1), .minimumIO: (26, 2),
    .optimalIO: (28, 4), .discardSectors: (36, 4), .discardRanges: (40, 4), .discardAlignment: (44, 4),
    .zeroSectors: (48, 4), .zeroRanges: (52, 4), .eraseSectors: (60, 4), .eraseRanges: (64, 4), .eraseAlignment: (68, 4),
  ]

  @Test func everyFieldIsWhereTheSpecificationHasIt() throws {
    let values: [(ConfigurationField, UInt32)] = [
      (.sizeMax, 8192), (.segMax, 5), (.physicalBlockExponent, 4), (.alignmentOffset, 7), (.minimumIO, 24), (.optimalIO, 256),
      (.discardSectors, 640), (.discardRanges, 3), (.discardAlignment, 16), (.zeroSectors, 72), (.zeroRanges, 2),
      (.eraseSectors, 96), (.eraseRanges, 4), (.eraseAlignment, 32),
    ]
    #expect(values.count == ConfigurationField.allCases.count)
    let rig = try Rig(Self.options(values))
    let usual = try Rig(Self.options([]))
    var expected = usual.device.readConfiguration(at: 0, count: 96)
    for (field, value) in values {
      let place = try #require(Self.places[field])
      for byte in 0..<place.bytes { expected[place.offset + byte] = UInt8(truncatingIfNeeded: value >> (8 * byte)) }
    }
    #expect(rig.device.readConfiguration(at: 0, count: 96) == expected)
    let erase = try #require(rig.client.config.secureErase)
    #expect((erase.maximumSectors, erase.maximumSegments) == (96, 4) && erase.alignment == 32)
  }

  struct Mistake: Sendable, CustomTestStringConvertible {
    var field: ConfigurationField
    var value: UInt32
    var blockSize = 512
    var more: [(ConfigurationField, UInt32)] = []
    var testDescription: String { "\(field.rawValue)=\(value) with blocks of \(blockSize)" }
  }

  static let mistakes: [Mistake] = [
    Mistake(field: .sizeMax, value: 4095), Mistake(field: .sizeMax, value: (4 << 20) + 1),
    Mistake(field: .sizeMax, value: 4097), Mistake(field: .sizeMax, value: 4096, blockSize: 65536),
    Mistake(field: .segMax, value: 0), Mistake(field: .segMax, value: 127), Mistake(field: .minimumIO, value: 65536),
    Mistake(field: .physicalBlockExponent, value: 17), Mistake(field: .alignmentOffset, value: 256),
    Mistake(field: .discardSectors, value: 0), Mistake(field: .discardSectors, value: (1 << 21) + 1),
    Mistake(field: .discardSectors, value: 12, blockSize: 4096), Mistake(field: .discardRanges, value: 0),
    Mistake(field: .discardRanges, value: 33), Mistake(field: .discardAlignment, value: 0),
    Mistake(field: .discardAlignment, value: 4, blockSize: 4096), Mistake(field: .zeroSectors, value: 0),
    Mistake(field: .zeroRanges, value: 33), Mistake(field: .eraseRanges, value: 0), Mistake(field: .eraseAlignment, value: 0),
    Mistake(field: .eraseSectors, value: 100, more: [(.eraseAlignment, 8)]),
  ]

  @Test(arguments: mistakes) func whatCannotBeKeptIsRefused(_ mistake: Mistake) throws {
    let scratch = try Scratch()
    let image = try ImageFile(ImageOptions(path: scratch.image(size: 1 << 20), logicalBlockSize: mistake.blockSize))
    var options = BlockDeviceOptions()
    for (field, value) in mistake.more { options.configuration[field] = value }
    options.configuration[mistake.field] = mistake.value
    var sentence: String?
    do { _ = try BlockDevice(image: image, options: options) } catch { sentence = "\(error)" }
    #expect(sentence?.contains(mistake.field.rawValue) == true, "\(sentence ?? "it was taken")")
  }

  /// The largest request that is allowed, and the smallest that is not.
  @Test func limitsOfRangesAreKept() throws {
    let rig = try Rig(
      Self.options([
        (.discardSectors, 8), (.discardRanges, 2), (.zeroSectors, 16), (.zeroRanges, 1), (.eraseSectors, 24), (.eraseRanges, 3),
        (.eraseAlignment, 8),
      ]))
    let kinds: [(make: ([BlockRange]) -> BlockRequest, sectors: UInt32, ranges: Int)] = [
      (BlockRequest.discard, 8, 2), (BlockRequest.writeZeroes, 16, 1), (BlockRequest.secureErase, 24, 3),
    ]
    for kind in kinds {
      func ranges(_ count: Int, _ sectors: UInt32) -> [BlockRange] {
        (0..<count).map { BlockRange(sector: UInt64($0 * 1024), sectors: sectors) }
      }
      try rig.expect(kind.make(ranges(kind.ranges, kind.sectors)))
      try rig.expect(kind.make(ranges(kind.ranges + 1, kind.sectors)), .ioError)
      try rig.expect(kind.make(ranges(1, kind.sectors + 8)), .ioError)
    }
  }

  /// The segment limits that a driver was told are enforced.
  @Test func limitsOfSegmentsAreKept() throws {
    let rig = try Rig(Self.options([(.segMax, 2), (.sizeMax, 4096)]))
    let cases: [(bytes: Int, cuts: [Int], status: BlockStatusCode)] = [
      (4096, [4096], .ok), (8192, [4096, 8192], .ok), (4608, [4608], .ioError), (8192, [4608, 8192], .ioError),
      (1536, [512, 1024, 1536], .ioError), (8704, [4096, 8192, 8704], .ioError),
    ]
    let unlimited = try Rig(Self.options([]))
    for one in cases {
      let framing = Framing(readableCuts: [], writableCuts: one.cuts)
      try rig.expect(.read(sector: 0, bytes: one.bytes), one.status, framing: framing, "\(one.cuts)")
      try unlimited.expect(.read(sector: 0, bytes: one.bytes), framing: framing)
    }
  }
}
