/// A bare connection to a vhost-user back-end: messages as a check makes them, and replies unchanged.
internal import Glibc
internal import VhostUser
internal import VirtioCore

public final class Link {
  private let frontend: Frontend
  private let settings: Settings

  public init(path: String, _ settings: Settings) throws {
    do { frontend = try Frontend(connectingTo: path, patience: settings.limit) } catch {
      throw Trouble.wedged("nobody answers on \(path): \(error)")
    }
    self.settings = settings
  }

  func send(
    _ request: UInt32, _ payload: [UInt8] = [], flags: UInt32 = 1, _ descriptors: [OwnedDescriptor] = []
  ) throws {
    let message = Message(
      request: request, flags: MessageHeader.Flags(rawValue: flags), payload: payload, descriptors: descriptors)
    do { try frontend.send(message) } catch { throw Gone() }
  }

  func send(
    _ request: FrontendRequest, _ payload: [UInt8] = [], needsReply: Bool = false, _ descriptors: [OwnedDescriptor] = []
  ) throws {
    try send(request.rawValue, payload, flags: needsReply ? 9 : 1, descriptors)
  }

  /// The connection has ended.
  struct Gone: Error {}

  func receive() throws -> Message {
    do { return try frontend.receive(after: .getFeatures) } catch {
      switch error {
      case .timedOut: throw Trouble.wedged("no answer within \(settings.limit / .seconds(1)) s")
      case .stream(.system): throw Gone()
      case .stream(let error): throw Trouble.broken("what arrived is not a message: \(error)")
      default: throw Gone()
      }
    }
  }

  /// Sends a request, and returns the first reply.
  func ask(
    _ request: FrontendRequest, _ payload: [UInt8] = [], needsReply: Bool = false, _ descriptors: [OwnedDescriptor] = []
  ) throws -> Message {
    try send(request, payload, needsReply: needsReply, descriptors)
    return try receive()
  }

  /// A reply that is a number.
  func number(_ request: FrontendRequest) throws -> UInt64 {
    let reply = try ask(request)
    guard reply.request == request.rawValue, reply.payload.count == 8 else {
      throw Trouble.broken("\(request.name) was answered with request \(reply.request) and \(reply.payload.count) bytes")
    }
    return reply.payload.reversed().reduce(0) { $0 << 8 | UInt64($1) }
  }

  /// Requests an acknowledgement. - Returns: its value; `nil` if the back-end ended the connection instead.
  func acknowledged(
    _ request: FrontendRequest, _ payload: [UInt8] = [], _ descriptors: [OwnedDescriptor] = []
  ) throws -> UInt64? {
    do {
      let reply = try ask(request, payload, needsReply: true, descriptors)
      guard reply.request == request.rawValue, reply.payload.count == 8 else {
        throw Trouble.broken(
          "the acknowledgement of \(request.name) is request \(reply.request) with \(reply.payload.count) bytes")
      }
      return reply.payload.reversed().reduce(0) { $0 << 8 | UInt64($1) }
    } catch is Gone { return nil }
  }

  /// Whether nothing arrives for as long as nothing may.
  func isSilent() throws -> Bool {
    var one = pollfd(fd: frontend.descriptor, events: Int16(POLLIN), revents: 0)
    guard unsafe poll(&one, 1, Int32(clamping: Int(settings.settle / .milliseconds(1)))) > 0 else { return true }
    do { _ = try frontend.receive(after: .getFeatures) } catch { throw Gone() }
    return false
  }

  /// Whether the back-end still answers here; false: it has ended the connection.
  func isOpen() throws -> Bool {
    do {
      _ = try number(.getFeatures)
      return true
    } catch is Gone { return false }
  }

  /// The first messages of every front-end. - Returns: the offered features and protocol features.
  @discardableResult func greet(
    _ wanted: ProtocolFeatures = .served
  ) throws -> (features: UInt64, protocolFeatures: ProtocolFeatures) {
    try send(.setOwner)
    let features = try number(.getFeatures)
    guard features >> 30 & 1 == 1 else { return (features, []) }
    let offered = ProtocolFeatures(rawValue: try number(.getProtocolFeatures))
    let accepted = offered.intersection(wanted)
    try send(.setProtocolFeatures, littleEndian(accepted.rawValue))
    return (features, offered)
  }

  /// Bytes that need not be a message.
  func sendRaw(_ bytes: [UInt8]) {
    _ = unsafe bytes.withUnsafeBytes {
      unsafe Glibc.send(frontend.descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
    }
  }

  func littleEndian(_ value: UInt64) -> [UInt8] { (0..<8).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) } }
  func state(_ index: UInt32, _ number: UInt32) -> [UInt8] { VringState(index: index, number: number).bytes }
}
