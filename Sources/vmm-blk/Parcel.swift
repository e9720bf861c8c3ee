/// Something that one thread passes to another, which owns or releases it.

/// Filled once and taken once, by different threads, with something in between that orders the two (an `ErrandQueue`, say).
/// The taker has the last reference if the other thread has kept none.
final class Parcel<Content>: @unchecked Sendable {
  private var content: Content?

  init(_ content: Content) { self.content = content }

  func take() -> Content? {
    defer { content = nil }
    return content
  }
}
