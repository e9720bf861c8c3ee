/// Threads that the queues of many disks share.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// Threads that the queues of many disks share.
///
/// A thread for each queue is fastest for a few disks and most expensive for many: each request then wakes its own thread. A
/// shared thread waits for the kicks of all its workers, and runs a turn for each worker that has something to do.
///
/// Only disks that never block share threads: images in memory, and disks without a medium. Disks keep their own threads if
/// their medium can block, if their queues are to poll, to be pinned or to have a given number of threads, and if their engine
/// has layers (injected faults, a recording). A worker that takes more than a quarter of a shared thread moves to its own
/// thread for as long as that lasts.
public final class SharedWorkers: Sendable {
  /// With at least this many disks, they share threads by default; counted when a queue starts.
  public static let usualLeastDisks = 8

  /// Threads; `nil`: one for each CPU that the process may use, 8 at most.
  public let wantedCount: Int?
  /// With fewer disks each queue has its own thread.
  public let leastDisks: Int

  private struct State {
    var disks = 0
    /// Disks that are about to be added.
    var expected = 0
    var hosts: [WorkerHost] = []
    /// No threads were available: this is not tried again.
    var hasFailed = false
  }

  private let state = Mutex(State())
  private let watch = HostWatch()

  /// No thread runs before the first queue that shares one is started.
  ///
  /// - Parameters:
  ///   - count: threads, at least 1; `nil`: one for each CPU that the process may use, 8 at most.
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

  /// Adds a disk that may share threads.
  func add() { state.withLock { $0.disks += 1 } }
  func remove() { state.withLock { $0.disks -= 1 } }

  /// Announces disks, the first of which start before the last is made. - Parameter disks: how many; 0 once they have been
  /// added.
  package func expect(_ disks: Int) { state.withLock { $0.expected = disks } }

  /// Whether there are threads.
  package var hasBegun: Bool { state.withLock { !$0.hosts.isEmpty } }
  /// Workers that have their own thread, for now or permanently.
  package var alone: Int { state.withLock { $0.hosts.reduce(0) { $0 + $1.alone } } }
  /// Threads that were started because one was stuck.
  package var rescues: Int { state.withLock { $0.hosts.reduce(0) { $0 + $1.rescues } } }

  /// Has a worker made on the thread with the fewest workers.
  /// - Returns: false if it is to have its own thread.
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
      // Fewer threads than wanted are enough.
      state.hasFailed = state.hosts.isEmpty
    }
  }

  private static var usableProcessors: Int { min(8, max(1, Int(clinux_usable_processors()))) }
}

/// What to wait for at the end of a worker: its thread, or its seat.
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
