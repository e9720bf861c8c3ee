/// Passes kicks on from the driver to the device, and counts them.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// A thread for each device, started with its first queue that has kicks. The device gets every kick, a little later.
final class KickRelay: Sendable {
  /// The kicks of one queue, from the driver to the device.
  private struct Line {
    var input: OwnedDescriptor
    /// Where the driver rings a doorbell.
    var watch: DoorbellWatch?
    var output: OwnedDescriptor
    var account: KickAccount
    /// `nil`: the queue is being stopped.
    var look: RingLook?
  }

  private struct State {
    var lines: [Int: Line] = [:]
    var isEnding = false
  }

  private final class Shared: Sendable {
    let state = Mutex(State())
    let wake: OwnedDescriptor
    /// Edge-triggered, so that nothing has to be read: a read of the driver's descriptor might block, and two queues may
    /// share one.
    let set: OwnedDescriptor

    init() throws(Errno) {
      wake = try .eventCounter()
      let number = epoll_create1(Int32(EPOLL_CLOEXEC))
      guard number >= 0 else { throw Errno(rawValue: errno) }
      set = OwnedDescriptor(number)
      try attend(wake, mark: .max)
    }

    /// - Throws: the descriptor cannot be polled.
    func attend(_ descriptor: OwnedDescriptor, mark: UInt64) throws(Errno) {
      var event = unsafe epoll_event()
      unsafe event.events = EPOLLIN.rawValue | EPOLLET.rawValue
      unsafe event.data.u64 = mark
      guard unsafe epoll_ctl(set.rawValue, EPOLL_CTL_ADD, descriptor.rawValue, &event) == 0 else {
        throw Errno(rawValue: errno)
      }
    }

    func leave(_ descriptor: OwnedDescriptor) { _ = epoll_ctl(set.rawValue, EPOLL_CTL_DEL, descriptor.rawValue, nil) }
  }

  private let shared: Shared
  private let thread: SystemThread

  /// Milliseconds between two checks for a device that sleeps although its ring is not empty.
  private static let pace: Int32 = 100

  init() throws(Errno) {
    let shared = try Shared()
    self.shared = shared
    thread = try SystemThread(name: "driver check") { Self.run(shared) }
  }

  /// Nobody waits for the thread: it may be reading memory that never arrives.
  deinit {
    shared.state.withLock { $0.isEnding = true }
    for queue in shared.state.withLock({ Array($0.lines.keys) }) { remove(queue) }
    EventCounter.signal(shared.wake.rawValue)
  }

  /// Relays a queue's kicks from now on.
  ///
  /// - Returns: the source from which the device gets them.
  func add(_ queue: Int, _ source: KickSource, _ account: KickAccount, _ look: RingLook) throws(Errno) -> KickSource {
    let output = try OwnedDescriptor.eventCounter()
    let line: Line
    switch source {
    case .eventCounter(let input): line = Line(input: input, output: output, account: account, look: look)
    case .doorbell(let doorbell):
      let watch = try DoorbellWatch(doorbell, name: "kick")
      line = Line(input: watch.rung, watch: watch, output: output, account: account, look: look)
    case .none: return source
    }
    remove(queue)
    // First the destination, then the kicks: one that came earlier would be lost.
    shared.state.withLock { $0.lines[queue] = line }
    do { try shared.attend(line.input, mark: UInt64(queue)) } catch {
      _ = shared.state.withLock { $0.lines.removeValue(forKey: queue) }
      throw error
    }
    EventCounter.signal(shared.wake.rawValue)
    return .eventCounter(output)
  }

  /// The queue is about to be stopped: no further check of its ring begins. Kicks continue.
  func lookAway(_ queue: Int) {
    let look = shared.state.withLock { state in
      defer { state.lines[queue]?.look = nil }
      return state.lines[queue]?.look
    }
    withExtendedLifetime(look) {}
  }

  func remove(_ queue: Int) {
    let line = shared.state.withLock { $0.lines.removeValue(forKey: queue) }
    if let line { shared.leave(line.input) }
    line?.watch?.stop()
    EventCounter.signal(shared.wake.rawValue)
  }

  private static func run(_ shared: Shared) {
    ThreadRole.doorbell.begin()
    var events = unsafe [epoll_event](repeating: epoll_event(), count: 32)
    while true {
      let (isIdle, isEnding) = shared.state.withLock { ($0.lines.isEmpty, $0.isEnding) }
      guard !isEnding else { return }
      let count = unsafe epoll_wait(shared.set.rawValue, &events, Int32(events.count), isIdle ? -1 : pace)
      let marks = (0..<max(0, Int(count))).map { unsafe events[$0].data.u64 }
      let looks = shared.state.withLock { state in
        for mark in marks {
          guard let queue = Int(exactly: mark), let line = state.lines[queue] else { continue }
          line.account.kicked(1)
          EventCounter.signal(line.output.rawValue)
        }
        return state.lines.values.compactMap { line in
          line.account.isAwaiting ? line.look.map { (account: line.account, ring: $0) } : nil
        }
      }
      // Not under the lock: reading guest memory may take arbitrarily long, and starts and stops of queues need the lock.
      for look in looks { look.account.look(now: Clock.now, hasMore: look.ring.hasMore()) }
    }
  }
}

/// Whether something is available beyond the device's position, as seen from another thread.
final class RingLook: Sendable {
  private let memory: GuestMemory
  private let configuration: QueueConfiguration
  private let isPacked: Bool
  /// The position of the device when it went to sleep.
  private let position = Mutex<UInt16?>(nil)

  init(_ memory: GuestMemory, _ configuration: QueueConfiguration, isPacked: Bool) {
    self.memory = memory
    self.configuration = configuration
    self.isPacked = isPacked
  }

  func stands(at place: UInt16?) { position.withLock { $0 = place } }

  func hasMore() -> Bool {
    guard let place = position.withLock({ $0 }) else { return false }
    var reader = GuestReader(memory)
    guard isPacked else { return reader.word(configuration.availableRing.rawValue &+ 2).map { $0 != place } ?? false }
    let next = PackedPosition(rawValue: place)
    let flags = reader.word(configuration.descriptorTable.rawValue &+ 16 * UInt64(next.slot) &+ 14)
    return flags.map { $0 & 0x8080 == (next.wrap ? 0x0080 : 0x8000) } ?? false
  }
}
