/// A vhost-user-blk back-end on a socket: one that runs already, or one that is started for this.
internal import Glibc
public import GuestDriver
internal import VhostUser
internal import VirtioCore

/// The process that serves a socket.
public class SocketSubject: Subject {
  public let name: String
  public let bus = Bus.vhostUser
  let path: String

  public init(path: String, name: String? = nil) {
    self.path = path
    self.name = name ?? "vhost-user \(path)"
  }

  /// Two regions that lie next to each other, a hole, and a third.
  static let border: UInt64 = 2 << 20
  static func makeMemory() throws(DriverError) -> DriverMemory {
    let memory = try DriverMemory(anonymous: [
      (GuestAddress(0), Int(border)), (GuestAddress(border), 2 << 20), (GuestAddress(1 << 30), 1 << 20),
    ])
    memory.reserve(GuestAddress(border - (16 << 10)), count: 32 << 10)
    return memory
  }

  public func connect(_ settings: Settings) throws -> any DriverTransport {
    let frontend: Frontend
    do { frontend = try Frontend(connectingTo: path, patience: settings.limit) } catch {
      throw DriverError.noDevice("nobody answers on \(path): \(error)")
    }
    return try VhostUserTransport(frontend, memory: Self.makeMemory())
  }

  public func link(_ settings: Settings) throws -> Link { try Link(path: path, settings) }
  public func renew() throws {}
  public var resize: ((UInt64) throws -> Void)? { nil }
}

/// A back-end that is started by a command line, and again when it has ended or broken.
public final class ExecSubject: SocketSubject {
  private let command: String
  private let folder: ScratchFolder
  private let limit: Duration
  private var process: pid_t = 0

  public struct StartFailed: Error, CustomStringConvertible { public let description: String }

  /// - Parameters:
  ///   - command: for the shell; `{socket}` stands for where the back-end has to listen, `{disk}` for a scratch image.
  ///   - diskSize: bytes of that image.
  public init(command: String, diskSize: UInt64 = 64 << 20, settings: Settings = Settings()) throws {
    folder = try ScratchFolder()
    let socket = folder.file("socket")
    let disk = try folder.image("disk", bytes: diskSize)
    self.command = command.replacing("{socket}", with: socket).replacing("{disk}", with: disk)
    limit = settings.limit
    super.init(path: socket, name: command)
    try renew()
  }

  deinit {
    end()
  }

  private func end() {
    guard process > 0 else { return }
    // The shell and everything that it started, which is one process group.
    kill(-process, SIGKILL)
    Leftovers.forget(group: process)
    var status: Int32 = 0
    while unsafe waitpid(process, &status, 0) < 0 && errno == EINTR {}
    process = 0
  }

  /// Ends it and starts it again.
  override public func renew() throws {
    end()
    unsafe unlink(path)
    var attributes = posix_spawnattr_t()
    unsafe posix_spawnattr_init(&attributes)
    defer { unsafe posix_spawnattr_destroy(&attributes) }
    // It must not inherit the mask of blocked signals.
    unsafe posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK))
    unsafe posix_spawnattr_setpgroup(&attributes, 0)
    var signals = sigset_t()
    unsafe sigemptyset(&signals)
    unsafe posix_spawnattr_setsigmask(&attributes, &signals)
    var actions = unsafe posix_spawn_file_actions_t()
    unsafe posix_spawn_file_actions_init(&actions)
    defer { unsafe posix_spawn_file_actions_destroy(&actions) }
    // Its output must not mix with the report on standard output.
    unsafe posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0)
    let arguments = ["/bin/sh", "-c", command]
    var words = unsafe arguments.map { word -> UnsafeMutablePointer<CChar>? in unsafe strdup(word) } + [nil]
    defer { for index in arguments.indices { unsafe free(words[index]) } }
    var result: Int32 = 0
    let child = Leftovers.keep {
      var child: pid_t = 0
      result = unsafe posix_spawn(&child, "/bin/sh", &actions, &attributes, &words, Glibc.environ)
      return result == 0 ? child : nil
    }
    guard let child else { throw StartFailed(description: "the shell could not be started: error \(result)") }
    process = child
    let end = ContinuousClock.now + limit
    while unsafe access(path, F_OK) != 0 {
      // Not reaped yet: what the shell started may live on, and is found by the shell's number.
      var state = unsafe siginfo_t()
      if unsafe waitid(P_PID, id_t(process), &state, WEXITED | WNOHANG | WNOWAIT) == 0, unsafe state.si_signo != 0 {
        self.end()
        throw StartFailed(description: "the back-end ended before it listened on \(path); was {socket} in its command?")
      }
      guard .now < end else {
        throw StartFailed(description: "the back-end did not listen on \(path) within \(limit / .seconds(1)) s")
      }
      usleep(2000)
    }
    // A bound socket may not listen yet.
    while .now < end {
      if (try? Frontend(connectingTo: path)) != nil { break }
      usleep(2000)
    }
  }
}
