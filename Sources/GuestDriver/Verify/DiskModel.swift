/// What each sector of a disk must hold, given the writes that were acknowledged.
internal import Glibc

/// Where the disk and the model differ.
public struct Mismatch: Hashable, Sendable, CustomStringConvertible {
  public let sector: UInt64
  /// The first byte that differs, if both sides are known byte for byte.
  public let difference: Difference?
  /// What each of the two contents is.
  public let expected: String
  public let found: String

  public struct Difference: Hashable, Sendable {
    /// In the sector.
    public let byte: Int
    public let expected: UInt8
    public let found: UInt8
  }

  public var description: String {
    func hex(_ byte: UInt8) -> String { "0x" + (byte < 16 ? "0" : "") + String(byte, radix: 16) }
    var place = "sector \(sector) (disk offset \(sector * 512))"
    if let difference {
      place += ", byte \(difference.byte): expected \(hex(difference.expected)), found \(hex(difference.found))"
    }
    return "\(place); expected \(expected), found \(found)"
  }
}

/// The model of a range of sectors. Overlapping requests are never in flight together (the verifier makes sure of that), so at
/// any moment a sector's content is either known, or known to be unspecified.
struct DiskModel {
  /// What a sector holds.
  enum Content: Hashable {
    /// It was never written; the first read will show its content.
    case unknown
    case learned(UInt64)
    case zeroes
    /// Discarded, or a write to it is in flight.
    case unspecified
    case written(UInt32)
  }

  let sectors: Range<UInt64>
  let pattern: SectorPattern
  // One word for each sector: 0 … 3 are the cases without a number, from `firstWrite` on it is the write's number.
  private var words: [UInt32]
  private var learned: [UInt64: UInt64] = [:]
  private static let firstWrite: UInt32 = 16

  init(sectors: Range<UInt64>, seed: UInt64) {
    self.sectors = sectors
    pattern = SectorPattern(seed: seed)
    words = Array(repeating: 0, count: sectors.count)
  }

  /// How many write numbers fit.
  static let maximumWrites = Int(UInt32.max - firstWrite)

  subscript(sector: UInt64) -> Content {
    get {
      let word = words[Int(sector - sectors.lowerBound)]
      return switch word {
      case 0: .unknown
      case 1: .learned(learned[sector] ?? 0)
      case 2: .zeroes
      case 3: .unspecified
      default: .written(word - Self.firstWrite)
      }
    }
    set {
      let word: UInt32
      switch newValue {
      case .unknown: word = 0
      case .learned(let hash):
        word = 1
        learned[sector] = hash
      case .zeroes: word = 2
      case .unspecified: word = 3
      case .written(let number): word = Self.firstWrite + number
      }
      words[Int(sector - sectors.lowerBound)] = word
    }
  }

  mutating func set(_ range: Range<UInt64>, _ content: Content) { for sector in range { self[sector] = content } }

  /// Compares what was read with what must be there. - Returns: the first difference.
  mutating func check(_ bytes: [UInt8], at first: UInt64) -> Mismatch? {
    for place in 0..<bytes.count / SectorPattern.bytes {
      let sector = first + UInt64(place)
      let start = place * SectorPattern.bytes
      let expected: [UInt8]
      let content: String
      switch self[sector] {
      case .unspecified: continue
      case .unknown:
        self[sector] = .learned(Self.hash(bytes[start..<start + SectorPattern.bytes]))
        continue
      case .learned(let hash):
        let found = bytes[start..<start + SectorPattern.bytes]
        guard Self.hash(found) != hash else { continue }
        return Mismatch(
          sector: sector, difference: nil, expected: "the same bytes as at the first read, since this run wrote nothing there",
          found: pattern.describe(found))
      case .zeroes:
        expected = Self.zeroes
        content = "zeroes"
      case .written(let number):
        expected = pattern.payload(sectors: sector..<sector + 1, write: number)
        content = "what write \(number) put there"
      }
      let found = bytes[start..<start + SectorPattern.bytes]
      guard !Self.same(found, expected) else { continue }
      let difference = zip(found, expected).enumerated().first { $1.0 != $1.1 }
        .map { Mismatch.Difference(byte: $0, expected: $1.1, found: $1.0) }
      return Mismatch(sector: sector, difference: difference, expected: content, found: pattern.describe(found))
    }
    return nil
  }

  private static let zeroes = [UInt8](repeating: 0, count: SectorPattern.bytes)

  private static func same(_ one: ArraySlice<UInt8>, _ other: [UInt8]) -> Bool {
    unsafe one.withUnsafeBytes { one in
      unsafe other.withUnsafeBytes { other in
        guard one.count == other.count, let left = one.baseAddress, let right = other.baseAddress else { return false }
        return unsafe memcmp(left, right, one.count) == 0
      }
    }
  }

  private static func hash(_ bytes: ArraySlice<UInt8>) -> UInt64 {
    unsafe bytes.withUnsafeBytes { raw in
      var hash: UInt64 = 0
      for offset in stride(from: 0, to: raw.count, by: 8) {
        unsafe hash = SeededRandom.mix(hash ^ raw.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
      }
      return hash
    }
  }
}
