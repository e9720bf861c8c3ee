/// `vmm-blk image` as users run it.
import Foundation
import TestSupport
import Testing

@testable import Qcow2

@Suite struct ImageCommandTests {
  private func run(_ words: [String]) throws -> (status: Int32, output: String, errors: String) {
    try Program(["image"] + words).finish()
  }

  @Test func whatIsMadeIsTold() throws {
    try withDirectory { folder in
      let path = folder + "/image"
      let made = try run(["create", path, "--size", "1G"])
      #expect(made.status == 0 && made.output.contains("1 GiB") && made.output.contains("subclusters of 4 KiB"), "\(made)")
      let info = try run(["info", "--json", path])
      let facts = try #require(try JSONSerialization.jsonObject(with: Data(info.output.utf8)) as? [String: Any])
      #expect(facts["virtual-size"] as? Int == 1 << 30 && facts["cluster-size"] as? Int == 128 << 10)
      let text = try run(["info", path])
      #expect(text.output.contains("virtual size: 1 GiB (1073741824 bytes)") && text.output.contains("extended l2: true"))
      let check = try run(["check", path])
      #expect(check.status == 0 && check.output.contains("No errors were found on the image."), "\(check)")
      if Qemu.isHere { #expect(try Qemu.check(path).status == 0) }
    }
  }

  @Test func anOverlayHasTheSizeOfWhatIsUnderIt() throws {
    try withDirectory { folder in
      #expect(FileManager.default.createFile(atPath: folder + "/base", contents: Data(count: 3 << 20)))
      #expect(
        try run(["create", folder + "/a", "--backing", "base", "--backing-format", "raw", "--extended-l2", "off"]).status == 0)
      #expect(try run(["create", folder + "/b", "--backing", folder + "/a", "--backing-format", "qcow2"]).status == 0)
      let info = try run(["info", folder + "/b"]).output
      #expect(info.contains("(3145728 bytes)") && info.contains("backing file: \(folder)/a") && info.contains("format: qcow2"))
      if Qemu.isHere { #expect(try Qemu.check(folder + "/b").status == 0) }
    }
  }

  @Test(
    arguments: [
      (["create", "DIR/new"], 64, "--size"),
      (["create", "DIR/new", "--size", "1M", "--backing", "DIR/image"], 64, "--backing-format"),
      (["create", "DIR/new", "--size", "1M", "--backing-format", "raw"], 64, "give both"),
      (["create", "DIR/new", "--size", "1M", "--cluster-size", "4k"], 64, "--extended-l2 off"),
      (["create", "DIR/new", "--size", "1M", "--cluster-size", "65537"], 64, "power of two"),
      (["create", "DIR/new", "--size", "1M", "--cluster-size", "4M"], 64, "power of two"),
      (["create", "DIR/new", "--size", "0"], 64, "not possible"),
      (["create", "DIR/new", "--size", "0xffffffffffffffff"], 64, "not possible"),
      (["create", "DIR/new", "--size", "1E"], 66, "larger than is supported"),
      (["create", "DIR/new", "--backing", "DIR/none", "--backing-format", "raw"], 66, "DIR/none"),
      (["create", "DIR/image", "--size", "1M"], 66, "exists already"),
      (["create", "/nowhere/image", "--size", "1M"], 66, "cannot be created"),
      (["info", "DIR/none"], 66, "No such file"), (["info", "DIR"], 64, "neither a regular file"),
      (["info", "DIR/raw"], 66, "does not start with a qcow2 header"), (["check", "DIR/raw"], 66, "does not start"),
    ] as [([String], Int32, String)]) func mistakesAreNamed(words: [String], status: Int32, sentence: String) throws
  {
    try withDirectory { folder in
      #expect(try run(["create", folder + "/image", "--size", "1M"]).status == 0)
      #expect(FileManager.default.createFile(atPath: folder + "/raw", contents: Data(count: 1 << 20)))
      let result = try run(words.map { $0.replacingOccurrences(of: "DIR", with: folder) })
      #expect(result.status == status, "\(result)")
      #expect(result.errors.contains(sentence.replacingOccurrences(of: "DIR", with: folder)), "\(result)")
      #expect(words[0] != "create" || !FileManager.default.fileExists(atPath: folder + "/new"))
    }
  }

  @Test func aChainIsMadeRaw() throws {
    try withDirectory { folder in
      var content = Data(count: 3 << 20)
      for place in stride(from: 5, to: 2 << 20, by: 70_001) { content[place] = UInt8(truncatingIfNeeded: place | 1) }
      try content.write(to: URL(fileURLWithPath: folder + "/base"))
      #expect(try run(["create", folder + "/a", "--backing", "base", "--backing-format", "raw", "--size", "4M"]).status == 0)
      let source = "qcow2:\(folder)/a"
      #expect(try run(["convert", source, folder + "/raw"]).errors.contains("backing-folder"))
      #expect(!FileManager.default.fileExists(atPath: folder + "/raw"))
      // Progress is shown on terminals only.
      let made = try run(["convert", source + "?backing=raw:\(folder)/base", folder + "/raw", "--progress"])
      #expect(made.status == 0 && made.errors.isEmpty, "\(made)")
      #expect(try Data(contentsOf: URL(fileURLWithPath: folder + "/raw")) == content + Data(count: 1 << 20))
      let again = try run(["convert", source + "?backing-folder=\(folder)", folder + "/raw"])
      #expect(again.status == 66 && again.errors.contains("exists already"), "\(again)")
      #expect(try run(["convert", folder + "/a", folder + "/other"]).errors.contains("'qcow2:'"))
    }
  }

  @Test func snapshotsComeAndGo() throws {
    try withDirectory { folder in
      let path = folder + "/image"
      #expect(try run(["create", path, "--size", "1M"]).status == 0)
      #expect(try run(["snapshot", path]).output == "")
      for name in ["first", "the second"] { #expect(try run(["snapshot", "-c", name, path]).status == 0) }
      let list = try run(["snapshot", "-l", path]).output.split(separator: "\n")
      #expect(list.count == 4 && list[0] == "Snapshot list:" && list[1].hasPrefix("ID  TAG"), "\(list)")
      #expect(
        list[2].hasPrefix("1   first") && list[3].hasPrefix("2   the second") && list[3].contains("00:00:00.000"), "\(list)")
      if Qemu.isHere { #expect(try Qemu.image(["snapshot", "-l", path]).contains("the second")) }
      #expect(try run(["snapshot", "-a", "the second", path]).status == 0)
      #expect(try run(["snapshot", "-d", "2", path]).status == 0)
      #expect(!(try run(["info", path]).output.contains("the second")))
      let twice = try run(["snapshot", "-c", "first", path])
      #expect(twice.status == 66 && twice.errors.contains("has a snapshot 'first' already"), "\(twice)")
      #expect(try run(["snapshot", "-c", "a", "-d", "b", path]).errors.contains("one of -l, -c, -a and -d"))
      #expect(try run(["snapshot", "-d", "none", path]).errors.contains("has no snapshot 'none'"))
      #expect(try run(["check", path]).status == 0)
    }
  }

  @Test func anOverlayIsCommittedAndRebased() throws {
    try withDirectory { folder in
      let content = Data((0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 &* 3 + 1) })
      for name in ["base", "other"] {
        #expect(
          FileManager.default.createFile(atPath: folder + "/" + name, contents: name == "base" ? content : Data(count: 1 << 20))
        )
      }
      let path = folder + "/image"
      #expect(try run(["create", path, "-b", "base", "-F", "raw"]).status == 0)
      let uri = "qcow2:\(path)?backing=raw:\(folder)/base"
      #expect(try run(["commit", path]).errors.contains("no file is written merely because an image names it"))
      #expect(try run(["commit", "qcow2:\(path)?backing=raw:\(folder)/other"]).errors.contains("is another file"))
      let done = try run(["commit", "-p", uri])
      #expect(done.status == 0 && done.output == "Image committed.\n" && done.errors.isEmpty, "\(done)")
      #expect(try Data(contentsOf: URL(fileURLWithPath: folder + "/base")) == content)
      // Nothing is guessed.
      #expect(try run(["rebase", "-b", "other", uri]).errors.contains("--backing-format"))
      #expect(try run(["rebase", "-b", "", "-F", "raw", uri]).errors.contains("leave it out"))
      #expect(try run(["rebase", "-b", "none", "-F", "raw", uri]).errors.contains("none"))
      #expect(try run(["rebase", "-b", "other", "-F", "raw", uri]).status == 0)
      #expect(try run(["info", path]).output.contains("backing file: other\nbacking file format: raw"))
      let now = "qcow2:\(path)?backing=raw:\(folder)/other"
      #expect(try run(["convert", now, folder + "/one"]).status == 0)
      #expect(try Data(contentsOf: URL(fileURLWithPath: folder + "/one")) == content)
      #expect(try run(["rebase", "-u", "-b", "base", "-F", "raw", path]).status == 0)
      #expect(try run(["rebase", "-b", "", uri]).status == 0)
      #expect(!(try run(["info", path]).output.contains("backing")))
      #expect(try run(["convert", "qcow2:\(path)", folder + "/two"]).status == 0)
      #expect(try Data(contentsOf: URL(fileURLWithPath: folder + "/two")) == content)
      #expect(try run(["commit", path]).errors.contains("has no backing file"))
      #expect(try run(["snapshot", "-c", "s", path]).status == 0)
      #expect(try run(["rebase", "-b", "base", "-F", "raw", "qcow2:\(path)"]).errors.contains("internal snapshots"))
      #expect(try run(["check", path]).status == 0)
    }
  }

