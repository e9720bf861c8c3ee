/// How an image is to be opened.
public import VirtioCore

/// Which image, and how it is opened.
public struct ImageOptions: Sendable {
  /// Whether to bypass the page cache (O_DIRECT).
  public enum Direct: String, CaseIterable, Sendable {
    /// If the file supports it and the logical block size allows it.
    case auto
    /// Always; an image that does not support it is refused.
    case on
    /// Never: through the page cache.
    case off
  }

  /// What the bytes of the file are.
  public enum Format: String, CaseIterable, Sendable {
    /// The disk's own bytes; a file that looks like an image of another format is refused.
    case auto
    /// The disk's own bytes, whatever they look like.
    case raw
    /// Those of a qcow2 image; `qcow2` of the options says which backing files it may have.
    case qcow2
  }

  /// An export of an NBD server that is opened instead of a file. Path, format, direct I/O and locks do not apply to it.
  public var nbd: NBDOptions?
  /// An image of a Ceph cluster that is opened instead of a file; its lock is in the cluster.
  public var rbd: RBDOptions?
  /// The image is the top of a chain of qcow2 images. Its path is `path`.
  public var qcow2: Qcow2Location?
  /// The path for messages. Without `pathBytes` it is the path that is opened, and must not contain a NUL.
  public var path: String
  /// The path as the system has it, with a terminating 0, if it is not UTF-8 and `path` only resembles it.
  public var pathBytes: [CChar]?
  /// The guest may only read, and the file is opened for reading only.
  public var isReadOnly: Bool
  /// Whether to bypass the page cache.
  public var direct: Direct
  /// What the bytes of the file are.
  public var format: Format
  /// Bytes: a power of two from 512 to 65536. The image's size and every request must be multiples of it.
  public var logicalBlockSize: Int
  /// Whether to lock a file, or open a block device exclusively, so that there are never two writers.
  public var isLocked: Bool
  /// An open description of the same file that already holds the lock, or the device: that of the server from which the image
  /// is taken over. `nil`: the lock has to be acquired.
  public var lock: OwnedDescriptor?
  /// The operator's name for the disk, for messages to others who want its image; `nil`: unknown.
  public var user: String?
  /// How long to wait for opening if that can take long, as in a Ceph cluster.
  public var patience = OpeningPatience()
  /// The zones of a zoned disk; `nil`: it has none.
  public var zoned: ZonedOptions?
  /// What the system reports about direct I/O, for tests.
  var directAnswer = DirectAlignment.Answer.asked
  /// The folder that describes the image's device, for tests of devices that this machine does not have; `nil`: that of the
  /// system.
  var systemFolder: String?
  /// Observes what is written to a qcow2 image's file, for tests.
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
