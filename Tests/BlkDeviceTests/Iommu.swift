/// An IOMMU as a test wants it: pages of a driver's addresses, of which the device knows those that it was told.
import GuestDriver
import Testing
import VirtioBlkDevice
import VirtioCore

/// Memory whose guest addresses are none that the driver uses, and the translations of the driver's addresses into it.
final class Iommu {
  static let page: UInt64 = 4096
  /// How far a guest address is from the driver's.
  static let distance: UInt64 = 1 << 34

  let memory: SharedMemory
  /// The guest's memory as the device has it.
  let guest: GuestMemory
  /// Pages that the device was told of.
  private(set) var pages: [UInt64: MemoryAccess] = [:]
  private var number: UInt64 = 0
  var losses: UInt64 = 0
  /// Pages that continue each other are translations of their own all the same.
  var isScattered = false
  /// An answer allows what was asked for, and takes the place of what was allowed before.
  var isLiteral = false
  /// What was missed, in order.
  private(set) var misses: [TranslationMiss] = []
  /// Those that were not answered.
  private var waiting: [Int: TranslationMiss] = [:]
  /// Queues that have given back what was withdrawn.
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

  /// Page by page, but for those that continue each other with the same permission, as a table has them.
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

  /// What a queue of this driver is started with.
  func translatedMemory() -> GuestMemory { GuestMemory(guest, translatedBy: TranslationLookup(translations())) }

  /// Takes what the device has to say, and answers misses.
  ///
  /// - Parameter answer: what is allowed then; `nil`: no answer.
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

  /// Waits for answers to everything that is outstanding, and serves meanwhile.
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

  /// Takes back what is known of some addresses.
  func withdraw(_ hand: HandQueue, first: UInt64, last: UInt64) {
    hand.device.withdraw(queue: hand.activation.queue, withdrawal(first: first, last: last))
  }

  /// The same, and nobody is told.
  func withdrawal(first: UInt64, last: UInt64) -> Withdrawal {
    pages = pages.filter { $0.key < first / Self.page || $0.key > last / Self.page }
    return Withdrawal(first: first, last: last, remaining: translations())
  }

  /// Waits for some turns of the queue's worker, so that what it was told before has been done.
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
    try waitUntil("what was withdrawn is given back") {
      serve(hand) { _ in nil }
      return withdrawn.count > before
    }
  }
}
