/// Why a request of a front-end failed.
public import Sockets

public enum FrontendError: Error, Hashable, CustomStringConvertible {
  case socket(SocketError)
  case stream(StreamError)
  case closed(during: FrontendRequest)
  case timedOut(waitingFor: FrontendRequest, seconds: Double)
  /// The back-end refused: a non-zero acknowledgement, or an empty configuration.
  case refused(FrontendRequest)
  case unexpectedReply(to: FrontendRequest, request: UInt32, flags: UInt32, size: Int)
  case missingProtocolFeature(String)
  case missingDescriptor(FrontendRequest)

  public var description: String {
    switch self {
    case .socket(let error): error.description
    case .stream(let error): error.description
    case .closed(let request): "the back-end closed the connection during \(request.name); its log says why"
    case .timedOut(let request, let seconds): "the back-end did not answer \(request.name) within \(seconds) s"
    case .refused(let request): "the back-end refused \(request.name); its log says why"
    case .unexpectedReply(let asked, let request, let flags, let size):
      """
      the back-end answered \(asked.name) with \(FrontendRequest.name(of: request)), flags 0x\
      \(String(flags, radix: 16)) and \(size) bytes, which breaks the protocol
      """
    case .missingProtocolFeature(let name): "the back-end does not offer the protocol feature \(name), which is needed here"
    case .missingDescriptor(let request): "\(request.name) needs a descriptor"
    }
  }
}
