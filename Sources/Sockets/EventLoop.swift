/// An event loop: one thread that waits for many descriptors (sockets, events of devices, signals).
internal import CLinux
internal import Glibc
internal import HeapModule
internal import Synchronization
public import SystemPackage
internal import VirtioCore

/// An epoll loop. Everything, including handlers, runs on the thread that runs the loop, so a handler must not wait for
/// anything that only another handler can do.
public final class EventLoop {
  /// The events to wait for. The end and the failure of a descriptor count as readable: reading tells which it is.
  public struct Interest: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let readable = Interest(rawValue: EPOLLIN.rawValue)
    public static let writable = Interest(rawValue: EPOLLOUT.rawValue)
  }

  public typealias Handler = (Interest) -> Void

  /// A descriptor in the loop, until it is removed.
  public struct Registration: Hashable, Sendable {
    fileprivate let token: UInt64
    fileprivate let descriptor: Int32
  }

  private let epoll: OwnedDescriptor
  private var handlers: [UInt64: Handler] = [:]
  /// What to do when a timer is due, by its number.
  private var alarms: [UInt64: () -> Void] = [:]
  /// When they are due. Some may have been cancelled.
  private var dues = Heap<Due>()
  private var nextToken: UInt64 = 0
  private let returns: Returns
  /// What to do when an errand is done, by its number.
  private var awaited: [UInt64: () -> Void] = [:]

  /// A call that is due some time, until it is made or cancelled.
  public struct Timer: Hashable, Sendable { fileprivate let number: UInt64 }

  private struct Due: Comparable {
    let time: ContinuousClock.Instant
    /// Those that are due at the same time are called in the order of their numbers.
    let number: UInt64

    static func < (one: Due, other: Due) -> Bool { (one.time, one.number) < (other.time, other.number) }
  }

  /// Errands that are done and have not been handled yet.
  private final class Returns: Sendable {
    private let done = Mutex<[UInt64]>([])
    let counter: OwnedDescriptor

    init() throws(Errno) { counter = try .eventCounter() }

    func add(_ number: UInt64) {
      done.withLock { $0.append(number) }
      EventCounter.signal(counter.rawValue)
    }

    func take() -> [UInt64] {
      EventCounter.drain(counter.rawValue)
      return done.withLock { done in
        defer { done = [] }
        return done
      }
    }
  }
  private var isStopping = false

  public init() throws(Errno) {
    let descriptor = epoll_create1(Int32(EPOLL_CLOEXEC))
    guard descriptor >= 0 else { throw Errno(rawValue: errno) }
    self.epoll = OwnedDescriptor(descriptor)
    self.returns = try Returns()
    _ = try add(returns.counter.rawValue) { [unowned self] _ in
      for number in self.returns.take() { self.awaited.removeValue(forKey: number)?() }
    }
  }

  /// Waits for a descriptor from now on, level-triggered. The caller keeps the descriptor, and has to remove it before it is
  /// closed.
  public func add(
    _ descriptor: Int32, _ interest: Interest = .readable, _ handler: @escaping Handler
  ) throws(Errno) -> Registration {
    nextToken += 1
    let registration = Registration(token: nextToken, descriptor: descriptor)
    try control(EPOLL_CTL_ADD, registration, interest)
    handlers[registration.token] = handler
    return registration
  }

  /// Waits for other events. An empty interest waits only for the end of the descriptor.
  public func change(_ registration: Registration, _ interest: Interest) throws(Errno) {
    try control(EPOLL_CTL_MOD, registration, interest)
  }

  /// Its handler is not called any more, not even for events that were found in the same turn.
  public func remove(_ registration: Registration) {
    guard handlers.removeValue(forKey: registration.token) != nil else { return }
    try? control(EPOLL_CTL_DEL, registration, [])
  }

  /// Calls the handler once, after the delay.
  public func after(_ delay: Duration, _ handler: @escaping () -> Void) { _ = timer(after: delay, handler) }

  /// The same, for a call that may have to be cancelled.
  public func timer(after delay: Duration, _ handler: @escaping () -> Void) -> Timer {
    nextToken += 1
    alarms[nextToken] = handler
    dues.insert(Due(time: .now + delay, number: nextToken))
    return Timer(number: nextToken)
  }

  /// Its handler is not called any more; does nothing if it has been called.
  public func cancel(_ timer: Timer) {
    alarms[timer.number] = nil
    // Those that were cancelled never outnumber the others by much, however many a front-end causes.
    guard dues.count > 2 * alarms.count + 64 else { return }
    dues = Heap(dues.unordered.filter { alarms[$0.number] != nil })
  }

  /// Runs an errand that may never return, and continues in the meantime.
  ///
  /// - Parameters:
  ///   - errand: runs on the queue's helper thread.
  ///   - handler: called with its result, on the loop's thread; never, if the errand never returns.
  public func perform<Result: Sendable>(
    on queue: ErrandQueue, _ errand: @escaping @Sendable () -> Result, then handler: @escaping (Result) -> Void
  ) {
    queue.run(returning(errand, handler))
  }

  /// Calls the handler when all present errands of the queue are done, disposals included.
  public func whenDone(_ queue: ErrandQueue, _ handler: @escaping () -> Void) {
    let last = returning({}, handler)
    queue.run { queue.dispose(last) }
  }

  /// A closure that runs the errand and has the handler called afterwards.
  private func returning<Result: Sendable>(
    _ errand: @escaping @Sendable () -> Result, _ handler: @escaping (Result) -> Void
  ) -> @Sendable () -> Void {
    nextToken += 1
    let (number, returns, result) = (nextToken, returns, Answer<Result>())
    awaited[number] = { if let result = result.take() { handler(result) } }
    return {
      result.put(errand())
      returns.add(number)
    }
  }

  /// Runs handlers until `stop`; an earlier `stop` makes it return immediately. May be called again.
  public func run() throws(Errno) {
    defer { isStopping = false }
    var events = unsafe [epoll_event](repeating: epoll_event(), count: 64)
    while !isStopping {
      let count = unsafe epoll_wait(epoll.rawValue, &events, Int32(events.count), timeout())
      guard count >= 0 || errno == EINTR else { throw Errno(rawValue: errno) }
      for index in 0..<Int(max(count, 0)) {
        let (found, token) = unsafe (events[index].events, events[index].data.u64)
        var interest = Interest(rawValue: found).intersection([.readable, .writable])
        if found & (EPOLLHUP.rawValue | EPOLLERR.rawValue) != 0 { interest.insert(.readable) }
        // If it was removed in the meantime, the token finds nothing, even if the descriptor's number is in use again.
        handlers[token]?(interest)
      }
      runTimers()
    }
  }

  /// Lets `run` return after the handlers of this turn.
  public func stop() { isStopping = true }

  private func control(_ operation: Int32, _ registration: Registration, _ interest: Interest) throws(Errno) {
    var event = unsafe epoll_event(events: interest.rawValue, data: epoll_data(u64: registration.token))
    guard unsafe epoll_ctl(epoll.rawValue, operation, registration.descriptor, &event) == 0 else {
      throw Errno(rawValue: errno)
    }
  }

  /// Milliseconds until the next timer, rounded up; −1 if there is none.
  private func timeout() -> Int32 {
    while let due = dues.min {
      guard alarms[due.number] == nil else { return Int32(clamping: max(0, Int((due.time - .now) / .milliseconds(1)) + 1)) }
      dues.removeMin()
    }
    return -1
  }

  /// Those that are due by now: a handler's new timer waits for the next turn, even if its delay is zero.
  private func runTimers() {
    guard !dues.isEmpty else { return }
    let (now, newest) = (ContinuousClock.now, nextToken)
    while let due = dues.min, due.time <= now, due.number <= newest {
      dues.removeMin()
      alarms.removeValue(forKey: due.number)?()
    }
  }
}

/// The result of an errand.
private final class Answer<Result: Sendable>: Sendable {
  private let result = Mutex<Result?>(nil)
  func put(_ value: Result) { result.withLock { $0 = value } }
  func take() -> Result? { result.withLock { $0.take() } }
}
