/// One queue's look-ups in the translations of an IOMMU: what it misses, and what it was refused.

/// Made together with a queue's memory, and used only by the thread that serves the queue. It never waits: an access without a
/// translation is recorded, and the lane has the translation requested.
public final class TranslationLookup: @unchecked Sendable {
  /// The translations in use.
  public private(set) var translations: Translations
  /// The access that was missed last.
  public private(set) var miss: TranslationMiss?
  /// Accesses of the current chain that the front-end refused, the later one last. There is at most one for its data, because
  /// the chain then fails and the rest of its data is not looked up, and one for its status byte.
  private var refusals: (TranslationMiss?, TranslationMiss?)

  /// - Parameter translations: those to begin with.
  public init(_ translations: Translations) { self.translations = translations }

  /// Where an address is, and how many bytes follow in one piece; `nil`: there is no translation, or this access is refused.
  func find(_ address: UInt64, for access: MemoryAccess) -> MemorySegment? {
    var wanted = TranslationMiss(address: address, access: access)
    if let (piece, allowed) = translations.find(address) {
      if allowed.isSuperset(of: access) { return piece }
      // A permission can be added later, so it is requested once for each chain.
      if isRefused(address, access) { return nil }
      // Access that is allowed already is requested again with it: a front-end may grant no more than it was asked for.
      wanted.access.formUnion(allowed)
    }
    miss = wanted
    return nil
  }

  private func isRefused(_ address: UInt64, _ access: MemoryAccess) -> Bool {
    func covers(_ refusal: TranslationMiss?) -> Bool {
      refusal.map { $0.address == address && $0.access.isSuperset(of: access) } ?? false
    }
    return covers(refusals.0) || covers(refusals.1)
  }

  /// A range in one piece. No miss is recorded.
  func contiguous(_ address: UInt64, count: Int, for access: MemoryAccess) -> MemorySegment? {
    translations.contiguous(address, count: UInt64(count), for: access)
  }

  /// Why the last look-up had no result: the miss, returned once; `nil`: it was refused.
  func takeMiss() -> TranslationMiss? {
    guard let miss else { return nil }
    awaited = miss
    self.miss = nil
    return miss
  }

  /// The access that the queue waits for.
  private var awaited: TranslationMiss?

  /// Puts these translations in force, unless they are older than the present ones.
  ///
  /// - Parameter refused: an access that was requested from the front-end and denied. It counts only if it is the one missed
  ///   last.
  public func use(_ translations: Translations, refused: TranslationMiss? = nil) {
    if translations.number >= self.translations.number { self.translations = translations }
    guard let refused, refused == awaited else { return }
    awaited = nil
    refusals = (refusals.1, refused)
  }

  /// The current chain was taken, or the ring is broken: refusals are forgotten before the next one.
  func chainIsOver() { refusals = (nil, nil) }
}
