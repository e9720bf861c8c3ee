/// When a shared thread naps for a fixed time instead of sleeping until the next kick: being woken for each kick costs more
/// than the requests do.
internal import CLinux
internal import Glibc

/// If kicks of many disks arrive one after the other, a thread that sleeps until the next one is woken for each. A thread that
/// naps finds several at once, and each disk waits a little longer. It naps when its sleeps are short on average, and for as
/// long as naps find more than one kick.
struct NapRule {
  /// The length of a nap, nanoseconds; the kernel makes it up to 50 µs longer.
  private static let length: UInt64 = 100_000
  /// Sleeps are short if they last less than this on average, nanoseconds.
  private static let shortSleep: UInt64 = 40_000
  /// How many sleeps have to be averaged before it naps: at first, and at most.
  private static let sleeps = (least: 32, most: 8192)
  /// Naps in a row that find one kick or none, after which it stops napping.
  private static let vainNaps = 8
  /// After this many naps, napping was no mistake.
  private static let goodNaps = 64

  private(set) var isOn = false
  private var wanted = sleeps.least
  private var count = 0
  /// The average of about the last sixteen sleeps, nanoseconds.
  private var average = 4 * shortSleep
  private var naps = 0
  private var vain = 0

  /// The thread slept until something came.
  mutating func note(slept: UInt64) {
    // One long sleep must not outweigh many short ones.
    average = (average * 15 + min(slept, 4 * Self.shortSleep)) / 16
    count += 1
    guard count >= wanted, average < Self.shortSleep else { return }
    (isOn, naps, vain) = (true, 0, 0)
  }

  /// - Parameter limit: nanoseconds to the next deadline.
  mutating func nap(atMost limit: UInt64) {
    var time = timespec(tv_sec: 0, tv_nsec: Int(min(limit, Self.length)))
    _ = unsafe nanosleep(&time, nil)
  }

  /// Notes how many events a nap found.
  mutating func note(found: Int) {
    naps += 1
    vain = found > 1 ? 0 : vain + 1
    guard vain >= Self.vainNaps else { return }
    // One driver that waits for each answer looks like many drivers, until naps are tried.
    wanted = naps < Self.goodNaps ? min(wanted * 2, Self.sleeps.most) : Self.sleeps.least
    (isOn, count, average) = (false, 0, 4 * Self.shortSleep)
  }
}
