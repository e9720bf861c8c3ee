/// How an engine without a ring of its own sleeps: epoll over the kicks, the mailbox and whatever completes.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// Edge-triggered, so that an eventfd need not be read back: every signal is an edge.
@safe
struct EpollWaiter: ~Copyable {
  private static let capacity = 64
  /// What the 64 bits of an epoll event say here, above the lane's number.
  private static let mailboxMark: UInt64 = 1 << 32
  private static let completionMark: UInt64 = 2 << 32

  /// The epoll set itself; readable while something in it is new.
  let descriptor: Int32
  private let events: UnsafeMutablePointer<epoll_event>
  private var count: Int
  private var next: Int
  private var bridges: [Int: DoorbellWatch]
  private var kicks: [Int: OwnedDescriptor]
  private(set) var systemCalls: UInt64

  /// - Parameters:
  ///   - mailbox: an eventfd that stays open for as long as this value lives.
  ///   - completions: another one, if completions are told by one.
  init(mailbox: Int32, completions: Int32? = nil) throws(Errno) {
    let descriptor = epoll_create1(Int32(EPOLL_CLOEXEC))
    guard descriptor >= 0 else { throw Errno(rawValue: errno) }
    do throws(Errno) {
      try Self.add(mailbox, Self.mailboxMark, to: descriptor)
      if let completions { try Self.add(completions, Self.completionMark, to: descriptor) }
    } catch {
      close(descriptor)
      throw error
    }
    self.descriptor = descriptor
    unsafe self.events = .allocate(capacity: Self.capacity)
    count = 0
    next = 0
    bridges = [:]
    kicks = [:]
    systemCalls = 0
  }

  deinit {
    unsafe events.deallocate()
    close(descriptor)
  }

  private func add(_ watched: Int32, _ mark: UInt64) throws(Errno) { try Self.add(watched, mark, to: descriptor) }

  private static func add(_ watched: Int32, _ mark: UInt64, to descriptor: Int32) throws(Errno) {
    var event = unsafe epoll_event()
    unsafe event.events = EPOLLIN.rawValue | EPOLLET.rawValue
    unsafe event.data.u64 = mark
    guard unsafe epoll_ctl(descriptor, EPOLL_CTL_ADD, watched, &event) == 0 else { throw Errno(rawValue: errno) }
  }

  mutating func watch(_ kick: KickSource, lane: Int) throws(Errno) {
    switch kick {
    case .eventCounter(let counter):
      kicks[lane] = counter
      try add(counter.rawValue, UInt64(lane))
    case .doorbell(let doorbell):
      let bridge = try DoorbellWatch(doorbell)
      bridges[lane] = bridge
      try add(bridge.rung.rawValue, UInt64(lane))
    case .none: break
    }
  }

  mutating func unwatch(lane: Int) {
    if let kick = kicks.removeValue(forKey: lane) {
      _ = epoll_ctl(descriptor, EPOLL_CTL_DEL, kick.rawValue, nil)
    }
    if let bridge = bridges.removeValue(forKey: lane) {
      _ = epoll_ctl(descriptor, EPOLL_CTL_DEL, bridge.rung.rawValue, nil)
      bridge.stop()
    }
  }

  /// Sleeps until something happens, unless events of the last time are left.
  mutating func wait(nanoseconds: Int64?) {
    guard next == count else { return }
    next = 0
    systemCalls &+= 1
    let timeout = nanoseconds.map { Int32(clamping: ($0 + 999_999) / 1_000_000) } ?? -1
    count = unsafe max(0, Int(epoll_wait(descriptor, events, Int32(Self.capacity), timeout)))
  }

  /// What happened: `.completion` only means that completions may be there.
  enum Wake {
    case kick(lane: Int)
    case mailbox
    case completions
  }

  /// Something that happened has not been fetched with `nextWake`.
  var hasWake: Bool { next < count }

  mutating func nextWake() -> Wake? {
    guard next < count else { return nil }
    let mark = unsafe events[next].data.u64
    next &+= 1
    switch mark {
    case Self.mailboxMark: return .mailbox
    case Self.completionMark: return .completions
    default: return .kick(lane: Int(mark))
    }
  }
}
