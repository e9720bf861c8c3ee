/// `--features` and `--no-feature`: what is offered, what the driver accepted, and where that is shown.
import Foundation
import TestSupport
import Testing
import VirtioCore

@testable import GuestDriver
@testable import VhostUser

@Suite struct FeatureTests {
  private static func serve(_ directory: String, _ more: [String]) throws -> Program {
    try Data(count: 4 << 20).write(to: URL(fileURLWithPath: directory + "/a.img"))
    let words = ["serve", "--blk-file", "a.img", "--socket-path", "a.sock", "--control", "control"]
    let server = try Program(words.map { $0.hasPrefix("--") || $0 == "serve" ? $0 : "\(directory)/\($0)" } + more)
    try #require(server.firstLine().hasPrefix("Serving "))
    return server
  }

  private static func client(_ directory: String, _ features: FeatureSet) throws -> BlockClient {
    let transport = try VhostUserTransport(path: directory + "/a.sock", memory: DriverMemory(size: 8 << 20))
    return try BlockClient(transport, options: DriverOptions(features: features, queues: 1, queueSize: 64))
  }

  private static let everything = BlockFeature.understood.union(BlockFeature.onRequest)

  struct Case: Sendable, CustomTestStringConvertible {
    var words: [String]
    /// Features missing from the default offer, and features added to it.
    var without: FeatureSet = []
    var with: FeatureSet = []
    var testDescription: String { words.joined(separator: " ") }
  }

  static let cases: [Case] = [
    Case(words: []),
    Case(words: ["--no-feature", "ring_packed"], without: .packedRing),
    Case(
      words: ["--no-feature", "packed,VIRTIO_F_INDIRECT_DESC,Ring-Event-Idx"],
      without: [.packedRing, .indirectDescriptors, .eventIndex]),
    Case(
      words: ["--no-feature", "flush", "--no-feature", "config_wce,write_zeroes"],
      without: [BlockFeature.flush, BlockFeature.configWCE, BlockFeature.writeZeroes]),
    Case(
      words: ["--no-feature", "discard,mq,topology,blk_size,size_max,seg_max,geometry"],
      without: [
        BlockFeature.discard, BlockFeature.multiQueue, BlockFeature.topology, BlockFeature.blockSize, BlockFeature.sizeMax,
        BlockFeature.segMax, BlockFeature.geometry,
      ]),
    Case(words: ["--features", "default,in_order,ring_reset"], with: [.inOrder, .ringReset]),
    Case(
      words: ["--features", "all"], with: [.inOrder, .ringReset, .orderPlatform, .accessPlatform, BlockFeature.secureErase]),
    Case(
      words: ["--features", "all", "--no-feature", "in_order,secure_erase"],
      with: [.ringReset, .orderPlatform, .accessPlatform]),
  ]

  @Test("what is offered", arguments: cases) func offer(_ one: Case) throws {
    try withDirectory { directory in
      let before = try Self.serve(directory, [])
      let usual = try Self.client(directory, .version1)
      let offered = usual.session.offered
      try usual.shutDown()
      before.process.terminate()
      _ = before.finish()
      let server = try Self.serve(directory, one.words)
      let client = try Self.client(directory, Self.everything)
      #expect(client.session.offered == offered.subtracting(one.without).union(one.with))
      #expect(client.session.features == client.session.offered.intersection(Self.everything))
      // Without a feature its fields are zero (virtio 5.2.4).
      let bytes = try client.session.transport.readConfiguration(at: 0, count: 60)
      for (feature, fields) in Self.fields where one.without.contains(feature) {
        #expect(bytes[fields].allSatisfy { $0 == 0 }, "\(feature)")
      }
      let data = [UInt8](repeating: 6, count: 1024)
      #expect(try client.perform(.write(sector: 4, data)).status == .ok)
      #expect(try client.perform(.read(sector: 4, bytes: 1024)).answer == data)
      if one.without.contains(BlockFeature.discard) {
        #expect(try client.perform(.discard([BlockRange(sector: 0, sectors: 8)])).status == .unsupported)
      }
      try client.shutDown()
      server.process.terminate()
      #expect(server.finish().status == 0)
    }
  }

