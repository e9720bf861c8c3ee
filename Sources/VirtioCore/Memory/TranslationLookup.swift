/// One queue's way through the translations of an IOMMU: what it looks up, what it misses, and what it was refused.

/// Made with a queue's memory, and used by the thread that serves the queue alone. It never waits: an access for which there is no
/// translation is written down, and the lane has it requested.
public final class TranslationLookup: @unchecked Sendable {
  /// What is known of the driver's addresses.
  public private(set) var translations: Translations
  /// The access that was missed last.
  public private(set) var miss: TranslationMiss?
  /// Accesses of the chain at hand that the front-end refused, the later one last. There is one of its data at most, as the chain
  /// fails then and the rest of that is not looked up, and one of its status.
  private var refusals: (TranslationMiss?, TranslationMiss?)

  /// - Parameter translations: what is known of the driver's addresses at first.
  public init(_ translations: Translations) { self.translations = translations }

  /// Where an address is, as far as its piece goes; `nil`: it is missed, or this access to it is refused.
  func find(_ address: UInt64, for access: MemoryAccess) -> MemorySegment? {
    var wanted = TranslationMiss(address: address, access: access)
    if let (piece, allowed) = translations.find(address) {
      if allowed.isSuperset(of: access) { return piece }
      // A permission can be added later, so it is asked for once for each chain.
      if isRefused(address, access) { return nil }
      // What is allowed already is asked for as well: a front-end may answer with no more than what it was asked for.
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
  /// - Parameter refused: an access that the front-end has been asked for and does not allow. It counts where it is what was missed
  ///   last.
  public func use(_ translations: Translations, refused: TranslationMiss? = nil) {
    if translations.number >= self.translations.number { self.translations = translations }
    guard let refused, refused == awaited else { return }
    awaited = nil
    refusals = (refusals.1, refused)
  }

  /// The chain at hand is taken, or the ring is broken: the next one begins from nothing.
  func chainIsOver() { refusals = (nil, nil) }
}
