/// What the verifier writes: sectors that identify themselves and the write that they come from, so that a message can say what
/// a wrong one is.
internal import Glibc

struct SectorPattern: Sendable {
  static let bytes = 512
  private static let stampBytes = 24
  private static let body = bytes - stampBytes

  let seed: UInt64
  private let noise: [UInt8]

  init(seed: UInt64) {
    self.seed = seed
    var random = SeededRandom(seed: seed)
    noise = (0..<8192).flatMap { _ in random.next().littleEndianBytes }
  }

  /// The content of a sector after write number `write`.
  func fill(_ place: UnsafeMutableRawPointer, sector: UInt64, write: UInt32) {
    unsafe place.storeBytes(of: sector.littleEndian, as: UInt64.self)
    unsafe place.storeBytes(of: UInt64(write).littleEndian, toByteOffset: 8, as: UInt64.self)
    unsafe place.storeBytes(of: seed.littleEndian, toByteOffset: 16, as: UInt64.self)
    let start = Int(SeededRandom.mix(sector ^ UInt64(write) << 40 ^ seed) % UInt64(noise.count - Self.body))
    unsafe noise.withUnsafeBytes { bytes in
      guard let base = bytes.baseAddress else { return }
      unsafe (place + Self.stampBytes).copyMemory(from: base + start, byteCount: Self.body)
    }
  }

  /// The payload of one write.
  func payload(sectors: Range<UInt64>, write: UInt32) -> [UInt8] {
    unsafe [UInt8](unsafeUninitializedCapacity: sectors.count * Self.bytes) { buffer, count in
      for (place, sector) in sectors.enumerated() {
        guard let base = UnsafeMutableRawPointer(buffer.baseAddress) else { continue }
        unsafe fill(base + place * Self.bytes, sector: sector, write: write)
      }
      count = sectors.count * Self.bytes
    }
  }

  /// What a sector's bytes look like, in words.
  func describe(_ bytes: ArraySlice<UInt8>) -> String {
    func word(_ offset: Int) -> UInt64 {
      bytes.dropFirst(offset).prefix(8).reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }
    if bytes.allSatisfy({ $0 == 0 }) { return "zeroes" }
    if word(16) == seed, let write = UInt32(exactly: word(8)) {
      let whole = payload(sectors: word(0)..<word(0) &+ 1, write: write)
      let state = whole == Array(bytes) ? "" : ", damaged"
      return "what write \(write) put into sector \(word(0))\(state)"
    }
    return "nothing that this run wrote"
  }
}
