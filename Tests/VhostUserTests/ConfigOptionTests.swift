/// `--config`: configuration fields by name, on the command line and in a list; and what a driver sees of them.
import Foundation
import TestSupport
import Testing

@testable import GuestDriver

@Suite struct ConfigOptionTests {
  @Test("a guest sees what was chosen, and 'guest erase' destroys") func chosen() throws {
    try withDirectory { directory in
      try Data(repeating: 7, count: 4 << 20).write(to: URL(fileURLWithPath: directory + "/a.img"))
      let disk = #"""
        [{"blk-file": "\#(directory)/a.img", "socket-path": "\#(directory)/a.sock", "features": "default,secure_erase",
          "config": "seg_max=62,size_max=64k,opt_io_size=256,secure_erase_sector_alignment=8"}]
        """#
      try Data(disk.utf8).write(to: URL(fileURLWithPath: directory + "/list"))
      let server = try Program(["serve", "--disks", directory + "/list"])
      try #require(server.firstLine().hasPrefix("Serving "))
      let info = try Program(["guest", "--socket-path", directory + "/a.sock", "info", "--json"]).finish()
      #expect(info.status == 0, "\(info.errors)")
      let told = try #require(try JSONSerialization.jsonObject(with: Data(info.output.utf8)) as? [String: Any])
      let fields = try #require(told["configuration"] as? [[String: Any]])
      func field(_ name: String) -> Int? { fields.first { $0["name"] as? String == name }?["value"] as? Int }
      #expect(field("seg_max") == 62)
      #expect(field("size_max") == 64 << 10)
      #expect(field("topology.opt_io_size") == 256)
      #expect(field("secure_erase_sector_alignment") == 8)
      #expect(field("max_discard_seg") == 32)
      let erase = try Program(["guest", "--socket-path", directory + "/a.sock", "erase", "4k", "1M"]).finish()
      #expect(erase.status == 0, "\(erase.errors)")
      let odd = try Program(["guest", "--socket-path", directory + "/a.sock", "erase", "512", "4k"]).finish()
      #expect(odd.status != 0 && odd.errors.contains("multiples of 4096 bytes"), "\(odd.errors)")
      server.process.terminate()
      #expect(server.finish().status == 0)
      let bytes = try Data(contentsOf: URL(fileURLWithPath: directory + "/a.img"))
      #expect(bytes[..<4096].allSatisfy { $0 == 7 } && bytes[(4096 + (1 << 20))...].allSatisfy { $0 == 7 })
      #expect(bytes[4096..<(4096 + (1 << 20))].allSatisfy { $0 == 0 })
    }
  }

  static let mistakes: [(words: String, sentence: String)] = [
    ("seg_max=0", "the configuration's seg_max is invalid: use 1 to 126"),
    ("seg_max", "use fields of size_max, seg_max"), ("segmax=5", "use fields of size_max, seg_max"),
    ("seg_max=5,seg_max=6", "each once"), ("seg_max=5,", "each once"), ("opt_io_size=4G", "as in seg_max=62,size_max=64k"),
    ("max_discard_sectors=3G", "use 1 to 2097152"),
  ]

  @Test("an invalid value is reported in one sentence", arguments: mistakes.indices) func mistake(_ index: Int) throws {
    let (words, sentence) = Self.mistakes[index]
    try withDirectory { directory in
      try Data(count: 1 << 20).write(to: URL(fileURLWithPath: directory + "/a.img"))
      let end = try Program(
        ["serve", "--blk-file", directory + "/a.img", "--socket-path", directory + "/a.sock", "--config", words]
      ).finish()
      #expect(end.status != 0 && end.errors.contains(sentence), "\(end.errors)")
    }
  }
}
