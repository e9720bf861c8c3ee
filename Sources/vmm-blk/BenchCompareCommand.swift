/// `vmm-blk bench compare`: two saved results side by side.
internal import ArgumentParser
internal import Bench
internal import SystemPackage

struct BenchCompareCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "compare",
    abstract: "Compare two saved results and report whether they differ by more than the noise.",
    discussion: """
      Both are JSON of 'vmm-blk bench --output-format=json --repeats 5' or of fio itself. The ratio is that of the medians; \
      the interval contains the ratio of the means with 95 % confidence. Slow changes of a machine affect the two files \
      differently: if that matters, alternate the measurements, as 'vmm-blk bench --paths' does.
      """)

  @Argument(help: "The baseline.")
  var first: String

  @Argument(help: "The result to compare.")
  var second: String

  func run() throws {
    let comparison = try Comparison(Self.load(first), Self.load(second))
    print(OutputWidth.folded(comparison.table(width: OutputWidth.characters)), terminator: "")
  }

  private static func load(_ path: String) throws -> SavedResult {
    var bytes: [UInt8] = []
    do {
      let file = try FileDescriptor.open(FilePath(path), .readOnly, options: .closeOnExec)
      try file.closeAfter {
        var chunk = [UInt8](repeating: 0, count: 1 << 16)
        while true {
          let count = try unsafe chunk.withUnsafeMutableBytes { unsafe try file.read(into: $0) }
          guard count > 0 else { break }
          bytes += chunk[..<count]
        }
      }
    } catch let error as Errno {
      throw ValidationError("\(path) cannot be read: \(error)")
    }
    return try SavedResult(String(decoding: bytes, as: UTF8.self), name: path)
  }
}
