/// Bytes on the command line of a guest's verb: as text, in hexadecimal, or one byte repeated.
internal import ArgumentParser
internal import OperatorWords

struct BytesToWrite: ParsableArguments {
  @Option(help: .init("The bytes as text.", valueName: "text")) var text: String?
  @Option(help: .init("The bytes in hexadecimal.", valueName: "digits")) var hex: HexBytes?
  @Option(help: .init("One byte, repeated --length times.", valueName: "byte")) var fill: ByteCount?
  @Option(help: .init("How many bytes --fill stands for.", valueName: "bytes")) var length: ByteCount?

  func validate() throws {
    guard [text != nil, hex != nil, fill != nil].filter({ $0 }).count == 1 else {
      throw ValidationError("Say what to write with one of --text, --hex and --fill.")
    }
    guard (fill == nil) == (length == nil) else { throw ValidationError("--fill and --length go together.") }
    if let fill, fill.bytes > 255 { throw ValidationError("--fill \(fill.bytes) is not a byte.") }
  }

  /// The bytes, generated as they are needed: `--length` may exceed memory.
  var source: Source {
    if let fill, let length { return Source(count: length.bytes, byte: UInt8(truncatingIfNeeded: fill.bytes)) }
    return Source(hex?.bytes ?? Array((text ?? "").utf8))
  }

  struct Source {
    let count: UInt64
    private let bytes: [UInt8]
    private let byte: UInt8

    init(_ bytes: [UInt8]) { (count, self.bytes, byte) = (UInt64(bytes.count), bytes, 0) }
    init(count: UInt64, byte: UInt8) { (self.count, bytes, self.byte) = (count, [], byte) }

    /// A part of the bytes, within `count`.
    func part(from start: UInt64, count: Int) -> [UInt8] {
      bytes.isEmpty ? Array(repeating: byte, count: count) : Array(bytes[Int(start)..<Int(start) + count])
    }
  }
}
