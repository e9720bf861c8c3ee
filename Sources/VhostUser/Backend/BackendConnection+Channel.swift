/// The channel for requests of the back-end, on which it asks for translations for drivers behind an IOMMU.
internal import Sockets
internal import VirtioCore

extension BackendConnection {
  /// The most messages that may wait for a front-end that does not read them.
  private static let channelBacklog = 512
  /// How long a queue may wait for a translation before that is reported.
  private static let translationNotice = Duration.seconds(5)

  func openChannel(_ socket: OwnedDescriptor) {
    forgetChannel()
    channel = (socket, MessageWriter())
  }

  /// Closes the channel: nothing more is sent on it.
  func forgetChannel() {
    if let channelRegistration { loop.remove(channelRegistration) }
    channelRegistration = nil
    channel = nil
  }

  /// No reply is requested, so that no deadlock with a front-end that waits for us is possible. If too many messages wait,
  /// further ones are dropped, except that questions still open are asked again when the front-end has read the rest.
  func send(_ message: Message) {
    guard channel != nil else { return }
    if channel!.writer.unsentCount < Self.channelBacklog {
      channel!.writer.enqueue(message)
    } else if message.request == BackendRequest.translation.rawValue {
      hasDroppedQuestions = true
    }
    flushChannel()
  }

  private func flushChannel() {
    guard channel != nil else { return }
    do {
      try channel!.writer.flush(channel!.socket.rawValue)
      guard channel!.writer.isIdle else { return try waitForChannel() }
      if let channelRegistration { loop.remove(channelRegistration) }
      channelRegistration = nil
    } catch { return forgetChannel() }
    guard hasDroppedQuestions else { return }
    hasDroppedQuestions = false
    for effect in session.questionsAgain() { perform(effect) }
  }

  /// Continues a channel of another server, with its unsent messages.
  func openChannel(_ socket: OwnedDescriptor, unsent: MessageWriter) {
    channel = (socket, unsent)
    flushChannel()
  }

  /// Sends the rest when there is room for it.
  private func waitForChannel() throws {
    guard channelRegistration == nil, let socket = channel?.socket else { return }
    channelRegistration = try loop.add(socket.rawValue, .writable) { [weak self] _ in self?.flushChannel() }
  }

  // MARK: Translations

  /// A queue waits for a translation. This is handled at once, even during a message.
  func takeMiss(_ queue: Int, _ miss: TranslationMiss) {
    // Ignored for a queue that is being stopped, or was stopped, for another server: it misses the translation again when it
    // continues.
    guard !isOver, standstill?.hasBegun != true, adoption == nil else { return }
    for effect in session.missed(queue: queue, miss) { perform(effect) }
    lookForTranslations()
  }

  func takeWithdrawal(_ queue: Int) {
    guard !isOver, case .withdrawals(var queues) = awaited else { return }
    queues.remove(queue)
    awaited = queues.isEmpty ? .nothing : .withdrawals(queues)
    if queues.isEmpty { session.withdrawn() }
  }

  /// Reports once per connection that a translation does not come, because a front-end may never answer. The check is repeated
  /// while any queue waits, even if there is no channel to ask on.
  func lookForTranslations() {
    guard !isOver, !looksForTranslations, !hasToldOfTranslations, session.waitsForTranslation else { return }
    looksForTranslations = true
    let last = session.lastWait
    loop.after(Self.translationNotice) { [weak self] in
      guard let self, !isOver else { return }
      looksForTranslations = false
      guard let (queue, miss) = session.waitSince(last) else { return lookForTranslations() }
      hasToldOfTranslations = true
      report(.translationMissing(queue: queue, miss))
    }
  }
}
