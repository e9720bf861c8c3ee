/// One connection to an NBD server, made with libnbd.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// What a server reports about an export when a connection is made.
struct NBDFacts: Sendable, Equatable {
  /// Bytes.
  var size: UInt64
  /// Bytes: what requests must be multiples of; 1: any size will do.
  var minimumBlock: UInt64
  /// The transfer size that the server prefers, bytes; 0: it does not say.
  var preferredBlock: UInt64
  /// The most bytes of data of one command, a multiple of `minimumBlock`.
  var largestTransfer: UInt64
  var isReadOnly: Bool
  var canFlush: Bool
  /// Single writes can be stable when they are answered.
  var canFUA: Bool
  var canTrim: Bool
  var canZero: Bool
  /// Several connections may write, and a flush on one covers all.
  var canMultiConn: Bool

  /// How it differs from an earlier one; `nil`: not in anything that matters. - Parameter size: bytes that it has to have.
  func difference(from before: NBDFacts, size wanted: UInt64) -> String? {
    if size != wanted { return "it has \(size) bytes instead of \(wanted)" }
    if minimumBlock > before.minimumBlock || largestTransfer < before.largestTransfer {
      return "its request sizes differ"
    }
    let flags: [(String, Bool, Bool)] = [
      ("be written", !isReadOnly, !before.isReadOnly), ("be flushed", canFlush, before.canFlush),
      ("make single writes stable", canFUA, before.canFUA), ("trim", canTrim, before.canTrim),
      ("zero", canZero, before.canZero),
      ("have several connections", canMultiConn, before.canMultiConn),
    ]
    for (word, now, then) in flags where now != then { return now ? "it can \(word) now" : "it can no longer \(word)" }
    return nil
  }
}

/// Used by one thread at a time. It makes no thread, and apart from `connect` and `flush` nothing here waits. But the library
/// itself waits in a TLS handshake, so such a connection is made by an `NBDAttempt`.
@safe
final class NBDConnection: @unchecked Sendable {
  let library: NBDLibrary
  let handle: OpaquePointer
  private let location: NBDLocation
  /// Identifies the files with the credentials as they were before the handshake.
  private var trace: NBDSecurity.Trace?
  private var uri: String { location.text }

  /// - Throws: if there is no memory, or something that TLS needs is missing.
  init(_ library: NBDLibrary, _ location: NBDLocation) throws(NBDFailure) {
    self.library = library
    self.location = location
    guard let handle = unsafe library.functions.pointee.create() else {
      throw .noAnswer(uri: location.text, Self.reason(library))
    }
    unsafe self.handle = handle
    // Queries the sizes of requests, too.
    _ = unsafe library.functions.pointee.set_full_info(handle, true)
    // A structured reply says where holes are, which saves sending zeroes; but the library receives each of its parts with a
    // system call of its own, which on this host costs more.
    _ = unsafe library.functions.pointee.set_request_structured_replies(handle, location.isInternet)
    guard unsafe library.functions.pointee.set_export_name(handle, location.export) == 0 else {
      throw .noAnswer(uri: location.text, Self.reason(library))
    }
    if let security = location.security { try protect(security) }
  }

  /// Requires TLS from now on.
  private func protect(_ security: NBDSecurity) throws(NBDFailure) {
    let functions = unsafe library.functions.pointee
    guard unsafe functions.supports_tls(handle) > 0 else { throw .noTLS(uri: uri) }
    trace = try security.check(uri: uri)
    var isSet = unsafe functions.set_tls(handle, Int32(clinux_nbd_tls_required)) == 0
    switch security.credentials {
    case .certificates(let folder, _, let verifiesPeer):
      unsafe isSet = isSet && functions.set_tls_certificates(handle, folder) == 0
      unsafe isSet = isSet && functions.set_tls_verify_peer(handle, verifiesPeer) == 0
      if let name = verifiedName, let setName = unsafe functions.set_tls_hostname {
        unsafe isSet = isSet && setName(handle, name) == 0
      }
    case .key(let file, let user):
      unsafe isSet = isSet && functions.set_tls_psk_file(handle, file) == 0
      unsafe isSet = isSet && functions.set_tls_username(handle, user) == 0
    }
    guard isSet else { throw .noAnswer(uri: uri, reason) }
  }

  /// To be called when it is ready, before anything is requested. - Throws: if the credentials changed meanwhile, so that
  /// nobody knows which of them the library used.
  private func checkCredentials() throws(NBDFailure) {
    guard let security = location.security, try security.check(uri: uri) != trace else { return }
    throw .credentialsChanged(uri: uri, path: security.path)
  }

  /// The name that the server's certificate has to be for; `nil`: it is not checked.
  private var verifiedName: String? {
    guard case .certificates(_, let name, true)? = location.security?.credentials else { return nil }
    if let name { return name }
    guard case .internet(let host, _) = location.place else { return nil }
    return host
  }

