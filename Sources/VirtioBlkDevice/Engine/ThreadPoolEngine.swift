/// Plain system calls on a few threads, as event loops did before there was io_uring: to be measured against.
internal import Dispatch
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

@safe
struct ThreadPoolEngine: BlockEngine, ~Copyable {
  static let fillsReads = true
  private static let threadCount = 16

  private let pool: Pool
  private let threads: [SystemThread]
  private var waiter: EpollWaiter
  private var finished: [(tag: UInt32, result: Int32)]
  private var calls: UInt64

  init(descriptor: Int32, mailbox: Int32) throws(Errno) {
    let pool = Pool(medium: PlainIO(descriptor: descriptor), counter: try OwnedDescriptor.eventCounter())
    let waiter = try EpollWaiter(mailbox: mailbox, completions: pool.counter.rawValue)
    var threads: [SystemThread] = []
    for number in 0..<Self.threadCount {
      // Some threads are enough; none is an error.
      do throws(Errno) {
        threads.append(try SystemThread(name: "pool \(number)", cpu: nil) { pool.run() })
      } catch {
        if threads.isEmpty { throw error }
        break
      }
    }
    self.pool = pool
    self.threads = threads
    self.waiter = waiter
    finished = []
    calls = 0
  }

  deinit {
    pool.end(threads.count)
    for thread in threads { thread.join() }
  }

  mutating func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    pool.add(operation, tag: tag)
    return .pending
  }

  mutating func submit() {}
  mutating func wait(nanoseconds: Int64?) { if finished.isEmpty { waiter.wait(nanoseconds: nanoseconds) } }
  mutating func poll() { waiter.wait(nanoseconds: 0) }

  mutating func nextEvent() -> EngineEvent? {
    if finished.isEmpty { pool.take(into: &finished) }
    if let done = finished.popLast() { return .completion(tag: done.tag, result: done.result) }
    while let wake = waiter.nextWake() {
      switch wake {
      case .completions: continue
      case .kick(let lane): return .kick(lane: lane)
      case .mailbox: return .mailbox
      }
    }
    return nil
  }

  mutating func watch(_ kick: KickSource, lane: Int) throws(Errno) { try waiter.watch(kick, lane: lane) }
  mutating func unwatch(lane: Int) { waiter.unwatch(lane: lane) }
  var systemCalls: UInt64 { calls &+ waiter.systemCalls }
}

/// What the queue's thread and the pool's threads share.
private final class Pool: Sendable {
  /// An operation with its pointer made sendable: the slot it belongs to is not touched until the operation is finished.
  @safe
  private struct Job: @unchecked Sendable {
    var operation: IOOperation
    var tag: UInt32
  }

  private struct State {
    var jobs: [Job] = []
    var next = 0
    var finished: [(tag: UInt32, result: Int32)] = []
    var isEnding = false
  }

  let counter: OwnedDescriptor
  private let medium: PlainIO
  private let state = Mutex(State())
  private let available = DispatchSemaphore(value: 0)

  init(medium: PlainIO, counter: OwnedDescriptor) {
    self.medium = medium
    self.counter = counter
  }

  func add(_ operation: IOOperation, tag: UInt32) {
    let job = Job(operation: operation, tag: tag)
    state.withLock { $0.jobs.append(job) }
    available.signal()
  }

  func take(into list: inout [(tag: UInt32, result: Int32)]) {
    list = state.withLock { state in
      defer { state.finished.removeAll(keepingCapacity: true) }
      return state.finished
    }
  }

  func end(_ threads: Int) {
    state.withLock { $0.isEnding = true }
    for _ in 0..<threads { available.signal() }
  }

  func run() {
    while true {
      available.wait()
      let job: Job? = state.withLock { state in
        guard state.next < state.jobs.count else { return nil }
        defer {
          state.next += 1
          if state.next == state.jobs.count {
            state.jobs.removeAll(keepingCapacity: true)
            state.next = 0
          }
        }
        return state.jobs[state.next]
      }
      guard let job else { return }  // signalled without a job: the end
      let result = medium.perform(job.operation)
      let isFirst = state.withLock { state in
        state.finished.append((job.tag, result))
        return state.finished.count == 1
      }
      if isFirst { EventCounter.signal(counter.rawValue) }
    }
  }
}
