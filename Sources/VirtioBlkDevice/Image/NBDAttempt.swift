/// One attempt to make a connection over TLS, on a thread that serves no queues. Once the TLS handshake has begun, the library
/// waits for the other end, for up to 40 seconds (libnbd 1.14), and it reads certificates from files, which may hang as well.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

final class NBDAttempt: Sendable {
  private enum Stage {
    /// With a copy of its socket once there is one, in order to end it.
    case running(OwnedDescriptor?)
    case over(Result<NBDConnection, NBDFailure>)
    /// Nobody waits for it any more, or its result has been taken.
    case done
  }

  /// Readable when it is over.
  let signal: OwnedDescriptor
  private let library: NBDLibrary
  private let location: NBDLocation
  private let address: NBDAddress
  private let stage = Mutex(Stage.running(nil))
  private let isOver = Atomic(false)

  static let threadName = "nbd connect"
  /// Enough for the library, which reads certificates.
  static let stackSize = 1 << 20

  /// It has to be run once. - Throws: if there is no descriptor.
  init(_ library: NBDLibrary, _ location: NBDLocation, _ address: NBDAddress) throws(Errno) {
    (self.library, self.location, self.address) = (library, location, address)
    signal = try .eventCounter()
    NBDSupport.attempts.wrappingAdd(1, ordering: .acquiringAndReleasing)
  }

  /// Runs it on its own thread. - Throws: if no thread can be made.
  func begin(role: ThreadRole) throws(Errno) {
    do throws(Errno) {
      _ = try SystemThread(name: Self.threadName, stackSize: Self.stackSize) { [self] in
        role.begin()
        run()
      }
    } catch {
      finish(nil)
      throw error
    }
  }

  /// It has ended, and so can no longer hang, whether anybody waits for it or not.
  var hasEnded: Bool { isOver.load(ordering: .acquiring) }

  /// - Returns: its result, once; `nil`: it is not over.
  func take() -> Result<NBDConnection, NBDFailure>? {
    stage.withLock { stage in
      guard case .over(let result) = stage else { return nil }
      stage = .done
      return result
    }
  }

  /// Nobody waits for it any more: shuts down the socket, so that the library does not wait, either.
  func abandon() {
    let last = stage.withLock { stage in
      defer { stage = .done }
      return stage
    }
    if case .running(let socket?) = last { shutdown(socket.rawValue, Int32(SHUT_RDWR)) }
  }

  /// - Parameter end: `Clock` nanoseconds.
  func result(before end: UInt64, uri: String) throws(NBDFailure) -> NBDConnection {
    while true {
      if let result = take() { return try result.get() }
      let now = Clock.now
      guard now < end else {
        abandon()
        throw .noAnswer(uri: uri, NBDConnection.lateness)
      }
      var entry = pollfd(fd: signal.rawValue, events: Int16(POLLIN), revents: 0)
      unsafe poll(&entry, 1, Int32(clamping: (end - now) / 1_000_000 + 1))
    }
  }

  /// Ends after `NBDExport.connectTimeout`, or when the library notices that the time is over.
  func run() {
    guard isWanted else { return finish(nil) }
    do throws(NBDFailure) {
      let connection = try NBDConnection(library, location)
      try connection.connect(address, until: Clock.now &+ NBDExport.connectTimeout) { [self] in began($0) }
      finish(.success(connection))
    } catch { finish(.failure(error)) }
  }

  /// - Parameter result: `nil`: nothing was tried.
  private func finish(_ result: Result<NBDConnection, NBDFailure>?) {
    if let result { stage.withLock { stage in if case .running = stage { stage = .over(result) } } }
    isOver.store(true, ordering: .releasing)
    EventCounter.signal(signal.rawValue)
    NBDSupport.attempts.wrappingSubtract(1, ordering: .acquiringAndReleasing)
  }

  private var isWanted: Bool { stage.withLock { stage in if case .running = stage { true } else { false } } }

  /// Keeps a copy of the socket, because the library may close its own at any time, and the number may then refer to another
  /// file. Without a copy nobody could end the attempt, so it ends here.
  private func began(_ socket: Int32) {
    let number = clinux_fcntl_int(socket, F_DUPFD_CLOEXEC, 0)
    guard number >= 0 else {
      shutdown(socket, Int32(SHUT_RDWR))
      return
    }
    let copy = OwnedDescriptor(number)
    let isWanted = stage.withLock { stage in
      guard case .running = stage else { return false }
      stage = .running(copy)
      return true
    }
    if !isWanted { shutdown(number, Int32(SHUT_RDWR)) }
  }
}
