/// The channel on which a back-end speaks unasked, and what is asked there: translations, for drivers behind an IOMMU.
internal import Sockets
internal import VirtioCore

extension BackendConnection {
  /// Messages that wait for a front-end that does not take them.
  private static let channelBacklog = 512
  /// How long a queue may wait for a translation before that is said.
  private static let translationNotice = Duration.seconds(5)

  func openChannel(_ socket: OwnedDescriptor) {
    forgetChannel()
    channel = (socket, MessageWriter())
  }

  /// Nothing more is said there.
  func forgetChannel() {
    if let channelRegistration { loop.remove(channelRegistration) }
    channelRegistration = nil
    channel = nil
  }

  /// No answer is asked for, so that nobody ever waits here for a front-end that waits for us. What one does not take that was told
  /// so much already is lost to it, but for questions: those that are still open are asked again when it has taken the rest.
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

  /// There is something to send of a channel that another server had.
  func openChannel(_ socket: OwnedDescriptor, unsent: MessageWriter) {
    channel = (socket, unsent)
    flushChannel()
  }

  /// The rest goes when there is room for it.
  private func waitForChannel() throws {
    guard channelRegistration == nil, let socket = channel?.socket else { return }
    channelRegistration = try loop.add(socket.rawValue, .writable) { [weak self] _ in self?.flushChannel() }
  }

  // MARK: Translations

  /// A queue waits. What is to be done about that waits for no message at hand.
  func takeMiss(_ queue: Int, _ miss: TranslationMiss) {
    // A queue that is stopped for another server, or was, is not the one that missed it any more.
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

  /// Told once in the life of a connection: a front-end may never answer. While anybody waits, whether there is a channel to ask on or
  /// not, it is looked again.
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
