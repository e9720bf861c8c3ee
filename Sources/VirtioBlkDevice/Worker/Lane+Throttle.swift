/// Throttling. Each request gets its slot as usual; one that exceeds a limit waits there before it is submitted, while requests
/// of the other kind, flushes and all others overtake it.
internal import VirtioCore

/// A lane's state for throttling.
struct LaneThrottle: ~Copyable {
  /// The disk's limits; `nil` if it was never limited.
  var throttle: DiskThrottle?
  var reads = WaitingLine()
  var writes = WaitingLine()
  /// Since when a request has been waiting, without the time that is counted already; 0: none waits.
  var waitsSince: UInt64 = 0

  var isEmpty: Bool { reads.isEmpty && writes.isEmpty }
  var count: Int { reads.count + writes.count }

  /// When the next one may start; 0: as soon as possible; `nil`: none waits.
  var due: UInt64? {
    guard let read = reads.due, let write = writes.due else { return reads.due ?? writes.due }
    return min(read, write)
  }

  mutating func append(_ index: Int, _ kind: ThrottledKind) -> Bool {
    switch kind {
    case .read:
      reads.append(index)
      return reads.isSingle
    case .write:
      writes.append(index)
      return writes.isSingle
    }
  }

  /// Takes the next one of a kind if it may start now.
  mutating func next(_ kind: ThrottledKind, _ slab: borrowing RequestSlab, now: UInt64) -> Int? {
    guard let throttle else { return nil }
    return switch kind {
    case .read: reads.next(kind, throttle, slab, now: now)
    case .write: writes.next(kind, throttle, slab, now: now)
    }
  }

  /// Takes the next one whatever the limits say. - Returns: the slot, and whether its tokens were taken already.
  mutating func nextOnCredit(_ kind: ThrottledKind) -> (index: Int, isPaid: Bool)? {
    switch kind {
    case .read: reads.nextOnCredit()
    case .write: writes.nextOnCredit()
    }
  }
}

extension Lane where Ring: ~Copyable {
  /// The disk's limits have changed, or were removed.
  ///
  /// - Parameter throttle: `nil`: no limit. Waiting requests then start in the next turn.
  mutating func limit(by throttle: DiskThrottle?) {
    isLimited = throttle != nil
    looksFirst = isLimited || context.zones != nil
    plainBytes = !looksFirst && trace?.isResting ?? true ? rules.plainBytes : 0
    if let throttle {
      throttled.throttle = throttle
      throttled.reads.open(capacity: slab.capacity)
      throttled.writes.open(capacity: slab.capacity)
    }
    // Debts are cancelled.
    creditEnds = min(creditEnds, 1)
    throttled.reads.forgetBooking()
    throttled.writes.forgetBooking()
  }

  /// Whether a request waits for a limit.
  var hasThrottled: Bool { !throttled.isEmpty }

  /// When the next one may start, or credit ends; 0: as soon as possible; `nil`: none waits for a limit. A lane that waits for
  /// the operator starts nothing.
  var throttledUntil: UInt64? {
    guard state != .stalled else { return nil }
    guard creditEnds > 0, !isWithdrawing else { return throttled.due }
    return min(creditEnds, throttled.due ?? .max)
  }

  /// Whether a transfer that has its slot may be submitted now. Otherwise it waits, or was answered.
  @inline(never)
  mutating func mayStart<Engine: BlockEngine & ~Copyable>(
    _ index: Int, _ kind: ThrottledKind, bytes: UInt64, _ medium: inout Medium<Engine>
  ) -> Bool {
    if context.zones != nil { noteZonePosition(index) }
    guard !isLimited || mayGo(index, kind, bytes: bytes) else { return false }
    return context.zones == nil || mayEnterZone(index, &medium)
  }

  /// Whether a request that has its slot may be submitted now. Otherwise it waits.
  @inline(never)
  mutating func mayGo(_ index: Int, _ kind: ThrottledKind, bytes: UInt64) -> Bool {
    guard isLimited, let throttle = throttled.throttle else { return true }
    let now = Clock.now
    // Interrupted requests come before anything else, and a lane that is stopping waits only for its medium.
    guard state == .running else {
      throttle.charge(kind, bytes: bytes, now: now)
      return true
    }
    unsafe slab.slot(index).pointee.throttledBytes = bytes
    // If no other request of its kind waits, this one may start at once.
    if throttled.append(index, kind), throttled.next(kind, slab, now: now) != nil { return true }
    counters.add(.throttled)
    if throttled.waitsSince == 0 { throttled.waitsSince = now }
    return false
  }

