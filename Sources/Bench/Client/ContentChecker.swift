/// Generates the data of writes, and checks reads against it.

struct ContentChecker: ~Copyable {
  private let content: BlockContent
  private let ledger: BlockLedger
  private let blockSize: Int
  /// Blocks that this run did not write are checked, too: they have to come from an earlier run.
  private let checksUnknown: Bool

  /// - Returns: `nil` when the workload checks nothing.
  init?(_ workload: Workload, area: DiskArea) throws(BenchError) {
    guard let verification = workload.verification else { return nil }
    content = BlockContent(verification: verification, seed: workload.seed)
    ledger = try BlockLedger(area)
    blockSize = workload.blockSize
    checksUnknown = !workload.pattern.writes
  }

  private func offset(_ block: UInt64) -> UInt64 { block &* UInt64(blockSize) }

  func take(_ block: UInt64) -> Bool { ledger.take(block) }

  /// - Parameter data: the request's data, which is written here.
  /// - Returns: which write of the block it is, or is expected.
  func begin(_ block: UInt64, isWrite: Bool, data: UnsafeMutableRawPointer) -> UInt32 {
    guard isWrite else {
      // What a device that transfers nothing would leave behind must not look right.
      unsafe data.storeBytes(of: 0, as: UInt64.self)
      return ledger.generation(block)
    }
    let generation = ledger.beginWrite(block)
    unsafe content.write(data, count: blockSize, offset: offset(block), generation: generation)
    return generation
  }

  /// - Returns: whether there was something to check.
  func finish(
    _ block: UInt64, isWrite: Bool, generation: UInt32, data: UnsafeMutableRawPointer
  ) throws(BenchError) -> Bool {
    ledger.release(block)
    guard !isWrite, generation > 0 || checksUnknown else { return false }
    if let mismatch = unsafe content.check(data, count: blockSize, offset: offset(block), wanted: generation) {
      throw .wrongData(mismatch)
    }
    return true
  }

  /// The first written block at or after `from` (counted from the area's start), and where to look for the next.
  func nextWritten(from: UInt64) -> (block: UInt64, next: UInt64)? {
    var place = from
    while place < ledger.area.count {
      let block = ledger.area.first + place
      place += 1
      if ledger.generation(block) > 0 { return (block, place) }
    }
    return nil
  }
}
