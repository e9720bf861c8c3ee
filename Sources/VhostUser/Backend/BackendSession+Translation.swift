/// Rings of a driver behind an IOMMU (ACCESS_PLATFORM): their addresses are the driver's, and the front-end translates them on
/// request ("IOMMU support").
public import VirtioCore

extension BackendSession {
  /// The driver's addresses have to be translated.
  var isTranslated: Bool { features?.contains(.accessPlatform) == true }

  /// All translations, resolved in the current memory.
  mutating func currentTranslations() -> Translations {
    if let made = madeTranslations, made.number == translations.number { return made }
    let made = translations.translations(in: table)
    madeTranslations = made
    return made
  }

  /// The memory for one queue, because each queue has its own look-up.
  mutating func translatedMemory() -> GuestMemory {
    GuestMemory(table.memory, translatedBy: TranslationLookup(currentTranslations()))
  }

  // MARK: Messages

  mutating func translation(_ message: Message) throws(Refusal) {
    guard isTranslated else { throw .notServed }
    guard let said = TranslationMessage(decoding: message.payload) else { throw .wrongSize(message.payload.count) }
    switch TranslationMessage.Kind(rawValue: said.type) {
    case .update: try update(said)
    case .invalidate: invalidate(said)
    case .miss, .accessFailed, nil: throw .badTranslation(said)
    }
  }

  /// Queues that wait for this translation continue. Known translations stay in force: only an invalidation takes one back.
  private mutating func update(_ said: TranslationMessage) throws(Refusal) {
    let access = MemoryAccess(rawValue: said.permission)
    let (last, overflow) = said.address.addingReportingOverflow(said.size &- 1)
    let (userLast, userOverflow) = said.userAddress.addingReportingOverflow(said.size &- 1)
    guard said.size > 0, !overflow, !userOverflow, !access.isEmpty, access.isSubset(of: [.read, .write]) else {
      throw .badTranslation(said)
    }
    guard table.holds(userFirst: said.userAddress, last: userLast) else { throw .translationNotInMemory(said) }
    let replacements = translations.replacements
    translations.insert(.init(first: said.address, last: last, user: said.userAddress, access: access))
    var later: [Step] = []
    for index in rings.indices {
      // All translations are resolved only if some ring waits for this one.
      if let wait = rings[index].wait, said.address <= wait.miss.address, wait.miss.address <= last {
        later += answer(index, wait)
      } else if rings[index].isRunning, translations.replacements != replacements {
        // A translation that some queue may use was replaced by this one.
        steps.append(.effect(.translate(queue: index, currentTranslations(), refused: nil)))
      }
    }
    reply(0)
    steps += later
  }

  /// An update covers the address that a ring waits for. - Returns: the steps after the reply.
  private mutating func answer(_ index: Int, _ wait: TranslationWait) -> [Step] {
    let (current, isRunning) = (currentTranslations(), rings[index].isRunning)
    if current.allows(wait.miss) {
      rings[index].wait = nil
      guard isRunning else { return [.startIfReady(index, refuses: false)] }
      steps.append(.effect(.translate(queue: index, current, refused: nil)))
      return []
    }
    // It may be the answer to another ring's question, or unsolicited. After as many refusals as there are rings, it has to be
    // for this one.
    guard wait.refusals >= rings.count else {
      rings[index].wait?.refusals += 1
      return hasChannel ? [.effect(.send(Self.question(wait.miss)))] : []
    }
    rings[index].wait = nil
    guard !isRunning else {
      steps.append(.effect(.translate(queue: index, current, refused: wait.miss)))
      return []
    }
    return [.effect(.signal(rings[index].failure)), .effect(.queueRefused(queue: index, .translationRefused(wait.miss)))]
  }

  /// Answered when no request in flight uses the invalidated range. Rings that lie in it are stopped, and start again when they
  /// have been translated again.
  private mutating func invalidate(_ said: TranslationMessage) {
    // 0 bytes at 0 mean everything, because the sum wraps; invalidating too much does no harm.
    let (end, overflow) = said.address.addingReportingOverflow(said.size &- 1)
    let last = overflow || said.size == 0 ? .max : end
    translations.remove(first: said.address, last: last)
    let running = rings.indices.filter { rings[$0].isRunning }
    let hit = running.filter { index in
      // Computed without a sum that could overflow.
      parts(of: rings[index]).contains {
        $0.address <= last && (said.address <= $0.address || said.address - $0.address < $0.count)
      }
    }
    let others = running.filter { !hit.contains($0) }
    if !others.isEmpty {
      let withdrawal = Withdrawal(first: said.address, last: last, remaining: currentTranslations())
      steps.append(.effect(.withdraw(queues: others, withdrawal)))
    }
    for index in hit { steps.append(.stop(index)) }
    reply(0)
    for index in hit { steps.append(.startIfReady(index, refuses: false)) }
  }

