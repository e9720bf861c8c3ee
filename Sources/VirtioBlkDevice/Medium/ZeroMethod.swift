/// The ways in which a range can be made to read as zeroes, best first.

enum ZeroMethod: UInt8 {
  /// Deallocate the space; only if the driver allows it.
  case punch
  /// Keep the space, mark it as unwritten.
  case zeroRange
  /// Deallocate the space and allocate it again, for file systems without unwritten extents (tmpfs).
  case punchToAllocate
  case allocate
  /// Write zeroes, as any medium can.
  case write

  var operation: IOOperation.Kind {
    switch self {
    case .punch, .punchToAllocate: .punchHole
    case .zeroRange: .zeroRange
    case .allocate: .allocate
    case .write: .write
    }
  }

  static func first(mayUnmap: Bool, canPunch: Bool, canZeroRange: Bool) -> ZeroMethod {
    if mayUnmap && canPunch { return .punch }
    if canZeroRange { return .zeroRange }
    return canPunch ? .punchToAllocate : .write
  }

  /// The method to try after this one was refused.
  func next(canPunch: Bool, canZeroRange: Bool) -> ZeroMethod {
    switch self {
    case .punch: canZeroRange ? .zeroRange : .write
    case .zeroRange: canPunch ? .punchToAllocate : .write
    case .punchToAllocate, .allocate, .write: .write
    }
  }
}
