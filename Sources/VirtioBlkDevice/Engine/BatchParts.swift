/// Submits a long batch in parts, so that the medium does not wait until all of it is prepared.

/// Decides when a batch that is being prepared is submitted. A disk that became idle with the completions of the last batch
/// gets the first few operations after about a microsecond, and each part is twice as long as the previous one, so there are
/// only a few calls.
struct BatchParts {
  private let first: Int
  private let grows: Bool
  private var part: Int

  /// - Parameter isSlow: the medium works while operations are being prepared, unlike memory.
  init(_ handover: UringSetup.Handover = .growing, isSlow: Bool) {
    switch handover {
    // Up to four requests, as with a driver at a low queue depth, take one call.
    case .growing: (first, grows) = (isSlow ? 4 : .max, true)
    case .whole: (first, grows) = (.max, true)
    case .every(let count): (first, grows) = (count, false)
    }
    part = first
  }

  /// Whether to submit what is prepared before more is added.
  @inline(__always)
  mutating func isDue(_ prepared: Int) -> Bool {
    guard prepared >= part else { return false }
    if grows { part &*= 2 }
    return true
  }

  /// The batch is over.
  mutating func begin() { part = first }
}
