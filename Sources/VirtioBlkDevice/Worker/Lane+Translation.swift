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
    // Who stops it may be the one who would have to answer.
    guard !stopsAfterRecovery else {
      state = .draining
      return
    }
    beginWait()
    error = .untranslated(miss)
  }

  /// Translations that are in force from now on. The turn that follows tries again.
  mutating func translate(by translations: Translations, isAnswer: Bool) {
    memory.lookup?.use(translations, isAnswer: isAnswer)
    if !isWithdrawing { endWait() }
  }

  private mutating func beginWait() {
    guard state == .running || state == .recovering else { return }
    stateBeforeWait = state
    state = .waiting
  }

  private mutating func endWait() {
    if state == .waiting { state = stateBeforeWait }
    // It stalls, or is paused, meanwhile.
    if state == .stalled, stateBeforeStall == .waiting { stateBeforeStall = stateBeforeWait }
  }

  /// Translations are taken back, and nothing more is taken by them.
  ///
  /// - Returns: whether nothing in flight uses them; otherwise nothing is taken at all before `endWithdrawal`.
  mutating func withdraw<Engine: BlockEngine & ~Copyable>(
    _ withdrawal: Withdrawal, _ medium: inout Medium<Engine>
  ) -> Bool {
    guard let lookup = memory.lookup else { return true }
    let isUsed = slab.inUse > 0 && uses(withdrawal, lookup.translations)
    lookup.use(withdrawal.remaining, isAnswer: false)
    if slab.inUse == 0 { seenLosses = withdrawal.remaining.losses }
    guard isUsed else { return true }
    isWithdrawing = true
    beginWait()
    // Its driver waits for nobody else: what waits for a limit goes at once, and what waits for the operator fails.
    startThrottledOnCredit(&medium)
    let waiting = parked
    parked.removeAll()
    for index in waiting { fail(index) }
    seenLosses = withdrawal.remaining.losses
    return false
  }

  /// Everything that was in flight when translations were taken back is answered.
  var hasWithdrawn: Bool { slab.inUse == 0 || holdsOnlyBack }

  mutating func endWithdrawal() {
    isWithdrawing = false
    endWait()
  }

  /// Whether some request in flight may use them: the answer is also yes where that takes too long to find out.
  private func uses(_ withdrawal: Withdrawal, _ translations: Translations) -> Bool {
    guard withdrawal.remaining.losses == seenLosses,
      let ranges = translations.hostRanges(
        first: withdrawal.first, last: withdrawal.last, atMost: Self.rangesLookedAt)
    else { return true }
    guard !ranges.isEmpty else { return false }
    var left = Self.segmentsLookedAt
    for index in 0..<slab.begun {
      let slot = unsafe slab.slot(index)
      guard unsafe slot.pointee.stage != .none else { continue }
      if let status = unsafe slot.pointee.statusByte {
        let place = Translations.HostRange(base: UInt(bitPattern: status), count: 1)
        if ranges.contains(where: { $0.overlaps(place) }) { return true }
      }
      var segment = unsafe slab.segments(index)
      while unsafe !segment.pointee.isEnd {
        left -= 1
        guard left > 0 else { return true }
        let piece = unsafe Translations.HostRange(
          base: UInt(bitPattern: segment.pointee.base), count: UInt(segment.pointee.count))
        if ranges.contains(where: { $0.overlaps(piece) }) { return true }
        unsafe segment += 1
      }
    }
    return false
  }
}
