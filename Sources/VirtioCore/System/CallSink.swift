/// How the device notifies the driver: through an eventfd, a doorbell, a pipe or a socket.
internal import CLinux
internal import Glibc

/// Where a used buffer notification goes, or the signal that a queue broke.
public enum CallSink: Sendable {
  /// A non-blocking eventfd: the fastest kind, one system call.
  case eventCounter(OwnedDescriptor)
  /// A counter in shared memory, and the InterruptStatus word (virtio 4.2.2) whose bit 0 is set first.
  case doorbell(Doorbell, interruptStatus: SharedCell<UInt32>)
  /// The driver polls.
  case none
  /// A pipe, through our own, non-blocking open file description.
  case pipe(OwnedDescriptor)
  /// A connected socket: sent to without blocking, and without SIGPIPE.
  case socket(OwnedDescriptor)
  /// A descriptor whose flags belong to another process and allow a write to block: polled before each write.
  case looked(OwnedDescriptor)

  /// Takes a descriptor that a front-end handed over.
  ///
  /// The flags of an open file description are shared by every process that has it, so O_NONBLOCK is never set on it: a pipe is
  /// opened once more, and whatever cannot be reopened is polled before each write.
  ///
  /// - Parameter descriptor: an eventfd, the write end of a pipe, or a connected socket.
  /// - Throws: `CallSinkError` for any other kind, or if it cannot be written to.
  public init(descriptor: OwnedDescriptor) throws(CallSinkError) {
    let number = descriptor.rawValue
    let kind = DescriptorKind(of: number)
    let flags = clinux_fcntl_int(number, F_GETFL, 0)
    guard flags & O_ACCMODE != O_RDONLY else { throw .notWritable(kind) }
    switch kind {
    case .eventCounter: self = flags & O_NONBLOCK != 0 ? .eventCounter(descriptor) : .looked(descriptor)
    case .socket: self = .socket(descriptor)
    case .pipe:
      let own = unsafe clinux_open("/proc/self/fd/\(number)", O_WRONLY | O_NONBLOCK | O_CLOEXEC, 0)
      self = own >= 0 ? .pipe(OwnedDescriptor(own)) : .looked(descriptor)
    case .other: throw .wrongKind(kind)
    }
  }

  /// The descriptor written to; `nil` if there is none.
  public var descriptor: OwnedDescriptor? {
    switch self {
    case .eventCounter(let descriptor), .pipe(let descriptor), .socket(let descriptor), .looked(let descriptor): descriptor
    case .doorbell, .none: nil
    }
  }

  /// Notifies the driver of used buffers. Has no effect on a driver that is gone, or that has not yet seen the previous
  /// notification.
  ///
  /// It does not block, except if another process changes the flags or the contents of the description at the very moment. So
  /// this is for threads that may block without delaying others: a queue's own.
  public func signal() {
    switch self {
    case .eventCounter(let descriptor): EventCounter.signal(descriptor.rawValue)
    case .doorbell(let doorbell, let interruptStatus):
      interruptStatus.formUnion(1)
      doorbell.ring()
    case .none: break
    case .pipe(let descriptor): EventCounter.signal(descriptor.rawValue)
    case .socket(let descriptor): Self.send(descriptor.rawValue)
    case .looked(let descriptor): Self.look(descriptor.rawValue)
    }
  }

  @inline(never)
  private static func send(_ descriptor: Int32) {
    var one: UInt64 = 1
    let flags = Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)
    while unsafe Glibc.send(descriptor, &one, 8, flags) < 0 && errno == EINTR {}
  }

  @inline(never)
  private static func look(_ descriptor: Int32) {
    var entry = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
    guard unsafe poll(&entry, 1, 0) == 1, entry.revents & Int16(POLLOUT) != 0 else { return }
    EventCounter.signal(descriptor)
  }
}

/// Why a descriptor cannot be used for notifications.
public enum CallSinkError: Error, Hashable, Sendable, CustomStringConvertible {
  /// It is neither an eventfd, nor a pipe, nor a connected socket.
  case wrongKind(DescriptorKind)
  /// It is one of them, but open for reading only.
  case notWritable(DescriptorKind)

  /// One sentence for a person: what happened, with what, and what to do.
  public var description: String {
    switch self {
    case .wrongKind(let kind): "notifications cannot go to \(kind): an eventfd, a pipe or a connected socket is needed"
    case .notWritable(let kind): "notifications cannot go to \(kind) that is open for reading only: pass the writing end"
    }
  }
}
