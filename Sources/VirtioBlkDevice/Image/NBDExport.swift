/// An export of an NBD server, for all queues of a disk: where it is, what it was like when it was opened, connections that
/// nobody uses just now, and what may have been lost with a server that went away.
internal import Glibc
internal import Synchronization
internal import VirtioCore

/// How a disk takes a server that goes away.
public struct NBDOptions: Sendable, Hashable {
  /// Seconds that requests wait for the server to come back before they fail.
  public static let usualReconnectTimeout = 30

  /// The server and the export.
  public var location: NBDLocation
  /// Seconds: 0 … 86400.
  public var reconnectTimeout = usualReconnectTimeout
  /// What the server has acknowledged it has after it went away and came back, too: no flush fails because of that.
  public var keepsWrites = false
  /// This process cannot look up names any more.
  public var isConfined = false

  /// With the usual time to wait for a server that went away.
  public init(_ location: NBDLocation) { self.location = location }
}

/// An export that was opened. All queues of its disk share it.
public final class NBDExport: Sendable {
  let library: NBDLibrary
  let options: NBDOptions
  let address: NBDAddress
  /// As they were when it was opened.
  let facts: NBDFacts
  /// Writes that the server has acknowledged and that nobody asked to be stable yet: all, and those of them that a flush has
  /// made so.
  private let acknowledged = Atomic<UInt64>(0)
  private let flushed = Atomic<UInt64>(0)
  /// How often unstable writes may have been lost.
  private let losses = Atomic<UInt64>(0)
  private let state = Mutex(State())

  private struct State {
    /// Made, and nobody's.
    var idle: [NBDConnection] = []
    /// Losses that each worker has told its drivers of.
    var toldLosses: [Int: UInt64] = [:]
    /// Workers without a connection that had one.
    var away: Set<Int> = []
    var awaySince: UInt64 = 0
    var hasGivenUp = false
  }

  var uri: String { options.location.text }

  /// How long a connection may take to be made.
  static let connectTimeout: UInt64 = 10_000_000_000

  /// Connects. Waits for the server, but not forever. - Throws: why that cannot be.
  init(_ options: NBDOptions) throws(NBDFailure) {
    library = try NBDLibrary.find()
    self.options = options
    var failure = NBDFailure.noAddress(uri: options.location.text, "it has no address")
    for address in try NBDAddress.all(of: options.location, isConfined: options.isConfined) {
      do throws(NBDFailure) {
        let connection = try NBDConnection(library, options.location)
        try connection.connect(address, until: Clock.now &+ Self.connectTimeout)
        self.address = address
        facts = connection.facts
        state.withLock { $0.idle.append(connection) }
        return
      } catch {
        failure = error
        // It would be the same at its other addresses, if not without a word.
        if error.isOfTrust { break }
      }
    }
    throw failure
  }

  // MARK: Connections

  /// One that is made already.
  func take() -> NBDConnection? { state.withLock { $0.idle.popLast() } }

  /// A worker has ended, and its connection has nothing in flight.
  func give(_ connection: NBDConnection) { state.withLock { $0.idle.append(connection) } }

  /// One more, and waits for that. For a helper.
  func connect() throws(NBDFailure) -> NBDConnection {
    let connection = try NBDConnection(library, options.location)
    try connection.connect(address, until: Clock.now &+ Self.connectTimeout)
    return connection
  }

  // MARK: What is not stable

  @inline(__always)
  func noteWrite() { acknowledged.wrappingAdd(1, ordering: .relaxed) }

  /// Writes acknowledged up to now. Acquiring: a flush that is sent after this covers them.
  var written: UInt64 { acknowledged.load(ordering: .acquiring) }

  /// A flush that was sent when so many were acknowledged went well.
  func noteFlush(_ written: UInt64) { flushed.max(written, ordering: .relaxed) }

  /// Acquiring: who sees a loss sees what was lost.
  var lossCount: UInt64 { losses.load(ordering: .acquiring) }

  /// A connection is gone, and nobody knows whether the server is the same one.
  private func noteLoss(_ state: inout State) {
    guard !options.keepsWrites else { return }
    let written = written
    guard written > flushed.load(ordering: .relaxed) else { return }
    flushed.max(written, ordering: .relaxed)
    losses.wrappingAdd(1, ordering: .releasing)
  }

  /// What a worker's drivers know of.
  func toldLosses(worker: Int) -> UInt64 { state.withLock { $0.toldLosses[worker] ?? 0 } }
  func tell(_ losses: UInt64, worker: Int) { state.withLock { $0.toldLosses[worker] = losses } }

  // MARK: From process to process

  /// Some worker's drivers have not been told of a loss. - Parameter workers: how many there are.
  func owesWord(workers: Int) -> Bool {
    let count = lossCount
    return state.withLock { state in (0..<workers).contains { state.toldLosses[$0, default: 0] != count } }
  }

  /// Another process served it before, and what that one wrote may not be stable. Before the first request.
  ///
  /// - Parameter mayHaveLost: that process owed its drivers word of a loss.
  func inherit(mayHaveLost: Bool) {
    noteWrite()
    if mayHaveLost { losses.wrappingAdd(1, ordering: .releasing) }
  }

  // MARK: News

  /// A worker's connection is gone. - Returns: what to say, once for all workers.
  func goesAway(worker: Int, _ reason: String) -> String? {
    state.withLock { state in
      noteLoss(&state)
      guard state.away.insert(worker).inserted, state.away.count == 1 else { return nil }
      (state.awaySince, state.hasGivenUp) = (Clock.now, false)
      return "the NBD server of \(uri) is gone (\(reason)): requests wait for it for \(options.reconnectTimeout) s"
    }
  }

  /// A worker waits no more.
  func isGivenUp() -> String? {
    state.withLock { state in
      guard !state.hasGivenUp else { return nil }
      state.hasGivenUp = true
      return "the NBD server of \(uri) has not come back for \(options.reconnectTimeout) s: requests fail until it does"
    }
  }

  /// A worker is connected again, or ends.
  func comesBack(worker: Int, isOver: Bool = false) -> String? {
    state.withLock { state in
      guard state.away.remove(worker) != nil, state.away.isEmpty, !isOver else { return nil }
      let seconds = (Clock.now &- state.awaySince) / 100_000_000
      return "the NBD server of \(uri) is back after \(seconds / 10).\(seconds % 10) s"
    }
  }
}
