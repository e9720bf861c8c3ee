/// Which system calls a process that serves disks needs, by kind of thread.
internal import CLinux
internal import Glibc
internal import VirtioCore

/// One call, allowed always or for some values of one argument.
struct AllowedCall: Hashable, Sendable {
  /// As the kernel names it.
  let name: String
  /// `nil`: whatever its arguments are.
  let condition: Condition?

  /// One of the values, after the argument was cut to the mask.
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

/// The lists. What is in none of them ends the process: no program is started, no process is made, no memory becomes code, and
/// nothing is asked of the kernel that serving disks does not need.
enum SystemCalls {
  /// Of a thread of this kind, from the moment when it has made what it needs.
  static func of(_ role: ThreadRole) -> [AllowedCall] {
    switch role {
    case .queue: every + threads + narrowing + transfers + durability + rings + notifications
    case .connectedQueue: of(.queue) + connections
    case .securedQueue: of(.connectedQueue) + reading
    // They read a configuration and keys, connect, and make threads.
    case .cluster: ofProcess(internet: true)
    case .pool: every + transfers + durability
    // It may wait for many kicks at once, which it does not read.
    case .doorbell: every + waits
    case .lines: every
    }
  }

  /// What such a thread is refused without an end to everything: the heap asks now and then how the kernel hands out memory.
  static func refused(of role: ThreadRole) -> [String] {
    switch role {
    case .cluster: []
    case .securedQueue: ["open", "openat2"]
    default: ["open", "openat", "openat2"]
    }
  }

  /// Of the thread that speaks with front-ends and operators, and of the helpers that it makes; all other threads begin with
  /// these, too.
  ///
  /// - Parameter internet: figures are shown, or images are, at an address of the Internet's protocols.
  static func ofProcess(internet: Bool) -> [AllowedCall] {
    every + threads + narrowing + transfers + durability + rings + notifications + files + sockets(internet: internet)
      + identity
  }

  // MARK: The groups

  private static func plain(_ names: String) -> [AllowedCall] { names.split(separator: " ").map { AllowedCall(String($0)) } }

  /// The heap, locks, clocks, faults, the end, and what a descriptor that is there is for.
  private static let every =
    plain(
      """
      brk munmap mremap madvise mincore futex futex_waitv sched_yield nanosleep clock_nanosleep clock_gettime clock_getres \
      gettimeofday time getcpu restart_syscall rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack rt_sigtimedwait gettid getpid \
      getrandom exit exit_group getrusage sched_getaffinity read write readv writev poll ppoll close fcntl set_robust_list \
      rseq membarrier
      """) + [
      // Its own threads, as one that aborts does.
      AllowedCall("tgkill", argument: 0, values: [UInt64(getpid())]),
      // Memory is never code: what a fault of ours lets somebody write cannot be run.
      AllowedCall("mmap", argument: 2, mask: UInt64(PROT_EXEC), values: [0]),
      AllowedCall("mprotect", argument: 2, mask: UInt64(PROT_EXEC), values: [0]),
    ]

  /// More threads of this process; never another process.
  private static let threads =
    plain("sched_setaffinity") + [
      // Of the calling thread: how long it runs at a time.
      AllowedCall("sched_getattr", argument: 0, values: [0]),
      AllowedCall("sched_setattr", argument: 0, values: [0]),
      AllowedCall("clone", argument: 0, mask: UInt64(CLONE_THREAD), values: [UInt64(CLONE_THREAD)]),
      AllowedCall("prctl", argument: 0, values: [UInt64(PR_SET_NAME), UInt64(PR_GET_NAME), nameMemory]),
    ]

  /// PR_SET_VMA: the C library gives memory names when it is told to.
  private static let nameMemory: UInt64 = 0x5356_4d41

  private static let transfers = plain(
    "pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek fstat newfstatat statx faccessat faccessat2 access")

  /// What makes an image stable, smaller or larger.
  private static let durability =
    plain("fsync fdatasync sync_file_range msync fallocate fadvise64") + [
      AllowedCall("ioctl", argument: 1, values: blockQuestions)
    ]

  private static let blockQuestions: [UInt64] = {
    let list = clinux_block_questions
    return [list.0, list.1, list.2, list.3, list.4]
  }()

  /// What a ring can be used for is said to the ring itself, when it is made.
  private static let rings = plain(
    """
    io_uring_enter io_uring_register io_submit io_getevents io_pgetevents io_cancel io_destroy epoll_create epoll_create1 epoll_ctl epoll_wait \
    epoll_pwait epoll_pwait2 eventfd2
    """)

  /// For descriptors in a set that is there.
  private static let waits = plain("epoll_wait epoll_pwait")

  /// To a driver that is told through a socket.
  private static let notifications = plain("sendto sendmsg")

  /// To the server of an image, when the connection before is lost. What the process may not have, its threads have not, either.
  private static let connections =
    plain("connect shutdown getsockopt setsockopt recvfrom recvmsg") + [
      AllowedCall("socket", argument: 0, values: [AF_UNIX, AF_INET, AF_INET6].map { UInt64($0) })
    ]

  /// Of files in places that the process may read: nothing is made, changed or cut.
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

  /// Who makes a thread that needs less lets it give up the rest.
  private static let narrowing =
    plain("seccomp capget capset") + [
      AllowedCall("prctl", argument: 0, values: [UInt64(PR_SET_NO_NEW_PRIVS), UInt64(PR_CAPBSET_DROP)])
    ]

  private static let identity = plain("getuid geteuid getgid getegid getppid getgroups")
}
