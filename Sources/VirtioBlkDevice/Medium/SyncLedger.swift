/// Flushes and stable writes that are in the kernel's hands, of all queues of an image.
internal import VirtioCore

/// The kernel tells of a failed writeback once for each open file, to whichever of its callers asks first. So a call that
/// went well says little while others are beside it: one of them may be about to bring the error. It counts when all that
/// were in flight when it ended have been heard of.
///
/// Words that are read and written without a lock: a count of calls, and for each worker the number of its oldest call that
/// is not heard of yet. They live as long as the image.
@safe
struct SyncLedger: @unchecked Sendable {
  /// Threads that one device can have.
  static let workers = 256
  /// The place of flushes that are not a worker's, one at a time.
  static let operatorPlace = workers
  private static let places = workers + 1
  static var byteCount: Int { (places + 1) * MemoryLayout<UInt64>.stride }

  private let words: UnsafeMutableRawPointer

  /// - Parameter words: `byteCount` zeroed bytes, aligned to 8.
  init(_ words: UnsafeMutableRawPointer) { unsafe self.words = words }

  private var begun: SharedCell<UInt64> { unsafe SharedCell(words) }
  private func oldest(_ worker: Int) -> SharedCell<UInt64> {
    unsafe SharedCell(words + (worker + 1) * MemoryLayout<UInt64>.stride)
  }

  /// A number for a call that is about to be made; from 1 on.
  func begin() -> UInt64 { begun.increment() }

  /// The last call that was numbered.
  var last: UInt64 { begun.loadAcquire() }

  /// Says which of a worker's calls is the oldest that is not heard of. - Parameter number: 0 when there is none.
  func publish(_ number: UInt64, worker: Int) {
    // Release: a failure that was heard of is written down before its call counts as heard of.
    oldest(worker).storeRelease(number)
    // Full: the call is known before it is made.
    fullFence()
  }

  /// Whether every call up to this number has been heard of.
  func isHeard(upTo number: UInt64) -> Bool {
    for worker in 0..<Self.places {
      // Acquire: what was heard of (that it failed) is seen by who comes after.
      let first = oldest(worker).loadAcquire()
      if first != 0, first <= number { return false }
    }
    return true
  }
}

/// A worker's own calls.
struct OwnSyncs {
  private let ledger: SyncLedger
  private let worker: Int
  /// Ascending.
  private var numbers: [UInt64] = []

  init(_ ledger: SyncLedger, worker: Int) {
    self.ledger = ledger
    self.worker = worker
    numbers.reserveCapacity(LaneContext.slots)
  }

  /// A call is about to be made. - Returns: its number.
  mutating func begin() -> UInt64 {
    let number = ledger.begin()
    numbers.append(number)
    if numbers.count == 1 { ledger.publish(number, worker: worker) }
    return number
  }

  /// A call was heard of. - Returns: what has to be heard of before it counts.
  mutating func end(_ number: UInt64) -> UInt64 {
    if let index = numbers.firstIndex(of: number) {
      numbers.remove(at: index)
      if index == 0 { ledger.publish(numbers.first ?? 0, worker: worker) }
    }
    return ledger.last
  }

  func isHeard(upTo number: UInt64) -> Bool { ledger.isHeard(upTo: number) }

  /// Nothing more will be heard of any. - Returns: whether there were some.
  mutating func abandon() -> Bool {
    guard !numbers.isEmpty else { return false }
    numbers.removeAll(keepingCapacity: true)
    ledger.publish(0, worker: worker)
    return true
  }
}
