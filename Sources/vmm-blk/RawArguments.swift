/// The arguments of the program as bytes, its name first.
enum RawArguments {
  static let words: [[UInt8]] = (0..<Int(CommandLine.argc)).compactMap { index in
    guard let word = unsafe CommandLine.unsafeArgv[index] else { return nil }
    var bytes: [UInt8] = []
    var place = unsafe word
    while unsafe place.pointee != 0 {
      bytes.append(UInt8(bitPattern: unsafe place.pointee))
      unsafe place += 1
    }
    return bytes
  }
}
