/// What both ring formats have in common: the chains that belong to the device, and what must not change in the meantime.
internal import VirtioCore

/// What the watch of a queue is made from.
struct WatchedSetup {
  var queue: Int
  var memory: GuestMemory
  var features: FeatureSet
  var configuration: QueueConfiguration
  var findings: DriverFindings
  var limits: RequestLimits
  var kicks: KickAccount
  var look: RingLook
  /// Nobody has used the queue since the driver's last reset.
  var isFresh = true
}

/// Used on the thread that serves the queue.
class QueueWatch: RingWatch, @unchecked Sendable {
  let setup: WatchedSetup
  let findings: DriverFindings
  let queue: Int
  let size: Int
  let hasEventIndex: Bool
  let isInOrder: Bool
  var reader: GuestReader
  /// By head or buffer ID.
  var chains: [UInt16: SeenChain] = [:]
  /// Chains that were seen and that the device has not popped: never more than one, so that a driver cannot make the watch
  /// examine more than the device does.
  var ahead = 0
  /// `wish` as the device left it when it went to sleep.
  private var wishLeft: [UInt8]?
  /// The ring is broken: the device stops it, too.
  var isLost = true

  init(_ setup: WatchedSetup) {
    self.setup = setup
    findings = setup.findings
    queue = setup.queue
    size = Int(setup.configuration.size)
    hasEventIndex = setup.features.contains(.eventIndex)
    isInOrder = setup.features.contains(.inOrder)
    reader = GuestReader(setup.memory)
  }

  /// The most entries of an indirect table that the device accepts; it refuses a longer chain, so nothing more of it is
  /// examined.
  var mostEntries: Int { max(size, 1024) }

  // MARK: For each kind of ring

  func begin(at position: QueuePosition) {}
  /// Looks at the next chain, and counts it as `ahead`, if one became available.
  func takeAvailable() {}
  /// Whether an entry's bytes are still the device's when its chain is about to be answered.
  func isOwned(_ entry: SeenChain.Entry) -> Bool { true }
  func entryChanged(_ entry: SeenChain.Entry, _ now: [UInt8]) {}
  /// The chain's used element is written next. - Parameter chain: `nil`: it was popped before the watch began.
  func goOver(_ chain: SeenChain?) {}
  func checkUsed() {}
  func noteUsed() {}
  /// Where the device says when it wants to be kicked, as bytes; `nil`: it cannot be read.
  var wish: [UInt8]? { nil }
  /// The position up to which everything that became available was seen.
  var standing: UInt16 { 0 }

  // MARK: RingWatch

  final func begins(at position: QueuePosition) {
    isLost = false
    wishLeft = nil
    chains = [:]
    ahead = 0
    begin(at: position)
    setup.kicks.begins()
  }

  final func looks() {
    setup.kicks.wakes()
    guard !isLost else { return }
    if let left = wishLeft, let now = wish {
      findings.judge(
        "i.driver.used", now == left, queue: queue, "the device's kick suppression", bytes: now,
        "the device had written \(hexadecimal(left))")
    }
    wishLeft = nil
    if ahead == 0 { takeAvailable() }
  }

  final func took(_ name: UInt16) {
    setup.kicks.takes()
    // It may have become available between the two checks.
    if !isLost, ahead == 0 { takeAvailable() }
    ahead = max(0, ahead - 1)
  }

  final func retook(_ name: UInt16) { setup.kicks.wakes() }

  final func answers(_ name: UInt16) {
    guard let chain = chains.removeValue(forKey: name) else { return goOver(nil) }
    if !isLost { check(chain) }
    goOver(chain)
  }

  final func willPublish() { if !isLost { checkUsed() } }
  final func didPublish() { if !isLost { noteUsed() } }

  final func sleeps(at position: QueuePosition) {
    if !isLost { wishLeft = wish }
    // A device without free slots leaves chains in the ring, and wants no kick for more of them.
    setup.look.stands(at: !isLost && position.available == standing ? standing : nil)
    setup.kicks.sleeps()
  }

  private func check(_ chain: SeenChain) {
    var isWhole = true
    for entry in chain.entries where isOwned(entry) {
      guard let now = reader.bytes(entry.address, 16), now != entry.bytes else { continue }
      isWhole = false
      findings.broken(
        "d.cleanup.1", queue: queue, entry.place, bytes: now,
        "\(chain.place) was changed before it was used: it was \(hexadecimal(entry.bytes))")
      entryChanged(entry, now)
    }
    if isWhole { findings.kept("d.cleanup.1") }
    guard !chain.header.isEmpty, let first = headerBytes(chain) else { return }
    findings.judge(
      "i.driver.buffer", first == chain.header, queue: queue, chain.place, bytes: first,
      "the header was changed before the request was used: it was \(hexadecimal(chain.header))")
  }

  // MARK: Requests

  /// The first 16 readable bytes; `nil`: there are not so many.
  private func headerBytes(_ chain: SeenChain) -> [UInt8]? { readableBytes(chain, from: 0, count: 16) }

  /// - Parameter count: bytes; bounded by the caller.
  func readableBytes(_ chain: SeenChain, from offset: Int, count: Int) -> [UInt8]? {
    var result: [UInt8] = []
    var skip = offset
    for piece in chain.readable where result.count < count {
      let length = Int(piece.length)
      guard skip < length else {
        skip -= length
        continue
      }
      guard let bytes = reader.bytes(piece.address + UInt64(skip), min(length - skip, count - result.count)) else { return nil }
      result += bytes
      skip = 0
    }
    return result.count == count ? result : nil
  }

  /// The checks of every chain, once all its descriptors are known.
  func finish(_ chain: inout SeenChain) {
    guard !chain.isBroken else { return }
    let (pieces, place) = (chain.readable + chain.writable, chain.place)
    let stray = pieces.first { !reader.contains($0.address, $0.length) }
    findings.judge(
      "d.rfb.5", stray == nil, queue: queue, place,
      "\(stray?.length ?? 0) bytes at \(stray.map { GuestAddress($0.address).description } ?? "") are not in guest memory")
    guard stray == nil else { return }
    chain.header = headerBytes(chain) ?? []
    RequestRules(watch: self, chain: chain).check()
  }

  func hexadecimal(_ bytes: [UInt8]) -> String {
    bytes.map { String(256 + Int($0), radix: 16).dropFirst() }.joined(separator: " ")
  }
}
