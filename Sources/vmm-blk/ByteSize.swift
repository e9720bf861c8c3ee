/// Numbers of bytes as people write them: 4096, 4k, 64M, 1GiB, 0x1000.
internal import ArgumentParser

/// A number of bytes; k, M, G and T mean powers of 1024.
struct ByteSize: ExpressibleByArgument, Hashable, CustomStringConvertible {
  var bytes: UInt64

  init(_ bytes: UInt64) { self.bytes = bytes }

  init?(argument: String) {
    if argument.lowercased().hasPrefix("0x") {
      guard let bytes = UInt64(argument.dropFirst(2), radix: 16) else { return nil }
      self.bytes = bytes
      return
    }
    let digits = argument.prefix { $0.isASCII && $0.isNumber }
    let suffixes: [String: UInt64] = [
      "": 0, "b": 0, "k": 10, "kib": 10, "m": 20, "mib": 20, "g": 30, "gib": 30, "t": 40, "tib": 40,
    ]
    guard let number = UInt64(digits), let shift = suffixes[argument.dropFirst(digits.count).lowercased()] else { return nil }
    let (bytes, overflow) = number.multipliedReportingOverflow(by: 1 << shift)
    guard !overflow else { return nil }
    self.bytes = bytes
  }

  var description: String {
    for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "k")] as [(UInt64, String)]
    where bytes >> shift > 0 && bytes & (1 << shift - 1) == 0 {
      return "\(bytes >> shift)\(unit)"
    }
    return "\(bytes)"
  }
}
