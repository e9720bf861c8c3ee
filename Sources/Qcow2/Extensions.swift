/// The header extensions: a list of types, lengths and bytes.

/// Where the bitmaps of an image are.
public struct Qcow2Bitmaps: Hashable, Sendable {
  public var count: UInt32
  /// Bytes.
  public var directorySize: UInt64
  public var directoryOffset: UInt64
}

struct Qcow2Extensions {
  enum Kind: UInt32 {
    case end = 0
    case backingFormat = 0xe279_2aca
    case featureNames = 0x6803_f857
    case bitmaps = 0x2385_2875
    case encryption = 0x0537_be77
    case dataFile = 0x4441_5441
  }

  private(set) var backingFormat: String?
  private(set) var dataFileName: [UInt8]?
  private(set) var bitmaps: Qcow2Bitmaps?
  private var features: [(kind: UInt8, bit: UInt8, name: String)] = []

  /// - Parameters:
  ///   - bytes: the beginning of the image, as far as extensions may reach.
  ///   - offset: where they begin.
  init(_ bytes: [UInt8], from offset: Int) throws(Qcow2Fault) {
    var offset = offset
    var seen: Set<UInt32> = []
    // Each step advances by at least eight bytes.
    while offset <= bytes.count - 8 {
      let type = bytes.word32(offset)
      let length = Int(bytes.word32(offset + 4))
      offset += 8
      guard type != 0 else { break }
      guard length <= bytes.count - offset else { throw .extensionTooLong(type: type) }
      if let kind = Kind(rawValue: type) {
        guard seen.insert(type).inserted else { throw .extensionTwice(type: type) }
        try take(kind, Array(bytes[offset..<offset + length]))
      }
      offset += (length + 7) & ~7
    }
  }

  private mutating func take(_ kind: Kind, _ data: [UInt8]) throws(Qcow2Fault) {
    switch kind {
    case .end: break
    case .backingFormat:
      guard data.count < 16, !data.contains(0) else { throw .badExtension(type: kind.rawValue) }
      backingFormat = String(decoding: data, as: UTF8.self)
    case .featureNames:
      for start in stride(from: 0, to: data.count - data.count % 48, by: 48) {
        let name = data[(start + 2)..<(start + 48)].prefix { $0 != 0 }
        features.append((data[start], data[start + 1], String(decoding: name, as: UTF8.self)))
      }
    case .bitmaps:
      guard data.count == 24, data.word32(4) == 0 else { throw .badExtension(type: kind.rawValue) }
      bitmaps = Qcow2Bitmaps(count: data.word32(0), directorySize: data.word64(8), directoryOffset: data.word64(16))
    // The header itself already says that an image is encrypted.
    case .encryption: break
    case .dataFile:
      guard (1...Qcow2Limits.name).contains(data.count), !data.contains(0) else { throw .badExtension(type: kind.rawValue) }
      dataFileName = data
    }
  }

  /// The image's own names of these bits, as far as it has them.
  func names(ofIncompatible bits: UInt64) -> [String] {
    features.filter { $0.kind == 0 && $0.bit < 64 && bits >> UInt64($0.bit) & 1 != 0 && !$0.name.isEmpty }.map(\.name)
  }
}
