/// What one pass did to each request, derived from the rings alone, as they were before and after it.
public import MemoryFile
internal import VirtioCore

/// One request that was available before a pass.
public struct RequestAccount: Equatable, Sendable {
  public let queue: Int
  public let head: UInt16
  /// `nil` when the chain had no whole header.
  public let request: BlockWords?
  /// The used element that answers it; `nil` when there is none.
  public let usedLength: UInt32?
  public let usedPosition: UInt16?
  /// The last writable byte after the pass; `nil` when the request was not used or has no such byte.
  public let status: UInt8?
  /// What was wrong with the chain.
  public let problems: [String]

  /// - Parameters:
  ///   - before: taken before the pass.
  ///   - memory: its contents after the pass.
  public static func accounts(of before: QueuePicture, after memory: GuestBytes) -> [RequestAccount] {
    let firstNew = before.rings?.usedIndex ?? 0
    let after = QueuePicture(
      queue: before.queue, configuration: before.configuration, ready: before.ready, features: before.features,
      memory: memory, usedSince: firstNew)
    let newCount = (after.rings?.usedIndex ?? firstNew) &- firstNew
    var answers = after.used.filter { $0.position &- firstNew < newCount }
    return before.pending.map { entry in
      let head = entry.chain.head
      let place = answers.firstIndex { $0.id == UInt32(head) }
      let answer = place.map { answers.remove(at: $0) }
      let status = answer == nil ? nil : entry.chain.lastWritable.flatMap { memory.bytes(at: $0.address, count: 1)?.first }
      return RequestAccount(
        queue: before.queue, head: head, request: BlockWords(entry.chain), usedLength: answer?.length,
        usedPosition: answer?.position, status: status, problems: entry.chain.problems)
    }
  }
}
