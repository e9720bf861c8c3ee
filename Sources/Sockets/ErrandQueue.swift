/// System calls that another process can hold up, on a thread that nobody waits for.
internal import CLinux
internal import Synchronization
internal import SystemPackage
public import VirtioCore

/// Runs tasks ("errands") one after the other, on a helper thread that exists only while there are any. One that never
/// returns blocks this queue's thread and the tasks behind it, and nothing else.
public final class ErrandQueue: Disposer {
  private struct State {
    var waiting: [@Sendable () -> Void] = []
    /// A helper is there and will look again before it goes.
    var isRunning = false
  }

  private let state = Mutex(State())

  public init() {}

  /// Errands that are not done yet.
  public var backlog: Int { state.withLock { $0.waiting.count + ($0.isRunning ? 1 : 0) } }

  /// Adds an errand. If no thread is available it waits for the next one that is added.
  public func dispose(_ errand: @escaping @Sendable () -> Void) {
    let needsHelper = state.withLock { state in
      state.waiting.append(errand)
      defer { state.isRunning = true }
      return !state.isRunning
    }
    guard needsHelper else { return }
    do { _ = try SystemThread(name: "errands") { [self] in work() } } catch {
      state.withLock { $0.isRunning = false }
    }
  }

  private func work() {
    while true {
      let errands = state.withLock { state in
        defer { state.waiting = [] }
        if state.waiting.isEmpty { state.isRunning = false }
        return state.waiting
      }
      guard !errands.isEmpty else { return }
      for errand in errands { errand() }
    }
  }
}
