/// Escapes untrusted text for a terminal or a log.

/// The text with everything escaped that would act on a terminal or a log: control characters, line breaks, and marks that
/// change the direction of writing. A file may have any name, and its name must not be able to fake other output.
///
/// - Returns: one line; a newline becomes `\n`, an escape `\x1b`, a line separator `\u{2028}`. Text without such characters is
///   returned unchanged.
public func printable(_ text: String) -> String {
  guard text.unicodeScalars.contains(where: isActive) else { return text }
  var result = ""
  for scalar in text.unicodeScalars {
    switch scalar {
    case "\n": result += "\\n"
    case "\r": result += "\\r"
    case "\t": result += "\\t"
    case _ where !isActive(scalar): result.unicodeScalars.append(scalar)
    case _ where scalar.value < 0x100:
      result += "\\x" + (scalar.value < 0x10 ? "0" : "") + String(scalar.value, radix: 16)
    default: result += "\\u{" + String(scalar.value, radix: 16) + "}"
    }
  }
  return result
}

private func isActive(_ scalar: Unicode.Scalar) -> Bool {
  switch scalar.value {
  case 0..<0x20, 0x7f..<0xa0: true  // C0, DEL, C1
  case 0x200e, 0x200f, 0x061c: true  // marks of direction
  case 0x2028...0x202e, 0x2066...0x2069: true  // separators, embeddings, overrides, isolates
  default: false
  }
}
