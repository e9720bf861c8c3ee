/// An export of an NBD server, for all queues of a disk: where it is, what it was like when it was opened, connections that
/// nobody uses just now, and what may have been lost with a server that went away.
internal import Glibc
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// The server of an export, and what happens if it goes away.
public struct NBDOptions: Sendable, Hashable {
  /// Seconds that requests wait for the server to come back before they fail.
  public static let usualReconnectTimeout = 30

  /// The server and the export.
  public var location: NBDLocation
  /// Seconds: 0 … 86400.
  public var reconnectTimeout = usualReconnectTimeout
  /// The server keeps all writes that it has acknowledged even if it goes away and comes back: no flush fails because of that.
  public var keepsWrites = false
  /// This process cannot look up names any more.
  public var isConfined = false

  /// With the default time limit for a server that went away.
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
  /// Of helpers, which flush the disk or ask for its size: one that hangs is enough.
  private let helpers = NBDAttemptLimit(1)

  private struct State {
    /// Made, and nobody's.
    var idle: [NBDConnection] = []
    /// Losses that each worker has told its drivers of.
    var toldLosses: [Int: UInt64] = [:]
    /// Workers that have been requested something, here or before a takeover, since when they may owe word of a loss.
    var used: Set<Int> = []
    /// Workers without a connection that had one.
    var away: Set<Int> = []
    var awaySince: UInt64 = 0
    var hasGivenUp = false
    /// The last one of each worker, over TLS.
    var attempts: [Int: NBDAttempt] = [:]
    /// What makes them.
    var connectors: [Int: NBDConnector] = [:]
    /// What was said of this outage.
    var said: Set<Hindrance> = []
  }

  /// Why a server that is there is not used.
  enum Hindrance { case trust, difference }

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
        let end = Clock.now &+ Self.connectTimeout
        let connection = try NBDConnection.make(library, options.location, address, until: end, limit: .openings)
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
    try NBDConnection.make(
      library, options.location, address, until: Clock.now &+ Self.connectTimeout, limit: helpers)
  }

  /// Begins to make one over TLS for a worker.
  ///
  /// - Returns: `nil` where it cannot be, or where the worker's last one, which nobody waits for any more, has not ended: so there
  ///   is never more than one for each, whatever they hang in.
  func attempt(worker: Int) -> NBDAttempt? {
    state.withLock { state in
      if let last = state.attempts[worker], !last.hasEnded { return nil }
      do throws(Errno) {
        let connector = if let last = state.connectors[worker] { last } else { try NBDConnector() }
        state.connectors[worker] = connector
        let attempt = try NBDAttempt(library, options.location, address)
        connector.begin(attempt)
        state.attempts[worker] = attempt
        return attempt
      } catch { return nil }
    }
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

  /// A worker's first request.
  func noteUse(worker: Int) { state.withLock { _ = $0.used.insert(worker) } }

  /// All that was acknowledged is stable.
  var isStable: Bool { flushed.load(ordering: .relaxed) >= written }

  /// Of each worker, whether its drivers have to be told of a loss; `nil`: no driver has. Drivers that have requested nothing need not
  /// be, once another one has been told.
  func owing(workers: Int) -> [Bool]? {
    let count = lossCount
    guard count > 0 else { return nil }
    let owing = state.withLock { state in
      let isUnheard = !state.toldLosses.values.contains(count)
      return (0..<workers).map { isUnheard || state.used.contains($0) && state.toldLosses[$0, default: 0] != count }
    }
    return owing.contains(true) ? owing : nil
  }

  /// Another process still serves it, and what that one writes may not be stable. Before a worker runs: from then on a loss counts,
  /// whichever of the two processes notices it.
  func inheritWrites() { noteWrite() }

  /// That process has stopped, and here nothing has been requested yet.
  ///
  /// - Parameters:
  ///   - isStable: all that it wrote was stable then.
  ///   - owing: what `owing` was there; it is everybody's if the number of workers is another one here.
  func inherit(isStable: Bool, owing: [Bool]?, workers: Int) {
    if isStable { noteFlush(written) }
    guard let owing else { return }
    let isFirst = losses.wrappingAdd(1, ordering: .releasing).oldValue == 0
    // One that was noticed here has been told to nobody.
    guard isFirst, owing.count == workers else { return }
    state.withLock { state in
      for (worker, owes) in owing.enumerated() {
        if owes { state.used.insert(worker) } else { state.toldLosses[worker] = 1 }
      }
    }
  }

  /// Another process may have served it meanwhile, and is gone without a word.
  func resume() {
    noteWrite()
    if !options.keepsWrites { losses.wrappingAdd(1, ordering: .releasing) }
  }

  // MARK: News

  /// A worker's connection is gone. - Returns: what to say, once for all workers.
  func goesAway(worker: Int, _ reason: String) -> String? {
    state.withLock { state in
      noteLoss(&state)
      guard state.away.insert(worker).inserted, state.away.count == 1 else { return nil }
      (state.awaySince, state.hasGivenUp, state.said) = (Clock.now, false, [])
      return "the NBD server of \(uri) is gone (\(reason)): requests wait for it for \(options.reconnectTimeout) s"
    }
  }

  /// - Returns: whether it has not been said yet, by any worker, since the server went away.
  func isNews(_ hindrance: Hindrance) -> Bool { state.withLock { $0.said.insert(hindrance).inserted } }

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
