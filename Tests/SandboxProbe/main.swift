// Gives up its rights as a server does, and then does what a server never would, for tests to observe.
//
//   sandbox-probe MODE ROLE DEED [PLACE]
//
// MODE is one of on, log and off, ROLE "process" or a kind of thread, PLACE where images may be. Ends with status 0 if the deed
// was done, and with 1 and the error number on standard output if the system refused it.
import CLinux
import Glibc
import Sandbox
import Synchronization
import VirtioCore

let words = CommandLine.arguments
guard words.count >= 4, let mode = SandboxMode(rawValue: words[1]), let deed = Deed(words[3]) else {
  say("usage: sandbox-probe on|log|off ROLE DEED [PLACE]")
  exit(2)
}

Sandbox.arm(mode)
var plan = SandboxPlan(mode)
plan.places = [AllowedPlace("/proc", for: .reading)]
if words.count > 4 {
  plan.places += [AllowedPlace(words[4], for: .images), AllowedPlace(words[4], for: .sockets)]
}
let report = Sandbox.enter(plan)
say(report.parts.joined(separator: ", "))

let outcome = Mutex<Int32>(0)
if let role = ThreadRole(rawValue: words[2]) {
  let thread = try SystemThread(name: "probe") {
    role.begin()
    let result = deed.carryOut()
    outcome.withLock { $0 = result }
  }
  thread.join()
} else {
  outcome.withLock { $0 = deed.carryOut() }
}
let error = outcome.withLock { $0 }
if error != 0 { say("\(error)") }
exit(error == 0 ? 0 : 1)

/// Written at once, because the process may end without another line.
func say(_ line: String) {
  let bytes = Array((line + "\n").utf8)
  _ = unsafe write(1, bytes, bytes.count)
}

/// What the probe tries to do.
enum Deed {
  case read(String)
  case write(String)
  case listen(String)
  case connectTCP
  case startProgram
  case makeProcess
  case makeThread
  case makeRing
  case makeCode
  case memoryToCode
  case trace
  case mount
  case kill
  case signalThread
  case signalItself
  case readMemory
  case module
  case work

  init?(_ word: String) {
    let parts = word.split(separator: ":", maxSplits: 1).map(String.init)
    switch (parts.first, parts.count > 1 ? parts[1] : nil) {
    case ("read", let path?): self = .read(path)
    case ("write", let path?): self = .write(path)
    case ("listen", let path?): self = .listen(path)
    case ("tcp", nil): self = .connectTCP
    case ("start-program", nil): self = .startProgram
    case ("make-process", nil): self = .makeProcess
    case ("make-thread", nil): self = .makeThread
    case ("make-ring", nil): self = .makeRing
    case ("make-code", nil): self = .makeCode
    case ("memory-to-code", nil): self = .memoryToCode
    case ("trace", nil): self = .trace
    case ("mount", nil): self = .mount
    case ("kill", nil): self = .kill
    case ("signal-thread", nil): self = .signalThread
    case ("signal-itself", nil): self = .signalItself
    case ("read-memory", nil): self = .readMemory
    case ("module", nil): self = .module
    case ("work", nil): self = .work
    default: return nil
    }
  }

  /// - Returns: 0 or an error number.
  func carryOut() -> Int32 {
    switch self {
    case .read(let path): return Self.opened(path, O_RDONLY)
    case .write(let path): return Self.opened(path, O_RDWR)
    case .listen(let path): return Self.listened(path)
    case .connectTCP: return Self.checked(Int(socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)))
    case .startProgram: return Self.checked(Int(unsafe execve("/bin/true", [nil], [nil])))
    case .makeProcess: return Self.checked(clinux_probe_call(Int(SYS_clone), Int(SIGCHLD), 0, 0))
    case .makeThread:
      do { try SystemThread(name: "another") {}.join() } catch { return EAGAIN }
      return 0
    case .makeRing:
      var ring = unsafe io_uring()
      let result = unsafe io_uring_queue_init(4, &ring, 0)
      if result == 0 { unsafe io_uring_queue_exit(&ring) }
      return -result
    case .makeCode:
      let place = unsafe mmap(nil, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
      return unsafe place == MAP_FAILED ? errno : 0
    case .memoryToCode:
      let place = unsafe mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
      return Self.checked(Int(unsafe mprotect(place, 4096, PROT_READ | PROT_EXEC)))
    case .trace: return Self.checked(clinux_probe_call(Int(SYS_ptrace), 0, 0, 0))
    case .mount: return Self.checked(clinux_probe_call(Int(SYS_mount), 0, 0, 0))
    case .kill: return Self.checked(Int(Glibc.kill(getppid(), 0)))
    case .signalThread: return Self.checked(clinux_probe_call(Int(SYS_tgkill), Int(getppid()), Int(getppid()), 0))
    case .signalItself: return Self.checked(Int(raise(0)))
    case .readMemory: return Self.checked(clinux_probe_call(Int(SYS_process_vm_readv), Int(getppid()), 0, 0))
    case .module: return Self.checked(clinux_probe_call(Int(SYS_init_module), 0, 0, 0))
    case .work: return Self.work()
    }
  }

  private static func checked(_ result: Int) -> Int32 { result < 0 ? errno : 0 }

  private static func opened(_ path: String, _ flags: Int32) -> Int32 {
    let descriptor = unsafe clinux_open(path, flags | O_CLOEXEC, 0)
    guard descriptor >= 0 else { return errno }
    close(descriptor)
    return 0
  }

  private static func listened(_ path: String) -> Int32 {
    let socket = Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    guard socket >= 0 else { return errno }
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: Array(path.utf8)) }
    let result = unsafe withUnsafePointer(to: &address) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe bind(socket, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    return checked(Int(result))
  }

  /// What every thread does regularly: the heap, a lock, the clock, a descriptor, a line.
  private static func work() -> Int32 {
    var lists: [[UInt8]] = []
    for size in 1...64 { lists.append([UInt8](repeating: UInt8(size), count: size << 12)) }
    let lock = Mutex(lists.count)
    var byte: UInt8 = 0
    guard lock.withLock({ $0 }) == 64, ContinuousClock.now <= .now else { return EINVAL }
    guard unsafe Glibc.read(0, &byte, 1) == 0 else { return errno }
    usleep(10)
    return 0
  }
}
