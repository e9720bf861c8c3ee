/// A closure that is kept where threads look for it.

/// In a structure, because a closure that is by itself in a `Mutex` is converted to be looked at and converted back to be kept, each
/// time in one more layer, until a call goes through so many that the stack is too small for it.
package struct Callback<Argument>: Sendable {
  package let call: @Sendable (Argument) -> Void

  package init(_ call: @escaping @Sendable (Argument) -> Void) { self.call = call }
}
