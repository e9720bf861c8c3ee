/// The place of one worker on a thread that runs several.
internal import CLinux
internal import Glibc

/// What the thread's loop and the worker's waiter tell each other. Only the thread that runs the worker touches it.
@safe
final class WorkerSeat: @unchecked Sendable {
  struct State {
    /// Identifies its descriptors' events in the epoll set of the thread.
    var number: UInt32 = 0
    /// The mailbox has become readable since the last turn.
    var mailboxRang = false
    /// Kicks since the last turn.
    var kicks = 0
    /// It is queued for a turn.
    var isReady = false
    /// When it wants its next turn: at once (0), after this many nanoseconds, or when something happens (−1).
    var rest: Int64 = 0
    /// When it has a turn even without an event; `Clock` nanoseconds.
    var deadline = UInt64.max
    /// It is among those with a deadline.
    var isTimed = false
    /// It has the thread to itself, with its own epoll set.
    var isAlone = false
    /// While it is alone: it sleeps most of the time, and can share a thread again.
    var wantsCompany = false
    /// The start of the period in which its sleep (alone) or its work (on a shared thread) is counted; `Clock` nanoseconds.
    var periodStart: UInt64 = 0
    /// Nanoseconds counted in the period.
    var counted: UInt64 = 0
    /// Turns on a shared thread in the period, and the round in which it began.
    var turns = 0
    var firstRound = 0
    /// Periods in a row in which it used too much, and how many of them make it move.
    var heavyPeriods = 0
    var patience = 2
    /// How often it was stuck in a turn.
    var standstills = 0
  }

  /// How long a worker is watched before it moves: nanoseconds.
  static let period: UInt64 = 20_000_000
  /// With fewer turns in a period, a worker is not heavy just because it has one in nearly every round.
  private static let busyTurns = 64
  private static let patienceLimit = 512
  /// A worker that was stuck this often keeps its own thread.
  private static let standstillLimit = 3

  /// The epoll set of the thread that it shares.
  let set: Int32
  let state: UnsafeMutablePointer<State>

  init(set: Int32) {
    self.set = set
    unsafe state = .allocate(capacity: 1)
    unsafe state.initialize(to: State())
  }

  deinit { unsafe state.deallocate() }

  /// An event of the set carries the worker's number, above the waiter's own mark.
  static let numberShift: UInt64 = 34
  var mark: UInt64 { unsafe UInt64(state.pointee.number) << Self.numberShift }

  /// Takes the events, as marks of the waiter. - Returns: their number.
  func take(into events: UnsafeMutablePointer<epoll_event>, capacity: Int, mailbox: UInt64) -> Int {
    var count = 0
    if unsafe state.pointee.mailboxRang {
      unsafe state.pointee.mailboxRang = false
      unsafe events[0].data.u64 = mailbox
      count = 1
    }
    while unsafe state.pointee.kicks > 0, count < capacity {
      unsafe state.pointee.kicks &-= 1
      // It does not matter which queue it was: the turn looks at all queues of the worker.
      unsafe events[count].data.u64 = 0
      count += 1
    }
    return count
  }

  // MARK: Which workers need their own thread

  /// Accounts for a turn on a shared thread. - Returns: whether the worker needs its own thread: it takes more than a quarter
  /// of this one, or has something to do in nearly every round, like that of a driver that waits for each answer.
  func isHeavy(from start: UInt64, to now: UInt64, round: Int) -> Bool {
    unsafe state.pointee.counted &+= now &- start
    unsafe state.pointee.turns &+= 1
    let passed = unsafe now &- state.pointee.periodStart
    guard passed >= Self.period else { return false }
    let (turns, rounds) = unsafe (state.pointee.turns, round &- state.pointee.firstRound)
    // A period that began with a sleep says nothing.
    let isBusy = turns >= Self.busyTurns && turns &* 5 > rounds &* 4 && passed < 2 * Self.period
    let isHeavy = unsafe isBusy || state.pointee.counted > passed / 4
    unsafe state.pointee.heavyPeriods = isHeavy ? state.pointee.heavyPeriods + 1 : 0
    begin(now, round: round)
    return unsafe state.pointee.heavyPeriods >= state.pointee.patience
  }

  /// Accounts for a sleep on its own thread. A worker that sleeps three quarters of the time gives the thread back.
  func slept(from start: UInt64, to now: UInt64) {
    unsafe state.pointee.counted &+= now &- start
    let passed = unsafe now &- state.pointee.periodStart
    guard passed >= Self.period else { return }
    unsafe state.pointee.wantsCompany =
      state.pointee.counted > passed / 4 * 3 && state.pointee.standstills < Self.standstillLimit
    begin(now, round: 0)
  }

  /// It comes back from its own thread. A worker that moves back and forth has to be busy for longer each time.
  func comeBack() {
    unsafe state.pointee.patience = min(state.pointee.patience * 2, Self.patienceLimit)
    unsafe state.pointee.heavyPeriods = 0
  }

  /// Begins a period.
  func begin(_ now: UInt64, round: Int) {
    unsafe state.pointee.periodStart = now
    unsafe state.pointee.firstRound = round
    unsafe state.pointee.turns = 0
    unsafe state.pointee.counted = 0
  }
}
