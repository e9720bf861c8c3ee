/// The place of one worker on a thread that turns several.
internal import CLinux
internal import Glibc

/// What the thread's loop and the worker's waiter tell each other. Only the thread that turns the worker touches it.
@safe
final class WorkerSeat: @unchecked Sendable {
  struct State {
    /// What its descriptors' events say in the epoll set of the thread.
    var number: UInt32 = 0
    /// The mailbox is readable since the last turn.
    var mailboxRang = false
    /// Kicks since the last turn.
    var kicks = 0
    /// It is in the line of those that have a turn.
    var isReady = false
    /// What its last turn came to: another one at once (0), after so many nanoseconds, or when something happens (−1).
    var rest: Int64 = 0
    /// When it has a turn without an event; `Clock` nanoseconds.
    var deadline = UInt64.max
    /// It is among those with a deadline.
    var isTimed = false
    /// It has the thread for itself, with a set of descriptors of its own.
    var isAlone = false
    /// Of that: it sleeps most of the time, and can sit with others.
    var wantsCompany = false
    /// Since when it is counted how long it slept (alone) or worked (beside others); `Clock` nanoseconds.
    var periodStart: UInt64 = 0
    /// Nanoseconds of that.
    var counted: UInt64 = 0
    /// Turns that it had beside others since then, and which round that was.
    var turns = 0
    var firstRound = 0
    /// Periods in a row of which it used too much, and how many of them make it move.
    var heavyPeriods = 0
    var patience = 2
    /// How often its turn held up everybody else.
    var standstills = 0
  }

  /// How long a worker is watched before it moves: nanoseconds.
  static let period: UInt64 = 20_000_000
  /// Turns in a period without which nobody is heavy for having one in nearly every round.
  private static let busyTurns = 64
  private static let patienceLimit = 512
  /// A worker whose turns held up the others so often stays on a thread of its own.
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

  /// What an event of the set says: whose it is, above the waiter's own mark.
  static let numberShift: UInt64 = 34
  var mark: UInt64 { unsafe UInt64(state.pointee.number) << Self.numberShift }

  /// Takes what happened, as marks of the waiter. - Returns: how many.
  func take(into events: UnsafeMutablePointer<epoll_event>, capacity: Int, mailbox: UInt64) -> Int {
    var count = 0
    if unsafe state.pointee.mailboxRang {
      unsafe state.pointee.mailboxRang = false
      unsafe events[0].data.u64 = mailbox
      count = 1
    }
    while unsafe state.pointee.kicks > 0, count < capacity {
      unsafe state.pointee.kicks &-= 1
      // Whichever queue it was: the turn looks at all of the worker's.
      unsafe events[count].data.u64 = 0
      count += 1
    }
    return count
  }

  // MARK: Who needs a thread of its own

  /// A turn beside others is over. - Returns: whether it is to have a thread of its own: it takes more than a quarter of this one,
  /// or has something to do in nearly every round, as a driver has that waits for each answer.
  func isHeavy(from start: UInt64, to now: UInt64, round: Int) -> Bool {
    unsafe state.pointee.counted &+= now &- start
    unsafe state.pointee.turns &+= 1
    let passed = unsafe now &- state.pointee.periodStart
    guard passed >= Self.period else { return false }
    let (turns, rounds) = unsafe (state.pointee.turns, round &- state.pointee.firstRound)
    // Counted from a sleep on, a period says nothing.
    let isBusy = turns >= Self.busyTurns && turns &* 5 > rounds &* 4 && passed < 2 * Self.period
    let isHeavy = unsafe isBusy || state.pointee.counted > passed / 4
    unsafe state.pointee.heavyPeriods = isHeavy ? state.pointee.heavyPeriods + 1 : 0
    begin(now, round: round)
    return unsafe state.pointee.heavyPeriods >= state.pointee.patience
  }

  /// It slept on its own thread. A worker that sleeps three quarters of the time gives the thread back.
  func slept(from start: UInt64, to now: UInt64) {
    unsafe state.pointee.counted &+= now &- start
    let passed = unsafe now &- state.pointee.periodStart
    guard passed >= Self.period else { return }
    unsafe state.pointee.wantsCompany =
      state.pointee.counted > passed / 4 * 3 && state.pointee.standstills < Self.standstillLimit
    begin(now, round: 0)
  }

  /// It comes back from a thread of its own. A worker that moves back and forth has to be busy for longer each time.
  func comeBack() {
    unsafe state.pointee.patience = min(state.pointee.patience * 2, Self.patienceLimit)
    unsafe state.pointee.heavyPeriods = 0
  }

  /// Counts from this moment on.
  func begin(_ now: UInt64, round: Int) {
    unsafe state.pointee.periodStart = now
    unsafe state.pointee.firstRound = round
    unsafe state.pointee.turns = 0
    unsafe state.pointee.counted = 0
  }
}
