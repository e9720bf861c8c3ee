/// Somebody who looks at what a driver does with the registers, beside the model that answers it.

/// One access, after it was answered and before its effects are executed.
public struct RegisterAccess: Hashable, Sendable {
  /// As `RegisterModel` counts it.
  public var offset: UInt32
  /// Bytes.
  public var width: Int
  public var isWrite: Bool
  /// What was written, or what was read.
  public var value: UInt64

  public init(offset: UInt32, width: Int, isWrite: Bool, value: UInt64) {
    self.offset = offset
    self.width = width
    self.isWrite = isWrite
    self.value = value
  }
}

/// Is told on the thread that owns the registers. It changes nothing.
public protocol RegisterWatch: AnyObject {
  /// From here on. - Parameter registers: as they stand, with whatever a driver has done before.
  func begins(with registers: RegisterModel)
  func accessed(_ access: RegisterAccess)
}
