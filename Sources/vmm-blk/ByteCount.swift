/// A number of bytes as people write it: `4096`, `4k`, `1M`, `0x200`, `8s` for sectors.
internal import ArgumentParser

struct ByteCount: ExpressibleByArgument, Hashable {
  let bytes: UInt64

  init(_ bytes: UInt64) { self.bytes = bytes }

  init?(argument: String) {
    let units: [Character: UInt64] = ["k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "s": 512, "b": 1]
    let isHex = argument.hasPrefix("0x") || argument.hasPrefix("0X")
    var digits = Substring(argument)
    var unit: UInt64 = 1
    // In hexadecimal a "b" is a digit.
    if let last = digits.last?.lowercased().first, let found = units[last], !(isHex && last == "b") {
      unit = found
      digits.removeLast()
    }
    guard let number = isHex ? UInt64(digits.dropFirst(2), radix: 16) : UInt64(digits) else { return nil }
    let (bytes, overflow) = number.multipliedReportingOverflow(by: unit)
    guard !overflow else { return nil }
    self.bytes = bytes
  }

  /// As it would be typed; ArgumentParser shows defaults so.
  var defaultValueDescription: String {
    for (unit, name) in [(1 << 30, "G"), (1 << 20, "M"), (1 << 10, "k")] as [(UInt64, String)]
    where bytes >= unit && bytes % unit == 0 { return "\(bytes / unit)\(name)" }
    return "\(bytes)"
  }

  /// The number in the largest binary unit that leaves at least one digit before the point.
  static func describe(_ bytes: UInt64) -> String {
    for (unit, name) in [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] as [(UInt64, String)]
    where bytes >= unit {
      let tenths = (bytes / (unit / 10 + 1))
      return bytes % unit == 0 ? "\(bytes / unit) \(name)" : "\(tenths / 10).\(tenths % 10) \(name)"
    }
    return "\(bytes) B"
  }
}
