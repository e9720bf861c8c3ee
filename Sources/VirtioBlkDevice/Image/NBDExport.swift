/// An export of an NBD server, for all queues of a disk: where it is, what it was like when it was opened, idle connections,
/// and what may have been lost with a server that went away.
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
  /// The server keeps all acknowledged writes even if it goes away and comes back: no flush fails because of that.
  public var keepsWrites = false
  /// This process can no longer look up names.
  public var isConfined = false

  /// Options with the default time limit for a server that went away.
  public init(_ location: NBDLocation) { self.location = location }
}

/// An open export. All queues of its disk share it.
public final class NBDExport: Sendable {
  let library: NBDLibrary
  let options: NBDOptions
  let address: NBDAddress
  /// As they were when it was opened.
  let facts: NBDFacts
  /// Writes that the server has acknowledged without making them stable: all of them, and those that a flush has made stable
  /// since.
  private let acknowledged = Atomic<UInt64>(0)
  private let flushed = Atomic<UInt64>(0)
  /// How often unstable writes may have been lost.
  private let losses = Atomic<UInt64>(0)
  private let state = Mutex(State())
  /// The limit for helpers, which flush the disk or query its size: one that hangs is enough.
  private let helpers = NBDAttemptLimit(1)

  private struct State {
    /// Connections that are made and not in use.
    var idle: [NBDConnection] = []
    /// Losses that each worker has reported to its drivers.
    var toldLosses: [Int: UInt64] = [:]
    /// Workers that have had requests, here or before a takeover, so that they may have a loss to report.
    var used: Set<Int> = []
    /// Workers that have lost their connection.
    var away: Set<Int> = []
    var awaySince: UInt64 = 0
    var hasGivenUp = false
    /// The last attempt of each worker, over TLS.
    var attempts: [Int: NBDAttempt] = [:]
    /// The threads that make them.
    var connectors: [Int: NBDConnector] = [:]
    /// What has been logged about this outage.
    var said: Set<Hindrance> = []
  }

  /// Why a server that is available is not used.
  enum Hindrance { case trust, difference }

  var uri: String { options.location.text }

  /// How long it may take to make a connection, nanoseconds.
  static let connectTimeout: UInt64 = 10_000_000_000

