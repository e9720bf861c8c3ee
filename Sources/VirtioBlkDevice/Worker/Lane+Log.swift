/// What a lane does where somebody wants to know which pages of guest memory it writes to: marks come after the write and before
/// the driver can see that its request was answered.
internal import VirtioCore

extension Lane where Ring: ~Copyable {
  /// What a transfer may have written to the driver's buffers, for the log. Its segments are in the slot as they were taken.
  @inline(never)
  mutating func logTransfer(_ index: Int) {
    logData(index, unsafe slab.slot(index).pointee.written)
  }

  mutating func logData(_ index: Int, _ written: UInt32) {
    // A write fills nothing but its status byte.
    guard written > 1 else { return }
    unsafe log?.markRead(slab.segments(index), bytes: Int(written) - 1)
  }

  /// What was written to the ring, for the log. The driver may have seen it already: whoever moves the guest reads the log
  /// again after this queue has stopped.
  @inline(never)
  mutating func logRing() {
    guard let marks = log?.ringMarks else { return }
    ring.takeWritten { marks.mark($0, offset: $1, count: $2) }
  }
}
