/// The role of a thread, which decides what it may do in a process that gives up rights.
internal import CLinux
internal import Synchronization

/// The role of a thread whose work needs few rights. The sandbox takes more from these threads than from the rest.
public enum ThreadRole: String, CaseIterable, Sendable {
  /// Serves queues, and so reads what guests write.
  case queue
  /// Serves queues of a disk behind a network connection, and reconnects when it is lost.
  case connectedQueue
  /// The same over TLS, for which it reads keys and certificates on each connect; also a thread that makes such connections for
  /// others.
  case securedQueue
  /// Talks to a cluster that stores images: threads of a library, which read what the cluster sends.
  case cluster
  /// Makes blocking calls to a medium on behalf of queues.
  case pool
  /// Waits for a doorbell.
  case doorbell
  /// Writes lines of output.
  case lines

  /// Sets the closure that every thread calls, with its role, when it begins its work from now on.
  public static func whenOneBegins(_ confine: @escaping @Sendable (ThreadRole) -> Void) {
    confinement.withLock { $0 = Callback(confine) }
  }

  private static let confinement = Mutex<Callback<ThreadRole>?>(nil)

  /// The scheduler slice of a thread that serves queues, when others want its CPU: the shortest that the kernel grants,
  /// nanoseconds.
  ///
  /// Its turns are shorter than the kernel's usual slice of a few milliseconds. A thread that polls yields to others, and
  /// forfeits the rest of its slice each time (Linux 6.18): with long slices, a neighbour that never yields would get nearly
  /// all the CPU time.
  private static var slice: UInt64 { 100_000 }

  /// Declares that the calling thread has set up what it needs, and only does its work from here on. Called once on each
  /// thread.
  public func begin() {
    // If this fails, the thread is scheduled like any other.
    if [.queue, .connectedQueue, .securedQueue].contains(self) { _ = clinux_ask_for_slice(Self.slice) }
    Self.confinement.withLock { $0 }?.call(self)
  }
}
