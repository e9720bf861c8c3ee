/// What people and programs write: sizes, fault rules, addresses, lines of a control socket.
internal import CLinux
internal import Glibc
internal import VirtioCore

@testable internal import Control
@testable internal import MetricsExport
@testable internal import VirtioBlkDevice

func attackTexts(_ shaper: inout Shaper) {
  switch shaper.choice(5) {
  case 0:
    attackSize(words(&shaper, ["4096", "0x1000", "2.5", "1", "MiB", "GB", "k", "s", "b", " ", ".", "18446744073709551615"]))
  case 1:
    _ = FaultRule(
      words(
        &shaper, ["write", "read", "flush", ":", "eio", "enospc", "short", "delay", "rate=0.01", "count=1", "=", "after=", "0"])
    )
  case 2: _ = MetricsAddress(words(&shaper, ["9100", "127.0.0.1", ":", "[", "::1", "]", "/run/x", "65536", "-1"]))
  case 3: attackLine(&shaper)
  default: attackReader(&shaper)
  }
}

/// A size that is printed and parsed again is the same number.
private func attackSize(_ text: String) {
  guard let bytes = ByteSize.parse(text) else { return }
  check(ByteSize.parse(ByteSize.typed(bytes)) == bytes, "\(bytes) is typed as \(ByteSize.typed(bytes))")
  check(!ByteSize.describe(bytes).isEmpty, "a size without a description")
}

private struct Body: Codable, Equatable {
  var request: String
  var disk: String?
  var number: UInt64?
  var list: [Int]?
}

/// A JSON object, or nearly one.
private func json(_ shaper: inout Shaper) -> [UInt8] {
  let words = [
    "{\"request\":\"list\"", ",\"disk\":\"/a\"", ",\"number\":1", ",\"list\":[1,2]", ",\"descriptors\":1", "}", "[", "]", "{",
    ",",
    ":", "\"", "\\u0000", "1e999", "-1", "null", "true", "18446744073709551616", " ", "\"descriptors\":",
  ]
  var bytes: [UInt8] = []
  var pieces = 0
  while !shaper.isOver, pieces < 256 {
    pieces += 1
    if shaper.mistake() { bytes += shaper.bytes(upTo: 64) } else { bytes += shaper.pick(words).utf8 }
  }
  return bytes
}

private func attackLine(_ shaper: inout Shaper) {
  let line = ControlLine(text: json(&shaper), descriptors: [])
  _ = try? ControlLine.descriptorCount(in: line.text)
  guard let body = try? line.decode(Body.self) else { return }
  guard let again = try? ControlLine(body).decode(Body.self) else { fail("a line that was written cannot be read") }
  check(again == body, "a line changes when it is encoded and decoded")
}

/// A stream of lines with descriptors, in pieces. No descriptor is leaked.
private func attackReader(_ shaper: inout Shaper) {
  let before = Descriptors.open
  do {
    var ends: [Int32] = [-1, -1]
    guard unsafe socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0 else { return }
    let (ours, theirs) = (OwnedDescriptor(ends[0]), OwnedDescriptor(ends[1]))
    var reader = ControlReader()
    reader.maximumSize = 512
    var pieces = 0
    reading: while !shaper.isOver, pieces < 16 {
      pieces += 1
      var bytes = shaper.mistake() ? shaper.bytes(upTo: 600) : Array("{\"request\":\"list\",\"descriptors\":0}".utf8)
      let count = shaper.choice(4)
      if count > 0, bytes.count > 2, bytes[bytes.count - 2] == 48 { bytes[bytes.count - 2] = 48 + UInt8(count) }
      if shaper.choice(4) != 1 { bytes.append(10) }
      Descriptors.send(theirs.rawValue, bytes, Array(repeating: ends[1], count: count))
      while true {
        guard let progress = try? reader.read(ours.rawValue) else { break reading }
        guard case .line(let line) = progress else { break }
        check(line.descriptors.count <= count + 16, "a line has more descriptors than were sent")
      }
    }
  }
  check(Descriptors.open == before, "descriptors of a control socket were left open")
}
