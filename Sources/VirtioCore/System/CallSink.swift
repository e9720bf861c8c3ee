/// How the device tells the driver that something is done, whatever it was given for that.
internal import CLinux
internal import Glibc

/// Where a used buffer notification goes to, or the news that a queue broke.
public enum CallSink: Sendable {
  /// An eventfd that does not block: the fastest way, one system call.
  case eventCounter(OwnedDescriptor)
  /// A counter in shared memory, and the InterruptStatus word (virtio 4.2.2) whose bit 0 is set first.
  case doorbell(Doorbell, interruptStatus: SharedCell<UInt32>)
  /// The driver polls.
  case none
  /// A pipe, through an open file description of our own that does not block.
  case pipe(OwnedDescriptor)
  /// A connected socket: sent to without blocking, and without SIGPIPE.
  case socket(OwnedDescriptor)
  /// Something whose flags belong to others and say that a write may block: looked at before each.
  case looked(OwnedDescriptor)

  /// Takes what a front-end handed over.
  ///
  /// Flags of an open file description belong to everybody who has it, so O_NONBLOCK is never set on it: a pipe is opened
  /// once more for ourselves, and what cannot be is looked at before each write.
  ///
  /// - Parameter descriptor: an eventfd, a pipe's writing end, or a connected socket.
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

  /// What was handed over, or stands for it; `nil` where there is nothing of the kind.
  public var descriptor: OwnedDescriptor? {
    switch self {
    case .eventCounter(let descriptor), .pipe(let descriptor), .socket(let descriptor), .looked(let descriptor): descriptor
    case .doorbell, .none: nil
    }
  }

  /// Notifies the driver of used buffers. A driver that was notified and has not looked yet, or that is gone, is not notified again.
  ///
  /// It does not wait. The one exception is a description whose flags or contents another process changes at the very moment,
  /// so this is for threads that may block without delaying others: a queue's own.
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

/// Why a descriptor cannot be notified through: one sentence.
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
