/// The events that a server reports to its operator.
public import Sockets
public import SystemPackage
public import VirtioCore

/// One event. A front-end or a guest can cause many of them as often as it likes, so they should be rate-limited.
public enum ServerEvent: Hashable, Sendable, CustomStringConvertible {
  /// - Parameter: the peer's credentials; `nil`: unknown to the kernel.
  case connected(PeerCredentials?)
  case disconnected
  case received(request: UInt32, size: Int, descriptors: Int)
  /// The driver has chosen features; front-ends repeat this, and the same choice is reported once.
  case negotiated(FeatureSet, ProtocolFeatures)
  case queueStarted(Int)
  case queueStopped(Int)
  case connectionFailed(StreamError)
  /// The front-end sent its own end of the connection with an incomplete message, which would keep the connection open forever.
  case ownEndReceived
  /// A message could not be refused in any other way.
  case connectionEnded(request: UInt32, Refusal)
  case messageRefused(request: UInt32, Refusal)
  case queueRefused(queue: Int, Refusal)
  case queueFailed(queue: Int, QueueError)
  case acceptFailed(Errno)
  /// The connection has ended, and these queues still wait for the medium; no front-end is accepted before they have stopped.
  case stillStopping([Int])
  /// A descriptor that the front-end sent does not answer; the connection is closed, and the helper thread that waits for it
  /// stays behind.
  case descriptorsDoNotAnswer
  /// Too many connections have left a helper thread behind.
  case tooManyLeftBehind(Int)
  /// Another server took over the disk and is gone, and it cannot be told what it did.
  case cannotGoOn
  /// A queue has been waiting for a requested translation for a long time, and still waits.
  case translationMissing(queue: Int, TranslationMiss)
  /// A message of the device.
  case deviceNotice(String)

  public enum Importance: Hashable, Sendable { case trace, detail, note, warning }

  public var importance: Importance {
    switch self {
    case .received: .trace
    case .queueStarted, .queueStopped: .detail
    case .connected, .disconnected, .negotiated: .note
    default: .warning
    }
  }

  public var description: String {
    switch self {
    case .connected(let peer): "a front-end connected" + (peer.map { ": \($0)" } ?? "")
    case .disconnected: "the front-end disconnected"
    case .received(let request, let size, let descriptors):
      "received \(FrontendRequest.name(of: request)), \(size) bytes, \(descriptors) descriptors"
    case .negotiated(let features, let agreed):
      "the driver chose the features \(features), and the front-end those of the protocol \(agreed)"
    case .queueStarted(let queue): "queue \(queue) started"
    case .queueStopped(let queue): "queue \(queue) stopped"
    case .connectionFailed(let error): "the connection is closed: \(error)"
    case .ownEndReceived:
      "the connection is closed: the front-end sent its own end of it with an incomplete message; give the back-end another socket"
    case .connectionEnded(let request, let refusal):
      "the connection is closed, because \(FrontendRequest.name(of: request)) cannot be done: \(refusal)"
    case .messageRefused(let request, let refusal): "\(FrontendRequest.name(of: request)) was refused: \(refusal)"
    case .queueRefused(let queue, let refusal): "queue \(queue) cannot start: \(refusal)"
    case .queueFailed(let queue, let error): "queue \(queue) is stopped: \(error)"
    case .translationMissing(let queue, let miss):
      "queue \(queue) waits for a translation of the address \(GuestAddress(miss.address)): the front-end was asked for it (IOTLB_MSG) "
        + "and has not answered"
    case .deviceNotice(let text): text
    case .cannotGoOn:
      "the connection is closed, because the server that took the disk over is gone and neither in-flight records nor the order of "
        + "answers show what it did"
    case .stillStopping(let queues):
      "the disk waits for its medium: \(Self.list(queues)) cannot stop before what is in flight is done, and no front-end is accepted"
    case .descriptorsDoNotAnswer:
      "the connection is closed, because a descriptor that the front-end sent does not answer: its file system hangs"
    case .tooManyLeftBehind(let count):
      "no front-end is accepted, because descriptors of \(count) earlier connections still do not answer"
    case .acceptFailed(let error): "a front-end could not be accepted: \(error); trying again in a second"
    }
  }

  /// "queue 3", "queues 0 and 1", "queues 0, 1 and 2".
  public static func list(_ queues: [Int]) -> String {
    guard let last = queues.last, queues.count > 1 else { return "queue " + queues.map(String.init).joined() }
    return "queues " + queues.dropLast().map(String.init).joined(separator: ", ") + " and \(last)"
  }
}
