/// The disk's medium: a raw file or a block device, opened, measured and locked.
///
/// The format is never guessed from the content: a guest writes that content, and a header that it made up must not turn into
/// a file of the host's that it may read.
internal import CLinux
internal import Glibc
public import SystemPackage

/// How an image is to be opened.
public struct ImageOptions: Sendable {
  /// Whether the page cache is passed by (O_DIRECT).
  public enum Direct: String, CaseIterable, Sendable {
    /// Where the file can and the logical block size allows it.
    case auto
    case on
    case off
  }

  public var path: String
  public var isReadOnly: Bool
  public var direct: Direct
  /// Bytes: a power of two from 512 to 65536. The image's size must be a multiple of it, and so must every request be.
  public var logicalBlockSize: Int
  /// Hold a lock on the file, so that two writers never meet.
  public var isLocked: Bool

  public init(
    path: String, isReadOnly: Bool = false, direct: Direct = .auto, logicalBlockSize: Int = 512, isLocked: Bool = true
  ) {
    self.path = path
    self.isReadOnly = isReadOnly
    self.direct = direct
    self.logicalBlockSize = logicalBlockSize
    self.isLocked = isLocked
  }
}

/// Why an image cannot be used: one sentence each, saying what to do.
public enum ImageError: Error, Hashable, CustomStringConvertible {
  case cannotOpen(path: String, Errno)
  case notWritable(path: String, Errno)
  case notAFile(path: String)
  case empty(path: String)
  case badBlockSize(Int)
  case oddSize(path: String, size: UInt64, blockSize: Int)
  case locked(path: String)
  case noDirect(path: String)
  case directNeedsLargerBlocks(path: String, alignment: Int, blockSize: Int)

  public var description: String {
    switch self {
    case .cannotOpen(let path, .noSuchFileOrDirectory):
      "there is no image \(path): make one with 'truncate -s 1G \(path)' or name another"
    case .cannotOpen(let path, let error): "the image \(path) cannot be opened: \(error)"
    case .notWritable(let path, let error):
      "the image \(path) cannot be opened for writing (\(error)): make it writable or serve it with --read-only"
    case .notAFile(let path): "\(path) is neither a regular file nor a block device: name a raw disk image"
    case .empty(let path): "the image \(path) has size 0: give it one, for example with 'truncate -s 1G \(path)'"
    case .badBlockSize(let size): "a logical block size of \(size) is not a power of two from 512 to 65536"
    case .oddSize(let path, let size, let blockSize):
      "the image \(path) has \(size) bytes, which is not a multiple of the logical block size \(blockSize): extend it with "
        + "'truncate -s %\(blockSize) \(path)'"
    case .locked(let path):
      "the image \(path) is in use by another process that writes to it: stop that one, or say --no-lock if you are sure"
    case .noDirect(let path): "the file system of \(path) cannot do direct I/O: use --direct off"
    case .directNeedsLargerBlocks(let path, let alignment, let blockSize):
      "direct I/O on \(path) needs requests in multiples of \(alignment) bytes, but the logical block size is \(blockSize): "
        + "use --logical-block-size \(alignment), or --direct off"
    }
  }
}

/// An open image. Immutable after `init`; its descriptor is closed and its lock released with the last owner.
public final class ImageFile: Sendable {
  public let path: String
  public let descriptor: Int32
  /// Bytes; a multiple of the logical block size.
  public let size: UInt64
  public let logicalBlockSize: Int
  /// Bytes that the medium likes to write at once; a power of two, at least the logical block size.
  public let physicalBlockSize: Int
  public let isReadOnly: Bool
  public let isBlockDevice: Bool
  /// Requests pass the page cache by.
  public let isDirect: Bool
  /// What a buffer's address and length must be a multiple of, bytes; 1 where anything goes.
  public let memoryAlignment: Int
  /// The medium is memory (tmpfs, ramfs, hugetlbfs, zram, a RAM disk): an I/O call never waits, and io_uring cannot tell.
  public let isInMemory: Bool
  /// It is a file of pages (tmpfs, ramfs), where a hole that is touched through a mapping, even to read it, is one no more.
  let fillsHolesWhenTouched: Bool
  /// It is opened through the page cache, on a file system whose page cache is the truth: nobody changes the file behind it.
  public let isCached: Bool
  /// A hole can be punched, so that discard gives space back.
  public let canDiscard: Bool
  /// The device under it has queues that are polled instead of interrupting.
  public let canPoll: Bool
  /// What happened to it since it was opened.
  public let state = ImageState()

