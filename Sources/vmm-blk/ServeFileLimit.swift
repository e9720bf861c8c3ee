/// How many descriptors a server needs, and how many it may have.
internal import CLinux
internal import Glibc
internal import OperatorWords
internal import SystemPackage
internal import VirtioBlkDevice

/// The limit of open files (RLIMIT_NOFILE).
enum ServeFileLimit {
  /// For the program itself and for what a front-end hands over while it connects: as many descriptors as a message can carry,
  /// and those of the standard streams, the loop and the libraries.
  private static let spare = 64

  /// Raises the soft limit to the hard one, which is safe because this process waits with epoll and never with `select`.
  ///
  /// - Returns: the limit in force afterwards.
  static func raise() -> Int {
    var limit = rlimit()
    let resource = __rlimit_resource_t(UInt32(RLIMIT_NOFILE.rawValue))
    guard unsafe getrlimit(resource, &limit) == 0 else { return .max }
    if limit.rlim_cur < limit.rlim_max {
      var raised = rlimit(rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max)
      if unsafe setrlimit(resource, &raised) == 0 { limit = raised }
    }
    return Int(clamping: limit.rlim_cur)
  }

  /// Descriptors for all disks while nobody is connected: image, events, listening socket, and backing files.
  static func idleNeed(_ disks: [DeviceOptions]) -> Int {
    disks.reduce(spare) { sum, disk in sum + 2 + (disk.imageChain?.paths.count ?? 1) }
  }

  /// With a front-end on every disk and every queue running: a connection for each disk, its memory's file, records and a log;
  /// kick, call and error for each queue; mailbox, waiting and completions for each thread; and an allowance for files that
  /// images may name, which are unknown until the images are open.
  static func fullNeed(_ disks: [DeviceOptions]) -> Int {
    disks.reduce(idleNeed(disks)) { sum, disk in
      let queues = min(max(disk.numQueues ?? ServeService.queues, 1), 256)
      let threads = min(max(disk.threads ?? queues, 1), queues)
      return sum + 4 + 3 * queues + 3 * threads + (disk.imageChain?.unnamedFiles ?? 0)
    }
  }

  /// Makes the process's table of descriptors as large as it will ever have to be, which is 8 bytes for each.
  ///
  /// The kernel doubles the table when it is full. While other threads share it, the thread that opens one descriptor too many
  /// waits for a grace period of RCU: 10 to 40 ms, while some front-end attaches. So this has to be called before the first
  /// thread is made. Failing is harmless.
  ///
  /// - Parameter any: an open descriptor; it is not changed.
  static func makeRoom(for disks: [DeviceOptions], limit: Int, _ any: Int32) {
    let highest = fcntl(any, F_DUPFD_CLOEXEC, CInt(clamping: min(fullNeed(disks), limit) - 1))
    if highest >= 0 { try? FileDescriptor(rawValue: highest).close() }
  }

  /// - Throws: a sentence if not even the sockets can be opened. If the limit is only too low for all front-ends at once, that
  ///   is a warning.
  static func check(_ disks: [DeviceOptions], limit: Int, _ log: ServeLog) throws {
    let (idle, full) = (idleNeed(disks), fullNeed(disks))
    guard limit >= idle else { throw ServeFileLimitError(limit: limit, disks: disks.count, idle: idle, full: full) }
    if limit < full {
      log.warn(
        """
        \(disks.count) disks need up to \(full) open files when a front-end is connected to each, and the limit is \
        \(limit): raise it with 'ulimit -Hn \(full)' or LimitNOFILE=
        """)
    }
  }
}

struct ServeFileLimitError: Error, CustomStringConvertible {
  let limit: Int
  let disks: Int
  let idle: Int
  let full: Int

  var description: String {
    """
    \(disks) disks need \(idle) open files, and up to \(full) when a front-end is connected to each, but the limit is \
    \(limit): raise it with 'ulimit -Hn \(full)' or LimitNOFILE=, or list fewer disks
    """
  }
}
