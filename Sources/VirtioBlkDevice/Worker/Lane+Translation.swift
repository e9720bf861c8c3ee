/// A lane whose driver is behind an IOMMU. What comes next in its ring may have to be translated first: then the lane waits and
/// holds nothing for that. And translations are taken back: then what uses them comes to its end first.
internal import VirtioCore

extension Lane where Ring: ~Copyable {
  /// Segments of requests in flight that are looked at, and ranges that they are compared with, before it is simply waited for all.
  private static var segmentsLookedAt: Int { 4096 }
  private static var rangesLookedAt: Int { 16 }

  /// The chain that comes next was not taken. Nothing is before `translate`.
  @inline(never)
  mutating func wait(for miss: TranslationMiss) {
    // Who stops it may be the one who would have to answer. What was interrupted, and not taken again, stays in the record.
    guard !stopsAfterRecovery else {
      state = .draining
      return
    }
    beginWait()
    error = .untranslated(miss)
  }

  /// Translations that are in force from now on. The turn that follows tries again.
  mutating func translate(by translations: Translations, refused: TranslationMiss?) {
    memory.lookup?.use(translations, refused: refused)
    if !isWithdrawing { endWait() }
  }

  /// It waits, or will when the operator lets it go on.
  private mutating func beginWait() {
    if state == .running || state == .recovering {
      stateBeforeWait = state
      state = .waiting
    } else if state == .stalled, stateBeforeStall == .running || stateBeforeStall == .recovering {
      stateBeforeWait = stateBeforeStall
      stateBeforeStall = .waiting
    }
  }

  /// What was on credit is paid.
  mutating func endCredit(now: UInt64) {
    guard !isWithdrawing, creditEnds <= now else { return }
    creditEnds = 0
    endWait()
  }

  private mutating func endWait() {
    guard creditEnds == 0 else { return }
    if state == .waiting { state = stateBeforeWait }
    // It stalls, or is paused, meanwhile.
    if state == .stalled, stateBeforeStall == .waiting { stateBeforeStall = stateBeforeWait }
  }

  /// Translations are taken back, and nothing more is taken by them.
  ///
  /// - Returns: whether nothing in flight uses them; otherwise nothing is taken at all before `endWithdrawal`.
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
    // Its driver waits for nobody else: what waits for a limit goes at once, and what waits for the operator fails. Only in a pause
    // nothing is begun.
    if !isPaused { startForWithdrawal(&medium) }
    // In order, nothing is shown before what failed earlier.
    let failing = parked.filter { isOrdered || uses($0, ranges, &left) }
    parked.removeAll { failing.contains($0) }
    for index in failing { fail(index) }
    seenLosses = withdrawal.remaining.losses
    return false
  }

  /// What waits for a limit goes on credit, and nothing more is taken before that is paid.
  mutating func startForWithdrawal<Engine: BlockEngine & ~Copyable>(_ medium: inout Medium<Engine>) {
    guard isWithdrawing, hasThrottled else { return }
    startThrottledOnCredit(&medium)
    let end = throttled.throttle?.ready ?? 0
    creditEnds = end > Clock.now ? end : 0
  }

  /// Everything that was in flight when translations were taken back is answered, but for what uses none of them and waits for the
  /// operator.
  var hasWithdrawn: Bool { slab.inUse == 0 || holdsOnlyBack || !isOrdered && slab.inUse == parked.count }

  mutating func endWithdrawal() {
    isWithdrawing = false
    endWait()
  }

  /// What was interrupted before this run and is still to be done; `nil`: nothing.
  var interruptedNotice: String? {
    guard Ring.isRecorded, ring.interrupted > 0 else { return nil }
    return "queue \(queue) stopped before all requests that an earlier server had begun were executed again (left: "
      + "\(ring.interrupted)); the rest stays in its in-flight record, for the next server"
  }

  /// Where lies what is taken back; `nil` where that cannot be told.
  private func ranges(of withdrawal: Withdrawal, _ translations: Translations) -> [Translations.HostRange]? {
    // Newer ones do not say any more what was in force.
    guard translations.number < withdrawal.remaining.number, withdrawal.remaining.losses == seenLosses else { return nil }
    return translations.hostRanges(first: withdrawal.first, last: withdrawal.last, atMost: Self.rangesLookedAt)
  }

  /// Whether a request in flight may use some of it.
  ///
  /// - Parameter left: segments that are looked at before it is taken for one that does.
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
