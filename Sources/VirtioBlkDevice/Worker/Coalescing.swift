/// Holds calls back until there are enough answers, or the oldest has waited long enough.
internal import VirtioCore

struct Coalescing {
  private let count: Int
  private let nanoseconds: UInt64
  private var untold = 0
  /// When the oldest answer that the driver was not notified of has waited long enough.
  private(set) var deadline: UInt64?

  /// `nil` for the other kinds of notification.
  init?(_ notification: Notification) {
    guard case .coalesce(let count, let microseconds) = notification else { return nil }
    self.count = count
    nanoseconds = UInt64(max(microseconds, 0)) * 1000
  }

  /// Whether it is time to notify, now that this many more answers have been published.
  @inline(never)
  mutating func isDue(after published: Int) -> Bool {
    untold += published
    guard untold > 0 else { return false }
    let now = Clock.now
    let due = deadline ?? now &+ nanoseconds
    guard untold >= count || now >= due else {
      deadline = due
      return false
    }
    untold = 0
    deadline = nil
    return true
  }
}
