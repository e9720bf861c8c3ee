/// The state of a shared thread: the workers that share it, which of them have a turn next, and what the others wait for.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// Each call is short, and none is in progress while a worker has its turn: another thread may continue afterwards.
@safe
struct HostLoop: ~Copyable {
  private static let capacity = 256
  /// How long events are left alone while workers have more to do, nanoseconds.
  private static let lookInterval: UInt64 = 10_000

  let set: Int32
  private let events: UnsafeMutablePointer<epoll_event>
  /// By their numbers. No worker has number 0: its events are the bell's.
  private var workers: [HostedWorker?] = [nil]
  private var freeNumbers: [UInt32] = []
  /// The workers that have a turn in this round, from `position` on; `ready` has those of the next one.
  private var round: [HostedWorker] = []
  private var position = 0
  private var ready: [HostedWorker] = []
  private var timed: [HostedWorker] = []
  /// No deadline is earlier than this.
  private var earliest = UInt64.max
  private var lastLook: UInt64 = 0
  private(set) var rounds = 0
  /// Turns so far.
  private(set) var turnNumber: UInt64 = 0
  private var naps = NapRule()
  /// The worker whose turn it is.
  private(set) var current: HostedWorker?

  /// - Parameter bell: an eventfd that announces arriving workers.
  init(bell: Int32) throws(Errno) {
    let set = epoll_create1(Int32(EPOLL_CLOEXEC))
    guard set >= 0 else { throw Errno(rawValue: errno) }
    var event = unsafe epoll_event()
    unsafe event.events = EPOLLIN.rawValue | EPOLLET.rawValue
    unsafe event.data.u64 = 0
    guard unsafe epoll_ctl(set, EPOLL_CTL_ADD, bell, &event) == 0 else {
      let error = Errno(rawValue: errno)
      close(set)
      throw error
    }
    self.set = set
    unsafe events = .allocate(capacity: Self.capacity)
  }

  deinit {
    unsafe events.deallocate()
    close(set)
  }

  // MARK: The workers

  /// A number for a worker that is about to arrive.
  mutating func takeNumber() -> UInt32 {
    if let number = freeNumbers.popLast() { return number }
    workers.append(nil)
    return UInt32(workers.count - 1)
  }

  mutating func giveNumber(_ number: UInt32) { freeNumbers.append(number) }

  /// - Parameter worker: its seat has a number, under which its descriptors are in the set. It has a turn soon.
  mutating func sit(_ worker: HostedWorker) {
    unsafe workers[Int(worker.seat.state.pointee.number)] = worker
    worker.seat.begin(Clock.now, round: rounds)
    wake(worker)
  }

  /// The worker whose turn it is leaves this thread.
  mutating func letGo() {
    guard let worker = current else { return }
    current = nil
    let number = unsafe worker.seat.state.pointee.number
    workers[Int(number)] = nil
    giveNumber(number)
    timed.removeAll { $0 === worker }
  }

  // MARK: Turns

  private mutating func wake(_ worker: HostedWorker) {
    guard unsafe !worker.seat.state.pointee.isReady else { return }
    unsafe worker.seat.state.pointee.isReady = true
    ready.append(worker)
  }

  /// The worker that has its turn now; `nil`: the round is over.
  mutating func next() -> HostedWorker? {
    guard position < round.count else { return nil }
    let worker = round[position]
    position += 1
    turnNumber &+= 1
    unsafe worker.seat.state.pointee.isReady = false
    current = worker
    return worker
  }

  /// Ends a turn, and notes when the worker wants the next one.
  mutating func settle(_ worker: HostedWorker, now: UInt64) {
    current = nil
    let rest = unsafe worker.seat.state.pointee.rest
    if rest == 0 { return wake(worker) }
    guard rest > 0 else {
      unsafe worker.seat.state.pointee.deadline = .max
      return
    }
    let deadline = now &+ UInt64(rest)
    unsafe worker.seat.state.pointee.deadline = deadline
    earliest = min(earliest, deadline)
    guard unsafe !worker.seat.state.pointee.isTimed else { return }
    unsafe worker.seat.state.pointee.isTimed = true
    timed.append(worker)
  }

  /// Begins the next round, with the workers that have more to do, got an event, or have reached their deadline. Sleeps while
  /// there are none.
  ///
  /// - Returns: whether the bell rang, and whether it slept.
  mutating func nextRound() -> (rang: Bool, slept: Bool) {
    var now = Clock.now
    var outcome = (rang: false, slept: false)
    if ready.isEmpty || now &- lastLook >= Self.lookInterval {
      outcome.slept = ready.isEmpty
      var timeout: Int32 = ready.isEmpty ? -1 : 0
      if ready.isEmpty, earliest != .max {
        timeout = earliest > now ? Int32(clamping: (earliest - now + 999_999) / 1_000_000) : 0
      }
      if outcome.slept, naps.isOn {
        naps.nap(atMost: earliest > now ? earliest - now : 0)
        let found = look(0, &outcome.rang)
        naps.note(found: found)
        // Nothing came: now it sleeps.
        if found == 0, earliest > Clock.now { _ = look(timeout, &outcome.rang) }
        now = Clock.now
      } else {
        _ = look(timeout, &outcome.rang)
        let before = now
        now = Clock.now
        if outcome.slept { naps.note(slept: now &- before) }
      }
      lastLook = now
    }
    if earliest <= now { wakeTimed(now) }
    round.removeAll(keepingCapacity: true)
    swap(&round, &ready)
    position = 0
    rounds &+= 1
    return outcome
  }

  /// - Returns: how many events there were.
  private mutating func look(_ timeout: Int32, _ rang: inout Bool) -> Int {
    let found = unsafe Int(epoll_wait(set, events, Int32(Self.capacity), timeout))
    for index in 0..<max(0, found) where note(unsafe events[index].data.u64) { rang = true }
    return max(0, found)
  }

  /// - Returns: whether it was the bell.
  private mutating func note(_ data: UInt64) -> Bool {
    let number = Int(data >> WorkerSeat.numberShift)
    guard number > 0 else { return true }
    // The worker has moved away, and has checked its queues itself.
    guard number < workers.count, let worker = workers[number] else { return false }
    if data & EpollWaiter.mailboxMark != 0 {
      unsafe worker.seat.state.pointee.mailboxRang = true
    } else {
      unsafe worker.seat.state.pointee.kicks &+= 1
    }
    wake(worker)
    return false
  }

  @inline(never)
  private mutating func wakeTimed(_ now: UInt64) {
    earliest = .max
    let waiting = timed
    timed.removeAll(keepingCapacity: true)
    for worker in waiting {
      let deadline = unsafe worker.seat.state.pointee.deadline
      if deadline > now, deadline != .max {
        timed.append(worker)
        earliest = min(earliest, deadline)
      } else {
        unsafe worker.seat.state.pointee.isTimed = false
        if deadline != .max { wake(worker) }
      }
    }
  }
}
