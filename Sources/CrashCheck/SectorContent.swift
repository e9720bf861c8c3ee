/// What one sector holds, as a number: sectors tell which write they come from.

/// The content of a sector of 512 bytes.
struct SectorContent: Hashable, Sendable {
  static let bytes = 512
  private let number: UInt32

  private init(number: UInt32) { self.number = number }

  static let zeroes = SectorContent(number: 0)
  /// Something that this run did not write, or that belongs somewhere else.
  static let foreign = SectorContent(number: 1)
  /// What request number `write` put there.
  static func written(_ write: UInt32) -> SectorContent { SectorContent(number: write + 2) }

  var description: String {
    switch number {
    case 0: "zeroes"
    case 1: "nothing that was ever written there"
    default: "what request \(number - 2) wrote"
    }
  }
}

/// Makes the contents of sectors, and identifies them.
struct SectorStamp: Sendable {
  let seed: UInt64
  private static let words = SectorContent.bytes / 8

  /// The payload of one write. - Parameter write: below 2^32 − 2.
  func payload(_ sectors: Range<Int>, write: UInt32) -> [UInt8] {
    unsafe [UInt8](unsafeUninitializedCapacity: sectors.count * SectorContent.bytes) { buffer, count in
      for (place, sector) in sectors.enumerated() {
        for word in 0..<Self.words {
          unsafe buffer.baseAddress.map {
            unsafe UnsafeMutableRawPointer($0).storeBytes(
              of: self.word(word, sector: sector, write: write), toByteOffset: place * SectorContent.bytes + word * 8,
              as: UInt64.self)
          }
        }
      }
      count = sectors.count * SectorContent.bytes
    }
  }

  private func word(_ word: Int, sector: Int, write: UInt32) -> UInt64 {
    switch word {
    case 0: UInt64(sector).littleEndian
    case 1: UInt64(write).littleEndian
    case 2: seed.littleEndian
    // Different in every word, so that a torn or shifted sector is detected.
    default: ((seed ^ UInt64(sector) << 32 ^ UInt64(write)) &* 0x9e37_79b9_7f4a_7c15 &+ UInt64(word)).littleEndian
    }
  }

  /// What sectors hold. - Parameters:
  ///   - bytes: whole sectors.
  ///   - first: the sector where they are.
  func contents(of bytes: [UInt8], at first: Int) -> [SectorContent] {
    unsafe bytes.withUnsafeBytes { bytes in
      (0..<bytes.count / SectorContent.bytes).map { place in
        func read(_ word: Int) -> UInt64 {
          unsafe bytes.loadUnaligned(fromByteOffset: place * SectorContent.bytes + word * 8, as: UInt64.self)
        }
        guard let write = UInt32(exactly: UInt64(littleEndian: read(1))), read(2) == seed.littleEndian else {
          return (0..<Self.words).allSatisfy { read($0) == 0 } ? .zeroes : .foreign
        }
        let isWhole = (0..<Self.words).allSatisfy { read($0) == word($0, sector: first + place, write: write) }
        return isWhole ? .written(write) : .foreign
      }
    }
  }
}
