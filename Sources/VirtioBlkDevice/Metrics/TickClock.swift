/// A clock that is read once for every batch of requests, where the cost of the system's clock would be noticeable.
internal import CLinux
internal import Glibc
internal import VirtioCore

/// Counts the CPU's ticks if the kernel itself keeps time with them, and nanoseconds otherwise.
struct TickClock: Sendable {
  /// How long the ticks are compared with the system's clock, once per process, when its first disk is made.
  private static let comparison: UInt32 = 2000  // microseconds

  private let countsTicks: Bool
  /// Nanoseconds of a tick, in parts of 2^32.
  private let factor: UInt64

  /// Only differences have a meaning. Two CPUs may differ a little, so a difference may be negative.
  var now: UInt64 {
    @inline(__always) get { countsTicks ? clinux_ticks() : Clock.now }
  }

  /// The time between two readings, nanoseconds; 0 if the second one is not later.
  func nanoseconds(from start: UInt64, to end: UInt64) -> UInt64 {
    guard end > start else { return 0 }
    let (high, low) = (end &- start).multipliedFullWidth(by: factor)
    return high < 1 << 32 ? high &<< 32 | low &>> 32 : .max
  }

  static let shared: TickClock = {
    let system = TickClock(countsTicks: false, factor: 1 << 32)
    guard isTrusted else { return system }
    let first = pair()
    usleep(comparison)
    let second = pair()
    guard second.ticks > first.ticks, second.time > first.time else { return system }
    let factor = Double(second.time &- first.time) / Double(second.ticks &- first.ticks) * 0x1p32
    // Between 10 MHz and 100 GHz; no CPU that we know is outside that range.
    guard factor > 0x1p32 / 100, factor < 0x1p32 * 100 else { return system }
    return TickClock(countsTicks: true, factor: UInt64(factor))
  }()

  /// The kernel has found the ticks steady and the same on all CPUs.
  private static var isTrusted: Bool {
    let file = unsafe open("/sys/devices/system/clocksource/clocksource0/current_clocksource", O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { return false }
    defer { close(file) }
    var text = [UInt8](repeating: 0, count: 64)
    let count = unsafe read(file, &text, text.count)
    let name = String(decoding: text.prefix(max(0, count)).prefix { $0 > 32 }, as: UTF8.self)
    return name == "tsc" || name == "arch_sys_counter"
  }

  /// Both clocks at one moment: the attempt with the least delay between the readings.
  private static func pair() -> (ticks: UInt64, time: UInt64) {
    var best = (ticks: UInt64(0), time: UInt64(0))
    var width = UInt64.max
    for _ in 0..<8 {
      let before = clinux_ticks()
      let time = Clock.now
      let after = clinux_ticks()
      guard after >= before, after &- before < width else { continue }
      width = after &- before
      best = (before &+ width / 2, time)
    }
    return best
  }
}
