/// Reconnection after a connection was lost. Nothing here waits: names were looked up when the disk was opened.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

extension NBDEngine {
  /// Takes over an established connection.
  mutating func adopt(_ connection: NBDConnection) {
    link.connection = connection
    link.outage = nil
    link.isThere(now: Clock.now)
    watchSocket()
  }

  /// Watches the connection's socket for what the library waits for.
  mutating func updateInterest() {
    guard let connection = link.connection, link.socket >= 0 else { return }
    let wanted = connection.direction
    // A connection that has ended waits for nothing, and the next poll finds that.
    guard wanted != link.interest, wanted.rawValue != 0 else { return }
    link.interest = wanted
    do throws(Errno) { try waiter.watch(socket: link.socket, wanted, isNew: false) } catch { link.isBroken = true }
  }

  private mutating func watchSocket() {
    guard let connection = link.connection else { return }
    (link.socket, link.interest) = (connection.descriptor, connection.direction)
    guard link.socket >= 0 else {
      link.isBroken = true
      return
    }
    do throws(Errno) { try waiter.watch(socket: link.socket, link.interest, isNew: true) } catch { link.isBroken = true }
  }

  /// The connection has ended: everything in flight waits for the next one.
  mutating func lose() {
    guard link.isUp else { return drop() }
    let reason = link.connection?.lastWords ?? "it is closed"
    link.connection?.isAbandoned = true
    close()
    for tag in requests.active where unsafe requests[tag].pointee.state != .lost {
      unsafe requests[tag].pointee.state = .waiting
    }
    failWithoutMemory()
    if let news = export.goesAway(worker: worker, reason) { tell(news) }
    link.isGone(now: Clock.now)
  }

  /// The library takes lost guest memory for a lost connection, and would do so on every connection on which the request is
  /// sent again. So such requests fail alone.
  private mutating func failWithoutMemory() {
    for tag in requests.active where unsafe requests[tag].pointee.state == .waiting && requests[tag].pointee.buffer == 0 {
      guard unsafe !requests[tag].pointee.operation.isMemoryThere() else { continue }
      unsafe requests[tag].pointee.state = .sent
      requests.fail(tag, EFAULT)
    }
  }

  /// An attempt to connect has failed.
  private mutating func drop() {
    close()
    link.rests(now: Clock.now)
  }

  private mutating func close() {
    if link.socket >= 0 { waiter.unwatch(socket: link.socket) }
    link.socket = -1
    link.interest = []
    link.attempt?.abandon()
    link.attempt = nil
    // The last reference closes it, and the library touches no buffer any more.
    link.connection = nil
  }

  /// Handles timeouts while there is no connection.
  mutating func tick() {
    let now = Clock.now
    if link.hasWaited(now: now) { giveUp() }
    guard link.isOver(now: now) else { return }
    if link.phase == .connecting { return drop() }
    guard export.options.location.security == nil else { return beginAttempt(now: now) }
    do throws(NBDFailure) {
      let connection = try NBDConnection(export.library, export.options.location)
      guard connection.begin(export.address) else {
        say(connection.failure)
        return link.rests(now: now)
      }
      link.connection = connection
      link.connects(now: now)
      watchSocket()
      goOnConnecting()
    } catch {
      say(error)
      link.rests(now: now)
    }
  }

  /// Begins an attempt over TLS, for which this thread, which serves queues, would have to wait.
  private mutating func beginAttempt(now: UInt64) {
    guard let attempt = export.attempt(worker: worker) else { return link.rests(now: now) }
    (link.attempt, link.socket, link.interest) = (attempt, attempt.signal.rawValue, .read)
    link.connects(now: now)
    do throws(Errno) { try waiter.watch(socket: link.socket, .read, isNew: true) } catch { link.isBroken = true }
  }

  /// Takes the result of an attempt if it is over.
  mutating func takeAttempt() {
    guard let result = link.attempt?.take() else { return }
    close()
    switch result {
    case .success(let connection):
      link.connection = connection
      watchSocket()
      goOnConnecting()
    case .failure(let failure):
      say(failure)
      link.rests(now: Clock.now)
    }
  }

  /// Logs a failure that somebody has to act on, once for all workers.
  private func say(_ failure: NBDFailure) {
    if failure.isOfTrust, export.isNews(.trust) { tell("\(failure)") }
  }

  /// Continues after a step of a connection that is being made.
  mutating func goOnConnecting() {
    guard let connection = link.connection else { return }
    guard !connection.isDead, !link.isBroken else {
      // The library's last error on this thread is about the call that has just failed.
      if connection.isDead, export.options.location.security == nil { say(connection.failure) }
      return drop()
    }
    guard connection.isReady else { return updateInterest() }
    if let difference = connection.facts.difference(from: export.facts, size: state.size.loadRelaxed()) {
      if export.isNews(.difference) { tell("\(NBDFailure.changed(uri: export.uri, difference: difference))") }
      return drop()
    }
    link.isThere(now: Clock.now)
    if let news = export.comesBack(worker: worker) { tell(news) }
    sendAgain()
  }

  /// Sends everything that waits, in the order in which it was requested.
  private mutating func sendAgain() {
    if requests.active.isEmpty { link.outage = nil }
    var waiting = requests.active.filter { unsafe requests[$0].pointee.state == .waiting }
    waiting.sort { unsafe requests[$0].pointee.sequence < requests[$1].pointee.sequence }
    for tag in waiting { send(tag) }
  }

  /// The server has been away for too long: waiting requests fail, and so do new ones until it is back.
  private mutating func giveUp() {
    link.hasGivenUp = true
    if let news = export.isGivenUp() { tell(news) }
    for tag in requests.active where unsafe requests[tag].pointee.state == .waiting {
      unsafe requests[tag].pointee.state = .sent
      requests.fail(tag, EIO)
    }
  }
}
