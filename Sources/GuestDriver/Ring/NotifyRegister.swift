/// Kicks that tell where the next chain will be (NOTIFICATION_DATA, virtio 2.7.23, 4.2.3.3).
internal import MemoryFile
internal import Synchronization

/// Serializes register accesses, because queues may have their own threads.
final class RegisterTurn: Sendable {
  private let turn = Mutex(())

  /// Performs one register access.
  func alone<Result, Failure: Error>(_ access: () throws(Failure) -> Result) throws(Failure) -> Result {
    try turn.withLock { _ throws(Failure) in try access() }
  }
}

/// The registers of a device on a memory file that kicks go to, for all of its queues.
public final class NotifyRegister: Sendable {
  private let file: MemoryFileDriver
  private let turn: RegisterTurn
  private let offset: UInt32
  private let stride: UInt32

  /// - Parameters:
  ///   - offset: of queue 0's register for the mailbox.
  ///   - stride: from one queue's to the next one's; 0 if all have the same.
  init(_ file: MemoryFileDriver, _ turn: RegisterTurn, offset: UInt32, stride: UInt32) {
    self.file = file
    self.turn = turn
    self.offset = offset
    self.stride = stride
  }

  /// Writes the queue's index in the low half of the word, and in the high half where the next chain begins: for a packed ring
  /// the slot, with the wrap counter in the top bit; for a split ring the whole of `avail.idx`. A device that does not answer
  /// is noticed where its chains are waited for.
  public func write(queue: Int, next: UInt16) {
    let word = UInt64(UInt16(truncatingIfNeeded: queue)) | UInt64(next) << 16
    let place = offset + UInt32(UInt16(truncatingIfNeeded: queue)) * stride
    turn.alone { _ = try? file.write(place, word) }
  }
}
