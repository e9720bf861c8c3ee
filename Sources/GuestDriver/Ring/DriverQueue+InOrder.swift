/// What a driver does if the device uses chains in the order in which they became available (virtio 2.6.9, 2.7.8): one answer
/// can stand for many chains, and names the last of them.
internal import VirtioCore

extension DriverQueue {
  /// The number of the chain that comes back next.
  private var nextNumber: UInt64 { added - UInt64(outstanding) }

  /// How many chains an answer stands for. - Parameter head: of a chain that is outstanding.
  func batch(endingWith head: UInt16) -> Int { Int(unsafe chains[Int(head)].number - nextNumber) + 1 }

  /// The next chain of the current batch, and how much was written to it: for chains without their own answer, all of it.
  mutating func nextOfBatch() -> (head: UInt16, length: UInt32) {
    let head = unsafe sequence[Int(nextNumber % UInt64(size))]
    batchLeft -= 1
    return (head, batchLeft == 0 ? batchLength : UInt32(clamping: unsafe chains[Int(head)].writable))
  }
}
