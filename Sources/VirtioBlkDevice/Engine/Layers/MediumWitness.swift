/// What really reaches a medium, reported to somebody who judges it.

/// Something that is done at the medium: what a power failure may leave whole, in part or not at all until it is on stable
/// storage.
package struct MediumAction: Sendable {
  package enum Kind: Sendable {
    case write
    /// The range reads as zeroes.
    case zero
    /// The range may hold anything.
    case forget
    /// Space is taken for the range; what it holds stays.
    case allocate
    case flush
  }

  package var kind: Kind
  /// It is on stable storage when it is done, without a flush.
  package var isDurable = false
  /// Bytes from the beginning of the medium.
  package var offset: UInt64 = 0
  package var length: UInt64 = 0
  /// Of a write: what is written.
  package var data: [UInt8] = []
  /// A flush of another file than the image.
  package var isElsewhere = false

  package init(_ kind: Kind) { self.kind = kind }
}

/// Is notified on the workers' threads, before anything above the engine is.
package protocol MediumWitness: AnyObject, Sendable {
  /// - Returns: a number for `finished`.
  func started(_ action: MediumAction) -> Int
  /// - Parameter result: as an engine gives it: bytes transferred, 0, or a negative errno.
  func finished(_ number: Int, result: Int32)
}
