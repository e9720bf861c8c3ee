/// Metrics as Prometheus and OpenMetrics collectors read them: the text exposition format, version 0.0.4.

/// One page of metrics. Families come in the order in which they are begun, and all samples of one stand together.
public struct Exposition: Sendable {
  public enum Kind: String, Sendable {
    /// Only grows while the process lives.
    case counter
    case gauge
    case histogram
  }

  /// Names and values that tell samples of one family apart. Any text will do as a value.
  public typealias Labels = [(name: String, value: String)]

  public private(set) var bytes: [UInt8] = []
  private var family = ""

  public init() {}

  /// The content type of the page.
  public static let contentType = "text/plain; version=0.0.4; charset=utf-8"

  /// Begins a family: its samples follow.
  ///
  /// - Parameters:
  ///   - name: letters, digits and underscores; with the unit at its end, and `_total` for a counter.
  ///   - help: one line.
  public mutating func begin(_ name: String, _ kind: Kind, _ help: String) {
    precondition(Self.isName(name), "a family's name is made of letters, digits and underscores: \(name)")
    family = name
    append("# HELP \(name) \(Self.escaped(help, quotes: false))\n# TYPE \(name) \(kind.rawValue)\n")
  }

  /// A sample of the family that was begun last.
  public mutating func sample(_ labels: Labels = [], _ value: Double) { line("", labels, Self.text(value)) }
  public mutating func sample(_ labels: Labels = [], _ value: UInt64) { line("", labels, "\(value)") }
  public mutating func sample(_ labels: Labels = [], _ value: Bool) { line("", labels, value ? "1" : "0") }

  /// A histogram of the family that was begun last.
  ///
  /// - Parameters:
  ///   - buckets: how many values were at most `bound`, in ascending order of the bound; the bucket without a bound is added.
  ///   - sum: the sum of all values.
  ///   - count: the number of values.
  public mutating func histogram(_ labels: Labels, buckets: [(bound: Double, count: UInt64)], sum: Double, count: UInt64) {
    for bucket in buckets { line("_bucket", labels + [("le", Self.text(bucket.bound))], "\(bucket.count)") }
    line("_bucket", labels + [("le", "+Inf")], "\(count)")
    line("_sum", labels, Self.text(sum))
    line("_count", labels, "\(count)")
  }

  private mutating func line(_ suffix: String, _ labels: Labels, _ value: String) {
    let inside = labels.map { "\($0.name)=\"\(Self.escaped($0.value, quotes: true))\"" }.joined(separator: ",")
    append(family + suffix + (labels.isEmpty ? "" : "{\(inside)}") + " " + value + "\n")
  }

  private mutating func append(_ text: String) { bytes += Array(text.utf8) }

  /// Whole numbers without a point.
  private static func text(_ value: Double) -> String {
    if value == value.rounded(), abs(value) < 1e15 { return "\(Int64(value))" }
    return "\(value)"
  }

  /// Escapes a backslash, a newline and, in a label, a quotation mark. Other control characters have no escape and are left
  /// out.
  private static func escaped(_ text: String, quotes: Bool) -> String {
    var escaped = ""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\\": escaped += "\\\\"
      case "\n": escaped += "\\n"
      case "\"" where quotes: escaped += "\\\""
      default: if scalar.value >= 32, scalar.value != 127 { escaped.unicodeScalars.append(scalar) }
      }
    }
    return escaped
  }

  private static func isName(_ name: String) -> Bool {
    !name.isEmpty && name.utf8.allSatisfy { (97...122).contains($0) || (48...57).contains($0) || $0 == 95 }
  }
}
