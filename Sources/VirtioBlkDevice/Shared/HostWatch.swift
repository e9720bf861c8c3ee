/// A watchdog that notices shared threads that are stuck in a worker's turn.
internal import Dispatch
internal import Glibc
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// One for all shared threads. It sleeps for as long as all of them do.
final class HostWatch: Sendable {
  /// Time between two checks, microseconds. A turn that is seen by two of them is stuck: a turn takes a millisecond at most.
  private static let interval: UInt32 = 50_000
  /// Checks without any activity, after which it sleeps.
  private static let patience = 20

  private let hosts = Mutex<[WorkerHost]>([])
  private let isAsleep = Atomic<Bool>(false)
  private let isOver = Atomic<Bool>(false)
  private let alarm = DispatchSemaphore(value: 0)

  /// Starts its thread.
  func begin() throws(Errno) { _ = try SystemThread(name: "shared watch") { [self] in run() } }

  func add(_ host: WorkerHost) {
    hosts.withLock { $0.append(host) }
    wakeIfAsleep()
  }

  func end() {
    isOver.store(true, ordering: .sequentiallyConsistent)
    hosts.withLock { $0 = [] }
    alarm.signal()
  }

  @inline(__always)
  func wakeIfAsleep() { if isAsleep.load(ordering: .sequentiallyConsistent) { wake() } }

  @inline(never)
  private func wake() { if isAsleep.exchange(false, ordering: .sequentiallyConsistent) { alarm.signal() } }

  private func run() {
    // The threads that it makes serve queues.
    ThreadRole.queue.begin()
    var seen: [UInt64] = []
    var wakes: [UInt64] = []
    var idle = 0
    while !isOver.load(ordering: .sequentiallyConsistent) {
      let hosts = hosts.withLock { $0 }
      let turnsNow = hosts.map(\.turn)
      let wakesNow = hosts.map(\.wakes)
      for (index, host) in hosts.enumerated() where index < seen.count {
        let turn = turnsNow[index]
        if turn & 1 == 1, turn != .max, turn == seen[index] { host.rescue(from: turn) }
      }
      idle = wakesNow == wakes && turnsNow == seen && turnsNow.allSatisfy { $0 & 1 == 0 } ? idle + 1 : 0
      (seen, wakes) = (turnsNow, wakesNow)
      guard idle >= Self.patience else {
        usleep(Self.interval)
        continue
      }
      idle = 0
      isAsleep.store(true, ordering: .sequentiallyConsistent)
      // A thread that woke up too early to see that is noticed here.
      if self.hosts.withLock({ $0 }).map(\.wakes) != wakes { wakeIfAsleep() }
      alarm.wait()
    }
  }
}
