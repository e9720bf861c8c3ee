/// Reports what really reaches a medium to an observer.

/// An operation on the medium, which a power failure may leave done completely, in part or not at all until it is on stable
/// storage.
package struct MediumAction: Sendable {
  package enum Kind: Sendable {
    case write
    /// The range reads as zeroes.
    case zero
    /// The range may hold anything.
    case forget
    /// Space is allocated for the range, and its contents are kept.
    case allocate
    case flush
  }

  package var kind: Kind
  /// It is on stable storage when it is done, without a flush.
  package var isDurable = false
  /// Bytes from the beginning of the medium.
  package var offset: UInt64 = 0
  package var length: UInt64 = 0
  /// For a write: the data.
  package var data: [UInt8] = []
  /// It is a flush of a file other than the image.
  package var isElsewhere = false

  package init(_ kind: Kind) { self.kind = kind }
}

/// An observer, which is notified on the workers' threads, before anything above the engine.
package protocol MediumWitness: AnyObject, Sendable {
  /// - Returns: a number for `finished`.
  func started(_ action: MediumAction) -> Int
  /// - Parameter result: that of the engine: bytes transferred, 0, or a negative errno.
  func finished(_ number: Int, result: Int32)
}
