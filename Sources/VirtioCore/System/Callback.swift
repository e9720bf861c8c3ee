/// A closure that is stored where other threads read it.

/// A structure, because a bare closure in a `Mutex` gets wrapped in another reabstraction thunk each time it is read and stored
/// back, until a call goes through so many of them that the stack overflows.
package struct Callback<Argument>: Sendable {
  package let call: @Sendable (Argument) -> Void

  package init(_ call: @escaping @Sendable (Argument) -> Void) { self.call = call }
}
