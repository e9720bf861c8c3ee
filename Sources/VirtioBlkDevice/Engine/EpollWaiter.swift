/// How an engine without a ring sleeps: in epoll, for kicks, the mailbox and completions.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// Edge-triggered, so that an eventfd need not be read back: every signal is an edge.
@safe
struct EpollWaiter: ~Copyable {
  private static let capacity = 64
  /// Marks in the 64 bits of an epoll event's data, above the lane's number.
  static let mailboxMark: UInt64 = 1 << 32
  private static let completionMark: UInt64 = 2 << 32

  /// The epoll set; readable while it has new events. On a thread that runs several workers it belongs to the thread.
  private(set) var descriptor: Int32
  private let mailbox: Int32
  /// The worker's place on such a thread; `nil`: the worker never shares its thread.
  private let seat: WorkerSeat?
  private let events: UnsafeMutablePointer<epoll_event>
  private var count: Int
  private var next: Int
  private var bridges: [Int: DoorbellWatch]
  private var kicks: [Int: OwnedDescriptor]
  private(set) var systemCalls: UInt64

  /// - Parameters:
  ///   - mailbox: an eventfd that stays open for as long as this value lives.
  ///   - completions: another eventfd, if completions are signalled by one.
  ///   - seat: that of a worker that begins on a shared thread; only without `completions`.
  init(mailbox: Int32, completions: Int32? = nil, seat: WorkerSeat? = nil) throws(Errno) {
    let descriptor = seat?.set ?? epoll_create1(Int32(EPOLL_CLOEXEC))
    guard descriptor >= 0 else { throw Errno(rawValue: errno) }
    do throws(Errno) {
      try Self.add(mailbox, Self.mailboxMark | (seat?.mark ?? 0), to: descriptor)
      if let completions { try Self.add(completions, Self.completionMark, to: descriptor) }
    } catch {
      if seat == nil { close(descriptor) }
      throw error
    }
    self.seat = seat
    self.mailbox = mailbox
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
    if isSeated { forgetAll(in: descriptor) } else { close(descriptor) }
  }

  /// The set belongs to the thread, and other workers wait in it, too.
  private var isSeated: Bool { seat.map { unsafe !$0.state.pointee.isAlone } ?? false }

  private func add(_ watched: Int32, _ mark: UInt64) throws(Errno) {
    try Self.add(watched, mark | placeMark, to: descriptor)
  }

  private var placeMark: UInt64 {
    guard let seat, isSeated else { return 0 }
    return seat.mark
  }

  private static func add(_ watched: Int32, _ mark: UInt64, to descriptor: Int32) throws(Errno) {
    var event = unsafe epoll_event()
    unsafe event.events = EPOLLIN.rawValue | EPOLLET.rawValue
    unsafe event.data.u64 = mark
    if unsafe epoll_ctl(descriptor, EPOLL_CTL_ADD, watched, &event) == 0 { return }
    // It is already in the set if a worker comes back that could not leave.
    guard errno == EEXIST, unsafe epoll_ctl(descriptor, EPOLL_CTL_MOD, watched, &event) == 0 else {
      throw Errno(rawValue: errno)
    }
  }

  // MARK: Moving

  /// From now on waits in its own set, on its own thread. What is already readable is reported there, too.
  /// - Throws: if no set can be made; it stays where it is.
  mutating func leaveCompany() throws(Errno) {
    guard let seat, isSeated else { return }
    let own = epoll_create1(Int32(EPOLL_CLOEXEC))
    guard own >= 0 else { throw Errno(rawValue: errno) }
    do throws(Errno) { try addAll(to: own, mark: 0) } catch {
      close(own)
      throw error
    }
    forgetAll(in: descriptor)
    descriptor = own
    unsafe seat.state.pointee.isAlone = true
  }

  /// From now on waits in the set of the thread that it shares, under its present number there.
  /// - Throws: if it cannot; it stays where it is.
  mutating func joinCompany() throws(Errno) {
    guard let seat else { return }
    do throws(Errno) { try addAll(to: seat.set, mark: seat.mark) } catch {
      forgetAll(in: seat.set)
      throw error
    }
    if unsafe seat.state.pointee.isAlone { close(descriptor) }
    descriptor = seat.set
    unsafe seat.state.pointee.isAlone = false
  }

