/// Makes a connection over TLS on a thread of its own. Once the handshake of TLS has begun, the library waits for the other end, for
/// up to 40 seconds (libnbd 1.14), and what it believes is read from files, which may hang as well.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

final class NBDAttempt: Sendable {
  private enum Stage {
    /// With a copy of its socket once there is one, to end it with.
    case running(OwnedDescriptor?)
    case over(Result<NBDConnection, NBDFailure>)
    /// Nobody waits for it any more, or has its result.
    case done
  }

  /// Readable when it is over.
  let signal: OwnedDescriptor
  private let stage = Mutex(Stage.running(nil))
  private let isOver = Atomic(false)

  /// The library's own, which reads certificates.
  private static let stackSize = 1 << 20

  /// Begins it. It ends after `NBDExport.connectTimeout`, or when the library notices that.
  ///
  /// - Parameter role: what its thread may do; `nil`: as much as the one that makes it, which has a role already.
  /// - Throws: there can be no thread, or no descriptor.
  init(_ library: NBDLibrary, _ location: NBDLocation, _ address: NBDAddress, role: ThreadRole?) throws(Errno) {
    signal = try .eventCounter()
    NBDSupport.attempts.wrappingAdd(1, ordering: .acquiringAndReleasing)
    do throws(Errno) {
      _ = try SystemThread(name: "nbd connect", stackSize: Self.stackSize) { [self] in
        role?.begin()
        run(library, location, address)
        NBDSupport.attempts.wrappingSubtract(1, ordering: .acquiringAndReleasing)
      }
    } catch {
      NBDSupport.attempts.wrappingSubtract(1, ordering: .acquiringAndReleasing)
      throw error
    }
  }

  /// Its thread is at its end, whoever waited for it.
  var hasEnded: Bool { isOver.load(ordering: .acquiring) }

  /// - Returns: what came of it, once; `nil`: it is not over.
  func take() -> Result<NBDConnection, NBDFailure>? {
    stage.withLock { stage in
      guard case .over(let result) = stage else { return nil }
      stage = .done
      return result
    }
  }

  /// Nobody waits for it any more: the other end is cut off, so that the library does not wait, either.
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

  private func run(_ library: NBDLibrary, _ location: NBDLocation, _ address: NBDAddress) {
    let result: Result<NBDConnection, NBDFailure>
    do throws(NBDFailure) {
      let connection = try NBDConnection(library, location)
      try connection.connect(address, until: Clock.now &+ NBDExport.connectTimeout) { [self] in began($0) }
      result = .success(connection)
    } catch { result = .failure(error) }
    stage.withLock { stage in if case .running = stage { stage = .over(result) } }
    isOver.store(true, ordering: .releasing)
    EventCounter.signal(signal.rawValue)
  }

  /// A copy, because the library closes its own when it likes, and the number may be another file's then. Without one nobody could
  /// end the attempt, so it ends here.
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
