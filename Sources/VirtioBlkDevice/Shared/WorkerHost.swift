/// A thread that runs the workers of many disks in turn.
internal import Glibc
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// No worker can hold up the others for long. One that takes much of the thread, turn after turn, gets its own thread for as
/// long as that lasts. One that is stuck in a turn (in a system call, or in a page fault that is not resolved) keeps the
/// thread, and another thread continues with the others: see `rescue`.
@safe
final class WorkerHost: @unchecked Sendable {
  /// A worker that arrives.
  private enum Guest {
    case new(HostOrder)
    /// It had its own thread, and sleeps most of the time.
    case back(HostedWorker)
  }

  private struct Door {
    var guests: [Guest] = []
    var isOver = false
  }

  private let index: Int
  private let cpu: Int?
  private let door = Mutex(Door())
  private let bell: OwnedDescriptor
  private let loop: UnsafeMutablePointer<HostLoop>
  /// Twice the number of the last turn, plus 1 while it is in progress; `max` once another thread has taken over the others.
  private let turnWord = Atomic<UInt64>(0)
  private let wakeCount = Atomic<UInt64>(0)
  private let watch: HostWatch
  private let seats = Atomic<Int>(0)
  private let aloneCount = Atomic<Int>(0)
  private let rescueCount = Atomic<Int>(0)

  /// Starts its thread.
  init(index: Int, cpu: Int?, watch: HostWatch) throws(Errno) {
    self.index = index
    self.cpu = cpu
    self.watch = watch
    bell = try OwnedDescriptor.eventCounter()
    unsafe loop = .allocate(capacity: 1)
    do throws(Errno) { unsafe loop.initialize(to: try HostLoop(bell: bell.rawValue)) } catch {
      unsafe loop.deallocate()
      throw error
    }
    do throws(Errno) {
      try beginThread { [self] in
        // The threads that it makes have no more rights than it has.
        ThreadRole.queue.begin()
        run()
      }
    } catch {
      unsafe loop.deinitialize(count: 1)
      unsafe loop.deallocate()
      throw error
    }
  }

  deinit {
    unsafe loop.deinitialize(count: 1)
    unsafe loop.deallocate()
  }

  private func beginThread(_ body: @escaping @Sendable () -> Void) throws(Errno) {
    // Nobody joins it: it ends by itself when its last worker has gone.
    _ = try SystemThread(name: "shared \(index)", cpu: cpu, body)
  }

  /// Workers that are here, or are about to be.
  var load: Int { seats.load(ordering: .relaxed) }

  /// How many of them have their own thread.
  var alone: Int { aloneCount.load(ordering: .relaxed) }
  /// How often another thread continued with the others.
  var rescues: Int { rescueCount.load(ordering: .relaxed) }

  /// Has a worker made on this thread; does not wait for that.
  func take(_ order: HostOrder) {
    seats.wrappingAdd(1, ordering: .relaxed)
    var order = order
    let ended = order.ended
    order.ended = { [self] in
      ended()
      seats.wrappingSubtract(1, ordering: .relaxed)
      EventCounter.signal(bell.rawValue)
    }
    ring(.new(order))
  }

  private func ring(_ guest: Guest) {
    door.withLock { $0.guests.append(guest) }
    EventCounter.signal(bell.rawValue)
  }

  /// No more workers arrive; the thread ends when the last one has gone.
  func end() {
    door.withLock { $0.isOver = true }
    EventCounter.signal(bell.rawValue)
  }

  // MARK: The thread

  private func run() {
    var now = Clock.now
    while true {
      while let worker = unsafe loop.pointee.next() {
        let word = unsafe loop.pointee.turnNumber &* 2 &+ 1
        // Release: a thread that takes over sees the state of the loop.
        turnWord.store(word, ordering: .releasing)
        let goesOn = worker.turn()
        guard turnWord.compareExchange(expected: word, desired: word &- 1, ordering: .acquiringAndReleasing).exchanged else {
          // The worker was stuck, and another thread has taken over the others. This one is its own from now on.
          unsafe worker.seat.state.pointee.standstills += 1
          return goOnAlone(worker, goesOn)
        }
        let start = now
        now = Clock.now
        guard goesOn else {
          unsafe loop.pointee.letGo()
          worker.end()
          continue
        }
        if unsafe worker.seat.isHeavy(from: start, to: now, round: loop.pointee.rounds), giveThread(worker) {
          unsafe loop.pointee.letGo()
          continue
        }
        unsafe loop.pointee.settle(worker, now: now)
      }
      let (rang, slept) = unsafe loop.pointee.nextRound()
      if slept {
        now = Clock.now
        // Full: a watch that is about to sleep sees this, or is seen here.
        wakeCount.wrappingAdd(1, ordering: .sequentiallyConsistent)
        watch.wakeIfAsleep()
      }
      if rang, !answerDoor() { return }
    }
  }

