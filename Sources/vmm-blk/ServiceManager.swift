/// The service manager that started this process, as sd_notify(3) speaks to it: datagrams to `NOTIFY_SOCKET`.
internal import CLinux
internal import Glibc
internal import Sockets
internal import SystemPackage
internal import VirtioCore

/// Reports the state of the service to a service manager. Without one, every call does nothing. It never waits: what the
/// manager's socket has no room for is sent later.
///
/// Used on the loop's thread.
final class ServiceManager {
  /// `nil`: there is no manager.
  private let socket: OwnedDescriptor?
  private let address: NotifyAddress?
  /// How often the manager expects to hear that the loop runs; `nil`: never.
  private let watchdog: Duration?
  private unowned let loop: EventLoop
  private let log: ServeLog
  /// Messages that are still to be sent, in order.
  private var unsent: [String] = []
  private var isRetrying = false
  private var hasComplained = false
  private var isWatched = false
  private var isStopping = false
  /// Reloads in progress.
  private var reloads = 0
  private var lastStatus = ""

  /// Messages that wait for room in the manager's socket.
  private static let unsentLimit = 16
  private static let retryDelay = Duration.milliseconds(20)

  /// Removes what the environment says about the manager, so that no other program uses it.
  init(in loop: EventLoop, log: ServeLog) {
    (self.loop, self.log) = (loop, log)
    let environment = ServiceEnvironment.taken
    watchdog = environment.watchdog
    guard let path = environment.notifySocket else {
      (socket, address) = (nil, nil)
      return
    }
    address = NotifyAddress(path)
    let type = Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
    let descriptor = address == nil ? -1 : Glibc.socket(AF_UNIX, type, 0)
    socket = descriptor < 0 ? nil : OwnedDescriptor(descriptor)
    if address == nil {
      log.warn("the service manager is not notified: NOTIFY_SOCKET is neither a path nor the name of an abstract socket")
    }
  }

  // MARK: What is reported

  /// All disks are served. The process that reports this is the service from now on, also after a takeover.
  ///
  /// - Parameter status: one line for people.
  func ready(_ status: String) {
    guard !isStopping else { return }
    say("READY=1\nMAINPID=\(getpid())", status)
    guard watchdog != nil, !isWatched else { return }
    isWatched = true
    keepAlive()
  }

  /// What is served has changed.
  func note(_ status: String) {
    guard !isStopping, reloads == 0, status != lastStatus else { return }
    say(nil, status)
  }

  /// The description is being read again; `reloaded` has to follow.
  func reloading() {
    reloads += 1
    guard !isStopping else { return }
    // By the time, the manager knows whether READY=1 ends this reload.
    say("RELOADING=1\nMONOTONIC_USEC=\(Self.monotonicMicroseconds)", "reading the list of disks again")
  }

  func reloaded(_ status: String) {
    reloads -= 1
    guard reloads == 0, !isStopping else { return }
    say("READY=1", status)
  }

  /// The service is ending, and accepts no new clients.
  func stopping() {
    guard !isStopping else { return }
    isStopping = true
    say("STOPPING=1", "finishing what is in flight")
  }

  // MARK: Sending

  private func say(_ state: String?, _ status: String) {
    guard socket != nil else { return }
    lastStatus = status
    // One line, whatever names are in it.
    let line = "STATUS=" + printable(status)
    // A status line for people must not displace what the manager waits for.
    guard state != nil || unsent.isEmpty else { return }
    if unsent.count == Self.unsentLimit { unsent.removeFirst() }
    unsent.append(state.map { $0 + "\n" + line } ?? line)
    if !isRetrying { flush() }
  }

  private func flush() {
    while let message = unsent.first {
      switch send(message) {
      case 0: unsent.removeFirst()
      case EAGAIN, EINTR, ENOBUFS, ENOMEM:
        isRetrying = true
        return loop.after(Self.retryDelay) { [weak self] in
          self?.isRetrying = false
          self?.flush()
        }
      case let code:
        unsent = []
        guard !hasComplained else { return }
        hasComplained = true
        log.warn("the service manager cannot be notified of the service's state: \(Errno(rawValue: code))")
      }
    }
  }

  /// - Returns: 0, or the value of errno.
  private func send(_ message: String) -> Int32 {
    guard let socket, let address else { return 0 }
    return address.send(message, on: socket.rawValue)
  }

  private func keepAlive() {
    guard let watchdog else { return }
    // While messages are unsent, no keep-alive is needed: they show, too, that the loop runs.
    if unsent.isEmpty { _ = send("WATCHDOG=1") }
    loop.after(watchdog / 2) { [weak self] in self?.keepAlive() }
  }

  private static var monotonicMicroseconds: Int64 {
    var now = timespec()
    _ = unsafe clock_gettime(CLOCK_MONOTONIC, &now)
    return Int64(now.tv_sec) * 1_000_000 + Int64(now.tv_nsec) / 1000
  }
}

/// Where the manager listens: a path, or with @ in front the name of an abstract socket.
private struct NotifyAddress {
  private var address = sockaddr_un()
  private let length: socklen_t

  init?(_ text: String) {
    var bytes = Array(text.utf8)
    guard bytes.count > 1, bytes.count <= UnixSocket.maximumPathLength, !bytes.contains(0) else { return nil }
    let isAbstract = bytes[0] == UInt8(ascii: "@")
    guard isAbstract || bytes[0] == UInt8(ascii: "/") else { return nil }
    if isAbstract { bytes[0] = 0 }
    address.sun_family = sa_family_t(AF_UNIX)
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { room in unsafe room.copyBytes(from: bytes) }
    // An abstract name ends with its length; a path ends with a zero.
    length = socklen_t(MemoryLayout<sa_family_t>.size + bytes.count + (isAbstract ? 0 : 1))
  }

  /// - Returns: 0, or the value of errno.
  func send(_ message: String, on socket: Int32) -> Int32 {
    let bytes = Array(message.utf8)
    let flags = Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)
    let sent = unsafe withUnsafePointer(to: address) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { general in
        unsafe sendto(socket, bytes, bytes.count, flags, general, length)
      }
    }
    return sent < 0 ? errno : 0
  }
}
