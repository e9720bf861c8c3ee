/// Errors of a memory file, or of the process at its other end.
public import SystemPackage
public import VirtioCore

/// Why a memory file cannot be used. Every description is one sentence that says what to do.
public enum MemoryFileError: Error, Equatable, CustomStringConvertible {
  /// The system refused: `action` on the file.
  case system(path: String, action: String, Errno)
  /// `--create` on a file that is there already.
  case exists(path: String)
  case badSize(path: String, size: UInt64)
  /// The header is invalid; `reason` is a clause for the message.
  case notAMemoryFile(path: String, reason: String)
  case unsupportedVersion(path: String, UInt32)
  /// Another device serves the file; 0 if its process is not known.
  case deviceAlreadyThere(path: String, process: UInt32)
  case driverAlreadyThere(path: String)
  case tooManyQueues(path: String, device: Int, file: Int)
  /// No process serves the file.
  case noDevice(path: String)
  /// A device has the file but has not answered in time.
  case noAnswer(path: String, process: UInt32, milliseconds: Int)
  /// The device refused a register access as malformed: a programming error, or another process wrote to the mailbox.
  case accessRefused(path: String, offset: UInt32, width: Int)
  /// The file that a process hands over is not the one at this path.
  case notTheSame(path: String)
  /// The disk that would take over does not support what the driver has negotiated with the present one.
  case driverNotTakenOver(path: String)
  /// The driver has suspended the device, and a suspended device cannot be handed over.
  case suspended(path: String)
  /// The disk that would take over differs from the one that the driver knows.
  case otherDisk(path: String, what: String, theirs: String, ours: String)
  /// Threads or engines of the disk that would take over cannot be started.
  case notPrepared(path: String, QueueError)
  /// A queue of the disk that would take over does not start.
  case queueNotTakenOver(path: String, queue: Int, QueueError)

  public var description: String {
    switch self {
    case .system(let path, "open", .noSuchFileOrDirectory):
      "there is no memory file \(path): make one with 'vmm-blk run --memory \(path) --create 64M --blk-file IMAGE'"
    case .system(let path, "size", .fileTooLarge):
      "the memory file \(path) would be larger than a file may be: raise the limit ('ulimit -f'), or ask for less memory"
    case .system(let path, let action, let errno):
      "the system refuses to \(action) the memory file \(path) (\(errno)): check path, permissions and free space"
    case .exists(let path): "the file \(path) exists already: leave out --create to use it, or remove it first"
    case .badSize(let path, let size):
      "a memory file \(path) with \(size) bytes of guest memory cannot be created: ask for a multiple of 4096 bytes"
    case .notAMemoryFile(let path, let reason):
      "\(path) cannot be used as a memory file (\(reason)): make one with 'vmm-blk run --memory FILE --create 64M'"
    case .unsupportedVersion(let path, let version):
      "\(path) is a memory file of version \(version), and this program knows version 1: make a new file"
    case .deviceAlreadyThere(let path, let process):
      "a device\(process == 0 ? "" : " (process \(process))") serves the memory file \(path) already: stop it first"
    case .driverAlreadyThere(let path): "another driver has the memory file \(path) open: stop it first"
    case .tooManyQueues(let path, let device, let file):
      "the disk has \(device) queues and the memory file \(path) has room for \(file): ask for fewer with --num-queues"
    case .noDevice(let path):
      "no device serves the memory file \(path): start one with 'vmm-blk run --memory \(path) --blk-file IMAGE'"
    case .noAnswer(let path, let process, let milliseconds):
      "the device (process \(process)) on the memory file \(path) has not answered for \(milliseconds) ms: "
        + "check whether it hangs"
    case .accessRefused(let path, let offset, let width):
      "the device on \(path) refused an access of \(width) bytes to register 0x\(String(offset, radix: 16))"
    case .notTheSame(let path):
      "the memory file that is handed over is not the one at \(path): name the file that the running process serves"
    case .driverNotTakenOver(let path):
      "this disk does not offer what the driver on \(path) has negotiated: use the options and the image of the running process"
    case .suspended(let path):
      "the driver on \(path) has suspended the device: take it over after the driver has resumed it"
    case .otherDisk(let path, let what, let theirs, let ours):
      "the \(what) of the disk that is served on \(path) is \(theirs), and here it would be \(ours): give the same options"
    case .notPrepared(let path, let error): "the queues of \(path) cannot be prepared: \(error)"
    case .queueNotTakenOver(let path, let queue, let error):
      "queue \(queue) of \(path) cannot be taken over, and the process that serves it continues: \(error)"
    }
  }
}
