/// One thread of the client and the queues it drives: it takes turns until it is told to drain, and never sleeps unless it was
/// asked to.
internal import CLinux
internal import Glibc
internal import GuestDriver
internal import MemoryFile
internal import Synchronization
internal import VirtioCore

/// What a thread reports when it ends.
struct ThreadOutcome: Sendable {
  var tally = QueueTally()
  /// When it began and stopped to count, nanoseconds of the clock.
  var start: UInt64 = 0
  var end: UInt64 = 0
  /// The cost of this thread between the two.
  var usage = ThreadUsage()
  var error: BenchError?
}

/// What a thread has cost.
struct ThreadUsage: Sendable {
  /// Nanoseconds.
  var cpu: UInt64 = 0
  /// The shares of user and system, as the kernel counts them, in steps of a microsecond.
  var user: UInt64 = 0
  var system: UInt64 = 0
  /// Context switches of both kinds.
  var switches: UInt64 = 0

  /// The usage of the calling thread.
  static func now() -> ThreadUsage {
    var usage = ThreadUsage(cpu: Clock.thread())
    unsafe clinux_usage(0, &usage.user, &usage.system, &usage.switches)
    return usage
  }

  static func - (now: ThreadUsage, before: ThreadUsage) -> ThreadUsage {
    ThreadUsage(
      cpu: now.cpu &- before.cpu, user: now.user &- before.user, system: now.system &- before.system,
      switches: now.switches &- before.switches)
  }

  static func + (one: ThreadUsage, other: ThreadUsage) -> ThreadUsage {
    ThreadUsage(
      cpu: one.cpu &+ other.cpu, user: one.user &+ other.user, system: one.system &+ other.system,
      switches: one.switches &+ other.switches)
  }
}

/// Queues in separate memory, because an array cannot hold noncopyable values.
@safe
final class QueueBlock<Ring: BenchRing>: @unchecked Sendable {
  private let base: UnsafeMutablePointer<BenchQueue<Ring>>
  private let capacity: Int
  private(set) var count = 0

  init(capacity: Int) {
    self.capacity = capacity
    unsafe base = .allocate(capacity: capacity)
  }

  deinit {
    unsafe base.deinitialize(count: count)
    unsafe base.deallocate()
  }

  func append(_ queue: consuming BenchQueue<Ring>) {
    precondition(count < capacity)
    unsafe (base + count).initialize(to: queue)
    count += 1
  }

  /// The queues; only the thread that drives them may use this.
  var queues: UnsafeMutablePointer<BenchQueue<Ring>> { unsafe base }
}

final class ClientThread: Sendable {
  private final class Box: Sendable { let value = Mutex(ThreadOutcome()) }
  private let box: Box
  private let thread: SystemThread

  /// Starts at once.
  init<Ring>(_ block: QueueBlock<Ring>, cpu: Int?, sleeps: Bool, control: RunControl, number: Int) throws(BenchError) {
    let box = Box()
    self.box = box
    thread = try SystemThread(benchmark: "client \(number)", cpu: cpu) {
      let result = Self.run(block, sleeps: sleeps, control: control)
      box.value.withLock { $0 = result }
      control.end(failed: result.error != nil)
    }
  }

  func join() -> ThreadOutcome {
    thread.join()
    return box.value.withLock { $0 }
  }

  private static func run<Ring>(_ block: QueueBlock<Ring>, sleeps: Bool, control: RunControl) -> ThreadOutcome {
    var outcome = ThreadOutcome()
    do throws(BenchError) {
      try turns(block, sleeps: sleeps, control: control, &outcome)
    } catch {
      outcome.error = error
    }
    for index in 0..<block.count { unsafe outcome.tally.add(block.queues[index].tally) }
    return outcome
  }

  private static func turns<Ring>(
    _ block: QueueBlock<Ring>, sleeps: Bool, control: RunControl, _ outcome: inout ThreadOutcome
  ) throws(BenchError) {
    let queues = unsafe block.queues
    let count = block.count
    for index in 0..<count { unsafe queues[index].fill() }
    var phase = RunPhase.warming
    while true {
      let wanted = control.phase
      if wanted != phase {
        if phase == .measuring {
          for index in 0..<count { unsafe queues[index].stopRecording() }
          outcome.usage = ThreadUsage.now() - outcome.usage
          outcome.end = Clock.now
        }
        if wanted == .measuring {
          for index in 0..<count { unsafe queues[index].startRecording() }
          outcome.usage = ThreadUsage.now()
          outcome.start = Clock.now
        }
        phase = wanted
      }
      if phase == .draining || phase == .abandoned { break }
      var done = 0
      for index in 0..<count { done &+= try unsafe queues[index].turn(refills: true) }
      if done == 0, sleeps { unsafe sleep(queues, count) }
    }
    for index in 0..<count {
      while unsafe queues[index].outstanding > 0, control.phase != .abandoned {
        if try unsafe queues[index].turn(refills: false) == 0, sleeps { unsafe sleep(queues + index, 1) }
      }
    }
    guard control.phase != .abandoned else { return }
    for index in 0..<count {
      unsafe queues[index].startReadingBack()
      while try unsafe queues[index].turnReadingBack(), control.phase != .abandoned {}
    }
  }

  /// How long to sleep before looking at the phase again, milliseconds.
  private static var nap: Int { 20 }

  private static func sleep<Ring>(_ queues: UnsafeMutablePointer<BenchQueue<Ring>>, _ count: Int) {
    var isIdle = true
    for index in 0..<count where unsafe !queues[index].enableCalls() { isIdle = false }
    if isIdle {
      switch unsafe queues[0].callLine {
      case .eventCounters:
        // A handful of queues at most: a temporary list, once for each sleep.
        unsafe withUnsafeTemporaryAllocation(of: pollfd.self, capacity: count) { polls in
          for index in 0..<count {
            guard case .eventCounters(_, let call) = unsafe queues[index].callLine else { continue }
            unsafe polls.initializeElement(at: index, to: pollfd(fd: call.rawValue, events: Int16(POLLIN), revents: 0))
          }
          _ = unsafe poll(polls.baseAddress, nfds_t(count), Int32(nap))
        }
      case .memoryFile(let file, let queue):
        file.waitForCall(queue: queue, whileEquals: unsafe queues[0].seenCalls, milliseconds: nap)
      }
    }
    for index in 0..<count {
      unsafe queues[index].takeCalls()
      unsafe queues[index].disableCalls()
    }
  }
}

extension SystemThread {
  /// A thread of a benchmark, with a stack large enough for reports and histograms.
  convenience init(benchmark name: String, cpu: Int?, _ body: @escaping @Sendable () -> Void) throws(BenchError) {
    do { try self.init(name: name, cpu: cpu, stackSize: 1 << 20, body) } catch { throw .noThread(error) }
  }
}
