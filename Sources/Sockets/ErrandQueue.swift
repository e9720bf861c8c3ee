/// System calls that another process can hold up, on a thread that nobody waits for.
internal import CLinux
internal import Synchronization
internal import SystemPackage
public import VirtioCore

/// Runs tasks ("errands") one after the other, on a helper thread that exists only while there are any. One that never
/// returns blocks this queue's thread and the tasks behind it, and nothing else.
///
/// What is only to be closed or unmapped has a helper of its own: a queue's thread may be the one that lets go of it and starts
/// the helper, which then has the rights of that thread. They suffice for closing; an errand behind it that asks for more would end
/// the process.
public final class ErrandQueue: Disposer {
  private let errands = ErrandHelper(name: "errands")
  private let disposals = ErrandHelper(name: "disposals")

  public init() {}

  /// Errands that are not done yet, disposals included.
  public var backlog: Int { errands.backlog + disposals.backlog }

  /// Adds an errand. Not from a thread that has fewer rights than the errand needs.
  public func run(_ errand: @escaping @Sendable () -> Void) { errands.add(errand) }

  /// Adds what closes or unmaps something, and does no more.
  public func dispose(_ errand: @escaping @Sendable () -> Void) { disposals.add(errand) }
}

/// The thread of one kind of errands, and what it has to do.
private final class ErrandHelper: Sendable {
  private struct State {
    var waiting: [@Sendable () -> Void] = []
    /// A helper is there and will look again before it goes.
    var isRunning = false
  }

  private let name: String
  private let state = Mutex(State())

  init(name: String) { self.name = name }

  var backlog: Int { state.withLock { $0.waiting.count + ($0.isRunning ? 1 : 0) } }

  /// If no thread is available the errand waits for the next one that is added.
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
