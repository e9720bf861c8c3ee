/// Handing a long batch over in parts, so that the medium does not wait until all of it is prepared.

/// When a batch that is being prepared is handed over. A disk that went idle with the completions of the last batch gets the
/// first few operations after a microsecond or so, and each part is twice as long as the previous one: the calls stay few.
struct BatchParts {
  private let first: Int
  private let grows: Bool
  private var part: Int

  /// - Parameter isSlow: the medium works while operations are being prepared; memory does not.
  init(_ handover: UringSetup.Handover = .growing, isSlow: Bool) {
    switch handover {
    // Up to four requests, as a driver at a low depth has them, stay one call.
    case .growing: (first, grows) = (isSlow ? 4 : .max, true)
    case .whole: (first, grows) = (.max, true)
    case .every(let count): (first, grows) = (count, false)
    }
    part = first
  }

  /// Whether what is prepared goes before more is added to it.
  @inline(__always)
  mutating func isDue(_ prepared: Int) -> Bool {
    guard prepared >= part else { return false }
    if grows { part &*= 2 }
    return true
  }

  /// The batch is over.
  mutating func begin() { part = first }
}
