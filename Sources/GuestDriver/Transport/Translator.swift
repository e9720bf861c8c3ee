/// The IOMMU of a driver over vhost-user, as its front-end plays it: answers what a back-end asks for, and takes back what it likes.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage
internal import VhostUser
internal import VirtioCore

/// How a driver's addresses are translated.
public struct TranslationPolicy: Sendable {
  /// Bytes of a translation, a power of two.
  public var page: UInt64 = 4096
  /// After so many answers everything is taken back; 0: never.
  public var answersBetweenInvalidations = 0

  public init() {}
}

/// A thread beside the driver's. It reads the back-end's channel, and shares the front-end with the driver: while that waits for an
/// answer of the back-end's, nobody answers the back-end, as in a VMM.
final class Translator: @unchecked Sendable {
  /// A range of the driver's addresses, and where the front-end says that it is.
  struct Range: Sendable {
    var address: UInt64
    var size: UInt64
    var user: UInt64
  }

  private struct State {
    var answers = 0
    var invalidations = 0
    var failure: String?
    /// What was allowed so far, by the first address.
    var granted: [UInt64: UInt8] = [:]
  }

  private let frontend: Frontend
  private let ranges: [Range]
  private let policy: TranslationPolicy
  private let state = Mutex(State())
  private let stopping: OwnedDescriptor
  private let ended: OwnedDescriptor
  /// Signalled for each change of configuration that the back-end told.
  let changes: OwnedDescriptor

  /// - Parameter channel: read by this alone from now on.
  init(_ frontend: Frontend, _ channel: BackendChannel, ranges: [Range], policy: TranslationPolicy) throws(DriverError) {
    self.ranges = ranges
    self.policy = policy
    self.frontend = frontend
    do {
      (stopping, ended, changes) = (try .eventCounter(), try .eventCounter(), try .eventCounter())
      // Nobody else uses the channel.
      nonisolated(unsafe) let channel = channel
      _ = try SystemThread(name: "iommu") { [self] in
        unsafe serve(channel)
        EventCounter.signal(ended.rawValue)
      }
    } catch { throw .system("the IOMMU's thread", error) }
  }

  /// Answers so far, and how often everything was taken back.
  var counts: (answers: Int, invalidations: Int) { state.withLock { ($0.answers, $0.invalidations) } }

  /// Why it does not answer any more; `nil`: it does, or the connection is over.
  var failure: String? { state.withLock(\.failure) }

  /// Ends the thread, which may be waiting for the back-end.
  func stop() {
    EventCounter.signal(stopping.rawValue)
    var one = pollfd(fd: ended.rawValue, events: Int16(POLLIN), revents: 0)
    while unsafe poll(&one, 1, -1) < 0 && errno == EINTR {}
  }

  private func serve(_ channel: BackendChannel) {
    do {
      while true {
        while let message = try channel.nextMessage() { try take(message) }
        guard wait(for: channel) else { return }
      }
    } catch { state.withLock { $0.failure = "\(error)" } }
  }

  /// - Returns: false when it is to end.
  private func wait(for channel: BackendChannel) -> Bool {
    var entries = [channel.descriptor, stopping.rawValue].map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
    while true {
      _ = unsafe poll(&entries, 2, -1)
      if entries[1].revents != 0 { return false }
      if entries[0].revents & Int16(POLLIN) != 0 { return true }
      // The other end is gone.
      if entries[0].revents != 0 { return false }
    }
  }

  private func take(_ message: BackendChannel.Said) throws {
    switch message {
    case .configurationChanged: EventCounter.signal(changes.rawValue)
    case .other: break
    case .translation(let asked): try answer(asked)
    }
  }

  /// What is in no range is not answered.
  private func answer(_ asked: TranslationMessage) throws {
    guard asked.type == TranslationMessage.Kind.miss.rawValue,
      let range = ranges.first(where: { asked.address &- $0.address < $0.size })
    else { return }
    let distance = asked.address - range.address
    let start = distance & ~(policy.page - 1)
    // What somebody else was allowed stays allowed.
    let permission = state.withLock { state in
      let allowed = state.granted[range.address + start, default: 0] | asked.permission
      state.granted[range.address + start] = allowed
      return allowed
    }
    try say(
      TranslationMessage(
        address: range.address + start, size: min(policy.page, range.size - start), userAddress: range.user + start,
        permission: permission, type: TranslationMessage.Kind.update.rawValue))
    let isDue = state.withLock { state in
      state.answers += 1
      let between = policy.answersBetweenInvalidations
      guard between > 0, state.answers % between == 0 else { return false }
      state.invalidations += 1
      return true
    }
    if isDue {
      try say(TranslationMessage(address: 0, size: .max, type: TranslationMessage.Kind.invalidate.rawValue))
    }
  }

  private func say(_ message: TranslationMessage) throws {
    let reply = try frontend.ask(.iotlb, message.bytes)
    guard reply.allSatisfy({ $0 == 0 }) else { throw DriverError.refused("the back-end refused a translation") }
  }
}
