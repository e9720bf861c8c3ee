/// What a driver does where the device uses chains in the order in which they became available (virtio 2.6.9, 2.7.8): one answer
/// can stand for many chains, and names the last of them.
internal import VirtioCore

extension DriverQueue {
  /// The number of the chain that comes back next.
  private var nextNumber: UInt64 { added - UInt64(outstanding) }

  /// How many chains an answer stands for. - Parameter head: of a chain that is outstanding.
  func batch(endingWith head: UInt16) -> Int { Int(unsafe chains[Int(head)].number - nextNumber) + 1 }

  /// The next chain of the batch at hand, and what was written to it: of those that have no answer of their own, all of it.
  mutating func nextOfBatch() -> (head: UInt16, length: UInt32) {
    let head = unsafe sequence[Int(nextNumber % UInt64(size))]
    batchLeft -= 1
    return (head, batchLeft == 0 ? batchLength : UInt32(clamping: unsafe chains[Int(head)].writable))
  }
}
