/// Tables that fit a terminal: what is too wide continues below, with the first column again.
internal import CLinux
internal import Glibc

/// The width of the terminal on standard output; without a terminal there is no limit.
public enum OutputWidth {
  /// Characters in a line; `nil`: no limit.
  public static var characters: Int? {
    var size = winsize()
    guard isatty(STDOUT_FILENO) == 1, unsafe ioctl(STDOUT_FILENO, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0 else {
      return nil
    }
    // No table is readable below that.
    return max(Int(size.ws_col), 40)
  }

  /// The text, with lines that are wider than the terminal broken at words and indented.
  public static func folded(_ text: String) -> String { folded(text, width: characters) }

  /// - Parameter width: characters in a line; `nil`: the text stays as it is.
  static func folded(_ text: String, width: Int?) -> String {
    guard let width else { return text }
    return text.split(separator: "\n", omittingEmptySubsequences: false).map { line in
      guard line.count > width else { return String(line) }
      let indent = String(line.prefix { $0 == " " })
      let lines = words(String(line.dropFirst(indent.count)), width: max(width - indent.count - 2, 20))
      return indent + lines.joined(separator: "\n" + indent + "  ")
    }.joined(separator: "\n")
  }

  /// Lines of whole words; a word that is wider stays whole.
  public static func words(_ text: String, width: Int) -> [String] {
    var lines = [""]
    for word in text.split(separator: " ") {
      let last = lines[lines.count - 1]
      if !last.isEmpty, last.count + word.count + 1 > width {
        lines.append(String(word))
      } else {
        lines[lines.count - 1] = last.isEmpty ? String(word) : last + " " + word
      }
    }
    return lines
  }
}

/// One column: a title over values, one for each row.
struct TableColumn {
  enum Alignment { case left, right }

  var title: String
  var alignment = Alignment.right
  var values: [String]

  var width: Int { ([title] + values).map(\.count).max() ?? 0 }

  func padded(_ text: String) -> String {
    let gap = String(repeating: " ", count: max(width - text.count, 0))
    return alignment == .left ? text + gap : gap + text
  }
}

enum ColumnTable {
  private static let gap = 2

  /// - Parameters:
  ///   - columns: with equally many values each; the first names the rows, and columns without any value are left out.
  ///   - width: characters in a line; `nil`: no limit. A single column that is wider stays whole.
  static func text(_ columns: [TableColumn], width: Int?) -> String {
    guard let names = columns.first else { return "" }
    let rest = columns.dropFirst().filter { column in column.values.contains { !$0.isEmpty } }
    var blocks: [[TableColumn]] = []
    var room = 0
    for column in rest {
      if blocks.isEmpty || width != nil && room < column.width + gap {
        blocks.append([names])
        room = (width ?? 0) - names.width
      }
      blocks[blocks.count - 1].append(column)
      room -= column.width + gap
    }
    if blocks.isEmpty { blocks = [[names]] }
    return blocks.map { lines($0) }.joined(separator: "\n")
  }

  private static func lines(_ columns: [TableColumn]) -> String {
    func line(_ cells: [String]) -> String {
      var text = cells.joined(separator: String(repeating: " ", count: gap))
      while text.last == " " { text.removeLast() }
      return text + "\n"
    }
    var text = line(columns.map { $0.padded($0.title) })
    text += line(columns.map { String(repeating: "-", count: $0.width) })
    for row in columns[0].values.indices { text += line(columns.map { $0.padded($0.values[row]) }) }
    return text
  }
}
