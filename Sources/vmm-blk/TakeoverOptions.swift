/// Options and steps that are common to all commands whose process can replace another one, or be replaced.
internal import ArgumentParser
internal import Control
internal import Sockets

struct TakeoverOptions: ParsableArguments {
  @Option(
    help: .init(
      "Listen on this path for 'vmm-blk ctl' and for servers that take over. Only this user and root may connect.",
      valueName: "path"))
  var control: String?

  @Option(
    help: .init(
      "Take over the disks of the running server that has this control socket; their guests keep running.", valueName: "path"))
  var takeOver: String?

  static let noRecord = ValidationError("--record starts a new file, so it cannot be combined with --take-over.")

  /// The taker, if there is a server to take over from.
  func taker(on transport: Takeover.Transport, in loop: EventLoop, log: ServeLog) throws -> TakeoverTaker? {
    try takeOver.map { try TakeoverTaker($0, on: transport, wantsControl: wantsControl, in: loop, log: log) }
  }

  /// The control socket is the one of the old server.
  private var wantsControl: Bool {
    guard let control, let takeOver else { return false }
    return Takeover.absolute(control) == Takeover.absolute(takeOver)
  }

  /// A control socket that does not come from the old server.
  func listen() throws -> Listener? {
    guard let control, !wantsControl else { return nil }
    return try Listener(path: control)
  }

  /// The control socket of the old server, if it was requested and received.
  func adopt(from taker: TakeoverTaker, _ log: ServeLog) -> Listener? {
    guard let control, wantsControl else { return nil }
    do {
      guard let socket = taker.control else {
        log.warn("the control socket \(control) stays with the old server, which still has disks")
        return nil
      }
      let listener = try Listener(takingOver: socket, path: control)
      listener.ownFile()
      return listener
    } catch {
      log.warn("the control socket cannot be taken over: \(error)")
      return nil
    }
  }
}