  /// Connects. Waits for the server, but not forever. - Throws: why it is not connected.
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
        // Its other addresses would fail in the same way, or silently.
        if error.isOfTrust { break }
      }
    }
    throw failure
  }

  // MARK: Connections

  /// An idle connection, if there is one.
  func take() -> NBDConnection? { state.withLock { $0.idle.popLast() } }

  /// A worker has ended, and its connection has nothing in flight.
  func give(_ connection: NBDConnection) { state.withLock { $0.idle.append(connection) } }

  /// Makes another connection, and waits for that, so it is for a helper.
  func connect() throws(NBDFailure) -> NBDConnection {
    try NBDConnection.make(
      library, options.location, address, until: Clock.now &+ Self.connectTimeout, limit: helpers)
  }

  /// Begins to make a connection over TLS for a worker.
  ///
  /// - Returns: `nil` if that is not possible, or if the worker's last attempt, which nobody waits for any more, has not ended:
  ///   so there is never more than one per worker, whatever they hang in.
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

  // MARK: Unstable writes

  @inline(__always)
  func noteWrite() { acknowledged.wrappingAdd(1, ordering: .relaxed) }

  /// Writes acknowledged so far. Acquire: a flush that is sent after this covers them.
  var written: UInt64 { acknowledged.load(ordering: .acquiring) }

  /// A flush succeeded that was sent when this many writes were acknowledged.
  func noteFlush(_ written: UInt64) { flushed.max(written, ordering: .relaxed) }

  /// Acquire: whoever sees a loss sees what was lost.
  var lossCount: UInt64 { losses.load(ordering: .acquiring) }

  /// A connection is gone, and it is not known whether the server is still the same one.
  private func noteLoss(_ state: inout State) {
    guard !options.keepsWrites else { return }
    let written = written
    guard written > flushed.load(ordering: .relaxed) else { return }
    flushed.max(written, ordering: .relaxed)
    losses.wrappingAdd(1, ordering: .releasing)
  }

  /// The losses that have been reported to a worker's drivers.
  func toldLosses(worker: Int) -> UInt64 { state.withLock { $0.toldLosses[worker] ?? 0 } }
  func tell(_ losses: UInt64, worker: Int) { state.withLock { $0.toldLosses[worker] = losses } }

  // MARK: Takeover

  /// A worker has had its first request.
  func noteUse(worker: Int) { state.withLock { _ = $0.used.insert(worker) } }

  /// Whether everything that was acknowledged is stable.
  var isStable: Bool { flushed.load(ordering: .relaxed) >= written }

  /// For each worker, whether its drivers have to be told of a loss; `nil`: none has to be. Drivers that have requested nothing
  /// need not be told once another one has been.
  func owing(workers: Int) -> [Bool]? {
    let count = lossCount
    guard count > 0 else { return nil }
    let owing = state.withLock { state in
      let isUnheard = !state.toldLosses.values.contains(count)
      return (0..<workers).map { isUnheard || state.used.contains($0) && state.toldLosses[$0, default: 0] != count }
    }
    return owing.contains(true) ? owing : nil
  }

  /// Another process still serves it, and what that process writes may not be stable. To be called before a worker runs: from
  /// then on a loss counts, whichever of the two processes notices it.
  func inheritWrites() { noteWrite() }

  /// That process has stopped, and nothing has been requested here yet.
  ///
  /// - Parameters:
  ///   - isStable: everything that it wrote was stable then.
  ///   - owing: what `owing` returned there; every worker owes it if the number of workers differs here.
  func inherit(isStable: Bool, owing: [Bool]?, workers: Int) {
    if isStable { noteFlush(written) }
    guard let owing else { return }
    let isFirst = losses.wrappingAdd(1, ordering: .releasing).oldValue == 0
    // A loss that was noticed here has not been reported to any driver.
    guard isFirst, owing.count == workers else { return }
    state.withLock { state in
      for (worker, owes) in owing.enumerated() {
        if owes { state.used.insert(worker) } else { state.toldLosses[worker] = 1 }
      }
    }
  }

  /// Another process may have served it meanwhile, and has ended without handing over.
  func resume() {
    noteWrite()
    if !options.keepsWrites { losses.wrappingAdd(1, ordering: .releasing) }
  }

  // MARK: News

  /// A worker's connection is gone. - Returns: what to log, once for all workers.
  func goesAway(worker: Int, _ reason: String) -> String? {
    state.withLock { state in
      noteLoss(&state)
      guard state.away.insert(worker).inserted, state.away.count == 1 else { return nil }
      (state.awaySince, state.hasGivenUp, state.said) = (Clock.now, false, [])
      return "the NBD server of \(uri) is gone (\(reason)): requests wait for it for \(options.reconnectTimeout) s"
    }
  }

  /// - Returns: whether no worker has logged it yet since the server went away.
  func isNews(_ hindrance: Hindrance) -> Bool { state.withLock { $0.said.insert(hindrance).inserted } }

  /// A worker has stopped waiting. - Returns: what to log, once for all workers.
  func isGivenUp() -> String? {
    state.withLock { state in
      guard !state.hasGivenUp else { return nil }
      state.hasGivenUp = true
      return "the NBD server of \(uri) has not come back for \(options.reconnectTimeout) s: requests fail until it does"
    }
  }

  /// A worker is connected again, or ends. - Returns: what to log, once all workers are connected.
  func comesBack(worker: Int, isOver: Bool = false) -> String? {
    state.withLock { state in
      guard state.away.remove(worker) != nil, state.away.isEmpty, !isOver else { return nil }
      let seconds = (Clock.now &- state.awaySince) / 100_000_000
      return "the NBD server of \(uri) is back after \(seconds / 10).\(seconds % 10) s"
    }
  }
}
