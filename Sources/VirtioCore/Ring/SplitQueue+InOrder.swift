/// Used elements of a split ring whose driver relies on their order (IN_ORDER, virtio 2.6.9).

extension SplitRing where Heads: ~Copyable {
  /// One element for a batch: it lies where that of the batch's first chain would be, and has the head of the last one. It is
  /// rewritten for each chain of the batch, so that the ring is correct whenever it is published.
  @inlinable @inline(never)
  public mutating func pushInOrder(_ chain: consuming Chain, written: UInt32, isWhole: Bool) {
    if nextUsed == publishedUsed || !batchIsWhole { batchBegin = nextUsed }
    batchIsWhole = isWhole
    let head = chain.complete()
    let element = unsafe used + (4 &+ (Int(batchBegin) & mask) &* 8)
    unsafe SharedCell<UInt32>(element).storeRelaxed(UInt32(head))
    KillPoint.pass(.answerNamed)
    unsafe SharedCell<UInt32>(element + 4).storeRelaxed(written)
    KillPoint.pass(.answerWritten)
    heads.answer(head)
    nextUsed &+= 1
  }
}
