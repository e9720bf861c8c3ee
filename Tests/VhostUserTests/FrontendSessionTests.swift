/// Which requests a front-end sends, and which replies it accepts.
import Testing
import VirtioCore

@testable import VhostUser

@Suite struct FrontendSessionTests {
  private func session(_ features: ProtocolFeatures) -> FrontendSession {
    var session = FrontendSession()
    session.protocolFeatures = features
    return session
  }

  /// libvhost-user's back-end echoes need_reply in replies, so it is not set on requests that have a reply of their own.
  @Test func needReplyIsForRequestsWithoutAReply() {
    let session = session(.served)
    let (told, acknowledgement) = session.message(.setVringSize, payload: Rig.state(0, 1), descriptors: [])
    #expect(told.flags.rawValue == 0x9)
    #expect(acknowledgement == .acknowledgement)
    let (asked, reply) = session.message(.getVringBase, payload: Rig.state(0, 0), descriptors: [])
    #expect(asked.flags.rawValue == 0x1)
    #expect(reply == .reply(8))
  }

  @Test func withoutReplyAckNothingIsAwaited() {
    var session = session(.configuration)
    #expect(session.message(.setOwner, payload: [], descriptors: []).1 == .nothing)
    session.protocolFeatures = .replyAck
    session.asksForAcknowledgements = false
    #expect(session.message(.setOwner, payload: [], descriptors: []).1 == .nothing)
  }

  @Test(arguments: [
    (Message(replyTo: 1, payload: [0, 0, 0, 0]), "short"),
    (Message(replyTo: 2, payload: Rig.number(0)), "another request's"),
    (Message(request: 1, flags: [.version1, .reply, .needReply], payload: Rig.number(0)), "need_reply echoed"),
    (Message(request: 1, flags: .version1, payload: Rig.number(0)), "no reply at all"),
  ])
  func repliesThatBreakTheProtocol(reply: Message, why: String) {
    #expect(throws: FrontendError.self) { try session(.served).accept(reply, to: .getFeatures, .reply(8)) }
  }

  @Test func refusals() {
    let session = session(.served)
    #expect(throws: FrontendError.refused(.setVringSize)) {
      try session.accept(Message(replyTo: 8, payload: Rig.number(1)), to: .setVringSize, .acknowledgement)
    }
    #expect(throws: FrontendError.refused(.getConfiguration)) {
      try session.accept(Message(replyTo: 24, payload: []), to: .getConfiguration, .reply(72))
    }
  }
}