  public init(_ options: ImageOptions) throws(ImageError) {
    let path = options.path
    let blockSize = options.logicalBlockSize
    guard (512...65536).contains(blockSize), blockSize & (blockSize - 1) == 0 else { throw .badBlockSize(blockSize) }

    let access = (options.isReadOnly ? O_RDONLY : O_RDWR) | O_CLOEXEC
    var owner = try Self.open(path, access | O_NONBLOCK, isReadOnly: options.isReadOnly)
    var info = stat()
    guard unsafe fstat(owner.descriptor, &info) == 0 else { throw .cannotOpen(path: path, Errno(rawValue: errno)) }
    let kind = info.st_mode & S_IFMT
    guard kind == S_IFREG || kind == S_IFBLK else { throw .notAFile(path: path) }
    let isBlockDevice = kind == S_IFBLK
    var size = UInt64(max(info.st_size, 0))
    if isBlockDevice {
      guard unsafe clinux_block_size64(owner.descriptor, &size) == 0 else {
        throw .cannotOpen(path: path, Errno(rawValue: errno))
      }
      var readOnly: Int32 = 0
      if !options.isReadOnly, unsafe clinux_block_read_only(owner.descriptor, &readOnly) == 0, readOnly != 0 {
        throw .notWritable(path: path, .readOnlyFileSystem)
      }
    }
    guard size > 0 else { throw .empty(path: path) }
    guard size % UInt64(blockSize) == 0 else { throw .oddSize(path: path, size: size, blockSize: blockSize) }

    // Direct I/O: try it on a second descriptor, keep it when the file takes what a guest may send.
    var direct: (memory: Int, offset: Int)? = nil
    if options.direct != .off {
      do throws(ImageError) {
        let candidate = try Self.open(path, access | O_NONBLOCK | clinux_o_direct, isReadOnly: options.isReadOnly)
        if let alignment = Self.directAlignment(candidate.descriptor, isBlockDevice: isBlockDevice) {
          if alignment.offset <= blockSize {
            direct = alignment
            owner = candidate
          } else if options.direct == .on {
            throw .directNeedsLargerBlocks(path: path, alignment: alignment.offset, blockSize: blockSize)
          }
        } else if options.direct == .on {
          throw .noDirect(path: path)
        }
      } catch {
        if options.direct == .on {
          if case .directNeedsLargerBlocks = error { throw error }
          throw .noDirect(path: path)
        }
      }
    }
    // Only to open a FIFO or a busy device without hanging.
    _ = clinux_fcntl_int(owner.descriptor, F_SETFL, access | (direct == nil ? 0 : clinux_o_direct))
    if options.isLocked { try Self.lock(owner.descriptor, path: path, isReadOnly: options.isReadOnly) }

    self.path = path
    self.size = size
    self.logicalBlockSize = blockSize
    self.isReadOnly = options.isReadOnly
    self.isBlockDevice = isBlockDevice
    self.isDirect = direct != nil
    self.memoryAlignment = direct?.memory ?? 1
    self.physicalBlockSize = max(blockSize, Self.physicalBlockSize(owner.descriptor, info, isBlockDevice: isBlockDevice))
    let system = isBlockDevice ? nil : Self.fileSystem(owner.descriptor)
    self.isInMemory = isBlockDevice ? Self.isMemoryDevice(info) : system.map(Self.memoryFileSystems.contains) ?? false
    self.fillsHolesWhenTouched = system.map(Self.pageFileSystems.contains) ?? false
    self.isCached = direct == nil && system.map(Self.localFileSystems.contains) ?? false
    self.canDiscard =
      !options.isReadOnly && Self.canDiscard(owner.descriptor, info, size: size, isBlockDevice: isBlockDevice)
    self.canPoll = direct != nil && Self.canPoll(info, isBlockDevice: isBlockDevice)
    self.descriptor = owner.release()
  }

  deinit {
    // A ring that is being torn down in the kernel may hold the file for a moment longer; the lock must not wait for that.
    var lock = flock()
    lock.l_type = Int16(F_UNLCK)
    lock.l_whence = Int16(SEEK_SET)
    _ = unsafe clinux_fcntl_lock(descriptor, clinux_ofd_setlk, &lock)
    close(descriptor)
  }

  // MARK: What the file is

  /// A descriptor that is closed unless it is released.
  private struct Opened: ~Copyable {
    let descriptor: Int32
    init(_ descriptor: Int32) { self.descriptor = descriptor }
    consuming func release() -> Int32 {
      let descriptor = descriptor
      discard self
      return descriptor
    }
    deinit { close(descriptor) }
  }

  private static func open(_ path: String, _ flags: Int32, isReadOnly: Bool) throws(ImageError) -> Opened {
    let descriptor = unsafe clinux_open(path, flags, 0)
    guard descriptor < 0 else { return Opened(descriptor) }
    let error = Errno(rawValue: errno)
    switch error {
    case .permissionDenied, .notPermitted, .readOnlyFileSystem, .textFileBusy:
      if isReadOnly { throw .cannotOpen(path: path, error) }
      throw .notWritable(path: path, error)
    case .isDirectory: throw .notAFile(path: path)
    default: throw .cannotOpen(path: path, error)
    }
  }