  @Test func theStatusOfACheckIsThatOfQemuImg() throws {
    try withDirectory { folder in
      let path = folder + "/image"
      var sample = try Sample()
      func check() throws -> (status: Int32, output: String, errors: String) {
        try Data(sample.bytes).write(to: URL(fileURLWithPath: path))
        return try run(["check", path])
      }
      #expect(try check().status == 0)
      sample.bytes.put16(1, at: 2 * sample.cluster + 200)
      let leak = try check()
      #expect(
        leak.status == 3 && leak.output.contains("Leaked cluster 100") && leak.output.contains("1 leaked clusters"), "\(leak)")
      sample.bytes.put16(0, at: 2 * sample.cluster)
      let error = try check()
      #expect(error.status == 2 && error.output.contains("ERROR cluster 0 refcount=0 reference=1"), "\(error)")
    }
  }

  /// A name in an image must not control the terminal.
  @Test func namesInAnImageAreShownAsText() throws {
    try withDirectory { folder in
      let path = folder + "/image"
      let sample = try Sample(backing: "a\u{1b}[31m\nb")
      try Data(sample.bytes).write(to: URL(fileURLWithPath: path))
      #expect(try run(["info", path]).output.contains(#"backing file: a\x1b[31m\nb"#))
    }
  }
}
