/// Orders from the control plane to a worker: one for each queue, where only the last one counts, so that the mailbox never
/// grows.
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// Orders for one queue, in the order in which they are executed.
struct QueueOrder: Sendable {
  private(set) var start: Activation?
  var call: CallSink?
  var failure: CallSink?
  /// For a driver behind an IOMMU. The translations in force are applied after the withdrawal: they may be newer, and then they
  /// no longer say what is in use.
  var withdrawal: Withdrawal?
  private(set) var translations: (value: Translations, refused: TranslationMiss?)?
  var releases = false
  var stops = false

  /// A queue is started only after it has stopped: whatever was ordered for its previous life, and not executed, is void.
  mutating func begin(_ activation: Activation) {
    self = QueueOrder()
    start = activation
  }

  mutating func add(_ translations: Translations, refused: TranslationMiss?) {
    self.translations = (translations, refused ?? self.translations?.refused)
  }
}

/// An order to prepare for queues with this memory, and to wait for the first of them.
struct PrepareOrder: Sendable {
  /// Distinguishes this call from earlier ones, whose answers are no longer awaited.
  var number: UInt64
  var memory: GuestMemory
}

/// Orders for the queues of one worker.
struct WorkerOrders: Sendable {
  private(set) var queues: [Int: QueueOrder] = [:]
  var prepare: PrepareOrder?
  /// A prepared worker has to stop waiting for its first queue. Executed after everything else.
  var unprepares = false
  /// The disk's limits have changed.
  var changesLimits = false
  /// Starts or stops a trace of the queues.
  var trace: TraceOrder?
  /// Every queue has to stop, including those that start now.
  var stopsAll = false
  /// Queues that stall or are paused have to continue.
  var resumesAll = false
  /// Queues must pop nothing more; the number is reported back when nothing is in flight.
  var pause: UInt64?

  var isEmpty: Bool {
    queues.isEmpty && prepare == nil && !unprepares && !stopsAll && !resumesAll && !changesLimits && pause == nil
      && trace == nil
  }

  mutating func add(_ queue: Int, _ change: (inout QueueOrder) -> Void) { change(&queues[queue, default: QueueOrder()]) }
}

/// A set of orders under a lock, and an eventfd. It is read only when the eventfd is signalled, so the data path never touches
/// the lock.
final class WorkerMailbox: Sendable {
  private struct State {
    var orders = WorkerOrders()
    /// The worker no longer reads the mailbox: it ends.
    var isClosed = false
  }

  private let state = Mutex(State())
  private let counter: OwnedDescriptor

  init() throws(Errno) { counter = try OwnedDescriptor.eventCounter() }

  /// Readable while there are orders; stays open for as long as the mailbox lives.
  var descriptor: Int32 { counter.rawValue }

  /// - Returns: false if the worker is about to end and will not see it.
  func post(_ change: (inout WorkerOrders) -> Void) -> Bool {
    let isOpen = state.withLock { state in
      guard !state.isClosed else { return false }
      change(&state.orders)
      return true
    }
    if isOpen { EventCounter.signal(counter.rawValue) }
    return isOpen
  }

  /// All orders since the last call.
  func take() -> WorkerOrders {
    EventCounter.drain(counter.rawValue)
    return state.withLock { state in
      defer { state.orders = WorkerOrders() }
      return state.orders
    }
  }

  /// The worker has no queue left and wants to end. - Returns: false if there are orders to execute first.
  func close() -> Bool {
    state.withLock { state in
      guard state.orders.queues.isEmpty, state.orders.prepare == nil else { return false }
      state.isClosed = true
      return true
    }
  }
}
