/// The client's end of a control socket.
public import Sockets
public import VirtioCore

/// One connection to a server, in an event loop, with one request at a time.
public final class ControlClient {
  private let socket: OwnedDescriptor
  private let loop: EventLoop
  private var reader = ControlReader()
  private var writer = ControlWriter()
  private var registration: EventLoop.Registration?
  private var interest = EventLoop.Interest.readable
  private var whenAnswered: ((Result<ControlLine, ControlError>) -> Void)?
  /// Called once if the server closes the connection while no request is pending.
  public var whenEnded: (() -> Void)?

  /// Closes the descriptors that are received from now on: they may belong to other processes, and their last `close` may never
  /// return.
  public var disposer: (any Disposer)? {
    get { reader.disposer }
    set { reader.disposer = newValue }
  }

  /// - Parameters:
  ///   - path: the server's control socket.
  ///   - maximumAnswer: the longest answer that is accepted, bytes.
  public init(
    path: String, in loop: EventLoop, maximumAnswer: Int = ControlLine.maximumSize
  ) throws(SocketError) {
    reader.maximumSize = maximumAnswer
    socket = try UnixSocket.connect(to: path)
    self.loop = loop
    do { registration = try loop.add(socket.rawValue) { [weak self] in self?.ready($0) } } catch {
      throw .system(path, error)
    }
  }

  /// Sends a request, and calls `answered` once with the answer, or with the reason why there is none.
  public func ask(_ line: ControlLine, then answered: @escaping (Result<ControlLine, ControlError>) -> Void) {
    precondition(whenAnswered == nil, "a control client sends one request at a time")
    guard registration != nil else { return answered(.failure(.closed)) }
    whenAnswered = answered
    writer.enqueue(line)
    do {
      try writer.flush(socket.rawValue)
      try listen()
    } catch { end(error) }
  }

  /// Closes the connection; a pending request gets no answer.
  public func close() {
    whenAnswered = nil
    whenEnded = nil
    end(.closed)
  }

  private func end(_ error: ControlError) {
    guard let registration else { return }
    loop.remove(registration)
    self.registration = nil
    let (answered, ended) = (whenAnswered, whenEnded)
    whenAnswered = nil
    whenEnded = nil
    if let answered { answered(.failure(error)) } else { ended?() }
  }

  private func ready(_ found: EventLoop.Interest) {
    do {
      try writer.flush(socket.rawValue)
      while registration != nil {
        switch try reader.read(socket.rawValue) {
        case .line(let line):
          guard let answered = whenAnswered else { throw ControlError.notUnderstood("there was no request") }
          whenAnswered = nil
          answered(.success(line))
        case .nothingYet: return try listen()
        case .ended: return end(.closed)
        }
      }
    } catch let error as ControlError { end(error) } catch { end(.closed) }
  }

  private func listen() throws(ControlError) {
    let wanted: EventLoop.Interest = writer.isIdle ? .readable : [.readable, .writable]
    guard let registration, wanted != interest else { return }
    do { try loop.change(registration, wanted) } catch { throw .socket("\(error)") }
    interest = wanted
  }
}
