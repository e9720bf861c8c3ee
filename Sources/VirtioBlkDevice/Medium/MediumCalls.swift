/// What helper threads do for a worker: operations as calls that may block.

protocol MediumCalls: Sendable {
  /// - Returns: bytes transferred, 0 for operations without data, or a negative errno.
  func perform(_ operation: IOOperation) -> Int32
}
