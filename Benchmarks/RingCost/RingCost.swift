/// The cost of the pieces of a request alone: taking and returning chains of several shapes, a lookup in guest memory, a
/// decision to call, a read of the configuration.
///
///     ring-cost [--instructions FILE] nanoseconds for each; FILE has a name and a number per line, for another column
///     ring-cost --count for callgrind: runs every piece a fixed number of times (Scripts/instructions.py)
internal import CLinux
internal import Glibc
internal import Histogram
internal import SystemPackage
internal import TextTable
internal import VirtioBlkDevice
internal import VirtioCore

@main
struct RingCost {
  private static let rounds = 10

  static func main() throws {
    let arguments = Array(CommandLine.arguments.dropFirst())
    let counts = arguments == ["--count"]
    guard counts || arguments.isEmpty || (arguments.count == 2 && arguments[0] == "--instructions") else {
      _ = try? FileDescriptor.standardError.writeAll("usage: ring-cost [--count | --instructions FILE]\n".utf8)
      exit(2)
    }
    // Read first: the file may be a pipe from the script that counts, which must not run during the measurement.
    let instructions = arguments.count == 2 ? try read(arguments[1]) : [:]
    // Away from the first CPU, where devices run and most interrupts arrive.
    _ = clinux_pin_thread(Int32(clamping: sysconf(Int32(_SC_NPROCESSORS_ONLN)) - 1))
    var meter = Meter(counts: counts)
    let image = try scratchImage()
    // All pieces in turn, so that drift affects all of them alike.
    for _ in 0..<(counts ? 1 : rounds) { try measureAll(with: &meter, image: image) }
    if !counts { print(table(meter.rows, instructions), terminator: "") }
  }

  static func measureAll(with meter: inout Meter, image: ImageFile) throws {
    for (descriptors, words) in [(1, "single"), (3, "read"), (8, "read,segments=6"), (34, "read,segments=32")] {
      let batch = descriptors == 34 ? 16 : 64
      try meter.measure(
        "ring: chain of \(descriptors)", RingPiece<SplitQueue>(words + ",ring=1024,batch=\(batch)"))
      try meter.measure(
        "ring: chain of \(descriptors), indirect", RingPiece<SplitQueue>(words + ",ring=1024,batch=\(batch),indirect"))
    }
    for size in [2, 16, 256, 4096, 32768] {
      try meter.measure(
        "ring: chain of 3, indirect, ring of \(size)",
        RingPiece<SplitQueue>("read,indirect,ring=\(size),batch=\(min(size, 64))"))
    }
    for regions in [8, 64, 509] {
      try meter.measure(
        "ring: chain of 3 in one of \(regions) regions", RingPiece<SplitQueue>("read,together,regions=\(regions)"))
      try meter.measure("ring: chain of 3 spread over \(regions) regions", RingPiece<SplitQueue>("read,regions=\(regions)"))
    }
    try meter.measure("ring: chain of 3, published and decided alone", RingPiece<SplitQueue>("read", decides: true))
    try meter.measure(
      "ring: chain of 3, the same without event index", RingPiece<SplitQueue>("read,no-event-index", decides: true))
    try meter.measure("ring: chain of 3, packed", RingPiece<PackedQueue>("read,packed,ring=1024"))
    try meter.measure("ring: chain of 3, packed, indirect", RingPiece<PackedQueue>("read,packed,ring=1024,indirect"))
    try meter.measure("ring: chain of 3, with an in-flight record", RingPiece<RecordedSplitQueue>("read,ring=1024"))
    for regions in [1, 8, 64, 509] {
      let name = "lookup in \(regions) region\(regions == 1 ? "" : "s")"
      try meter.measure(name + ": the same again", LookupPiece(regions: regions, .sameRegion))
      if regions > 1 { try meter.measure(name + ": another", LookupPiece(regions: regions, .otherRegion)) }
      try meter.measure(name + ": none", LookupPiece(regions: regions, .nowhere))
    }
    try meter.measure("configuration space, read whole", ConfigurationPiece(image: image))
    // Another thread handles a request, and no count here would include it; Benchmarks/counts.tsv has its instructions.
    if !meter.counts, sysconf(Int32(_SC_NPROCESSORS_ONLN)) > 1 {
      for words in ["read", "read,indirect", "read,segments=4,ring=512", "write", "flush", "get-id", "unknown"] {
        try meter.measure("request: \(words), batch of 64", RequestPiece(words, image: image))
      }
    }
  }

  static func table(_ rows: [Row], _ instructions: [String: String]) -> String {
    func nanoseconds(_ row: Row, _ percentile: Double) -> String {
      let tenths = (row.times.valueAtPercentile(percentile) + 50) / 100
      return "\(tenths / 10).\(tenths % 10)"
    }
    let table = TextTable<Row> {
      [
        Column(title: "", value: $0.name, align: .left),
        Column(title: "ns, median", value: nanoseconds($0, 50), align: .right),
        Column(title: "p10", value: nanoseconds($0, 10), align: .right),
        Column(title: "p99", value: nanoseconds($0, 99), align: .right),
        Column(title: "instructions", value: instructions[$0.name] ?? "-", align: .right),
      ]
    }
    let text = table.string(for: rows) ?? ""
    return text.hasSuffix("\n") ? text : text + "\n"
  }

  /// Reads lines of a name, a tab and a number.
  static func read(_ path: String) throws -> [String: String] {
    let file = try FileDescriptor.open(FilePath(path), .readOnly)
    defer { try? file.close() }
    var bytes: [UInt8] = []
    while true {
      let more = try unsafe [UInt8](unsafeUninitializedCapacity: 4096) { buffer, count in
        count = unsafe try file.read(into: UnsafeMutableRawBufferPointer(buffer))
      }
      if more.isEmpty { break }
      bytes += more
    }
    var values: [String: String] = [:]
    for line in String(decoding: bytes, as: UTF8.self).split(separator: "\n") {
      let parts = line.split(separator: "\t")
      if parts.count == 2 { values[String(parts[0])] = String(parts[1]) }
    }
    return values
  }

  /// An image that nobody reads; it disappears with the process.
  static func scratchImage() throws -> ImageFile {
    let descriptor = unsafe memfd_create("ring-cost", UInt32(MFD_CLOEXEC))
    guard descriptor >= 0, ftruncate(descriptor, 1 << 20) == 0 else { throw Errno(rawValue: errno) }
    return try ImageFile(ImageOptions(path: "/proc/self/fd/\(descriptor)", isLocked: false))
  }
}
