/// Numbers as text for people.

enum Format {
  /// With `digits` digits after the decimal point.
  static func fixed(_ value: Double, _ digits: Int) -> String {
    guard value.isFinite else { return "-" }
    var scale = 1.0
    for _ in 0..<digits { scale *= 10 }
    let scaled = (value.magnitude * scale).rounded()
    guard scaled < 9e15 else { return "\(value)" }
    let whole = UInt64(scaled)
    let sign = value < 0 && whole > 0 ? "-" : ""
    guard digits > 0 else { return sign + "\(whole)" }
    let fraction = String(whole % UInt64(scale))
    return sign + "\(whole / UInt64(scale))." + String(repeating: "0", count: digits - fraction.count) + fraction
  }

  /// Three significant digits and a unit of a thousand: `1.23 M`.
  static func count(_ value: Double) -> String {
    for (limit, unit) in [(1e9, " G"), (1e6, " M"), (1e3, " k")] where value >= limit {
      return significant(value / limit) + unit
    }
    return significant(value)
  }

  /// Three significant digits below 1000.
  static func significant(_ value: Double) -> String {
    switch value.magnitude {
    case 0: "0"
    case ..<1: fixed(value, 3)
    case ..<10: fixed(value, 2)
    case ..<100: fixed(value, 1)
    default: fixed(value, 0)
    }
  }

  /// Without zeros at the end: `99.9`.
  static func significantTail(_ value: Double) -> String {
    var text = fixed(value, 3)
    while text.last == "0" { text.removeLast() }
    if text.last == "." { text.removeLast() }
    return text
  }

  /// Nanoseconds as microseconds.
  static func microseconds(_ nanoseconds: UInt64) -> String { significant(Double(nanoseconds) / 1000) }

  /// What is not known shows as `n/a`.
  static func optional(_ value: Double?) -> String { value.map(significant) ?? "n/a" }
}
