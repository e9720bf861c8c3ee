/// The IOMMU of a driver over vhost-user, as its front-end plays it: it answers a back-end's requests, and invalidates
/// translations at will.
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
  /// After this many answers, and once the driver has seen that something has completed, all translations are invalidated; 0:
  /// never. A device that never completes anything would ask forever.
  public var answersBetweenInvalidations = 0

  public init() {}
}

/// A thread alongside the driver's. It reads the back-end's channel, and shares the front-end with the driver: while the driver
/// waits for an answer from the back-end, nobody answers the back-end, as in a VMM.
final class Translator: @unchecked Sendable {
  /// A range of the driver's addresses, and its user address at the front-end.
  struct Range: Sendable {
    var address: UInt64
    var size: UInt64
    var user: UInt64
  }

  private struct State {
    var answers = 0
    var invalidations = 0
    var failure: String?
    /// ACCESS_PLATFORM is negotiated; a back-end refuses translations without it.
    var isOn = true
    /// Answers since everything was invalidated, and whether the driver has seen any of the device's answers since then.
    var recent = 0
    var hasMoved = false
    /// The permissions granted so far, by the first address.
    var granted: [UInt64: UInt8] = [:]
    /// Translations that are withheld, and whether they were requested.
    var withheld: [UInt64: Bool] = [:]
    /// Translations that were moved, by the first address.
    var moved: [UInt64: UInt64] = [:]
  }

  private let frontend: Frontend
  private let ranges: [Range]
  private let policy: TranslationPolicy
  private let state = Mutex(State())
  /// Held while a message is made and sent, so that it is still true when it is sent.
  private let saying = Mutex(())
  private let stopping: OwnedDescriptor
  private let ended: OwnedDescriptor
  /// Signalled for each change of configuration that the back-end reported.
  let changes: OwnedDescriptor

  /// - Parameter channel: from now on only this object reads it.
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

  /// Answers so far, and how often everything was invalidated.
  var counts: (answers: Int, invalidations: Int) { state.withLock { ($0.answers, $0.invalidations) } }

  /// Why it no longer answers; `nil` if it does, or the connection is over.
  var failure: String? { state.withLock(\.failure) }

  /// Whether to answer from now on. No answer is on its way when this returns.
  func turn(on isOn: Bool) {
    saying.withLock { _ in state.withLock { $0.isOn = isOn } }
  }

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

  /// - Returns: false when the thread is to end.
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

  private func answer(_ asked: TranslationMessage) throws {
    guard asked.type == TranslationMessage.Kind.miss.rawValue else { return }
    try saying.withLock { _ in
      // A request from before a reset is nobody's any more.
      guard state.withLock(\.isOn),
        let update = state.withLock({ translation(for: asked.address, permission: asked.permission, &$0) })
      else { return }
      try say(update)
      let isDue = state.withLock { state in
        state.answers += 1
        state.recent += 1
        let between = policy.answersBetweenInvalidations
        guard between > 0, state.recent >= between, state.hasMoved else { return false }
        (state.recent, state.hasMoved) = (0, false)
        state.invalidations += 1
        return true
      }
      if isDue { try takeBack(0, size: .max) }
    }
  }

  /// The range that an address is in, and the beginning of its translation there.
  private func place(of address: UInt64) -> (range: Range, start: UInt64)? {
    guard let range = ranges.first(where: { address &- $0.address < $0.size }) else { return nil }
    return (range, (address - range.address) & ~(policy.page - 1))
  }

  /// - Returns: `nil` for an address that is in no range, or withheld.
  private func translation(for address: UInt64, permission: UInt8, _ state: inout State) -> TranslationMessage? {
    guard let (range, start) = place(of: address) else { return nil }
    let first = range.address + start
    // Permissions that were granted before stay granted.
    let allowed = state.granted[first, default: 0] | permission
    state.granted[first] = allowed
    guard state.withheld[first] == nil else {
      state.withheld[first] = true
      return nil
    }
    return TranslationMessage(
      address: first, size: min(policy.page, range.size - start), userAddress: state.moved[first] ?? range.user + start,
      permission: allowed, type: TranslationMessage.Kind.update.rawValue)
  }

  private func takeBack(_ address: UInt64, size: UInt64) throws {
    try say(TranslationMessage(address: address, size: size, type: TranslationMessage.Kind.invalidate.rawValue))
  }

  /// The driver has seen answers from the device.
  func noteAnswers() { state.withLock { $0.hasMoved = true } }

  // MARK: One translation

  /// From now on an address is not translated, until `release`. The device may have its translation already.
  func withhold(_ address: UInt64) {
    guard let (range, start) = place(of: address) else { return }
    state.withLock { $0.withheld[range.address + start] = false }
  }

  /// The device has asked for an address that is withheld.
  func wasAsked(_ address: UInt64) -> Bool {
    guard let (range, start) = place(of: address) else { return false }
    return state.withLock { $0.withheld[range.address + start] == true }
  }

  /// Translates an address that was withheld.
  func release(_ address: UInt64) throws {
    guard let (range, start) = place(of: address) else { return }
    try saying.withLock { _ in
      let update = state.withLock { state in
        state.withheld[range.address + start] = nil
        return translation(for: address, permission: 0, &state)
      }
      if let update, update.permission != 0 { try say(update) }
    }
  }

  /// Invalidates the translation of an address, and gives that of another one in its place from then on. Returns when the
  /// device has acknowledged it.
  func move(_ address: UInt64, to other: UInt64) throws {
    guard let (range, start) = place(of: address), let (place, offset) = place(of: other) else { return }
    try saying.withLock { _ in
      state.withLock { $0.moved[range.address + start] = place.user + offset }
      try takeBack(range.address + start, size: policy.page)
    }
  }

  private func say(_ message: TranslationMessage) throws {
    let reply = try frontend.ask(.iotlb, message.bytes)
    guard reply.allSatisfy({ $0 == 0 }) else { throw DriverError.refused("the back-end refused a translation") }
  }
}