  /// The library verifies a certificate only against a name, and before 1.22 it accepts no name other than the one that it
  /// connects to.
  ///
  /// - Returns: the host to let it connect to; `nil`: it knows the name, or need not.
  /// - Throws: if the library would have to look up a name in order to verify it, which would keep all requests waiting.
  static func hostToVerify(_ library: NBDLibrary, _ location: NBDLocation) throws(NBDFailure) -> String? {
    guard case .certificates(_, let name, true)? = location.security?.credentials else { return nil }
    guard unsafe library.functions.pointee.set_tls_hostname == nil else { return nil }
    guard case .internet(let host, _) = location.place, name == nil || name == host, NBDAddress.isNumber(host) else {
      if let name { throw .cannotVerifyNames(uri: location.text, name: name) }
      guard case .internet(let host, _) = location.place else { return nil }
      throw .cannotVerifyNames(uri: location.text, name: host)
    }
    return host
  }

  deinit {
    // Disconnects properly if the server is there; requests in flight are given up.
    if !isAbandoned, isReady { _ = unsafe library.functions.pointee.aio_disconnect(handle, 0) }
    unsafe library.functions.pointee.close(handle)
  }

  private static func reason(_ library: NBDLibrary) -> String {
    unsafe library.functions.pointee.get_error().map { unsafe String(cString: $0) } ?? "without a reason"
  }

  /// Why the last call on this thread failed, in the library's words.
  var reason: String { Self.reason(library) }

  /// Why it was not made. To be called right after the call that found that it is dead.
  var failure: NBDFailure { .notConnected(location, reason) }

  /// Why it has ended, as far as it is known.
  var lastWords: String { isDead ? "the connection is closed" : "it is shutting down" }

  /// Its end is not announced to the server, because the connection does not work.
  var isAbandoned = false

  // MARK: Its state

  /// Whether a command would be sent at once, which is not the case while an answer is being received, for example.
  var isReady: Bool { unsafe library.functions.pointee.aio_is_ready(handle) > 0 }
  var isDead: Bool {
    unsafe library.functions.pointee.aio_is_dead(handle) > 0 || library.functions.pointee.aio_is_closed(handle) > 0
  }
  /// Below 0 if there is none.
  var descriptor: Int32 { unsafe library.functions.pointee.aio_get_fd(handle) }
  /// What the socket has to be ready for.
  var direction: NBDDirection { NBDDirection(rawValue: unsafe library.functions.pointee.aio_get_direction(handle)) }

  /// Begins to connect. - Returns: false if that failed at once.
  func begin(_ address: NBDAddress) -> Bool {
    guard start(address) else { return false }
    if address.isInternet { watchPeer() }
    return true
  }

  private func start(_ address: NBDAddress) -> Bool {
    do throws(NBDFailure) {
      if let host = try Self.hostToVerify(library, location), case .internet(_, let port) = location.place {
        return unsafe library.functions.pointee.aio_connect_tcp(handle, host, "\(port)") == 0
      }
    } catch { return false }
    return unsafe address.bytes.withUnsafeBytes { bytes in
      unsafe library.functions.pointee.aio_connect(
        handle, bytes.baseAddress!.assumingMemoryBound(to: sockaddr.self), socklen_t(bytes.count)) == 0
    }
  }

  /// A machine that is gone sends nothing: without keepalives nobody would ever notice.
  private func watchPeer() {
    let socket = descriptor
    func set(_ level: Int32, _ name: Int32, _ value: Int32) {
      var value = value
      _ = unsafe setsockopt(socket, level, name, &value, socklen_t(MemoryLayout<Int32>.size))
    }
    set(SOL_SOCKET, SO_KEEPALIVE, 1)
    set(Int32(IPPROTO_TCP), TCP_KEEPIDLE, 5)
    set(Int32(IPPROTO_TCP), TCP_KEEPINTVL, 5)
    set(Int32(IPPROTO_TCP), TCP_KEEPCNT, 3)
    set(Int32(IPPROTO_TCP), TCP_USER_TIMEOUT, 20_000)
  }

  /// Whether its socket has data or the end of the stream to read. The library must not be told so if that is not true: it
  /// would wait for the rest of an answer that has not begun, and send nothing until it comes.
  var hasMore: Bool {
    var byte: UInt8 = 0
    let socket = descriptor
    return unsafe socket >= 0 && recv(socket, &byte, 1, Int32(MSG_PEEK | MSG_DONTWAIT)) >= 0
  }

  /// Its socket is ready. The jobs are told what was completed.
  func attend(_ ready: NBDDirection) {
    let wanted = direction
    if ready.contains(.read), wanted.contains(.read) { _ = unsafe library.functions.pointee.aio_notify_read(handle) }
    if ready.contains(.write), direction.contains(.write) { _ = unsafe library.functions.pointee.aio_notify_write(handle) }
  }

