/// Kicks that say where the next chain will be (NOTIFICATION_DATA, virtio 2.7.23, 4.2.3.3).
internal import MemoryFile
internal import Synchronization

/// The QueueNotify register of a device on a memory file, for all of its queues.
public final class NotifyRegister: Sendable {
  private let file: MemoryFileDriver
  private let offset: UInt32
  /// Register accesses come one after the other, and queues may have threads of their own.
  private let turn = Mutex(())

  /// - Parameter offset: of the register in the device's window.
  init(_ file: MemoryFileDriver, offset: UInt32) {
    self.file = file
    self.offset = offset
  }

  /// Performs a register access of somebody who does not kick.
  func alone<Result, Failure: Error>(_ access: () throws(Failure) -> Result) throws(Failure) -> Result {
    try turn.withLock { _ throws(Failure) in try access() }
  }

  /// The queue's index in the low half of the word, and in the other one where the next chain begins: of a packed ring the slot and
  /// in the top bit the wrap counter, of a split one the whole of `avail.idx`. A device that does not answer is found out by
  /// whoever waits for its chains.
  public func write(queue: Int, next: UInt16) {
    let word = UInt64(UInt16(truncatingIfNeeded: queue)) | UInt64(next) << 16
    turn.withLock { _ in try? file.write(offset, word) }
  }
}
