/// The alignment that direct I/O on a file requires of requests.
internal import CLinux

struct DirectAlignment: Equatable {
  /// What a buffer's address must be a multiple of, bytes.
  var memory: Int
  /// What a request's offset and length must be multiples of, bytes.
  var offset: Int

  /// What the kernel reports (statx, STATX_DIOALIGN, Linux 6.1).
  enum Answer: Equatable {
    /// The kernel is to be asked.
    case asked
    /// The kernel cannot be asked, or does not know.
    case unknown
    /// The file does not support direct I/O.
    case impossible
    case told(DirectAlignment)
  }

  /// What every medium accepts. A trial cannot prove that less is enough: a read of a hole never reaches the medium that would
  /// refuse it.
  static let page = 4096

  /// - Parameters:
  ///   - answer: `.asked`: the kernel is asked.
  ///   - isInMemory: it is on a file system in memory, where direct I/O is direct in name only.
  /// - Returns: `nil` if the file does not support direct I/O.
  static func of(_ descriptor: Int32, _ answer: Answer, isBlockDevice: Bool, isInMemory: Bool) -> DirectAlignment? {
    switch answer == .asked ? ask(descriptor) : answer {
    case .impossible: return nil
    case .told(let alignment): return alignment
    case .asked, .unknown:
      if isInMemory { return DirectAlignment(memory: 1, offset: 1) }
      var block: Int32 = 0
      // Any kernel reports the block size of a block device, but not that of a file's file system.
      if isBlockDevice, unsafe clinux_block_logical_size(descriptor, &block) == 0, block > 0 {
        return DirectAlignment(memory: page, offset: Int(block))
      }
      return DirectAlignment(memory: page, offset: page)
    }
  }

  private static func ask(_ descriptor: Int32) -> Answer {
    var memory: UInt32 = 0
    var offset: UInt32 = 0
    guard unsafe clinux_direct_io_alignment(descriptor, &memory, &offset) == 1 else { return .unknown }
    guard memory > 0, offset > 0 else { return .impossible }
    return .told(DirectAlignment(memory: Int(memory), offset: Int(offset)))
  }
}
