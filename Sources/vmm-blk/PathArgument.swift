/// Paths as the kernel has them: bytes that need not be UTF-8.
internal import VirtioCore

enum PathArgument {
  private static let option = "--blk-file"

  /// The sentence about the first argument that is not UTF-8 and whose bytes are not kept; `nil` if there is none. Repaired, it
  /// would name another file, which must be neither read nor created.
  ///
  /// - Parameter words: all arguments as they came, the program's name first.
  static func mistake(in words: [[UInt8]]) -> String? {
    for (index, word) in words.enumerated().dropFirst() where String(validating: word, as: UTF8.self) == nil {
      if words[index - 1] == Array(option.utf8) || word.starts(with: Array((option + "=").utf8)) { continue }
      let text = word.map { $0 < 0x80 ? String(UnicodeScalar($0)) : "\\x" + String($0, radix: 16) }.joined()
      return
        "'\(printable(text))' is not UTF-8, and such a name can be used only after \(option): "
        + "rename the file, or use a link to it"
    }
    return nil
  }

  /// The bytes of an option's value on the command line, for `ImageOptions.pathBytes`.
  ///
  /// The parser has strings in which invalid UTF-8 was repaired, so they name another file. The original argument is found by
  /// the option before it.
  ///
  /// - Parameters:
  ///   - option: as in "--blk-file".
  ///   - text: the option's value as the parser has it.
  ///   - words: all arguments as they came.
  /// - Returns: the path with a 0 at its end; `nil` if the text is exact.
  static func bytes(of option: String, _ text: String, in words: [[UInt8]]) -> [CChar]? {
    guard text.unicodeScalars.contains("\u{fffd}") else { return nil }
    let (bare, joined) = (Array(option.utf8), Array((option + "=").utf8))
    var found: [UInt8]? = nil
    for (index, word) in words.enumerated() {
      let value =
        if word == bare, index + 1 < words.count { words[index + 1] } else if word.starts(with: joined) {
          Array(word.dropFirst(joined.count))
        } else { [] as [UInt8] }
      if !value.isEmpty, String(decoding: value, as: UTF8.self) == text { found = value }
    }
    return found.map { $0.map { CChar(bitPattern: $0) } + [0] }
  }
}
