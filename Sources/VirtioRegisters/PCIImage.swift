/// The saved state of a PCI function beyond that of every device. The offsets are part of the memory file's format
/// (Docs/memory-file.md).

/// Bytes of the configuration space, vectors, and the MSI-X table: as trustworthy as a driver, and restored by writing them.
public struct PCIImage: Hashable, Sendable {
  /// The configuration space as a driver reads it; 256 bytes, or none if no driver has used the function.
  public var configuration: [UInt8] = []
  /// `config_msix_vector`.
  public var configurationVector: UInt16 = 0xffff
  /// `config_generation`.
  public var generation: UInt8 = 0
  /// `queue_msix_vector` of each queue.
  public var queueVectors: [UInt16] = []
  /// The MSI-X table, four words for each vector: address low, high, data, control.
  public var table: [UInt32] = []

  public init() {}

  private static let vectorsOffset = 0x110

  /// Bytes of an image with room for `queueCount` queues and their vectors.
  static func size(queueCount: Int) -> Int { vectorsOffset + queueCount * 4 + (queueCount + 1) * 16 }

  func encoded(queueCount: Int) -> [UInt8] {
    var bytes = Array(configuration.prefix(PCIConfigurationSpace.size))
    bytes += [UInt8](repeating: 0, count: PCIConfigurationSpace.size - bytes.count)
    bytes.append(word: UInt32(configurationVector))
    bytes.append(word: UInt32(generation))
    bytes.append(word: UInt64(0))
    for index in 0..<queueCount {
      bytes.append(word: UInt32(queueVectors.indices.contains(index) ? queueVectors[index] : 0xffff))
    }
    for word in table.prefix((queueCount + 1) * 4) { bytes.append(word: word) }
    bytes += [UInt8](repeating: 0, count: max(0, Self.size(queueCount: queueCount) - bytes.count))
    return bytes
  }

  /// Decodes an image; one that is too short, or all zero, is that of a function that no driver has used.
  init(decoding slice: ArraySlice<UInt8>, queueCount: Int) {
    let bytes = Array(slice)
    guard bytes.count >= Self.size(queueCount: queueCount), bytes.contains(where: { $0 != 0 }) else { return }
    configuration = Array(bytes.prefix(PCIConfigurationSpace.size))
    configurationVector = UInt16(truncatingIfNeeded: bytes.word(at: 0x100, as: UInt32.self))
    generation = UInt8(truncatingIfNeeded: bytes.word(at: 0x104, as: UInt32.self))
    queueVectors = (0..<queueCount).map {
      UInt16(truncatingIfNeeded: bytes.word(at: Self.vectorsOffset + $0 * 4, as: UInt32.self))
    }
    let tableOffset = Self.vectorsOffset + queueCount * 4
    table = (0..<(queueCount + 1) * 4).map { bytes.word(at: tableOffset + $0 * 4, as: UInt32.self) }
  }
}
