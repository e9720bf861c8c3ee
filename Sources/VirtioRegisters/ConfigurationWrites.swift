/// The driver's writes to the configuration space since the last reset.

/// Those of the first 256 bytes that a driver wrote and the device accepted. Enough to restore, in a device that restarts, the
/// state that the driver relies on (a block device's `writeback`, virtio 5.2.5.2), without knowing what the bytes mean.
public struct ConfigurationWrites: Hashable, Sendable {
  /// Bytes of the configuration space that are remembered.
  public static let capacity = 256

  var written = [Bool](repeating: false, count: capacity)
  var bytes = [UInt8](repeating: 0, count: capacity)

  mutating func record(at offset: Int, _ new: [UInt8]) {
    guard offset >= 0, offset <= Self.capacity, new.count <= Self.capacity - offset else { return }
    for (index, byte) in new.enumerated() {
      written[offset + index] = true
      bytes[offset + index] = byte
    }
  }

  /// Each range of bytes written without a gap.
  public var runs: [(offset: Int, bytes: [UInt8])] {
    var runs: [(offset: Int, bytes: [UInt8])] = []
    for index in written.indices where written[index] {
      if let last = runs.last, last.offset + last.bytes.count == index {
        runs[runs.count - 1].bytes.append(bytes[index])
      } else {
        runs.append((index, [bytes[index]]))
      }
    }
    return runs
  }
}
