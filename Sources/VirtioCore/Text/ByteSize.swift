/// Sizes in bytes as users write and read them: the only parser and the only formatter.

public enum ByteSize {
  /// Parses a number of bytes.
  ///
  /// `4096`, `0x1000`, `4k`, `1M`, `2G`, `1T`: powers of 1024, in large or small letters, also as `4KiB`, `1MiB`. With a `B`
  /// and no `i` they are powers of 1000, as on the label of a disk: `10GB`. `8s` is eight sectors of 512 bytes, `512b`
  /// and `512B` are bytes. A decimal fraction is accepted if the result is a whole number of bytes: `2.5 MiB`.
  ///
  /// - Returns: `nil` for anything else, and for more than 2⁶⁴ − 1.
  public static func parse(_ text: String) -> UInt64? {
    if text.hasPrefix("0x") || text.hasPrefix("0X") {
      // In hexadecimal, "b" is a digit and not a unit.
      let digits = text.dropFirst(2).prefix { $0.isASCII && $0.isHexDigit }
      let unit = unit(text.dropFirst(2 + digits.count))
      guard let number = UInt64(digits, radix: 16), let unit else { return nil }
      return product(number, unit)
    }
    let digits = text.prefix { $0.isASCII && $0.isNumber }
    var rest = text.dropFirst(digits.count)
    var fraction = Substring()
    if rest.first == "." {
      fraction = rest.dropFirst().prefix { $0.isASCII && $0.isNumber }
      guard (1...15).contains(fraction.count) else { return nil }
      rest = rest.dropFirst(1 + fraction.count)
    }
    if rest.first == " " { rest = rest.dropFirst() }
    guard let number = UInt64(digits), let unit = unit(rest), let whole = product(number, unit) else { return nil }
    guard !fraction.isEmpty, let parts = UInt64(fraction) else { return whole }
    let scale = fraction.reduce(1 as UInt64) { scale, _ in scale * 10 }
    let (high, low) = parts.multipliedFullWidth(by: unit)
    // The fraction is less than one unit, so the quotient fits.
    let (more, remainder) = scale.dividingFullWidth((high, low))
    let (bytes, overflow) = whole.addingReportingOverflow(more)
    return remainder == 0 && !overflow ? bytes : nil
  }

  /// The forms that `parse` accepts, for messages about what it rejects.
  public static let forms = "a number of bytes as in 4096, 0x1000, 4k, 1M, 1GiB, 10GB or 8s (sectors)"

  private static func product(_ number: UInt64, _ unit: UInt64) -> UInt64? {
    let (bytes, overflow) = number.multipliedReportingOverflow(by: unit)
    return overflow ? nil : bytes
  }

  private static func unit(_ text: Substring) -> UInt64? {
    let letters = text.lowercased()
    switch letters {
    case "", "b": return 1
    case "s": return 512
    default: break
    }
    guard let first = letters.first, let power = ["k", "m", "g", "t", "p", "e"].firstIndex(of: first) else { return nil }
    let base: UInt64
    switch letters.dropFirst() {
    case "", "ib": base = 1024
    case "b": base = 1000
    default: return nil
    }
    return (0...power).reduce(1) { unit, _ in unit * base }
  }

  /// The number in the largest binary unit that is not larger than it, with one decimal unless it is a whole number of them:
  /// `512 bytes`, `2.5 MiB`, `1 GiB`.
  public static func describe(_ bytes: UInt64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    guard bytes >= 1024 else { return bytes == 1 ? "1 byte" : "\(bytes) bytes" }
    var power = (63 - bytes.leadingZeroBitCount) / 10
    let unit: UInt64 = 1 << (10 * power)
    guard bytes % unit != 0 else { return "\(bytes / unit) \(units[power - 1])" }
    var tenths = bytes / unit * 10 + (bytes % unit * 10 + unit / 2) / unit
    if tenths == 10240, power < units.count {
      tenths = 10
      power += 1
    }
    return "\(tenths / 10).\(tenths % 10) \(units[power - 1])"
  }

  /// As a user would type it: `512`, `4k`, `1M`; a plain number if it is not a whole number of some unit.
  public static func typed(_ bytes: UInt64) -> String {
    for (shift, letter) in [(40, "T"), (30, "G"), (20, "M"), (10, "k")] as [(UInt64, String)]
    where bytes > 0 && bytes & (1 << shift - 1) == 0 { return "\(bytes >> shift)\(letter)" }
    return "\(bytes)"
  }
}