  /// - Returns: false if this thread has to end.
  private func answerDoor() -> Bool {
    EventCounter.drain(bell.rawValue)
    let (guests, isOver) = door.withLock { door in
      defer { door.guests = [] }
      return (door.guests, door.isOver)
    }
    for guest in guests { seat(guest) }
    // Workers that have their own thread now may come back.
    return !isOver || load > 0
  }

  private func seat(_ guest: Guest) {
    let number = unsafe loop.pointee.takeNumber()
    switch guest {
    case .new(let order):
      let seat = unsafe WorkerSeat(set: loop.pointee.set)
      unsafe seat.state.pointee.number = number
      do throws(Errno) { unsafe loop.pointee.sit(try order.makeWorker(seat)) } catch {
        unsafe loop.pointee.giveNumber(number)
        order.runAlone()
      }
    case .back(let worker):
      unsafe worker.seat.state.pointee.number = number
      do throws(Errno) {
        try worker.move(alone: false)
        unsafe loop.pointee.sit(worker)
      } catch {
        unsafe loop.pointee.giveNumber(number)
        // The thread that it came from is ending, so there will be room for a new one; meanwhile the others have their turns.
        if !giveThread(worker) {
          usleep(1000)
          ring(.back(worker))
        }
      }
    }
  }

  // MARK: Workers with their own thread

  /// - Returns: false if no thread is available.
  private func giveThread(_ worker: HostedWorker) -> Bool {
    do throws(Errno) {
      _ = try SystemThread(name: worker.name) { [self] in goOnAlone(worker, true) }
      return true
    } catch { return false }
  }

  /// Runs this worker alone on the calling thread, until it can share one again.
  private func goOnAlone(_ worker: HostedWorker, _ goesOn: Bool) {
    aloneCount.wrappingAdd(1, ordering: .relaxed)
    defer { aloneCount.wrappingSubtract(1, ordering: .relaxed) }
    guard goesOn else { return worker.end() }
    let state = unsafe worker.seat.state
    unsafe state.pointee.wantsCompany = false
    unsafe state.pointee.heavyPeriods = 0
    unsafe state.pointee.isReady = false
    unsafe state.pointee.isTimed = false
    unsafe state.pointee.deadline = .max
    worker.seat.begin(Clock.now, round: 0)
    do throws(Errno) { try worker.move(alone: true) } catch {
      // There is no descriptor for its own epoll set, so it has to share a thread.
      return ring(.back(worker))
    }
    guard worker.runAlone() else { return worker.end() }
    worker.seat.comeBack()
    ring(.back(worker))
  }

  // MARK: Stuck turns

  /// Changes with each turn; odd while one is in progress.
  var turn: UInt64 { turnWord.load(ordering: .acquiring) }
  /// How often the thread woke up.
  var wakes: UInt64 { wakeCount.load(ordering: .sequentiallyConsistent) }

  /// Lets another thread continue with all workers except the one whose turn does not end.
  ///
  /// - Parameter word: the value of `turn`, which has not changed since the last check.
  func rescue(from word: UInt64) {
    do throws(Errno) {
      try beginThread { [self] in
        // Acquire: the loop is seen as the other thread left it at the beginning of that turn.
        guard
          turnWord.compareExchange(expected: word, desired: .max, ordering: .acquiringAndReleasing).exchanged
        else { return }
        rescueCount.wrappingAdd(1, ordering: .relaxed)
        unsafe loop.pointee.letGo()
        run()
      }
    } catch {
      // No thread is available now: the watchdog tries again.
    }
  }
}
