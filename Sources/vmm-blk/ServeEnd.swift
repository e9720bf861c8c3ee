/// How a server ends: every disk drains by itself, and none waits for another.
internal import Sockets
internal import VhostUser

/// Used on the loop's thread.
final class ServeEnd {
  private let servers: [BackendServer]
  private let loop: EventLoop
  private let limit: Duration
  private var open: Int
  private(set) var hasBegun = false

  /// - Parameter limit: how long to wait for disks that do not come to an end.
  init(_ servers: [BackendServer], in loop: EventLoop, limit: Duration) {
    self.servers = servers
    self.loop = loop
    self.limit = limit
    open = servers.count
  }

  /// Asks every disk to drain; the loop stops when all have, or when the time is over.
  func begin() {
    guard !hasBegun else { return }
    hasBegun = true
    loop.after(limit) { [loop] in loop.stop() }
    for server in servers {
      server.close {
        self.open -= 1
        if self.open == 0 { self.loop.stop() }
      }
    }
  }
}