  /// What the server reports about the export, once the connection is ready.
  var facts: NBDFacts {
    let functions = unsafe library.functions.pointee
    func number(_ value: Int64) -> UInt64 { UInt64(max(value, 0)) }
    let minimum = unsafe max(1, number(functions.get_block_size(handle, 0)))
    let largest = unsafe number(functions.get_block_size(handle, 2))
    let limit = largest == 0 ? MediumFacts.stepBytes : min(largest, MediumFacts.stepBytes)
    return unsafe NBDFacts(
      size: number(functions.get_size(handle)), minimumBlock: minimum,
      preferredBlock: number(functions.get_block_size(handle, 1)), largestTransfer: limit - limit % minimum,
      isReadOnly: functions.is_read_only(handle) != 0, canFlush: functions.can_flush(handle) > 0,
      canFUA: functions.can_fua(handle) > 0, canTrim: functions.can_trim(handle) > 0, canZero: functions.can_zero(handle) > 0,
      canMultiConn: functions.can_multi_conn(handle) > 0)
  }

  // MARK: Calls that wait

  /// Makes a connection, and waits for it until `end` at most.
  ///
  /// - Parameters:
  ///   - end: `Clock` nanoseconds.
  ///   - limit: the limit for attempts over TLS that are made for the same purpose.
  static func make(
    _ library: NBDLibrary, _ location: NBDLocation, _ address: NBDAddress, until end: UInt64, limit: NBDAttemptLimit
  ) throws(NBDFailure) -> NBDConnection {
    guard location.security != nil else {
      let connection = try NBDConnection(library, location)
      try connection.connect(address, until: end)
      return connection
    }
    return try limit.connection(uri: location.text, until: end) { () throws(Errno) in
      let attempt = try NBDAttempt(library, location, address)
      try attempt.begin(role: .securedQueue)
      return attempt
    }
  }

  /// Connects, and waits for that. Over TLS it may take longer.
  ///
  /// - Parameters:
  ///   - end: `Clock` nanoseconds.
  ///   - began: is told the socket before anything is waited for.
  func connect(_ address: NBDAddress, until end: UInt64, _ began: (Int32) -> Void = { _ in }) throws(NBDFailure) {
    _ = try Self.hostToVerify(library, location)
    guard begin(address) else { throw .notConnected(location, reason) }
    began(descriptor)
    do throws(NBDFailure) { try drive(until: end) { isReady } } catch {
      guard case .noAnswer(_, let reason) = error else { throw error }
      throw .notConnected(location, reason)
    }
    try checkCredentials()
  }

  /// Makes stable what all connections have written. - Parameter end: `Clock` nanoseconds.
  /// - Returns: an errno; 0 if it succeeded.
  func flush(until end: UInt64) throws(NBDFailure) -> Int32 {
    let tags = UnsafeMutablePointer<UInt32>.allocate(capacity: 1)
    let done = UnsafeMutablePointer<clinux_nbd_done>.allocate(capacity: 1)
    let job = UnsafeMutablePointer<clinux_nbd_job>.allocate(capacity: 1)
    unsafe done.initialize(to: clinux_nbd_done(tags: tags, room: 1, first: 0, count: 0))
    unsafe job.initialize(to: clinux_nbd_job(done: done, tag: 0, left: 1, error: 0))
    var isOver = false
    defer {
      // A command in flight would write to it.
      if isOver {
        unsafe job.deallocate()
        unsafe done.deallocate()
        unsafe tags.deallocate()
      }
    }
    guard unsafe library.functions.pointee.aio_flush(handle, clinux_nbd_to(job), 0) >= 0 else {
      isOver = true
      throw .noAnswer(uri: uri, reason)
    }
    try drive(until: end) { unsafe job.pointee.left == 0 }
    isOver = true
    return unsafe job.pointee.error
  }

  /// The reason given if there is no answer in time.
  static let lateness = "it takes too long"

  private func drive(until end: UInt64, _ isOver: () -> Bool) throws(NBDFailure) {
    while !isOver() {
      guard !isDead else { throw .noAnswer(uri: uri, reason) }
      let now = Clock.now
      guard now < end else { throw .noAnswer(uri: uri, Self.lateness) }
      let wanted = direction
      var entry = pollfd(
        fd: descriptor, events: Int16((wanted.contains(.read) ? POLLIN : 0) | (wanted.contains(.write) ? POLLOUT : 0)),
        revents: 0)
      let milliseconds = Int32(clamping: (end - now) / 1_000_000 + 1)
      guard unsafe poll(&entry, 1, milliseconds) > 0 else { continue }
      let events = Int32(entry.revents)
      var ready: NBDDirection = []
      if events & ~Int32(POLLOUT) != 0 { ready.insert(.read) }
      if events & ~Int32(POLLIN) != 0 { ready.insert(.write) }
      attend(ready)
    }
  }
}

/// Directions of a socket, in the library's numbers.
struct NBDDirection: OptionSet {
  let rawValue: UInt32
  static let read = NBDDirection(rawValue: 1)
  static let write = NBDDirection(rawValue: 2)
}
