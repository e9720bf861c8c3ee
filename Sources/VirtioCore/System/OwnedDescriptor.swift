/// A file descriptor with an owner.
internal import Glibc

/// Closes its descriptor when the last owner lets go. Control plane only: the data path keeps the bare number.
public final class OwnedDescriptor: Sendable {
  public let rawValue: Int32

  /// Takes ownership of an open descriptor.
  public init(_ rawValue: Int32) { self.rawValue = rawValue }

  deinit { close(rawValue) }
}
