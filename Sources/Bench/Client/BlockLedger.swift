/// What a queue has written to each block of its area, and which blocks have a request in flight: with it, every read can be
/// checked against the last write.

@safe
struct BlockLedger: ~Copyable {
  private static let busy: UInt32 = 1 << 31
  /// A generation for each block, and a bit that says whether the block is in use.
  private let entries: UnsafeMutablePointer<UInt32>
  let area: DiskArea

  init(_ area: DiskArea) throws(BenchError) {
    // Four bytes a block: 1 MiB for each GiB of 4 KiB blocks.
    guard area.count < 1 << 31 else { throw .noMemory(bytes: Int(clamping: area.count)) }
    self.area = area
    unsafe entries = .allocate(capacity: Int(area.count))
    unsafe entries.initialize(repeating: 0, count: Int(area.count))
  }

  deinit { unsafe entries.deallocate() }

  private func entry(_ block: UInt64) -> UnsafeMutablePointer<UInt32> {
    precondition(block >= area.first && block - area.first < area.count, "a block of another queue")
    return unsafe entries + Int(block - area.first)
  }

  /// How many writes of the block have started; 0 if none in this run.
  func generation(_ block: UInt64) -> UInt32 { unsafe entry(block).pointee & ~Self.busy }

  /// Takes the block for one request. - Returns: false when another has it.
  func take(_ block: UInt64) -> Bool {
    let entry = unsafe entry(block)
    guard unsafe entry.pointee & Self.busy == 0 else { return false }
    unsafe entry.pointee |= Self.busy
    return true
  }

  func release(_ block: UInt64) { unsafe entry(block).pointee &= ~Self.busy }

  /// - Returns: the generation of the write that begins now; the block must have been taken.
  func beginWrite(_ block: UInt64) -> UInt32 {
    let entry = unsafe entry(block)
    let generation = unsafe (entry.pointee & ~Self.busy) &+ 1
    unsafe entry.pointee = generation | Self.busy
    return generation
  }
}
