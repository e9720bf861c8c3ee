/// When a shared thread sleeps for a moment although kicks may come: being woken for each costs more than the requests do.
internal import CLinux
internal import Glibc

/// Where kicks of many disks come one after the other, a thread that sleeps until the next one is woken for each. One that naps
/// finds several at once, and each disk waits a little longer. It naps when its sleeps are short on average, and for as long as
/// naps find more than one kick.
struct NapRule {
  /// Nanoseconds; the kernel makes it up to 50 µs longer.
  private static let length: UInt64 = 100_000
  /// Sleeps are short that last less on average: nanoseconds.
  private static let shortSleep: UInt64 = 40_000
  /// Sleeps that make an average, and the most that are requested.
  private static let sleeps = (least: 32, most: 8192)
  /// Naps in a row that find one kick or none, after which it sleeps.
  private static let vainNaps = 8
  /// As many naps were no mistake.
  private static let goodNaps = 64

  private(set) var isOn = false
  private var wanted = sleeps.least
  private var count = 0
  /// Of the last sixteen sleeps or so, nanoseconds.
  private var average = 4 * shortSleep
  private var naps = 0
  private var vain = 0

  /// It slept until something came.
  mutating func note(slept: UInt64) {
    // A long one is one of many all the same.
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

  /// What a nap found.
  mutating func note(found: Int) {
    naps += 1
    vain = found > 1 ? 0 : vain + 1
    guard vain >= Self.vainNaps else { return }
    // A driver that waits for each answer looks the same as many, until it is tried.
    wanted = naps < Self.goodNaps ? min(wanted * 2, Self.sleeps.most) : Self.sleeps.least
    (isOn, count, average) = (false, 0, 4 * Self.shortSleep)
  }
}
