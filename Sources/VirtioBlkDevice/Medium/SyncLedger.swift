/// The flushes and stable writes of all queues of an image that are in progress in the kernel.
internal import VirtioCore

/// The kernel reports a failed writeback once for each open file, to whichever caller asks first. So the success of a call says
/// little while others are in flight: one of them may be about to return the error. The call counts as successful once the
/// results of all calls that were in flight when it ended are known.
///
/// Words that are read and written without a lock: a count of calls, and for each worker the number of its oldest call whose
/// result is not known yet. They live as long as the image.
@safe
struct SyncLedger: @unchecked Sendable {
  /// Threads that one device can have.
  static let workers = 256
  /// The place of flushes that come from no worker, one at a time.
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

  /// Publishes which of a worker's calls is the oldest whose result is not known. - Parameter number: 0 if there is none.
  func publish(_ number: UInt64, worker: Int) {
    // Release: a failure is stored before the result of its call counts as known.
    oldest(worker).storeRelease(number)
    // Full: the call is known before it is made.
    fullFence()
  }

  /// Whether the results of all calls up to this number are known.
  func isHeard(upTo number: UInt64) -> Bool {
    for worker in 0..<Self.places {
      // Acquire: whoever finds the result known also sees that the call failed.
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

  /// The result of a call is known. - Returns: the last call whose result must be known before this one counts.
  mutating func end(_ number: UInt64) -> UInt64 {
    if let index = numbers.firstIndex(of: number) {
      numbers.remove(at: index)
      if index == 0 { ledger.publish(numbers.first ?? 0, worker: worker) }
    }
    return ledger.last
  }

  func isHeard(upTo number: UInt64) -> Bool { ledger.isHeard(upTo: number) }

  /// The results of the others will never be known. - Returns: whether there were any.
  mutating func abandon() -> Bool {
    guard !numbers.isEmpty else { return false }
    numbers.removeAll(keepingCapacity: true)
    ledger.publish(0, worker: worker)
    return true
  }
}
