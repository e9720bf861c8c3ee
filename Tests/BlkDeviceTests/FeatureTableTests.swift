/// The feature tables in Docs/features.md list exactly what the code offers.
import Foundation
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct FeatureTableTests {
  /// A line of the table.
  struct Row: Sendable {
    var features: FeatureSet
    var offered: String
    var remarks: String
  }

  private static func bare(_ name: Substring) -> String {
    let name = name.lowercased()
    return name.hasPrefix("ring_") ? String(name.dropFirst(5)) : name
  }

  private static let bits: [String: Int] = Dictionary(
    (0..<64).compactMap { bit in BlockFeature.name(ofBit: bit).map { (bare($0[...]), bit) } },
    uniquingKeysWith: { one, _ in one })

  /// - Parameter head: how the table begins.
  private static func rows(_ head: String) throws -> [Row] {
    let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
    let text = try String(contentsOf: root.appendingPathComponent("Docs/features.md"), encoding: .utf8)
    let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
    let start = try #require(lines.firstIndex { $0.hasPrefix(head) })
    return try lines[(start + 2)...].prefix { $0.hasPrefix("|") }.map { line in
      let cells = line.split(separator: "|", omittingEmptySubsequences: false).dropFirst().map {
        $0.trimmingCharacters(in: .whitespaces)
      }
      var features = FeatureSet()
      // `one`, `another`
      for name in cells[0].split(separator: "`").enumerated().filter({ $0.offset % 2 == 0 }).map(\.element) {
        let bit = try #require(bits[bare(name)], "\(name) is no feature")
        features.insert(FeatureSet(bit: bit))
      }
      return Row(features: features, offered: cells[1], remarks: cells.count > 3 ? cells[2] : "")
    }
  }

  @Test("the table has every feature that is offered, and says when")
  func table() throws {
    let scratch = try Scratch()
    var options = ImageOptions(path: try scratch.image(), isLocked: false)
    let plain = try ImageFile(options)
    options.isReadOnly = true
    let readOnly = try ImageFile(options)
    options.isReadOnly = false
    options.logicalBlockSize = 4096
    let coarse = try ImageFile(options)
    options.zoned = ZonedOptions()
    let zoned = try ImageFile(options)
    let usual = BlockDevice.features(of: plain)
    let onRequest = BlockDevice.featuresOnRequest(of: plain)
    let images = [plain, readOnly, coarse, zoned]
    let required = images.map { BlockDevice.requiredFeatures(of: $0) }.reduce(FeatureSet()) { $0.union($1) }
    let lifetime = FeatureSet.blockLifetime

    var seen = FeatureSet()
    for row in try Self.rows("| feature | offered |") {
      let names = row.features.bits.compactMap { BlockFeature.name(ofBit: $0) }.joined(separator: " ")
      #expect(seen.isDisjoint(with: row.features), "\(names) is there twice")
      seen.formUnion(row.features)
      let isSo =
        switch row.offered {
        case "always", "yes", "to legacy drivers": row.features.isSubset(of: usual)
        case "for read-only disks":
          row.features.isDisjoint(with: usual) && row.features.isSubset(of: BlockDevice.features(of: readOnly))
        case "if the image supports it": usual.contains(row.features) == plain.canDiscard
        case let words where words.hasPrefix("on a memory file with virtio-pci registers"):
          row.features == .notificationConfigurationData
        case let words where words.hasPrefix("on request") || words.hasPrefix("on a memory file"):
          row.features.isDisjoint(with: usual) && row.features.isSubset(of: onRequest)
        case let words where words.hasPrefix("for block devices"): row.features == lifetime
        case let words where words.hasPrefix("with `--zoned"):
          row.features.isDisjoint(with: usual) && row.features.isSubset(of: BlockDevice.features(of: zoned))
        default: false
        }
      #expect(isSo, "\(names) is not offered as the table says: \(row.offered)")
      let cannotBeLeftOut = (row.offered + row.remarks).contains("cannot be left out") || row.offered == "always"
      #expect(cannotBeLeftOut == !row.features.isDisjoint(with: required), "whether \(names) can be left out")
    }
    let offered = images.map { BlockDevice.features(of: $0) }.reduce(onRequest.union(lifetime)) { $0.union($1) }
      .union(.notificationConfigurationData)
    let missing = offered.subtracting(seen).bits.compactMap { BlockFeature.name(ofBit: $0) }
    #expect(missing.isEmpty, "the table lacks \(missing.joined(separator: " "))")
  }

  @Test("every feature that has a name is in one of the tables: offered, or not and why") func nothingIsLeftOut() throws {
    let offered = try Self.rows("| feature | offered |").reduce(FeatureSet()) { $0.union($1.features) }
    let refused = try Self.rows("| feature | reason |")
    #expect(refused.allSatisfy { $0.offered.count > 10 }, "each has a reason")
    let all = refused.reduce(offered) { $0.union($1.features) }
    let missing = Self.bits.values.filter { !all.contains(FeatureSet(bit: $0)) }.compactMap { BlockFeature.name(ofBit: $0) }
    #expect(missing.isEmpty, "nothing is said about \(missing.sorted().joined(separator: " "))")
  }
}
