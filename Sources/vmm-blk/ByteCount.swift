/// A number of bytes as people write it: `4096`, `4k`, `1M`, `1GiB`, `10GB`, `0x200`, `8s` for sectors.
internal import ArgumentParser
internal import VirtioCore

struct ByteCount: ExpressibleByArgument, Hashable {
  let bytes: UInt64

  init(_ bytes: UInt64) { self.bytes = bytes }

  init?(argument: String) {
    guard let bytes = ByteSize.parse(argument) else { return nil }
    self.bytes = bytes
  }

  /// As it would be typed; ArgumentParser shows defaults so.
  var defaultValueDescription: String { ByteSize.typed(bytes) }
}
