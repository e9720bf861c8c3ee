/// A clock that is read once with every batch of requests: what the system's clock costs would be seen there.
internal import CLinux
internal import Glibc
internal import VirtioCore

/// Counts the CPU's ticks where the kernel itself takes its time from them, and nanoseconds elsewhere.
struct TickClock: Sendable {
  /// How long the ticks are compared with the system's clock: once in a process, when its first disk is made.
  private static let comparison: UInt32 = 2000  // microseconds

  private let countsTicks: Bool
  /// Nanoseconds of a tick, in parts of 2^32.
  private let factor: UInt64

  /// Only differences mean anything. Two CPUs may differ a little, so one may be negative.
  var now: UInt64 {
    @inline(__always) get { countsTicks ? clinux_ticks() : Clock.now }
  }

  /// How long it is from one reading to another, nanoseconds; 0 where the second one is not later.
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
    // Between 10 MHz and 100 GHz; anything else is no CPU that we know.
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

  /// Both clocks at one moment: of some attempts the one that nothing came between.
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
