/// `vmm-blk guest info`: what a disk offers and how it is set up.
internal import ArgumentParser
internal import Bench
internal import Foundation
internal import GuestDriver
internal import TextTable
internal import VirtioCore

struct GuestInfo: GuestVerb {
  static let configuration = CommandConfiguration(
    commandName: "info", abstract: "Show the disk's features and configuration.", usage: GuestTarget.usage("info [--json]"))

  @ParentCommand var guest: Guest
  @OptionGroup var target: GuestTarget

  @Flag(help: "Print JSON.")
  var json = false

  func run() throws {
    try withDisk { client in
      let report = DiskReport(client)
      print(json ? try report.json : report.text)
    }
  }
}

/// What `info` prints, for people and for programs.
struct DiskReport: Encodable {
  struct Feature: Encodable {
    var bit: Int
    var name: String
    var accepted: Bool
  }

  struct Field: Encodable {
    var name: String
    var value: UInt64
    var unit: String
  }

  var transport: String
  var capacityBytes: UInt64
  var readOnly: Bool
  var queues: [Int]
  /// The format of the rings.
  var ring: String
  var features: [Feature]
  var configuration: [Field]

  init(_ client: BlockClient) {
    let session = client.session
    transport = session.transport.name
    capacityBytes = client.capacity
    readOnly = client.isReadOnly
    queues = session.queues.map { Int($0.ring.layout.size) }
    ring = session.format.rawValue
    features = session.offered.bits.map { bit in
      Feature(
        bit: bit, name: BlockFeature.name(ofBit: bit) ?? "unknown", accepted: session.features.contains(FeatureSet(bit: bit)))
    }
    configuration = Self.fields(client.config)
  }

  private static func fields(_ config: BlockConfig) -> [Field] {
    var fields = [Field(name: "capacity", value: config.capacity, unit: "512-byte sectors")]
    func add(_ name: String, _ value: (some BinaryInteger)?, _ unit: String = "") {
      if let value { fields.append(Field(name: name, value: UInt64(value), unit: unit)) }
    }
    add("size_max", config.sizeMax, "bytes in a segment")
    add("seg_max", config.segMax, "data segments in a request")
    add("geometry.cylinders", config.geometry?.cylinders)
    add("geometry.heads", config.geometry?.heads)
    add("geometry.sectors", config.geometry?.sectors)
    add("blk_size", config.blockSize, "bytes in a logical block")
    add("topology.physical_block_exp", config.topology?.physicalBlockExponent, "log2 of logical blocks in a physical one")
    add("topology.alignment_offset", config.topology?.alignmentOffset, "logical blocks")
    add("topology.min_io_size", config.topology?.minimumIO, "logical blocks")
    add("topology.opt_io_size", config.topology?.optimalIO, "logical blocks")
    add("writeback", config.writeback, config.writeback == 0 ? "writethrough" : "writeback")
    add("num_queues", config.queues)
    add("max_discard_sectors", config.discard?.maximumSectors, "512-byte sectors in a segment")
    add("max_discard_seg", config.discard?.maximumSegments, "segments in a request")
    add("discard_sector_alignment", config.discard?.alignment, "512-byte sectors")
    add("max_write_zeroes_sectors", config.writeZeroes?.maximumSectors, "512-byte sectors in a segment")
    add("max_write_zeroes_seg", config.writeZeroes?.maximumSegments, "segments in a request")
    add("write_zeroes_may_unmap", config.writeZeroesMayUnmap)
    add("max_secure_erase_sectors", config.secureErase?.maximumSectors, "512-byte sectors in a segment")
    add("max_secure_erase_seg", config.secureErase?.maximumSegments, "segments in a request")
    add("secure_erase_sector_alignment", config.secureErase?.alignment, "512-byte sectors")
    add("zoned.zone_sectors", config.zoned?.zoneSectors, "512-byte sectors in a zone")
    add("zoned.max_open_zones", config.zoned?.maximumOpen, config.zoned?.maximumOpen == 0 ? "any number" : "zones")
    add("zoned.max_active_zones", config.zoned?.maximumActive, config.zoned?.maximumActive == 0 ? "any number" : "zones")
    add("zoned.max_append_sectors", config.zoned?.maximumAppend, "512-byte sectors in an append")
    add("zoned.write_granularity", config.zoned?.granularity, "bytes")
    add(
      "zoned.model", config.zoned?.model,
      config.zoned?.model == 1 ? "host-managed" : config.zoned?.model == 2 ? "host-aware" : "none")
    return fields
  }

  var json: String {
    get throws {
      let encoder = JSONEncoder()
      encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
      return String(decoding: try encoder.encode(self), as: UTF8.self)
    }
  }

  var text: String {
    let featureTable = TextTable<Feature> { feature in
      [
        Column("bit" <- feature.bit, align: .right), Column("feature" <- feature.name),
        Column("accepted" <- feature.accepted ? "yes" : "no"),
      ]
    }
    let fieldTable = TextTable<Field> { field in
      [Column("field" <- field.name), Column("value" <- field.value, align: .right), Column("unit" <- field.unit)]
    }
    // A size that all queues share is shown once.
    let sizes = Set(queues).count == 1 ? "\(queues[0])" : queues.map(String.init).joined(separator: ", ")
    let head = """
      A disk of \(ByteSize.describe(capacityBytes)) (\(capacityBytes) bytes)\(readOnly ? ", read-only," : "") over \(transport), \
      \(queues.count) queue\(queues.count == 1 ? "" : "s") of \(sizes) entries, \(ring) ring\(queues.count == 1 ? "" : "s").
      """
    return """
      \(OutputWidth.folded(head))

      \(Self.trimmed(featureTable.string(for: features, style: Style.simple)))

      \(Self.trimmed(fieldTable.string(for: configuration, style: Style.simple)))
      """
  }

  /// The table without spaces at the ends of its lines.
  private static func trimmed(_ table: String?) -> String {
    (table ?? "").split(separator: "\n").map { line in
      String(line.reversed().drop { $0 == " " }.reversed())
    }.joined(separator: "\n")
  }
}
