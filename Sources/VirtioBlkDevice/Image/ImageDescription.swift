/// What a medium is and can do: values only, nothing that is open. A disk's features and configuration follow from it, and so
/// does which engines can serve it.
public struct ImageDescription: Sendable, Equatable {
  /// Bytes; a multiple of the logical block size.
  public var size: UInt64
  /// Bytes: what a guest's requests are multiples of. A power of two, 512 to 65536.
  public var logicalBlockSize: Int
  /// Bytes that the medium writes efficiently at once; a power of two, at least the logical block size.
  public var physicalBlockSize: Int
  /// The medium's discard granularity, bytes; a multiple of 512.
  public var discardAlignment = 512
  /// What the guest learns about the preferred use of the medium.
  var topology = BlockTopology()
  /// The guest may only read.
  public var isReadOnly = false
  /// It is a block device of this machine, not a file.
  public var isBlockDevice = false
  /// It is an export of a server, reached through a connection.
  public var isRemote = false
  /// Queues of the disk may be served by several workers at once.
  public var takesSeveralWorkers = true
  /// Requests bypass the page cache.
  public var isDirect = false
  /// What a buffer's address must be a multiple of, bytes; 1 where anything goes.
  public var memoryAlignment = 1
  /// What a transfer's offset and length must be multiples of, bytes; 1 where anything goes.
  public var offsetAlignment = 1
  /// The medium is memory (tmpfs, ramfs, hugetlbfs, zram, a RAM disk): an I/O call never waits, and io_uring cannot tell.
  public var isInMemory = false
  /// It is a file of pages (tmpfs, ramfs), where a hole that is touched through a mapping, even to read it, is one no more.
  public var fillsHolesWhenTouched = false
  /// It is opened through the page cache, on a file system whose page cache is authoritative: no other machine changes the
  /// file.
  public var isCached = false
  /// A hole can be punched, so that discard gives space back.
  public var canDiscard = false
  /// The device under it has queues that are polled instead of interrupting.
  public var canPoll = false
  /// The default answer to GET_ID: 1 to 20 printable ASCII characters, different for each image.
  public var serial = ""
}
