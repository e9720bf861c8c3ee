/// Threads that make system calls to the medium, so that a queue's thread does not wait for them.
internal import Dispatch
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// Plain system calls, in the order in which they were added. Results are posted to a board.
final class CallPool<Calls: MediumCalls>: Sendable {
  /// An operation with its pointer made sendable: its segments are not touched until it is finished.
  @safe
  private struct Call: @unchecked Sendable {
    var operation: IOOperation
    var tag: UInt32
  }

  private struct State {
    var calls = Line<Call>()
    var isEnding = false
    var made: UInt64 = 0
  }

  private let medium: Calls
  private let board: CompletionBoard
  private let state = Mutex(State())
  private let available = DispatchSemaphore(value: 0)
  private let threads = Mutex<[SystemThread]>([])

  /// - Throws: if not a single thread could be made. Fewer threads than `count` are enough.
  init(_ medium: Calls, board: CompletionBoard, threads count: Int) throws(Errno) {
    self.medium = medium
    self.board = board
    for number in 0..<count {
      do throws(Errno) {
        let thread = try SystemThread(name: "pool \(number)") { [self] in run() }
        threads.withLock { $0.append(thread) }
      } catch {
        if number == 0 { throw error }
        break
      }
    }
  }

  /// System calls made so far.
  var calls: UInt64 { state.withLock { $0.made } }

  func add(_ operation: IOOperation, tag: UInt32) {
    let call = Call(operation: operation, tag: tag)
    state.withLock { $0.calls.append(call) }
    available.signal()
  }

  /// Ends the threads; call it when nothing is in flight any more. The pool lives until they have ended.
  func end() {
    let threads = threads.withLock { list in
      defer { list = [] }
      return list
    }
    state.withLock { $0.isEnding = true }
    for _ in threads { available.signal() }
    for thread in threads { thread.join() }
  }

  private func run() {
    ThreadRole.pool.begin()
    while true {
      available.wait()
      let call: Call? = state.withLock { state in
        guard let call = state.calls.removeFirst() else { return nil }
        state.made &+= 1
        return call
      }
      guard let call else { return }  // signalled without a call: the end
      board.post(tag: call.tag, result: medium.perform(call.operation))
    }
  }
}
