/// What direct I/O on a file asks of requests.
internal import CLinux

struct DirectAlignment: Equatable {
  /// What a buffer's address must be a multiple of, bytes.
  var memory: Int
  /// What a request's offset and length must be multiples of, bytes.
  var offset: Int

  /// What the kernel says (statx, STATX_DIOALIGN, Linux 6.1).
  enum Answer: Equatable {
    /// Nothing was put in its place.
    case asked
    /// It cannot be asked, or does not know.
    case unknown
    /// There is no direct I/O.
    case impossible
    case told(DirectAlignment)
  }

  /// What every medium takes. Trying is no way to learn of less: a read of a hole never reaches the medium that would refuse
  /// it.
  static let page = 4096

  /// - Parameters:
  ///   - answer: `.asked` asks.
  ///   - isInMemory: a file of a file system in memory, where "direct" is a word only.
  /// - Returns: `nil` when the file has no direct I/O.
  static func of(_ descriptor: Int32, _ answer: Answer, isBlockDevice: Bool, isInMemory: Bool) -> DirectAlignment? {
    switch answer == .asked ? ask(descriptor) : answer {
    case .impossible: return nil
    case .told(let alignment): return alignment
    case .asked, .unknown:
      if isInMemory { return DirectAlignment(memory: 1, offset: 1) }
      var block: Int32 = 0
      // A block device's own block is a fact that can be had on any kernel; that of a file's file system is not.
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
