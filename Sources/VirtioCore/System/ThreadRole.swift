/// What a thread is for, and with that what it may do in a process that gives up rights.
internal import CLinux
internal import Synchronization

/// What a thread is for.
///
/// Threads whose work needs little. The sandbox takes more rights from these than from the rest.
public enum ThreadRole: String, CaseIterable, Sendable {
  /// Serves queues: what guests write is read here.
  case queue
  /// The same, of a disk behind a connection, which it makes again when it is lost.
  case connectedQueue
  /// The same, over TLS, for which it reads keys and certificates each time; and what makes such a connection for others.
  case securedQueue
  /// Speaks with a cluster that has images: threads of a library, which read what the cluster sends.
  case cluster
  /// Makes a medium's calls for queues.
  case pool
  /// Waits for a doorbell.
  case doorbell
  /// Writes lines for readers.
  case lines

  /// Called on every thread that begins its work from now on, with what it is for.
  public static func whenOneBegins(_ confine: @escaping @Sendable (ThreadRole) -> Void) {
    confinement.withLock { $0 = Callback(confine) }
  }

  private static let confinement = Mutex<Callback<ThreadRole>?>(nil)

  /// How long a thread of queues runs at a time where others want its CPU: the least that the kernel grants, nanoseconds.
  ///
  /// Its turns are shorter than the kernel's usual slice of some milliseconds. One that polls yields to others, and forfeits
  /// what is left of its slice each time (Linux 6.18): with long slices, a neighbour that never yields would get nearly all.
  private static var slice: UInt64 { 100_000 }

  /// Says that the calling thread has made what it needs, and does its work and nothing else from here on. Once for each
  /// thread.
  public func begin() {
    // Without it, it is served as any other thread.
    if [.queue, .connectedQueue, .securedQueue].contains(self) { _ = clinux_ask_for_slice(Self.slice) }
    Self.confinement.withLock { $0 }?.call(self)
  }
}