  /// While no ring is started, a front-end does not send invalidations: QEMU follows the guest's IOMMU only between start and
  /// stop, and the next driver, such as a kernel after its firmware, has other translations.
  mutating func forgetTranslationsOfNoRing() {
    if !rings.contains(where: \.isStarted) { translations.removeAll() }
  }

  // MARK: Rings

  /// The parts of a ring, and how the device accesses them.
  private func parts(
    of ring: Ring
  ) -> [(part: QueueError.RingPart, address: UInt64, count: UInt64, access: MemoryAccess)] {
    guard let size = ring.size.map(UInt64.init), let address = ring.address else { return [] }
    if isPacked {
      return [
        (.descriptorRing, address.descriptorTable, 16 * size, [.read, .write]),
        (.driverEvents, address.availableRing, 4, .read), (.deviceEvents, address.usedRing, 4, .write),
      ]
    }
    return [
      (.descriptorTable, address.descriptorTable, 16 * size, .read),
      (.availableRing, address.availableRing, 6 + 2 * size, .read),
      (.usedRing, address.usedRing, 6 + 8 * size, [.read, .write]),
    ]
  }

  /// A part of a ring that is completely translated, but not contiguous in this process.
  private mutating func scatteredPart(_ index: Int) -> (part: QueueError.RingPart, address: UInt64)? {
    let current = currentTranslations()
    let found = parts(of: rings[index]).first { part in
      current.contiguous(part.address, count: part.count, for: part.access) == nil
    }
    return found.map { ($0.part, $0.address) }
  }

  /// The first translation that a ring still needs before it can start; `nil`: it has all.
  mutating func untranslated(_ index: Int) -> TranslationMiss? {
    let current = currentTranslations()
    for part in parts(of: rings[index]) {
      if let miss = current.firstMiss(part.address, count: part.count, for: part.access) { return miss }
    }
    return nil
  }

  /// Whether a ring of a driver behind an IOMMU can start now. - Returns: also the effect to perform if it cannot.
  mutating func awaitTranslation(_ index: Int) -> (mayStart: Bool, effect: Effect?) {
    guard rings[index].isReady, !table.entries.isEmpty else { return (true, nil) }
    guard let miss = untranslated(index) else {
      rings[index].wait = nil
      guard let part = scatteredPart(index) else { return (true, nil) }
      couldNotStart(index, .ringScattered(part.part, part.address), refuses: false)
      return (false, nil)
    }
    return (false, ask(index, miss))
  }

  /// Each ring asks for one translation at a time. - Returns: `nil` if it was requested already, or if there is no channel.
  private mutating func ask(_ index: Int, _ miss: TranslationMiss) -> Effect? {
    guard rings[index].wait?.miss != miss else { return nil }
    lastWait += 1
    rings[index].wait = TranslationWait(miss: miss, number: lastWait)
    return hasChannel ? .send(Self.question(miss)) : nil
  }

  private static func question(_ miss: TranslationMiss) -> Message {
    Message(request: BackendRequest.translation.rawValue, payload: TranslationMessage(miss).bytes)
  }

  /// Repeats all open questions, because their answers will not come: there is a new channel, or another server.
  func questionsAgain() -> [Effect] { rings.compactMap(\.wait).map { .send(Self.question($0.miss)) } }

  /// A running queue waits for a translation. These effects need no answer, and do not delay the current message.
  public mutating func missed(queue index: Int, _ miss: TranslationMiss) -> [Effect] {
    guard isTranslated, rings.indices.contains(index), rings[index].isRunning else { return [] }
    let current = currentTranslations()
    guard !current.allows(miss) else {
      rings[index].wait = nil
      return [.translate(queue: index, current, refused: nil)]
    }
    return ask(index, miss).map { [$0] } ?? []
  }

  /// The answer to `Effect.withdraw`: no queue uses the withdrawn translations any more. The next steps follow from
  /// `nextEffect`.
  public mutating func withdrawn() {}

  /// Some ring waits for a translation.
  var waitsForTranslation: Bool { isTranslated && rings.contains { $0.wait != nil } }

  /// A ring that already waited for a translation when `lastWait` was `number`, and still does, and that translation.
  ///
  /// - Parameter number: `lastWait` of an earlier moment.
  func waitSince(_ number: UInt64) -> (queue: Int, miss: TranslationMiss)? {
    for index in rings.indices {
      if let wait = rings[index].wait, wait.number <= number { return (index, wait.miss) }
    }
    return nil
  }
}

extension Ring {
  /// Its configuration, in the driver's addresses.
  func translatedConfiguration() -> QueueConfiguration {
    guard let size, let address else { preconditionFailure("only a ring that is ready is configured") }
    return QueueConfiguration(
      size: size, descriptorTable: GuestAddress(address.descriptorTable),
      availableRing: GuestAddress(address.availableRing), usedRing: GuestAddress(address.usedRing))
  }
}
