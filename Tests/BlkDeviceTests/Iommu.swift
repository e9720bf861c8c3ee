/// An IOMMU for tests: pages in the driver's addresses, of which the device knows only those that it was told about.
import GuestDriver
import Testing
import VirtioBlkDevice
import VirtioCore

/// Memory whose guest addresses differ from the driver's, and the translations from one to the other.
final class Iommu {
  static let page: UInt64 = 4096
  /// How far a guest address is from the driver's.
  static let distance: UInt64 = 1 << 34

  let memory: SharedMemory
  /// The guest's memory as the device sees it.
  let guest: GuestMemory
  /// Pages that the device was told about.
  private(set) var pages: [UInt64: MemoryAccess] = [:]
  private var number: UInt64 = 0
  var losses: UInt64 = 0
  /// Adjacent pages are separate translations.
  var isScattered = false
  /// An answer grants only what was asked for, and replaces the permission from before.
  var isLiteral = false
  /// Translation misses, in order.
  private(set) var misses: [TranslationMiss] = []
  /// Misses that were not answered.
  private var waiting: [Int: TranslationMiss] = [:]
  /// Queues that no longer use the withdrawn translations.
  private(set) var withdrawn: [Int] = []
  var failures: [QueueError] = []

  init(size: Int = 8 << 20) throws {
    memory = try SharedMemory(size: size)
    guest = try GuestMemory(
      memory.driver.regions.map {
        GuestRegion(
          start: GuestAddress($0.start.rawValue + Self.distance), size: UInt64($0.size), mapping: $0.mapping, offset: $0.offset)
      })
  }

  func map(_ address: UInt64, count: UInt64 = 1, _ access: MemoryAccess = [.read, .write]) {
    for page in address / Self.page...(address + count - 1) / Self.page { pages[page] = access }
  }

  func unmap(_ address: UInt64) { pages[address / Self.page] = nil }

  func mapRing(_ hand: HandQueue) {
    let (layout, size) = (hand.ring.layout.configuration, UInt64(hand.ring.layout.size))
    map(layout.descriptorTable.rawValue, count: 16 * size)
    map(layout.availableRing.rawValue, count: 6 + 2 * size)
    map(layout.usedRing.rawValue, count: 6 + 8 * size)
  }

  /// One entry per page; adjacent pages with the same permission are merged, as in a page table.
  func translations() -> Translations {
    number += 1
    var entries: [Translations.Entry] = []
    for (page, access) in pages.sorted(by: { $0.key < $1.key }) {
      let start = page * Self.page
      if !isScattered, let last = entries.last, last.start + last.size == start, last.access == access {
        entries[entries.count - 1].size += Self.page
        continue
      }
      unsafe entries.append(
        .init(start: start, size: Self.page, host: memory.driver.regions[0].mapping.base + Int(start), access: access))
    }
    return Translations(entries, number: number, losses: losses)
  }

  /// The memory with which a queue of this driver is started.
  func translatedMemory() -> GuestMemory { GuestMemory(guest, translatedBy: TranslationLookup(translations())) }

  /// Takes the device's events, and answers misses.
  ///
  /// - Parameter answer: the access that is then allowed; `nil`: no answer.
  func serve(_ hand: HandQueue, _ answer: (TranslationMiss) -> MemoryAccess? = { $0.access }) {
    for event in hand.attended.takeEvents() {
      switch event {
      case .translationMissed(let queue, let miss):
        misses.append(miss)
        waiting[queue] = miss
      case .withdrawn(let queue): withdrawn.append(queue)
      case .queueFailed(_, let error): failures.append(error)
      case .stopped(let queue, _): waiting[queue] = nil
      default: break
      }
    }
    for (queue, miss) in waiting where queue == hand.activation.queue {
      guard let access = answer(miss) else { continue }
      waiting[queue] = nil
      map(miss.address, isLiteral ? access : access.union(pages[miss.address / Self.page] ?? []))
      let now = translations()
      hand.device.translate(queue: queue, by: now, refused: now.allows(miss) ? nil : miss)
    }
  }

  /// Waits until that many requests are answered, and serves misses meanwhile.
  func outcomes(
    _ hand: HandQueue, _ count: Int = 1, _ answer: (TranslationMiss) -> MemoryAccess? = { $0.access }
  ) throws -> [BlockOutcome] {
    var outcomes: [BlockOutcome] = []
    try waitUntil("\(count) requests are answered") {
      serve(hand, answer)
      if let failure = failures.first { throw failure }
      while let outcome = try hand.queue.reap() { outcomes.append(outcome) }
      return outcomes.count == count
    }
    return outcomes
  }

  func perform(
    _ hand: HandQueue, _ request: BlockRequest, _ answer: (TranslationMiss) -> MemoryAccess? = { $0.access }
  ) throws -> BlockOutcome {
    submit(hand, try #require(try hand.queue.submit(request, framing: .classic(request, alignment: 4096))))
    return try outcomes(hand, 1, answer)[0]
  }

  private func submit(_ hand: HandQueue, _ tag: UInt32) { hand.queue.publish() }

  /// Waits for the next miss, and does not answer it.
  @discardableResult
  func nextMiss(_ hand: HandQueue) throws -> TranslationMiss {
    let before = misses.count
    try waitUntil("a translation is missed") {
      serve(hand) { _ in nil }
      return misses.count > before
    }
    return misses[before]
  }

  /// Withdraws the translations of a range of addresses.
  func withdraw(_ hand: HandQueue, first: UInt64, last: UInt64) {
    hand.device.withdraw(queue: hand.activation.queue, withdrawal(first: first, last: last))
  }

  /// The same, without telling the device.
  func withdrawal(first: UInt64, last: UInt64) -> Withdrawal {
    pages = pages.filter { $0.key < first / Self.page || $0.key > last / Self.page }
    return Withdrawal(first: first, last: last, remaining: translations())
  }

  /// Waits for some turns of the queue's worker, so that earlier control messages have been handled.
  func waitForTurns(_ hand: HandQueue) throws {
    let before = hand.device.counters.turns
    try waitUntil("the worker has had its turns") {
      serve(hand) { _ in nil }
      hand.device.replaceFailure(queue: hand.activation.queue, .none)
      return hand.device.counters.turns >= before + 4
    }
  }

  func waitForWithdrawal(_ hand: HandQueue) throws {
    let before = withdrawn.count
    try waitUntil("the withdrawn translations are no longer used") {
      serve(hand) { _ in nil }
      return withdrawn.count > before
    }
  }
}
