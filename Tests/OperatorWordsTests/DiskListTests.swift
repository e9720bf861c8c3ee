/// Lists of disks as text: what is accepted, and how mistakes are reported.
import ArgumentParser
import Foundation
import Testing
import VirtioBlkDevice

@testable import OperatorWords

@Suite struct DiskListTests {
  private static func list(_ text: String, mayBeEmpty: Bool = false) throws -> ServeDiskList {
    try ServeDiskList(Data(text.utf8), file: "list", defaults: DeviceOptions.parse([]), mayBeEmpty: mayBeEmpty)
  }

  @Test func anEntrySaysWhatItsDiskIs() throws {
    let list = try Self.list(
      #"""
      [{"blk-file": "/a", "socket-path": "/a.sock", "read-only": true, "num-queues": 4, "logical-block-size": "4k",
        "engine": "io_uring", "pin-cpus": "0-2", "poll-us": 50, "inject": ["write:eio:rate=0.01"], "limit": "iops=5"},
       {"blk-file": "/b", "socket-path": "/b.sock", "waiting": "busy", "format": null, "queues": 3}]
      """#)
    #expect(list.disks.map(\.socketPath) == ["/a.sock", "/b.sock"])
    let (first, second) = (list.disks[0].options, list.disks[1].options)
    #expect((first.blkFile, first.readOnly, first.numQueues, first.logicalBlockSize) == ("/a", true, 4, 4096))
    #expect((first.engine, first.pinCPUs?.processors, first.tuning.pollUs) == (.uring, [0, 1, 2], 50))
    #expect(first.inject.count == 1 && first.limit?.limits.words == "iops=5/1")
    #expect((second.blkFile, second.readOnly, second.tuning.waiting, second.format) == ("/b", false, .busy, .auto))
    // By the option's other name.
    #expect(second.numQueues == 3)
  }

  @Test(
    arguments: [
      ("", .usage, "is not a JSON array"), ("{}", .usage, "has to be an array of objects"), ("[]", .usage, "lists no disk"),
      ("[7]", .usage, "entry 1: it has to be an object"), (#"[{}]"#, .usage, #"entry 1: "blk-file" is missing"#),
      (#"[{"blk-file": "/a", "socket-path": "/a", "blk\u002dfile": "/b"}]"#, .usage, #""blk-file" is given twice"#),
      (
        #"[{"blk-file": "/a", "socket-path": "/a", "num-queues": 2, "queues": 3}]"#, .usage,
        #""num-queues" and "queues" are two"#
      ),
      (#"[{"blk-file": "/a", "socket-path": "/a", "que": 3}]"#, .usage, #"there is no "que""#),
      (#"[{"blk-file": "/a", "socket-path": "/a", "uring": "deferred,plain"}]"#, .usage, "'deferred' or 'plain'"),
      (#"[{"blk-file": "/a", "socket-path": "/a", "serial": "{\"", "serial": ""}]"#, .usage, #""serial" is given twice"#),
      (
        #"[{"blk-file": "/a", "socket-path": "/s"}, {"blk-file": "/b", "socket-path": "/s"}]"#, .usage,
        "has the socket of entry 1"
      ),
      (#"[{"blk-file": "/a\u0000", "socket-path": "/s"}]"#, .usage, "a string without a NUL in it"),
      (
        #"[{"blk-file": "/dev/null", "socket-path": "/s"}, {"blk-file": "/dev/./null", "socket-path": "/t"}]"#, .usage,
        "has the image of entry 1"
      ),
    ] as [(String, OperatorWords.ExitStatus, String)])
  func aMistakeIsOneSentence(text: String, status: OperatorWords.ExitStatus, sentence: String) {
    #expect { try Self.list(text) } throws: { error in
      OperatorWords.ExitStatus(error) == status && "\(error)".contains(sentence) && !"\(error)".contains("\n")
    }
  }

  @Test func aListIsUTF8() throws {
    let text = Data(#"[{"socket-path": "/s", "blk-file": "/"#.utf8) + Data([0xff]) + Data(#""}]"#.utf8)
    #expect { try ServeDiskList(text, file: "list", defaults: DeviceOptions.parse([]), mayBeEmpty: false) } throws: { error in
      "\(error)".contains("it is not UTF-8")
    }
  }

  @Test func aServerThatTakesDisksLaterMayBeginWithNone() throws {
    #expect(try Self.list("[]", mayBeEmpty: true).disks.isEmpty)
  }

  /// Given for all disks of a list, it applies to those with a cluster's lock; given for a disk without one, it is a mistake.
  @Test func aLockIsBrokenWhereOneIsTaken() throws {
    let entries = #"""
      [{"image": "rbd:p/a", "socket-path": "a"}, {"image": "rbd:p/b@s", "read-only": true, "socket-path": "b"},
       {"blk-file": "c", "socket-path": "c"}]
      """#
    let defaults = try DeviceOptions.parse(["--break-lock"])
    let list = try ServeDiskList(Data(entries.utf8), file: "list", defaults: defaults, mayBeEmpty: false)
    #expect(list.disks.map(\.options.breakLock) == [true, false, false])
    let wrong = Data(#"[{"blk-file": "c", "break-lock": true, "socket-path": "c"}]"#.utf8)
    #expect(throws: (any Error).self) { try ServeDiskList(wrong, file: "list", defaults: defaults, mayBeEmpty: false) }
  }

  @Test func whatHasNoEndIsNoList() throws {
    #expect { try ServeDiskList(file: "/dev/zero", defaults: DeviceOptions.parse([]), mayBeEmpty: false) } throws: { error in
      "\(error)".contains("larger than 1 MiB")
    }
  }

  /// The text, the array element that has the key, and the key.
  @Test(
    arguments: [
      ("[]", nil), ("{}", nil), (#"{"a":1,"b":{"a":1},"c":["a","a"]}"#, nil), (#"[{"a":1},{"a":1}]"#, nil),
      (#"["a","a"]"#, nil),
      (#"{"a":"a","b":"a\"","c":"{"}"#, nil), (#"[{"a":1},{"b":1,"b":2}]"#, "1 b"), (#"{"a":[{"b":1},{"c":1,"c":1}]}"#, "0 c"),
      (#"[{"a":1,"\u0061":1}]"#, "0 a"), (#"[{"":1,"":1}]"#, "0 "), (#"[{"a":{"b":[1,2,{}]},"a":1}]"#, "0 a"),
    ] as [(String, String?)])
  func keysThatStandTwice(text: String, found: String?) {
    #expect(JSONKeys.double(in: Data(text.utf8)).map { "\($0.element) \($0.key)" } == found, "\(text)")
  }
}
