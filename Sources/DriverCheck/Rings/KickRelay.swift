/// Passes kicks on from the driver to the device, and counts them.
internal import Glibc
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// A thread of its own for one device, from the first queue with kicks on. The device gets every kick, one hand later.
final class KickRelay: Sendable {
  /// One queue's way from the driver to the device.
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

    init() throws(Errno) { wake = try .eventCounter() }
  }

  private let shared: Shared
  private let thread: SystemThread

  /// Milliseconds between two looks at who sleeps beside a ring that is not empty.
  private static let pace: Int32 = 100

  init() throws(Errno) {
    let shared = try Shared()
    self.shared = shared
    thread = try SystemThread(name: "driver check") { Self.run(shared) }
  }

  deinit {
    shared.state.withLock { $0.isEnding = true }
    EventCounter.signal(shared.wake.rawValue)
    thread.join()
    for queue in shared.state.withLock({ Array($0.lines.keys) }) { remove(queue) }
  }

  /// Takes a queue's kicks from now on.
  ///
  /// - Returns: where the device gets them.
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
    shared.state.withLock { $0.lines[queue] = line }
    EventCounter.signal(shared.wake.rawValue)
    return .eventCounter(output)
  }

  /// The queue is about to be stopped: its ring is not looked at any more. Kicks go on.
  ///
  /// Whoever lets go of guest memory last unmaps it, and that is not for this thread.
  func lookAway(_ queue: Int) {
    let look = shared.state.withLock { state in
      defer { state.lines[queue]?.look = nil }
      return state.lines[queue]?.look
    }
    withExtendedLifetime(look) {}
  }

  func remove(_ queue: Int) {
    let line = shared.state.withLock { $0.lines.removeValue(forKey: queue) }
    line?.watch?.stop()
    EventCounter.signal(shared.wake.rawValue)
  }

  private static func run(_ shared: Shared) {
    ThreadRole.doorbell.begin()
    while true {
      let (inputs, isEnding) = shared.state.withLock { state in
        (state.lines.map { (queue: $0.key, descriptor: $0.value.input.rawValue) }, state.isEnding)
      }
      guard !isEnding else { return }
      var entries = [pollfd(fd: shared.wake.rawValue, events: Int16(POLLIN), revents: 0)]
      entries += inputs.map { pollfd(fd: $0.descriptor, events: Int16(POLLIN), revents: 0) }
      _ = unsafe poll(&entries, nfds_t(entries.count), inputs.isEmpty ? -1 : pace)
      if entries[0].revents != 0 { EventCounter.drain(shared.wake.rawValue) }
      var isGone = false
      for (input, entry) in zip(inputs, entries.dropFirst()) {
        // Under the lock: a queue that goes takes what it has with it, and nothing of that is kept alive here.
        shared.state.withLock { state in
          guard let line = state.lines[input.queue], line.input.rawValue == input.descriptor else { return }
          if entry.revents & Int16(POLLIN) != 0 {
            line.account.kicked(max(EventCounter.drain(line.input.rawValue), 1))
            EventCounter.signal(line.output.rawValue)
          } else if entry.revents != 0 {
            isGone = true
          }
          if let look = line.look { line.account.look(now: Clock.now) { look.hasMore() } }
        }
      }
      // Nobody is at the other end of a line any more: this does not become a busy loop.
      if isGone { usleep(UInt32(pace) * 1000) }
    }
  }
}

/// Whether something is available behind where the device stands, seen from another thread.
final class RingLook: Sendable {
  private let memory: GuestMemory
  private let configuration: QueueConfiguration
  private let isPacked: Bool
  /// Where the device stood when it went to sleep.
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
