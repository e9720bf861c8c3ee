/// When a shared thread sleeps for a moment although kicks may come: being woken for each costs more than the requests do.
internal import CLinux
internal import Glibc

/// Where kicks of many disks come one after the other, a thread that sleeps until the next one is woken for each. One that naps
/// finds several at once, and each disk waits a little longer. It naps when it was woken soon again and again, and for as long as
/// naps find more than one.
struct NapRule {
  /// Nanoseconds.
  private static let length: UInt64 = 100_000
  /// A sleep that was shorter was none, nanoseconds.
  private static let shortSleep: UInt64 = 40_000
  /// Short sleeps, one after the other, after which it naps.
  private static let shortSleeps = (least: 32, most: 8192)
  /// Naps in a row that find one kick or none, after which it sleeps.
  private static let vainNaps = 8
  /// As many naps were no mistake.
  private static let goodNaps = 64

  private(set) var isOn = false
  private var wanted = shortSleeps.least
  private var run = 0
  private var naps = 0

  /// Of the calling thread: that naps are as long as they are to be.
  static func prepareThread() { clinux_exact_sleeps() }

  /// It slept until something came.
  mutating func note(slept: UInt64) {
    run = slept < Self.shortSleep ? run + 1 : run / 2
    guard run >= wanted else { return }
    (isOn, run, naps) = (true, 0, 0)
  }

  mutating func nap(atMost limit: UInt64) {
    var time = timespec(tv_sec: 0, tv_nsec: Int(min(limit, Self.length)))
    _ = unsafe nanosleep(&time, nil)
  }

  /// What a nap found.
  mutating func note(found: Int) {
    naps += 1
    run = found > 1 ? 0 : run + 1
    guard run >= Self.vainNaps else { return }
    // A driver that waits for each answer looks the same as many, until it is tried.
    wanted = naps < Self.goodNaps ? min(wanted * 2, Self.shortSleeps.most) : Self.shortSleeps.least
    (isOn, run) = (false, 0)
  }
}