  static let fields: [(FeatureSet, Range<Int>)] = [
    (BlockFeature.sizeMax, 8..<12), (BlockFeature.segMax, 12..<16), (BlockFeature.geometry, 16..<20),
    (BlockFeature.blockSize, 20..<24), (BlockFeature.topology, 24..<32), (BlockFeature.configWCE, 32..<33),
    (BlockFeature.multiQueue, 34..<36), (BlockFeature.discard, 36..<48), (BlockFeature.writeZeroes, 48..<57),
  ]

  @Test("only named and mandatory features") func only() throws {
    try withDirectory { directory in
      let server = try Self.serve(directory, ["--features", "flush,event_idx"])
      let client = try Self.client(directory, Self.everything)
      #expect(client.session.offered == [BlockFeature.flush, .eventIndex, .version1])
      #expect(try client.perform(.flush).status == .ok)
      try client.shutDown()
      server.process.terminate()
      #expect(server.finish().status == 0)
    }
  }

  @Test("features of the protocol") func protocolFeatures() throws {
    try withDirectory { directory in
      let server = try Self.serve(directory, ["--no-feature", "inflight_shmfd,log_shmfd,reset_device,status"])
      let frontend = try Frontend(connectingTo: directory + "/a.sock", patience: Patience.limit)
      let offer = try frontend.handshake()
      #expect(offer.protocolFeatures == ProtocolFeatures.served.subtracting([.inflight, .sharedLog, .resetDevice, .status]))
      #expect(!offer.keepsLog)
      server.process.terminate()
      #expect(server.finish().status == 0)
    }
  }

  static let mistakes: [(words: [String], sentence: String)] = [
    (["--no-feature", "ring_paked"], "there is no feature 'ring_paked'; did you mean 'ring_packed'?"),
    (["--features", "flush,"], "there is no feature ''"),
    (["--no-feature", "version_1"], "VERSION_1 cannot be switched off"),
    (["--no-feature", "default"], "'default' is for --features"),
    (["--features", "zoned"], "ZONED cannot be offered"),
    (["--features", "default,notification_data"], "NOTIFICATION_DATA cannot be offered"),
    (["--read-only", "--no-feature", "ro"], "RO cannot be switched off: the image is read-only"),
    (["--logical-block-size", "4096", "--no-feature", "blk_size"], "its blocks are larger than 512 bytes"),
  ]

  @Test("mistakes are reported in one sentence", arguments: mistakes.indices) func mistake(_ index: Int) throws {
    let (words, sentence) = Self.mistakes[index]
    try withDirectory { directory in
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/a.img"))
      let end = try Program(
        ["serve", "--blk-file", directory + "/a.img", "--socket-path", directory + "/a.sock"] + words
      ).finish()
      #expect(end.status != 0 && end.errors.contains(sentence), "\(end.errors)")
      // The same in a list of disks.
      guard words.count == 2 else { return }
      let paths = #""blk-file": "\#(directory)/a.img", "socket-path": "\#(directory)/a.sock""#
      let entry = #"[{\#(paths), "\#(words[0].dropFirst(2))": "\#(words[1])"}]"#
      try Data(entry.utf8).write(to: URL(fileURLWithPath: directory + "/list"))
      let listed = try Program(["serve", "--disks", directory + "/list"]).finish()
      #expect(listed.status != 0 && listed.errors.contains(sentence), "\(listed.errors)")
      #expect(listed.errors.contains("entry 1"), "\(listed.errors)")
    }
  }

