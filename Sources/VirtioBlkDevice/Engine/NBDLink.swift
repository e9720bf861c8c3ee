/// The state of a worker's connection to an NBD server: values only.
internal import VirtioCore

struct NBDLink {
  enum Phase: UInt8 {
    /// There is none; the next attempt is at `due`.
    case down
    /// One is being made; it has failed if it is not there at `due`.
    case connecting
    case up
  }

  /// Nanoseconds that requests wait for a server that went away.
  let limit: UInt64
  var connection: NBDConnection?
  /// Makes one, over TLS.
  var attempt: NBDAttempt?
  private(set) var phase = Phase.down
  /// Its socket, or what signals the end of the attempt, as it is watched; −1: nothing is.
  var socket: Int32 = -1
  /// What that is watched for.
  var interest: NBDDirection = []
  /// It is over, and what follows from that has not been done.
  var isBroken = false
  /// Requests have waited for long enough, and more of them fail at once until there is a connection.
  var hasGivenUp = false
  /// Since when no request has been answered for want of a connection; `Clock` nanoseconds.
  var outage: UInt64?
  /// Of the connection that there is, or was.
  private var upSince: UInt64 = 0
  private var attemptEnds: UInt64
  private var pause: UInt64 = 0

  /// The first and the longest pause between two attempts, nanoseconds.
  private static let shortestPause: UInt64 = 10_000_000
  private static let longestPause: UInt64 = 1_000_000_000
  /// What lasts so long was a connection, however it ended: the next one is made at once.
  private static let lasting: UInt64 = 1_000_000_000

  init(limit: UInt64, now: UInt64) {
    self.limit = limit
    attemptEnds = now
  }

  @inline(__always)
  var isUp: Bool { phase == .up }

  /// When something has to be done without an event; not of one that is up.
  var due: UInt64 {
    guard let outage, !hasGivenUp else { return attemptEnds }
    return min(attemptEnds, outage &+ limit)
  }

  /// The present phase has lasted for long enough.
  func isOver(now: UInt64) -> Bool { now >= attemptEnds }

  /// Requests that wait have waited for long enough.
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

  /// A connection that was there is gone.
  mutating func isGone(now: UInt64) {
    if now &- upSince >= Self.lasting { (pause, outage) = (0, nil) }
    rests(now: now)
  }

  /// No connection now; another attempt follows after a pause that grows.
  mutating func rests(now: UInt64) {
    phase = .down
    outage = outage ?? now
    isBroken = false
    attemptEnds = now &+ pause
    pause = min(max(pause &* 2, Self.shortestPause), Self.longestPause)
  }
}
