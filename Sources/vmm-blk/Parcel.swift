/// What one thread made, or is to release, and gives to another.

/// Filled once and taken once, by different threads, with something between that orders the two (a queue of errands, say). Who
/// takes has the last reference if the other has kept none.
final class Parcel<Content>: @unchecked Sendable {
  private var content: Content?

  init(_ content: Content) { self.content = content }

  func take() -> Content? {
    defer { content = nil }
    return content
  }
}
