/// The location of a qcow2 image, and the other files that may be opened for it: always what the user said, never what an image
/// says.
internal import VirtioCore

/// The format of a file in a chain. It is never guessed from the contents.
public enum ImageFormat: String, CaseIterable, Sendable, Hashable {
  /// The disk's bytes, unchanged.
  case raw
  /// A qcow2 image, of version 2 or 3.
  case qcow2
}

/// `qcow2:PATH`, and after a `?`, separated by `&`: `backing=FORMAT:PATH` for each image below the previous one,
/// `backing-folder=PATH`, `data-file=PATH`, `snapshot=NAME`.
public struct Qcow2Location: Sendable, Hashable {
  /// The most images in a chain, the topmost included.
  public static let depth = 64

  /// An image below another one.
  public struct Backing: Sendable, Hashable {
    /// Its format, according to the user.
    public var format: ImageFormat
    /// Its path.
    public var path: String
  }

  /// The topmost image.
  public var path: String
  /// From the top down.
  public var backing: [Backing] = []
  /// A folder below which there may be files that images name.
  public var folder: String?
  /// The external data file of the topmost image, if it has one.
  public var dataFile: String?
  /// An internal snapshot that is the disk; `nil`: the active disk.
  public var snapshot: String?

  /// An image without a backing file. - Parameter path: of the image, literally.
  public init(path: String) { self.path = path }

  private static let scheme = "qcow2:"

  /// - Parameter text: starts with `qcow2:`.
  /// - Throws: `badName`.
  public init(_ text: String) throws(Qcow2Failure) {
    func wrong(_ reason: String) -> Qcow2Failure { .badName(text, reason) }
    guard text.lowercased().hasPrefix(Self.scheme) else { throw wrong("it does not begin with 'qcow2:'") }
    let parts = text.dropFirst(Self.scheme.count).split(separator: "?", maxSplits: 1, omittingEmptySubsequences: false)
    guard let path = PercentText.decoded(parts[0]), !path.isEmpty else { throw wrong("it names no path") }
    self.path = path
    guard parts.count == 2 else { return }
    for word in parts[1].split(separator: "&", omittingEmptySubsequences: false) {
      let sides = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      guard sides.count == 2, let value = PercentText.decoded(sides[1]), !value.isEmpty else {
        throw wrong("'\(sides[0])' needs a value, as in snapshot=NAME")
      }
      func once(_ place: inout String?) throws(Qcow2Failure) {
        guard place == nil else { throw wrong("'\(sides[0])' is given twice") }
        place = value
      }
      switch sides[0] {
      case "backing":
        let colon = value.firstIndex(of: ":") ?? value.startIndex
        guard let format = ImageFormat(rawValue: String(value[..<colon])), value.index(after: colon) < value.endIndex else {
          throw wrong("'backing' needs a format before the path, as in backing=raw:PATH or backing=qcow2:PATH")
        }
        backing.append(Backing(format: format, path: String(value[value.index(after: colon)...])))
      case "backing-folder": try once(&folder)
      case "data-file": try once(&dataFile)
      case "snapshot": try once(&snapshot)
      default: throw wrong("'\(sides[0])' is not known: use backing, backing-folder, data-file or snapshot")
      }
    }
  }

  /// The text that `init` takes.
  public var text: String {
    var words = backing.map { "backing=\($0.format.rawValue):" + PercentText.encoded($0.path) }
    if let folder { words.append("backing-folder=" + PercentText.encoded(folder)) }
    if let dataFile { words.append("data-file=" + PercentText.encoded(dataFile)) }
    if let snapshot { words.append("snapshot=" + PercentText.encoded(snapshot)) }
    return Self.scheme + PercentText.encoded(path) + (words.isEmpty ? "" : "?" + words.joined(separator: "&"))
  }

  /// The same with every path changed.
  public func mapPaths(_ change: (String) -> String) -> Qcow2Location {
    var location = self
    location.path = change(path)
    location.backing = backing.map { Backing(format: $0.format, path: change($0.path)) }
    location.folder = folder.map(change)
    location.dataFile = dataFile.map(change)
    return location
  }

  /// All files that are named.
  public var paths: [String] { [path] + backing.map(\.path) + (dataFile.map { [$0] } ?? []) }

  /// How many files may be open besides those that the user named: backing files and data files that images name.
  public var unnamedFiles: Int { folder == nil ? 0 : max(0, 2 * Self.depth - paths.count) }
}

/// `%XX` in a URI.
enum PercentText {
  /// - Returns: `nil` if it is not text, or contains a NUL.
  static func decoded(_ text: Substring) -> String? {
    var bytes: [UInt8] = []
    var rest = text.utf8[...]
    while let byte = rest.popFirst() {
      guard byte == UInt8(ascii: "%") else {
        guard byte != 0 else { return nil }
        bytes.append(byte)
        continue
      }
      let digits = rest.prefix(2)
      guard digits.count == 2, let value = UInt8(String(decoding: digits, as: UTF8.self), radix: 16), value != 0 else {
        return nil
      }
      bytes.append(value)
      rest = rest.dropFirst(2)
    }
    return String(validating: bytes, as: UTF8.self)
  }

  /// Escapes the characters that have a special meaning.
  static func encoded(_ text: String) -> String {
    var result = ""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "%": result += "%25"
      case "?": result += "%3f"
      case "&": result += "%26"
      default: result.unicodeScalars.append(scalar)
      }
    }
    return result
  }
}
