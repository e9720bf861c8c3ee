/// Threads that the queues of many disks share.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// Threads that the queues of many disks share.
///
/// A thread for each queue is the fastest for a few disks, and the most expensive for many: each request then wakes a thread of
/// its own. With shared workers one thread sleeps for the kicks of all, and runs a turn for each worker that has something to
/// do.
///
/// Only what never waits sits there: images in memory, and no medium at all. Disks whose medium can wait, whose queues are to
/// poll, to be pinned or to have a number of threads, and those that are layered (faults deliberately, records) keep threads
/// of their own. A worker that takes more than a quarter of a shared thread moves to one of its own for as long as that lasts.
public final class SharedWorkers: Sendable {
  /// The number of disks from which on they share threads by default, counted when a queue starts.
  public static let usualLeastDisks = 8

  /// Threads; `nil`: one for each CPU that the process may use, 8 at most.
  public let wantedCount: Int?
  /// With fewer disks each queue has a thread of its own.
  public let leastDisks: Int

  private struct State {
    var disks = 0
    /// Disks that are about to be there.
    var expected = 0
    var hosts: [WorkerHost] = []
    /// No threads were available: this is not tried again.
    var hasFailed = false
  }

  private let state = Mutex(State())
  private let watch = HostWatch()

  /// No thread runs before the first queue is started that shares one.
  ///
  /// - Parameters:
  ///   - count: threads, at least 1; `nil`: as the machine has CPUs.
  ///   - leastDisks: with fewer disks nothing is shared; 1: always.
  public init(count: Int? = nil, leastDisks: Int = SharedWorkers.usualLeastDisks) {
    wantedCount = count.map { max(1, $0) }
    self.leastDisks = leastDisks
  }

  deinit {
    let hosts = state.withLock { $0.hosts }
    watch.end()
    for host in hosts { host.end() }
  }

  /// A disk is there that may share.
  func add() { state.withLock { $0.disks += 1 } }
  func remove() { state.withLock { $0.disks -= 1 } }

  /// So many disks are about to be there, of which the first start before the last is made. - Parameter disks: 0 when they are.
  package func expect(_ disks: Int) { state.withLock { $0.expected = disks } }

  /// There are threads.
  package var hasBegun: Bool { state.withLock { !$0.hosts.isEmpty } }
  /// Workers that have a thread of their own for now, or for good.
  package var alone: Int { state.withLock { $0.hosts.reduce(0) { $0 + $1.alone } } }
  /// Threads that were begun because one stood still.
  package var rescues: Int { state.withLock { $0.hosts.reduce(0) { $0 + $1.rescues } } }

  /// Has a worker made on the thread with the fewest.
  /// - Returns: false when it is to have a thread of its own.
  func take(_ order: HostOrder) -> Bool {
    let host = state.withLock { state -> WorkerHost? in
      guard max(state.disks, state.expected) >= leastDisks, !state.hasFailed else { return nil }
      if state.hosts.isEmpty { begin(&state) }
      return state.hosts.min { $0.load < $1.load }
    }
    host?.take(order)
    return host != nil
  }

  private func begin(_ state: inout State) {
    do throws(Errno) {
      try watch.begin()
      for index in 0..<(wantedCount ?? Self.usableProcessors) {
        let host = try WorkerHost(index: index, cpu: nil, watch: watch)
        state.hosts.append(host)
        watch.add(host)
      }
    } catch {
      // Some of them are enough.
      state.hasFailed = state.hosts.isEmpty
    }
  }

  private static var usableProcessors: Int { min(8, max(1, Int(clinux_usable_processors()))) }
}

/// Who waits for the end of a worker: of its thread, or of its seat.
enum WorkerRun: Sendable {
  case thread(SystemThread)
  case seat(SeatEnd)

  func join() {
    switch self {
    case .thread(let thread): thread.join()
    case .seat(let end): end.wait()
    }
  }
}