  @Test("what a driver chose is shown everywhere") func shown() throws {
    try withDirectory { directory in
      let server = try Self.serve(directory, ["--no-feature", "write_zeroes"])
      let client = try Self.client(directory, [.version1, BlockFeature.flush, .packedRing, .eventIndex])
      #expect(try client.perform(.flush).status == .ok)
      let status = try Program(["ctl", "status", "a.sock", "--control", directory + "/control"]).finish()
      #expect(status.output.contains("chosen      FLUSH RING_EVENT_IDX VERSION_1 RING_PACKED"), "\(status)")
      #expect(!status.output.contains("WRITE_ZEROES"), "\(status)")
      let metrics = try Program(["ctl", "metrics", "a.sock", "--control", directory + "/control"]).finish().output
      let name = #"vmm_blk_feature{disk="\#(directory)/a.sock",feature="#
      #expect(metrics.contains(name + #""RING_PACKED"} 1"#), "\(metrics)")
      #expect(metrics.contains(name + #""DISCARD"} 0"#) && !metrics.contains(#"feature="WRITE_ZEROES""#), "\(metrics)")
      try client.shutDown()
      server.process.terminate()
      let end = server.finish()
      #expect(end.status == 0)
      let line = "the driver chose FLUSH RING_EVENT_IDX VERSION_1 RING_PACKED; of the protocol: MQ"
      #expect(end.errors.contains(line), "\(end.errors)")
    }
  }

  /// NOTIF_CONFIG_DATA belongs to the virtio-pci registers rather than to the disk, and was once offered whatever the options
  /// said.
  @Test(
    "features that a memory file's registers offer on their own can be left out as well",
    arguments: [
      ([], true), (["--features", "all"], true), (["--features", "default,notif_config_data"], true),
      (["--features", "flush,notif_config_data"], true), (["--no-feature", "notif_config_data"], false),
      (["--features", "all", "--no-feature", "notif_config_data,flush"], false), (["--features", "flush"], false),
    ])
  func ofRegisters(_ words: [String], _ isOffered: Bool) throws {
    try withDirectory { directory in
      let (image, memory) = (directory + "/disk", directory + "/guest.mem")
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: image))
      let device = try Program(
        ["run", "--memory", memory, "--create", "8M", "--registers", "pci", "--blk-file", image, "--sandbox", "off"] + words)
      try #require(device.firstLine().contains("Serving"))
      let info = try Program(["guest", "--memory", memory, "info"]).finish()
      #expect(info.status == 0 && info.output.contains("NOTIF_CONFIG_DATA") == isOffered, "\(info.output)\(info.errors)")
      device.process.terminate()
      #expect(device.finish().status == 0)
    }
  }

  @Test("guest info shows what was negotiated, and a driver can leave features out as well") func guestInfo() throws {
    try withDirectory { directory in
      let server = try Self.serve(directory, ["--features", "default,in_order"])
      func info(_ words: String...) throws -> [String: Bool] {
        let end = try Program(["guest", "--socket-path", directory + "/a.sock"] + words + ["info", "--json"]).finish()
        try #require(end.status == 0, "\(end.errors)")
        let report = try #require(try JSONSerialization.jsonObject(with: Data(end.output.utf8)) as? [String: Any])
        let features = try #require(report["features"] as? [[String: Any]])
        return Dictionary(
          uniqueKeysWithValues: features.map { ($0["name"] as? String ?? "", $0["accepted"] as? Bool ?? false) })
      }
      #expect(try info()["IN_ORDER"] == false)
      #expect(try info("--features", "default,in_order")["IN_ORDER"] == true)
      let few = try info("--features", "all", "--no-feature", "in_order,flush")
      #expect(few["IN_ORDER"] == false && few["FLUSH"] == false && few["RING_PACKED"] == true)
      #expect(Set(few.filter(\.value).keys).isSuperset(of: ["MQ", "VERSION_1", "RING_EVENT_IDX"]))
      let other = try Program(["guest", "--socket-path", directory + "/a.sock", "--features", "sr_iov", "info"]).finish()
      #expect(other.status != 0 && other.errors.contains("this driver does not know SR_IOV"), "\(other.errors)")
      server.process.terminate()
      #expect(server.finish().status == 0)
    }
  }
}
