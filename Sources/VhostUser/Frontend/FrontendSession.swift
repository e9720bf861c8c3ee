/// The front-end's half of the protocol as a value: which message goes out for a request, and which answer has to come back.
internal import VirtioCore

/// The negotiated protocol features, and the rules that follow from them. No I/O.
public struct FrontendSession: Sendable {
  /// The answer that a request has to get.
  public enum Expectation: Hashable, Sendable {
    case nothing
    /// A 64-bit number that is 0 for success.
    case acknowledgement
    /// A payload of exactly this many bytes.
    case reply(Int)
  }

  public internal(set) var protocolFeatures = ProtocolFeatures()
  /// Whether every request without an answer of its own asks for an acknowledgement, once REPLY_ACK is negotiated.
  public var asksForAcknowledgements = true

  public init() {}

  /// The message for a request, and what to wait for.
  func message(
    _ request: FrontendRequest, payload: [UInt8], descriptors: [OwnedDescriptor]
  ) -> (Message, Expectation) {
    // Not for a request with a reply of its own: need_reply has no meaning there, and libvhost-user echoes it in the reply.
    let needReply = asksForAcknowledgements && protocolFeatures.contains(.replyAck) && !request.hasOwnReply
    let message = Message(request, needReply: needReply, payload: payload, descriptors: descriptors)
    if request.hasOwnReply {
      let size =
        switch request {
        case .getVringBase: VringState.size
        case .getConfiguration: payload.count
        // The request itself; other back-ends send other replies.
        case .setLogBase: SharedArea.size
        case .getInflight: InflightDescription.wireSize
        default: 8
        }
      return (message, .reply(size))
    }
    return (message, needReply ? .acknowledgement : .nothing)
  }

  /// Checks an answer against its request.
  /// - Returns: its payload.
  func accept(_ reply: Message, to request: FrontendRequest, _ expected: Expectation) throws(FrontendError) -> [UInt8] {
    guard reply.request == request.rawValue, reply.flags == [.version1, .reply] else {
      throw .unexpectedReply(
        to: request, request: reply.request, flags: reply.flags.rawValue, size: reply.payload.count)
    }
    switch expected {
    case .acknowledgement:
      guard let code = NumberPayload.decode(reply.payload) else { throw wrongSize(reply, request) }
      guard code == 0 else { throw .refused(request) }
    case .reply(let size):
      // An empty configuration says that the request could not be served.
      if request == .getConfiguration, reply.payload.isEmpty { throw .refused(request) }
      guard reply.payload.count == size else { throw wrongSize(reply, request) }
    case .nothing: break
    }
    return reply.payload
  }

  private func wrongSize(_ reply: Message, _ request: FrontendRequest) -> FrontendError {
    .unexpectedReply(to: request, request: reply.request, flags: reply.flags.rawValue, size: reply.payload.count)
  }
}