  /// Open-file-description locks: they belong to this open file, are shared by all its threads, and go with its last
  /// descriptor. One writer, or any number of readers.
  private static func lock(_ descriptor: Int32, path: String, isReadOnly: Bool) throws(ImageError) {
    var lock = flock()
    lock.l_type = Int16(isReadOnly ? F_RDLCK : F_WRLCK)
    lock.l_whence = Int16(SEEK_SET)
    guard unsafe clinux_fcntl_lock(descriptor, clinux_ofd_setlk, &lock) != 0 else { return }
    // A file system without locks (some network ones) is no reason to refuse; only a holder is.
    if errno == EAGAIN || errno == EACCES { throw .locked(path: path) }
  }

  /// The alignment that direct I/O needs, by the kernel's word or by trying; `nil` when the file cannot do it.
  private static func directAlignment(_ descriptor: Int32, isBlockDevice: Bool) -> (memory: Int, offset: Int)? {
    var memory: UInt32 = 0
    var offset: UInt32 = 0
    if unsafe clinux_direct_io_alignment(descriptor, &memory, &offset) == 1 {
      return memory > 0 && offset > 0 ? (Int(memory), Int(offset)) : nil
    }
    // Reads of growing size into a well-aligned buffer find the offset's alignment, then the buffer moves.
    var buffer: UnsafeMutableRawPointer? = nil
    guard unsafe posix_memalign(&buffer, 8192, 16384) == 0, let buffer = unsafe buffer else { return nil }
    defer { unsafe free(buffer) }
    guard let offset = [512, 1024, 2048, 4096].first(where: { unsafe pread(descriptor, buffer, $0, 0) >= 0 }) else {
      return nil
    }
    let memory2 = [1, 4, 512, 4096].first { unsafe pread(descriptor, buffer + $0, offset, 0) >= 0 }
    return (memory2 ?? 4096, offset)
  }

  private static func physicalBlockSize(_ descriptor: Int32, _ info: stat, isBlockDevice: Bool) -> Int {
    var size: UInt32 = 0
    if isBlockDevice, unsafe clinux_block_physical_size(descriptor, &size) == 0 { return Int(size) }
    let preferred = Int(info.st_blksize)
    return preferred >= 512 && preferred <= 65536 && preferred & (preferred - 1) == 0 ? preferred : 4096
  }

  private static let pageFileSystems: [UInt32] = [0x0102_1994, 0x8584_58f6]  // tmpfs, ramfs
  private static let memoryFileSystems = pageFileSystems + [0x9584_58f6]  // and hugetlbfs

  /// ext2 to ext4, XFS, btrfs, F2FS. On NFS, CIFS, FUSE and the like a file also changes elsewhere, and a read asks whether it
  /// did, where a mapping does not.
  private static let localFileSystems: [UInt32] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010]

  private static func fileSystem(_ descriptor: Int32) -> UInt32? {
    var system = statfs()
    return unsafe fstatfs(descriptor, &system) == 0 ? UInt32(truncatingIfNeeded: system.f_type) : nil
  }

  private static func isMemoryDevice(_ info: stat) -> Bool {
    let name = linkTarget(folder(of: info.st_rdev))?.split(separator: "/").last ?? ""
    return name.hasPrefix("zram") || name.hasPrefix("ram") || name.hasPrefix("pmem")
  }

  /// Whether discarding gives space back: asked without touching any data, just past the end of a file.
  private static func canDiscard(_ descriptor: Int32, _ info: stat, size: UInt64, isBlockDevice: Bool) -> Bool {
    if isBlockDevice {
      return queueNumber("discard_max_bytes", of: info.st_rdev) > 0
    }
    let mode = Int32(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
    return fallocate(descriptor, mode, off_t(size), 4096) == 0
  }

  private static func canPoll(_ info: stat, isBlockDevice: Bool) -> Bool {
    queueNumber("io_poll", of: isBlockDevice ? info.st_rdev : info.st_dev) > 0
  }

  private static func folder(of device: dev_t) -> String {
    "/sys/dev/block/\(gnu_dev_major(device)):\(gnu_dev_minor(device))"
  }

  /// A number that the kernel tells about a block device's queue, 0 when it tells none. A partition's queue is its disk's.
  private static func queueNumber(_ name: String, of device: dev_t) -> UInt64 {
    let folder = folder(of: device)
    return readNumber("\(folder)/queue/\(name)") ?? readNumber("\(folder)/../queue/\(name)") ?? 0
  }

  private static func linkTarget(_ path: String) -> String? {
    unsafe withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 1) { buffer in
      let count = unsafe readlink(path, buffer.baseAddress!, buffer.count)
      return count > 0 ? unsafe String(decoding: buffer.prefix(count), as: UTF8.self) : nil
    }
  }

  private static func readNumber(_ path: String) -> UInt64? {
    let descriptor = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC, 0)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    return unsafe withUnsafeTemporaryAllocation(byteCount: 64, alignment: 1) { buffer in
      let count = unsafe read(descriptor, buffer.baseAddress!, buffer.count)
      guard count > 0 else { return nil }
      let text = unsafe String(decoding: buffer.prefix(count), as: UTF8.self)
      return UInt64(text.split(separator: "\n").first ?? "")
    }
  }
}
