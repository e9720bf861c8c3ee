/// How a request is cut into descriptors. The cuts carry no meaning (virtio 2.6.4.1), so a device has to live with each.

/// Where to cut the readable bytes (header, then payload) and the writable bytes (answer, then status).
public struct Framing: Hashable, Sendable {
  /// Ascending offsets, each greater than 0 and less than the number of bytes; others are ignored.
  public var readableCuts: [Int]
  public var writableCuts: [Int]
  /// How the guest addresses of the pieces are aligned, bytes, a power of two.
  public var alignment: Int

  public init(readableCuts: [Int], writableCuts: [Int], alignment: Int = 1) {
    self.readableCuts = readableCuts
    self.writableCuts = writableCuts
    self.alignment = alignment
  }

  /// Header, data and status in separate descriptors, as legacy devices require and Linux does.
  public static func classic(_ request: BlockRequest, alignment: Int = 512) -> Framing {
    Framing(readableCuts: [16], writableCuts: [request.answerBytes], alignment: alignment)
  }

  /// Everything in as few descriptors as possible: header with payload, answer with status.
  public static let merged = Framing(readableCuts: [], writableCuts: [])

  /// The header byte by byte, classic otherwise.
  public static func splitHeader(_ request: BlockRequest) -> Framing {
    Framing(readableCuts: Array(1...16), writableCuts: [request.answerBytes])
  }

  /// Data in `pieces` of about the same size, header and status apart.
  public static func pieces(_ pieces: Int, _ request: BlockRequest) -> Framing {
    let step = { (count: Int) in (1..<max(pieces, 2)).map { $0 * count / pieces } }
    return Framing(
      readableCuts: [16] + step(request.payload.count).map { 16 + $0 },
      writableCuts: step(request.answerBytes) + [request.answerBytes])
  }

  /// A random framing, of up to `limit` descriptors if that is at least 3.
  static func random(_ request: BlockRequest, limit: Int, using random: inout SeededRandom) -> Framing {
    let limit = max(limit, 3)
    switch random.next() % 8 {
    case 0, 1, 2: return classic(request, alignment: random.chance(1, in: 2) ? 4096 : 1)
    case 3: return merged
    case 4 where limit >= 20: return splitHeader(request)
    case 5: return pieces(1 + Int(random.next() % UInt64(limit - 2)), request)
    default:
      func cuts(_ bytes: Int) -> [Int] {
        let count = Int(random.next() % UInt64(limit / 2))
        return Set((0..<count).map { _ in Int(random.next() % UInt64(max(bytes, 1))) }).sorted()
      }
      return Framing(readableCuts: cuts(16 + request.payload.count), writableCuts: cuts(request.answerBytes + 1))
    }
  }

  /// The lengths of the pieces that `count` bytes are cut into.
  static func lengths(_ cuts: [Int], of count: Int) -> [Int] {
    var lengths: [Int] = []
    var start = 0
    for cut in cuts where cut > start && cut < count {
      lengths.append(cut - start)
      start = cut
    }
    lengths.append(count - start)
    return lengths
  }
}
