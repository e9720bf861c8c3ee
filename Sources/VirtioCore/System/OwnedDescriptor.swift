/// A file descriptor with an owner.
internal import Glibc

/// Releases, on another thread, what another process handed over, because that may block: the last `close` of a file asks its
/// file system, which may never answer.
public protocol Disposer: AnyObject, Sendable {
  /// Runs `errand` eventually. Called from any thread; does not block.
  func dispose(_ errand: @escaping @Sendable () -> Void)
}

/// Closes its descriptor when its last owner releases it. Control plane only: the data path uses the bare number.
public final class OwnedDescriptor: Sendable {
  /// The descriptor's number. It is closed when this object is released.
  public let rawValue: Int32
  /// Closes it; `nil`: the thread that releases it last does.
  public let disposer: (any Disposer)?

  /// Takes ownership of an open descriptor.
  ///
  /// - Parameter disposer: closes it, for a descriptor that came from another process.
  public init(_ rawValue: Int32, closedBy disposer: (any Disposer)? = nil) {
    self.rawValue = rawValue
    self.disposer = disposer
  }

  deinit {
    guard let disposer else {
      close(rawValue)
      return
    }
    disposer.dispose { [rawValue] in close(rawValue) }
  }
}