  private func addAll(to set: Int32, mark: UInt64) throws(Errno) {
    try Self.add(mailbox, Self.mailboxMark | mark, to: set)
    for (lane, kick) in kicks { try Self.add(kick.rawValue, UInt64(lane) | mark, to: set) }
    for (lane, bridge) in bridges { try Self.add(bridge.rung.rawValue, UInt64(lane) | mark, to: set) }
  }

  private func forgetAll(in set: Int32) {
    _ = epoll_ctl(set, EPOLL_CTL_DEL, mailbox, nil)
    for kick in kicks.values { _ = epoll_ctl(set, EPOLL_CTL_DEL, kick.rawValue, nil) }
    for bridge in bridges.values { _ = epoll_ctl(set, EPOLL_CTL_DEL, bridge.rung.rawValue, nil) }
  }

  // MARK: A connection

  /// Reports from now on, as `.completions`, when this socket can be read or written, for as long as it can be: unlike
  /// everything else here it is level-triggered, because its reader may stop before it is empty.
  /// - Parameter isNew: it is not watched yet, even if it has the number of one that was watched before.
  mutating func watch(socket: Int32, _ direction: NBDDirection, isNew: Bool) throws(Errno) {
    var event = unsafe epoll_event()
    unsafe event.events =
      (direction.contains(.read) ? EPOLLIN.rawValue : 0) | (direction.contains(.write) ? EPOLLOUT.rawValue : 0)
    unsafe event.data.u64 = Self.completionMark
    systemCalls &+= 1
    guard unsafe epoll_ctl(descriptor, isNew ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, socket, &event) == 0 else {
      throw Errno(rawValue: errno)
    }
  }

  /// Stops reporting it. The kernel removes a socket that is closed by itself.
  mutating func unwatch(socket: Int32) { _ = epoll_ctl(descriptor, EPOLL_CTL_DEL, socket, nil) }

  /// What a socket that was just reported is ready for. The next read or write reports an end or an error.
  var readiness: NBDDirection {
    guard next > 0 else { return [] }
    let events = unsafe self.events[next - 1].events
    var ready: NBDDirection = []
    if events & ~EPOLLOUT.rawValue != 0 { ready.insert(.read) }
    if events & ~EPOLLIN.rawValue != 0 { ready.insert(.write) }
    return ready
  }

  // MARK: Kicks

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

  /// Sleeps until something happens, unless there are events left from the last time.
  mutating func wait(nanoseconds: Int64?) {
    guard next == count else { return }
    next = 0
    if let seat { return wait(at: seat, nanoseconds: nanoseconds) }
    waitInSet(nanoseconds)
  }

  @inline(__always)
  private mutating func waitInSet(_ nanoseconds: Int64?) {
    systemCalls &+= 1
    let timeout = nanoseconds.map { Int32(clamping: ($0 + 999_999) / 1_000_000) } ?? -1
    count = unsafe max(0, Int(epoll_wait(descriptor, events, Int32(Self.capacity), timeout)))
  }

  /// On a shared thread it does not sleep here: it stores how long it wants to sleep, and the thread's loop does the rest. With
  /// events it does not want to sleep: the first turn after its own thread had those of its own set left, so it takes the
  /// others when the turn ends, and nobody would announce them again.
  /// Alone on a thread, it sleeps, and counts how long.
  @inline(never)
  private mutating func wait(at seat: WorkerSeat, nanoseconds: Int64?) {
    guard unsafe seat.state.pointee.isAlone else {
      count = unsafe seat.take(into: events, capacity: Self.capacity, mailbox: Self.mailboxMark)
      unsafe seat.state.pointee.rest = count > 0 ? 0 : nanoseconds ?? -1
      return
    }
    guard nanoseconds != 0 else { return waitInSet(0) }
    let start = Clock.now
    waitInSet(min(nanoseconds ?? .max, Int64(WorkerSeat.period)))
    seat.slept(from: start, to: Clock.now)
  }

  /// What happened. `.completions` only means that there may be completions.
  enum Wake {
    case kick(lane: Int)
    case mailbox
    case completions
  }

  /// Whether there are events that have not been fetched with `nextWake`.
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
