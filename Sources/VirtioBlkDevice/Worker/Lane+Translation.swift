/// A lane whose driver is behind an IOMMU. If the next chain has to be translated first, the lane waits, and holds no slot
/// meanwhile. If translations are withdrawn, the requests that use them are completed first.
internal import VirtioCore

extension Lane where Ring: ~Copyable {
  /// The most segments of requests in flight that are checked, and the most ranges that they are compared with; beyond that,
  /// the lane waits for all requests.
  private static var segmentsLookedAt: Int { 4096 }
  private static var rangesLookedAt: Int { 16 }

  /// The next chain was not popped, and none is before `translate`.
  @inline(never)
  mutating func wait(for miss: TranslationMiss) {
    // The thread that stops the lane may be the one that would have to answer. Interrupted requests that were not popped again
    // stay in the record.
    guard !stopsAfterRecovery else {
      state = .draining
      return
    }
    beginWait()
    error = .untranslated(miss)
  }

  /// Uses these translations from now on. The next turn tries again.
  mutating func translate(by translations: Translations, refused: TranslationMiss?) {
    memory.lookup?.use(translations, refused: refused)
    if !isWithdrawing { endWait() }
  }

  /// It waits, or will wait once the operator resumes it.
  private mutating func beginWait() {
    if state == .running || state == .recovering {
      stateBeforeWait = state
      state = .waiting
    } else if state == .stalled, stateBeforeStall == .running || stateBeforeStall == .recovering {
      stateBeforeWait = stateBeforeStall
      stateBeforeStall = .waiting
    }
  }

  /// Ends the wait if what was taken on credit is paid.
  mutating func endCredit(now: UInt64) {
    guard !isWithdrawing, creditEnds <= now else { return }
    creditEnds = 0
    endWait()
  }

  private mutating func endWait() {
    guard creditEnds == 0 else { return }
    if state == .waiting { state = stateBeforeWait }
    // It has stalled, or was paused, meanwhile.
    if state == .stalled, stateBeforeStall == .waiting { stateBeforeStall = stateBeforeWait }
  }

  /// Translations are withdrawn, and no more requests are popped with them.
  ///
  /// - Returns: whether nothing in flight uses them; otherwise nothing at all is popped before `endWithdrawal`.
  mutating func withdraw<Engine: BlockEngine & ~Copyable>(
    _ withdrawal: Withdrawal, isPaused: Bool, _ medium: inout Medium<Engine>
  ) -> Bool {
    guard let lookup = memory.lookup else { return true }
    let ranges = slab.inUse > 0 ? ranges(of: withdrawal, lookup.translations) : []
    var left = Self.segmentsLookedAt
    let isUsed = slab.inUse > 0 && (0..<slab.begun).contains { uses($0, ranges, &left) }
    lookup.use(withdrawal.remaining)
    if slab.inUse == 0 { seenLosses = withdrawal.remaining.losses }
    guard isUsed else { return true }
    isWithdrawing = true
    beginWait()
    // The driver must not wait for anybody else: requests that wait for a limit start at once, and requests that wait for the
    // operator fail. Only in a pause nothing is started.
    if !isPaused { startForWithdrawal(&medium) }
    // In order, nothing is published before requests that failed earlier.
    let failing = parked.filter { isOrdered || uses($0, ranges, &left) }
    parked.removeAll { failing.contains($0) }
    for index in failing { fail(index) }
    seenLosses = withdrawal.remaining.losses
    return false
  }

  /// Starts requests that wait for a limit on credit; nothing more is popped before that is paid.
  mutating func startForWithdrawal<Engine: BlockEngine & ~Copyable>(_ medium: inout Medium<Engine>) {
    guard isWithdrawing, hasThrottled else { return }
    startThrottledOnCredit(&medium)
    let end = throttled.throttle?.ready ?? 0
    creditEnds = end > Clock.now ? end : 0
  }

  /// Whether everything that was in flight when translations were withdrawn has been answered, except for requests that use
  /// none of them and wait for the operator.
  var hasWithdrawn: Bool { slab.inUse == 0 || holdsOnlyBack || !isOrdered && slab.inUse == parked.count }

  mutating func endWithdrawal() {
    isWithdrawing = false
    endWait()
  }

  /// A notice about requests that were interrupted before this run and are still to be executed; `nil`: there are none.
  var interruptedNotice: String? {
    guard Ring.isRecorded, ring.interrupted > 0 else { return nil }
    return "queue \(queue) stopped before all requests that an earlier server had begun were executed again: "
      + "\(ring.interrupted) of them stay in its in-flight record, for the next server"
  }

  /// The host ranges of withdrawn translations; `nil`: unknown.
  private func ranges(of withdrawal: Withdrawal, _ translations: Translations) -> [Translations.HostRange]? {
    // Newer translations no longer say what was in force.
    guard translations.number < withdrawal.remaining.number, withdrawal.remaining.losses == seenLosses else { return nil }
    return translations.hostRanges(first: withdrawal.first, last: withdrawal.last, atMost: Self.rangesLookedAt)
  }

  /// Whether a request in flight may use one of these ranges.
  ///
  /// - Parameter left: segments that may still be checked; beyond that, it is assumed to use one.
  private func uses(_ index: Int, _ ranges: [Translations.HostRange]?, _ left: inout Int) -> Bool {
    let slot = unsafe slab.slot(index)
    guard unsafe slot.pointee.stage != .none else { return false }
    guard let ranges else { return true }
    guard !ranges.isEmpty else { return false }
    func isTaken(_ base: UnsafeMutableRawPointer, _ count: Int) -> Bool {
      let piece = Translations.HostRange(base: UInt(bitPattern: base), count: UInt(count))
      return ranges.contains { $0.overlaps(piece) }
    }
    if let status = unsafe slot.pointee.statusByte, unsafe isTaken(status, 1) { return true }
    var segment = unsafe slab.segments(index)
    while unsafe !segment.pointee.isEnd {
      left -= 1
      guard left > 0 else { return true }
      if unsafe isTaken(segment.pointee.base, segment.pointee.count) { return true }
      unsafe segment += 1
    }
    return false
  }
}
