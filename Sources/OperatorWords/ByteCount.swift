/// A number of bytes as users write it: `4096`, `4k`, `1M`, `1GiB`, `10GB`, `0x200`, `8s` for sectors.
internal import ArgumentParser
internal import VirtioCore

package struct ByteCount: ExpressibleByArgument, Hashable {
  package let bytes: UInt64

  package init(_ bytes: UInt64) { self.bytes = bytes }

  package init?(argument: String) {
    guard let bytes = ByteSize.parse(argument) else { return nil }
    self.bytes = bytes
  }

  /// As a user would type it, which is how ArgumentParser shows defaults.
  package var defaultValueDescription: String { ByteSize.typed(bytes) }
}
