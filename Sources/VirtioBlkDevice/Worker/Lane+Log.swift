/// Dirty logging: a lane marks pages of guest memory after it has written to them and before the driver can see the answer.
internal import VirtioCore

extension Lane where Ring: ~Copyable {
  /// Logs what a transfer may have written to the driver's buffers. The slot still has the segments as they were popped.
  @inline(never)
  mutating func logTransfer(_ index: Int) {
    logData(index, unsafe slab.slot(index).pointee.written)
  }

  mutating func logData(_ index: Int, _ written: UInt32) {
    // A write request writes nothing but its status byte.
    guard written > 1 else { return }
    unsafe log?.markRead(slab.segments(index), bytes: Int(written) - 1)
  }

  /// Logs what was written to the ring. The driver may have seen it already: the migration reads the log again after this queue
  /// has stopped.
  @inline(never)
  mutating func logRing() {
    guard let marks = log?.ringMarks else { return }
    ring.takeWritten { marks.mark($0, offset: $1, count: $2) }
  }
}
