/// What a medium is and supports: only values, nothing that is open. It determines a disk's features and configuration, and
/// which engines can serve it.
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
  /// It is on a server, and reached through a connection.
  public var isRemote = false
  /// Queues of the disk may be served by several workers at once.
  public var takesSeveralWorkers = true
  /// Requests bypass the page cache.
  public var isDirect = false
  /// What a buffer's address must be a multiple of, bytes; 1: any address will do.
  public var memoryAlignment = 1
  /// What a transfer's offset and length must be multiples of, bytes; 1: any will do.
  public var offsetAlignment = 1
  /// The medium is memory (tmpfs, ramfs, hugetlbfs, zram, a RAM disk): an I/O call never blocks, and io_uring does not know
  /// that.
  public var isInMemory = false
  /// It is a file of pages (tmpfs, ramfs), where touching a hole through a mapping allocates a page, even for a read.
  public var fillsHolesWhenTouched = false
  /// It is opened through the page cache, on a file system whose page cache is authoritative: no other machine changes the
  /// file.
  public var isCached = false
  /// Holes can be punched, so that a discard deallocates space.
  public var canDiscard = false
  /// The underlying device has queues that are polled instead of raising interrupts.
  public var canPoll = false
  /// The default answer to GET_ID: 1 to 20 printable ASCII characters, different for each image.
  public var serial = ""
}
