/// An observer of a driver's register accesses, beside the model that answers them.

/// One access, after it was answered and before its effects are executed.
public struct RegisterAccess: Hashable, Sendable {
  /// The offset as in `RegisterModel`.
  public var offset: UInt32
  /// Bytes.
  public var width: Int
  public var isWrite: Bool
  /// The value that was written or read.
  public var value: UInt64

  public init(offset: UInt32, width: Int, isWrite: Bool, value: UInt64) {
    self.offset = offset
    self.width = width
    self.isWrite = isWrite
    self.value = value
  }
}

/// Called on the thread that owns the registers. It cannot change anything.
public protocol RegisterWatch: AnyObject {
  /// The watch begins. - Parameter registers: their present state, including all that a driver has done before.
  func begins(with registers: RegisterModel)
  func accessed(_ access: RegisterAccess)
}
