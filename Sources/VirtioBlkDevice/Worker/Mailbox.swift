/// Messages to a thread that sleeps elsewhere: a locked list and an eventfd. Looked at only when the eventfd fires, so the
/// data path never touches the lock.
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

final class Mailbox<Message: Sendable>: Sendable {
  private let messages = Mutex<[Message]>([])
  private let counter: OwnedDescriptor

  init() throws(Errno) { counter = try OwnedDescriptor.eventCounter() }

  /// Readable while there are messages; stays open for as long as the mailbox lives.
  var descriptor: Int32 { counter.rawValue }

  func post(_ message: Message) {
    messages.withLock { $0.append(message) }
    EventCounter.signal(counter.rawValue)
  }

  /// All messages, oldest first.
  func take() -> [Message] {
    EventCounter.drain(counter.rawValue)
    return messages.withLock { list in
      defer { list = [] }
      return list
    }
  }
}
