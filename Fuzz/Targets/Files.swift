/// Files of unknown origin: logs of writes, results of measurements, images of other formats.
internal import CLinux
internal import FoundationEssentials
internal import Glibc

@testable internal import Bench
@testable internal import CrashCheck
@testable internal import VirtioBlkDevice
@testable internal import VirtioCore

func attackFiles(_ shaper: inout Shaper) {
  switch shaper.choice(3) {
  case 1: attackResults(&shaper)
  case 2: attackHead(&shaper)
  default: attackWriteLog(&shaper)
  }
}

/// One file in memory for all runs.
private enum Scrap {
  static let descriptor = OwnedDescriptor(unsafe memfd_create("scrap", UInt32(MFD_CLOEXEC)))
  static let path = "/proc/self/fd/\(descriptor.rawValue)"

  static func fill(_ bytes: [UInt8]) {
    guard ftruncate(descriptor.rawValue, 0) == 0, pwrite(descriptor.rawValue, bytes, bytes.count, 0) == bytes.count else {
      fail("a file in memory cannot be written")
    }
  }
}

// MARK: A log of writes

private func attackWriteLog(_ shaper: inout Shaper) {
  // It stays open for the next run.
  _ = Scrap.path
  let before = Descriptors.open
  readWriteLog(&shaper)
  check(Descriptors.open == before, "descriptors of a log were left open")
}

private func readWriteLog(_ shaper: inout Shaper) {
  let size = shaper.mistake() ? shaper.oddNumber() : 1 << 20
  let unit = shaper.mistake() ? Int(shaper.word16()) : shaper.pick([512, 4096, 1024])
  var words: [(place: Int, word: UInt64)] = [
    (0, shaper.mistake() ? shaper.oddNumber() : 0x6a_7366_7768_7372), (8, shaper.mistake() ? shaper.oddNumber() : 1),
  ]
  let count = shaper.choice(8)
  words.append((16, shaper.mistake() ? shaper.oddNumber() : UInt64(count)))
  words.append((24, UInt64(unit)))
  var place = unit
  for _ in 0..<count {
    let sectors = shaper.mistake() ? shaper.oddNumber() : UInt64(shaper.choice(4))
    let flags = shaper.mistake() ? shaper.oddNumber() : shaper.pick([0, 1, 2, 3, 4, 8])
    words += [
      (place, shaper.mistake() ? shaper.oddNumber() : UInt64(shaper.byte())), (place + 8, sectors), (place + 16, flags),
      (place + 24, 0),
    ]
    place += unit
    if flags & 4 == 0, sectors < 16 { place += Int(sectors) * unit }
  }
  if shaper.mistake() { place -= shaper.choice(256) }
  var bytes = [UInt8](repeating: 0, count: max(place, 0))
  for (place, word) in words where place + 8 <= bytes.count {
    for index in 0..<8 { bytes[place + index] = UInt8(truncatingIfNeeded: word >> (8 * UInt64(index))) }
  }
  Scrap.fill(bytes)
  guard let log = try? WriteLog(path: Scrap.path, size: size) else { return }
  for entry in log.entries {
    check(entry.offset <= size && entry.length <= size - entry.offset, "an entry of a log goes past the end of the disk")
    guard !entry.isFlush, entry.length > 0 else { continue }
    let end = min(entry.length, 8192)
    let data = make { try log.bytes(entry, end / 2..<end) }
    check(data.count == Int(end - end / 2), "\(data.count) bytes of an entry were read instead of \(end - end / 2)")
  }
}

// MARK: Results

private func attackResults(_ shaper: inout Shaper) {
  guard let first = try? SavedResult(result(&shaper), name: "first") else { return }
  guard let second = shaper.flag() ? first : try? SavedResult(result(&shaper), name: "second") else { return }
  guard let comparison = try? Comparison(first, second) else { return }
  check(!comparison.table(width: shaper.flag() ? shaper.choice(200) : nil).isEmpty, "a comparison is empty")
}

/// Jobs in fio's format, or nearly.
private func result(_ shaper: inout Shaper) -> String {
  func number(_ shaper: inout Shaper) -> String {
    shaper.mistake()
      ? shaper.pick(["1e308", "-1", "0", "1e-308", "null", "18446744073709551616", "\"1\"", "-1e308"])
      : "\(1000 + Int(shaper.byte()))"
  }
  let jobs = (0..<shaper.pick([3, 1, 4, 0])).map { _ in
    let direction = { (shaper: inout Shaper) in
      "{\"iops\":\(number(&shaper)),\"clat_ns\":{\"percentile\":{\"50.000000\":\(number(&shaper)),\"99.000000\":\(number(&shaper))}}}"
    }
    let block = shaper.pick(["4k", "4096", "", "1e3", "18446744073709551615"])
    let conditions = shaper.choice(4) == 1 ? ",\"conditions\":{\"kernel\":\"6.1\"}" : ""
    let extra = shaper.flag() ? ",\"vmm-blk\":{\"backend_cpu_us_per_io\":\(number(&shaper))\(conditions)}" : ""
    return
      "{\"jobname\":\"job\",\"job options\":{\"rw\":\"randread\",\"bs\":\"\(block)\",\"iodepth\":\"32\"},"
      + "\"read\":\(direction(&shaper)),\"write\":\(direction(&shaper))\(extra)}"
  }
  var text = Array("{\"jobs\":[\(jobs.joined(separator: ","))]}".utf8)
  for _ in 0..<shaper.choice(3) where shaper.mistake() {
    let place = Int(shaper.word16()) % text.count
    text[place] = shaper.byte()
  }
  tell(String(decoding: text, as: UTF8.self))
  return String(decoding: text, as: UTF8.self)
}

// MARK: The head of an image

private func attackHead(_ shaper: inout Shaper) {
  var bytes = [UInt8](repeating: 0, count: shaper.pick([4096, 0, 100, 512, 513, 1024]))
  let signs: [[UInt8]] = [
    [0x51, 0x46, 0x49, 0xfb], Array("QED\0".utf8), Array("KDMV".utf8), Array("COWD".utf8), [0x7f, 0x10, 0xda, 0xbe],
    Array("vhdxfile".utf8), Array("conectix".utf8), Array("koly".utf8), Array("LUKS".utf8) + [0xba, 0xbe],
  ]
  let sign = shaper.pick(signs)
  let place = shaper.pick([0, 0x40, bytes.count - 512, bytes.count - 4, Int(shaper.byte())])
  if place >= 0 {
    for (index, byte) in sign.enumerated() where place + index < bytes.count { bytes[place + index] = byte }
  }
  // A size that the kernel can report for a file or a device.
  let size = shaper.mistake() ? min(shaper.oddNumber(), UInt64(Int64.max)) : UInt64(bytes.count)
  Scrap.fill(bytes)
  let format = ForeignFormat.of(Scrap.descriptor.rawValue, size: size)
  check(ForeignFormat.of(Scrap.descriptor.rawValue, size: size) == format, "an image is of two formats")
}
