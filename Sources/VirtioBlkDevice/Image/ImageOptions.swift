/// How an image is to be opened.
public import VirtioCore

/// Which image, and how it is opened.
public struct ImageOptions: Sendable {
  /// Whether to bypass the page cache (O_DIRECT).
  public enum Direct: String, CaseIterable, Sendable {
    /// Where the file can and the logical block size allows it.
    case auto
    /// Always; an image that cannot is refused.
    case on
    /// Never: through the page cache.
    case off
  }

  /// What the bytes of the file are.
  public enum Format: String, CaseIterable, Sendable {
    /// The disk's own, as they are; a file that looks like an image of another format is refused.
    case auto
    /// The disk's own, whatever they look like.
    case raw
    /// Those of a qcow2 image; `qcow2` of the options says what may be under it.
    case qcow2
  }

  /// What is opened instead of a file: an export of an NBD server. Paths, format, direct I/O and locks are nothing to it.
  public var nbd: NBDOptions?
  /// The same of a Ceph cluster; its lock is one of the cluster's.
  public var rbd: RBDOptions?
  /// What is opened is the top of a chain of qcow2 images. Its path is `path`.
  public var qcow2: Qcow2Location?
  /// As a user reads it. Without `pathBytes` it is what is opened; it has no NUL in it then.
  public var path: String
  /// The path as the system has it, with a 0 at the end, where it is not UTF-8 and `path` only resembles it.
  public var pathBytes: [CChar]?
  /// The guest may only read, and the file is opened for reading only.
  public var isReadOnly: Bool
  /// Whether to bypass the page cache.
  public var direct: Direct
  /// What the bytes of the file are.
  public var format: Format
  /// Bytes: a power of two from 512 to 65536. The image's size must be a multiple of it, and so must every request be.
  public var logicalBlockSize: Int
  /// Hold a lock on a file, and a block device for oneself, so that two writers never meet.
  public var isLocked: Bool
  /// An open description of the very same file that holds the lock, or the device, already: another server's, from whom the image
  /// is taken over. `nil`: the lock is to be got.
  public var lock: OwnedDescriptor?
  /// What the operator calls the disk, for messages to those who want its image, too; `nil`: nobody has said.
  public var user: String?
  /// Of who waits until it is open, as far as opening takes longer than a medium may: that of a Ceph cluster.
  public var patience = OpeningPatience()
  /// It is a disk with zones; `nil`: it has none.
  public var zoned: ZonedOptions?
  /// What the system says about direct I/O, for tests of what it may say.
  var directAnswer = DirectAlignment.Answer.asked
  /// Where the device that the image is on is told of, for tests of devices that are not here; `nil`: where the system has it.
  var systemFolder: String?
  /// Is told what is written to a qcow2 image's file, for tests.
  var qcow2Witness: (any Qcow2Witness)?

  /// The parameters are the properties of the same names.
  public init(
    path: String, isReadOnly: Bool = false, direct: Direct = .auto, format: Format = .auto, logicalBlockSize: Int = 512,
    isLocked: Bool = true
  ) {
    self.path = path
    self.isReadOnly = isReadOnly
    self.direct = direct
    self.format = format
    self.logicalBlockSize = logicalBlockSize
    self.isLocked = isLocked
  }

  static func isBlockSize(_ size: Int) -> Bool { (512...65536).contains(size) && size & (size - 1) == 0 }
}
