/// Runs system calls that another process can block, on a thread that nothing waits for.
internal import CLinux
internal import Synchronization
internal import SystemPackage
public import VirtioCore

/// Runs tasks ("errands") one after the other, on a helper thread that exists only while there are any. An errand that never
/// returns blocks this queue's thread and the errands behind it, and nothing else.
///
/// Closing and unmapping has its own helper thread: a thread that serves a queue may be the one that releases something and
/// starts the helper, which then inherits its few rights. They are enough for closing; another errand that needs more rights
/// would end the process.
public final class ErrandQueue: Disposer {
  private let errands = ErrandHelper(name: "errands")
  private let disposals = ErrandHelper(name: "disposals")

  public init() {}

  /// Errands that are not done yet, disposals included.
  public var backlog: Int { errands.backlog + disposals.backlog }

  /// Adds an errand. Must not be called from a thread that has fewer rights than the errand needs.
  public func run(_ errand: @escaping @Sendable () -> Void) { errands.add(errand) }

  /// Adds an errand that only closes or unmaps something.
  public func dispose(_ errand: @escaping @Sendable () -> Void) { disposals.add(errand) }
}

/// The helper thread for one kind of errands, and its queue.
private final class ErrandHelper: Sendable {
  private struct State {
    var waiting: [@Sendable () -> Void] = []
    /// The helper thread exists, and looks at `waiting` again before it ends.
    var isRunning = false
  }

  private let name: String
  private let state = Mutex(State())

  init(name: String) { self.name = name }

  var backlog: Int { state.withLock { $0.waiting.count + ($0.isRunning ? 1 : 0) } }

  /// If no thread can be started, the errand waits until the next one is added.
  func add(_ errand: @escaping @Sendable () -> Void) {
    let needsHelper = state.withLock { state in
      state.waiting.append(errand)
      defer { state.isRunning = true }
      return !state.isRunning
    }
    guard needsHelper else { return }
    do { _ = try SystemThread(name: name) { [self] in work() } } catch {
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
