/// One queue's way through the translations of an IOMMU: what it looks up, what it misses, and what it was refused.

/// Made with a queue's memory, and used by the thread that serves the queue alone. It never waits: an access for which there is no
/// translation is written down, and whoever looks after the queue has it requested.
public final class TranslationLookup: @unchecked Sendable {
  public private(set) var translations: Translations
  /// The access that was missed last.
  public private(set) var miss: TranslationMiss?
  /// Accesses of the chain at hand for which the front-end's answer had no permission: one of its data, as the chain fails then, and
  /// that of its status.
  private var refusals: [TranslationMiss] = []

  public init(_ translations: Translations) { self.translations = translations }

  /// Where an address is, as far as its piece goes; `nil`: it is missed, or this access to it is refused.
  func find(_ address: UInt64, for access: MemoryAccess) -> MemorySegment? {
    let wanted = TranslationMiss(address: address, access: access)
    if let (piece, allowed) = translations.find(address) {
      if allowed.isSuperset(of: access) { return piece }
      // A permission can be added later, so it is asked for once for each chain.
      if refusals.contains(wanted) { return nil }
    }
    miss = wanted
    return nil
  }

  /// A range in one piece; nothing of it is missed.
  func contiguous(_ address: UInt64, count: Int, for access: MemoryAccess) -> MemorySegment? {
    translations.contiguous(address, count: UInt64(count), for: access)
  }

  /// Why the look-up before had no result: the miss, once; `nil`: it was refused.
  func takeMiss() -> TranslationMiss? {
    guard let miss else { return nil }
    awaited = miss
    self.miss = nil
    return miss
  }

  /// What the queue waits for.
  private var awaited: TranslationMiss?

  /// These are in force now, unless they are older than those that are here.
  ///
  /// - Parameter isAnswer: the front-end has answered what was missed last; what it has not allowed then is refused.
  public func use(_ translations: Translations, isAnswer: Bool) {
    if translations.number >= self.translations.number { self.translations = translations }
    guard isAnswer, let awaited else { return }
    self.awaited = nil
    if !self.translations.allows(awaited) { refusals.append(awaited) }
  }

  /// The chain at hand is taken, or the ring is broken: the next one begins anew.
  func chainIsOver() { refusals = [] }
}
