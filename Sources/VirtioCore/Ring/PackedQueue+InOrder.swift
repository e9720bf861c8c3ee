/// Used descriptors of a packed ring whose driver relies on their order (IN_ORDER, virtio 2.7.8).

extension PackedRing where Book: ~Copyable {
  /// One used descriptor for a batch: it lies where that of the batch's first chain would be, and has the ID of the last one.
  /// It is rewritten for each chain of the batch. A ring whose book outlives it, or that publishes at once, publishes each
  /// answer separately, so that after a crash each is either published or not.
  @inlinable @inline(never)
  public mutating func pushInOrder(_ chain: consuming Chain, written: UInt32, isWhole: Bool) {
    guard !Book.isLasting, batch == .begun, batchIsWhole else {
      unsafe batchPlace = nextUsed
      batchFlags = usedFlags
      batchIsWhole = isWhole
      return push(chain, written: written)
    }
    batchIsWhole = isWhole
    let id = chain.complete()
    let span = unsafe spans[Int(id)]
    let flags = written != 0 ? batchFlags | PackedFlags.write : batchFlags
    let answer = UInt64(written) | UInt64(id) << 32 | UInt64(flags) << 48
    if unsafe batchPlace == firstUnpublished {
      // Left for `publish`.
      firstAnswer = answer
    } else {
      unsafe SharedCell<UInt64>(batchPlace + 8).storeRelaxed(answer)
    }
    unpublished &+= 1
    goOver(id, span: span)
  }
}
