/// The system calls that a process that serves disks needs, by role of thread.
internal import CLinux
internal import Glibc
internal import VirtioCore

/// One call, allowed always or only for some values of one argument.
struct AllowedCall: Hashable, Sendable {
  /// The kernel's name of the call.
  let name: String
  /// `nil`: whatever its arguments are.
  let condition: Condition?

  /// The argument, masked, must be one of the values.
  struct Condition: Hashable, Sendable {
    /// 0 for the first.
    let argument: UInt32
    let mask: UInt64
    let values: [UInt64]
  }

  init(_ name: String) { (self.name, condition) = (name, nil) }

  init(_ name: String, argument: UInt32, mask: UInt64 = 0xffff_ffff, values: [UInt64]) {
    self.name = name
    condition = Condition(argument: argument, mask: mask, values: values)
  }
}

/// The lists of calls. A call that is in none of them ends the process: so no program is started, no process is created, no
/// memory becomes executable, and the kernel gets no call that serving disks does not need.
enum SystemCalls {
  /// The calls of a thread of this role, once it has set up what it needs.
  static func of(_ role: ThreadRole) -> [AllowedCall] {
    switch role {
    case .queue: every + threads + narrowing + transfers + durability + rings + notifications
    case .connectedQueue: of(.queue) + connections
    case .securedQueue: of(.connectedQueue) + reading
    // Its threads read a configuration and keys, connect, and create threads.
    case .cluster: ofProcess(internet: true)
    case .pool: every + transfers + durability
    // It may wait for many kicks at once, and does not read them.
    case .doorbell: every + waits
    case .lines: every
    }
  }

  /// Calls of such a thread that fail without ending the process: the heap now and then opens files of the kernel about memory.
  static func refused(of role: ThreadRole) -> [String] {
    switch role {
    case .cluster: []
    case .securedQueue: ["open", "openat2"]
    default: ["open", "openat", "openat2"]
    }
  }

  /// The calls of the thread that talks to front-ends and operators, and of the helper threads that it creates; all other
  /// threads begin with these, too.
  ///
  /// - Parameter internet: metrics are served, or images are reached, over TCP.
  static func ofProcess(internet: Bool) -> [AllowedCall] {
    every + threads + narrowing + transfers + durability + rings + notifications + files + sockets(internet: internet)
      + identity
  }

  // MARK: The groups

  private static func plain(_ names: String) -> [AllowedCall] { names.split(separator: " ").map { AllowedCall(String($0)) } }

  /// For the heap, locks, clocks, faults, exiting, and the use of open descriptors.
  private static let every =
    plain(
      """
      brk munmap mremap madvise mincore futex futex_waitv sched_yield nanosleep clock_nanosleep clock_gettime clock_getres \
      gettimeofday time getcpu restart_syscall rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack rt_sigtimedwait gettid getpid \
      getrandom exit exit_group getrusage sched_getaffinity read write readv writev poll ppoll close fcntl set_robust_list \
      rseq membarrier
      """) + [
      // To its own threads, as in an abort.
      AllowedCall("tgkill", argument: 0, values: [UInt64(getpid())]),
      // Memory is never executable: code that a bug lets an attacker write cannot run.
      AllowedCall("mmap", argument: 2, mask: UInt64(PROT_EXEC), values: [0]),
      AllowedCall("mprotect", argument: 2, mask: UInt64(PROT_EXEC), values: [0]),
    ]

  /// To create threads of this process, but never a process.
  private static let threads =
    plain("sched_setaffinity") + [
      // For the scheduler slice of the calling thread.
      AllowedCall("sched_getattr", argument: 0, values: [0]),
      AllowedCall("sched_setattr", argument: 0, values: [0]),
      AllowedCall("clone", argument: 0, mask: UInt64(CLONE_THREAD), values: [UInt64(CLONE_THREAD)]),
      AllowedCall("prctl", argument: 0, values: [UInt64(PR_SET_NAME), UInt64(PR_GET_NAME), nameMemory]),
    ]

  /// PR_SET_VMA: the C library names its memory if it is configured to.
  private static let nameMemory: UInt64 = 0x5356_4d41

  private static let transfers = plain(
    "pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek fstat newfstatat statx faccessat faccessat2 access")

  /// To flush an image, and to change its size.
  private static let durability =
    plain("fsync fdatasync sync_file_range msync fallocate fadvise64") + [
      AllowedCall("ioctl", argument: 1, values: blockQuestions)
    ]

  private static let blockQuestions: [UInt64] = {
    let list = clinux_block_questions
    return [list.0, list.1, list.2, list.3, list.4]
  }()

  /// For io_uring, aio and epoll. The operations that a ring allows are restricted when it is created.
  private static let rings = plain(
    """
    io_uring_enter io_uring_register io_submit io_getevents io_pgetevents io_cancel io_destroy epoll_create epoll_create1 epoll_ctl epoll_wait \
    epoll_pwait epoll_pwait2 eventfd2
    """)

  /// To wait for the descriptors of an existing epoll set.
  private static let waits = plain("epoll_wait epoll_pwait")

  /// To notify a driver through a socket.
  private static let notifications = plain("sendto sendmsg")

  /// To reconnect to the server of an image. A thread cannot have calls that its process does not have.
  private static let connections =
    plain("connect shutdown getsockopt setsockopt recvfrom recvmsg") + [
      AllowedCall("socket", argument: 0, values: [AF_UNIX, AF_INET, AF_INET6].map { UInt64($0) })
    ]

  /// To read files where the process may read: nothing is created, changed or truncated.
  private static let reading = [
    AllowedCall(
      "openat", argument: 2, mask: UInt64(O_ACCMODE | O_CREAT | O_TRUNC | O_APPEND),
      values: [UInt64(O_RDONLY)])
  ]

  private static let files =
    plain(
      """
      io_uring_setup io_setup open openat stat lstat readlink readlinkat getdents64 statfs fstatfs unlink unlinkat rename flock \
      memfd_create ftruncate signalfd4 timerfd_create timerfd_settime timerfd_gettime pipe2 dup dup2 dup3 getcwd uname sysinfo umask \
      chmod fchmod fchmodat chown fchown lchown fchownat setrlimit getrlimit prlimit64
      """) + [
      AllowedCall("ioctl", argument: 1, values: [TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO].map { UInt64($0) })
    ]

  private static func sockets(internet: Bool) -> [AllowedCall] {
    let families = [AF_UNIX, AF_NETLINK] + (internet ? [AF_INET, AF_INET6] : [])
    return plain(
      "bind listen accept accept4 connect shutdown getsockname getpeername getsockopt setsockopt recvfrom recvmsg socketpair"
    ) + [AllowedCall("socket", argument: 0, values: families.map { UInt64($0) })]
  }

  /// To give up further rights, for threads that create others with fewer rights.
  private static let narrowing =
    plain("seccomp capget capset") + [
      AllowedCall("prctl", argument: 0, values: [UInt64(PR_SET_NO_NEW_PRIVS), UInt64(PR_CAPBSET_DROP)])
    ]

  private static let identity = plain("getuid geteuid getgid getegid getppid getgroups")
}
