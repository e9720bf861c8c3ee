/// The state of a worker's connection to an NBD server.
internal import VirtioCore

struct NBDLink {
  enum Phase: UInt8 {
    /// There is no connection; the next attempt is at `due`.
    case down
    /// A connection is being made; it has failed if it is not established by `due`.
    case connecting
    case up
  }

  /// Nanoseconds that requests wait for a server that went away.
  let limit: UInt64
  var connection: NBDConnection?
  /// The attempt that makes a connection over TLS.
  var attempt: NBDAttempt?
  private(set) var phase = Phase.down
  /// The descriptor that is watched: its socket, or the signal of the attempt; −1: none.
  var socket: Int32 = -1
  /// What it is watched for.
  var interest: NBDDirection = []
  /// The connection has ended, and that has not been handled yet.
  var isBroken = false
  /// Requests have waited for too long, and new ones fail at once until there is a connection.
  var hasGivenUp = false
  /// Since when no request has been answered for lack of a connection; `Clock` nanoseconds.
  var outage: UInt64?
  /// When the present or last connection was established.
  private var upSince: UInt64 = 0
  private var attemptEnds: UInt64
  private var pause: UInt64 = 0

  /// The first and the longest pause between two attempts, nanoseconds.
  private static let shortestPause: UInt64 = 10_000_000
  private static let longestPause: UInt64 = 1_000_000_000
  /// A connection that lasted this long counts as a good one, however it ended: the next one is made at once.
  private static let lasting: UInt64 = 1_000_000_000

  init(limit: UInt64, now: UInt64) {
    self.limit = limit
    attemptEnds = now
  }

  @inline(__always)
  var isUp: Bool { phase == .up }

  /// When something has to be done without an event, unless the connection is up.
  var due: UInt64 {
    guard let outage, !hasGivenUp else { return attemptEnds }
    return min(attemptEnds, outage &+ limit)
  }

  /// Whether the present phase has timed out.
  func isOver(now: UInt64) -> Bool { now >= attemptEnds }

  /// Whether requests have waited for too long.
  func hasWaited(now: UInt64) -> Bool {
    guard let outage, !hasGivenUp else { return false }
    return now &- outage >= limit
  }

  mutating func connects(now: UInt64) {
    phase = .connecting
    attemptEnds = now &+ NBDExport.connectTimeout
  }

  mutating func isThere(now: UInt64) {
    phase = .up
    upSince = now
    hasGivenUp = false
    isBroken = false
  }

  /// An established connection is gone.
  mutating func isGone(now: UInt64) {
    if now &- upSince >= Self.lasting { (pause, outage) = (0, nil) }
    rests(now: now)
  }

  /// There is no connection now; another attempt follows after a pause, which grows.
  mutating func rests(now: UInt64) {
    phase = .down
    outage = outage ?? now
    isBroken = false
    attemptEnds = now &+ pause
    pause = min(max(pause &* 2, Self.shortestPause), Self.longestPause)
  }
}