  /// Starts the requests that have waited long enough.
  @inline(never)
  mutating func startThrottled<Engine: BlockEngine & ~Copyable>(_ medium: inout Medium<Engine>) {
    if creditEnds > 0 { endCredit(now: Clock.now) }
    guard state != .stalled, hasThrottled else { return }
    let now = Clock.now
    while state != .stalled, let index = nextThrottled(.read, now) { start(index, &medium) }
    while state != .stalled, let index = nextThrottled(.write, now) { start(index, &medium) }
    countThrottledTime(now)
  }

  private mutating func nextThrottled(_ kind: ThrottledKind, _ now: UInt64) -> Int? {
    isLimited ? throttled.next(kind, slab, now: now) : throttled.nextOnCredit(kind)?.index
  }

  /// The lane has to stop: all waiting requests start at once, and later requests of this disk pay for them. Stopping a queue
  /// means that every popped request is answered: there is no way to report one that was not started.
  mutating func startThrottledOnCredit<Engine: BlockEngine & ~Copyable>(_ medium: inout Medium<Engine>) {
    guard hasThrottled else { return }
    let now = Clock.now
    for kind in ThrottledKind.allCases {
      while let (index, isPaid) = throttled.nextOnCredit(kind) {
        if !isPaid { throttled.throttle?.charge(kind, bytes: unsafe slab.slot(index).pointee.throttledBytes, now: now) }
        start(index, &medium)
      }
    }
    countThrottledTime(now)
  }

  /// Waiting requests will not be started any more.
  mutating func forgetThrottled() {
    guard hasThrottled else { return }
    throttled.reads.removeAll()
    throttled.writes.removeAll()
    countThrottledTime(Clock.now)
  }

  private mutating func start<Engine: BlockEngine & ~Copyable>(_ index: Int, _ medium: inout Medium<Engine>) {
    if trace != nil { noteStarted(index) }
    // A request that was valid when it was popped may no longer be: the disk may be smaller now, or memory may be lost.
    guard isStillRight(index, &medium) else { return refuse(index, .ioError) }
    switch unsafe slab.slot(index).pointee.stage {
    case .transfer, .watchedTransfer:
      guard context.zones == nil || mayEnterZone(index, &medium) else { return }
      startPrepared(index, &medium)
    case .discard, .zero, .erase: askNextRange(index, &medium)
    case .flush, .none, .zoneWrite, .zoneFlush, .zoneWait, .zoneRecord:
      preconditionFailure("a request waits for a limit that does not concern it")
    }
  }

  private mutating func isStillRight<Engine: BlockEngine & ~Copyable>(_ index: Int, _ medium: inout Medium<Engine>) -> Bool {
    let slot = unsafe slab.slot(index)
    guard unsafe slot.pointee.stage != .transfer && slot.pointee.stage != .watchedTransfer else {
      let operation = medium.prepared(tag(index))
      guard isInside(operation.offset / 512, bytes: operation.length) else { return false }
      guard operation.kind == .write, Engine.movesData else { return true }
      return mayWrite(before: operation.offset &+ operation.length, &medium)
    }
    var end: UInt64 = 0
    for number in unsafe 0..<Int(slot.pointee.rangeCount) {
      let range = unsafe slab.ranges(index)[number]
      guard isInside(range.sector, bytes: UInt64(range.sectorCount) &* 512) else { return false }
      end = max(end, (range.sector &+ UInt64(range.sectorCount)) &* 512)
    }
    return mayWrite(before: end, &medium)
  }

  private mutating func countThrottledTime(_ now: UInt64) {
    let since = throttled.waitsSince
    guard since > 0 else { return }
    counters.add(.throttledNanoseconds, now &- min(now, since))
    throttled.waitsSince = throttled.isEmpty ? 0 : now
  }
}
