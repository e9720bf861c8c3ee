/// A memory file, created or opened, checked and mapped: the part that both ends have in common.
internal import CLinux
internal import Glibc
internal import SystemPackage
public import VirtioCore
public import VirtioRegisters

/// A file with a header, a control block and a guest's memory, mapped as a whole. Guest memory and control block can change at
/// any moment; the header was copied and checked once and is not read again.
public final class MemoryFile: Sendable {
  public let path: String
  public let layout: MemoryFileLayout
  /// The guest's memory, one region.
  public let memory: GuestMemory
  let mapping: Mapping
  let control: ControlBlock
  /// Its open file description holds the locks of the roles: a process that is given the descriptor has the same roles.
  public let descriptor: OwnedDescriptor

  /// Creates a new file and opens it. Its space is reserved, so that a full file system is noticed here and not in the middle
  /// of a request.
  ///
  /// - Parameters:
  ///   - memorySize: bytes of guest memory, a multiple of 4096.
  ///   - memoryBase: guest-physical address of its first byte, a multiple of 4096.
  ///   - maximumQueues: 1 … 1024.
  ///   - interface: the registers that the mailbox accesses.
  public static func create(
    path: String, memorySize: UInt64, memoryBase: GuestAddress = GuestAddress(0), maximumQueues: Int,
    interface: RegisterInterface = .mmio
  ) throws(MemoryFileError) -> MemoryFile {
    guard
      let layout = MemoryFileLayout(
        memorySize: memorySize, memoryBase: memoryBase, maximumQueues: maximumQueues, interface: interface)
    else { throw .badSize(path: path, size: memorySize) }
    let number = unsafe clinux_open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    guard number >= 0 else {
      if errno == EEXIST { throw .exists(path: path) }
      throw .system(path: path, action: "create", Errno(rawValue: errno))
    }
    let descriptor = OwnedDescriptor(number)
    do {
      try reserve(descriptor, layout.fileSize, path: path)
      // The magic number is written last, so that an incomplete file is never taken for a complete one.
      try write(layout.encoded(magic: 0), to: descriptor, path: path)
      try write(layout.encoded(magic: MemoryFileLayout.magic), to: descriptor, path: path)
      return try MemoryFile(path: path, layout: layout, descriptor: descriptor)
    } catch {
      _ = unsafe unlink(path)
      throw error
    }
  }

  /// Opens an existing file, whoever has created it.
  public static func open(path: String) throws(MemoryFileError) -> MemoryFile {
    let number = unsafe clinux_open(path, O_RDWR | O_CLOEXEC, 0)
    guard number >= 0 else { throw .system(path: path, action: "open", Errno(rawValue: errno)) }
    let descriptor = OwnedDescriptor(number)
    let layout = try readLayout(descriptor, path: path)
    return try MemoryFile(path: path, layout: layout, descriptor: descriptor)
  }

  /// Takes over the file of another process, with the roles that its open file description holds.
  ///
  /// - Parameters:
  ///   - descriptor: that process's, open for reading and writing.
  ///   - path: the path of the file; if another file is there, it is refused.
  public static func adopt(_ descriptor: OwnedDescriptor, path: String) throws(MemoryFileError) -> MemoryFile {
    var (given, named) = (stat(), stat())
    guard unsafe fstat(descriptor.rawValue, &given) == 0, unsafe stat(path, &named) == 0 else {
      throw .system(path: path, action: "examine", Errno(rawValue: errno))
    }
    guard given.st_dev == named.st_dev, given.st_ino == named.st_ino else { throw .notTheSame(path: path) }
    let layout = try readLayout(descriptor, path: path)
    return try MemoryFile(path: path, layout: layout, descriptor: descriptor)
  }

  /// The checked header of an open file.
  public static func readLayout(_ descriptor: OwnedDescriptor, path: String) throws(MemoryFileError) -> MemoryFileLayout {
    var status = stat()
    guard unsafe fstat(descriptor.rawValue, &status) == 0 else {
      throw .system(path: path, action: "examine", Errno(rawValue: errno))
    }
    guard status.st_mode & S_IFMT == S_IFREG else { throw .notAMemoryFile(path: path, reason: "it is not a regular file") }
    var header = [UInt8](repeating: 0, count: MemoryFileLayout.headerSize)
    let count = unsafe header.withUnsafeMutableBytes { unsafe pread(descriptor.rawValue, $0.baseAddress, $0.count, 0) }
    guard count >= 0 else { throw .system(path: path, action: "read", Errno(rawValue: errno)) }
    return try MemoryFileLayout(
      decoding: Array(header.prefix(count)), actualSize: UInt64(max(status.st_size, 0)), path: path)
  }

  private init(path: String, layout: MemoryFileLayout, descriptor: OwnedDescriptor) throws(MemoryFileError) {
    self.path = path
    self.layout = layout
    self.descriptor = descriptor
    do { mapping = try Mapping(descriptor: descriptor.rawValue, count: Int(layout.fileSize)) } catch {
      throw .system(path: path, action: "map", error)
    }
    control = ControlBlock(mapping: mapping, layout: layout)
    do {
      memory = try GuestMemory([
        GuestRegion(
          start: layout.memoryBase, size: layout.memorySize, mapping: mapping, offset: Int(layout.memoryOffset))
      ])
    } catch { throw .notAMemoryFile(path: path, reason: "\(error)") }
  }

  private static func reserve(_ descriptor: OwnedDescriptor, _ size: UInt64, path: String) throws(MemoryFileError) {
    guard ftruncate(descriptor.rawValue, off_t(size)) == 0 else {
      throw .system(path: path, action: "size", Errno(rawValue: errno))
    }
    // If the file system cannot reserve space, the file is used without a reservation.
    if fallocate(descriptor.rawValue, 0, 0, off_t(size)) != 0, errno != EOPNOTSUPP {
      throw .system(path: path, action: "reserve the space of", Errno(rawValue: errno))
    }
  }

  private static func write(_ bytes: [UInt8], to descriptor: OwnedDescriptor, path: String) throws(MemoryFileError) {
    let count = unsafe bytes.withUnsafeBytes { unsafe pwrite(descriptor.rawValue, $0.baseAddress, $0.count, 0) }
    guard count == bytes.count else { throw .system(path: path, action: "write", Errno(rawValue: errno)) }
  }
}

/// The roles of device and driver: open-file-description locks on the file's first two bytes. The kernel drops them with the
/// process, however it ends, so a lock is a better sign of life than any number in the file.
extension MemoryFile {
  enum Side: off_t {
    case device = 0
    case driver = 1
  }

  /// - Returns: false if another process has that role already.
  func take(_ side: Side) -> Bool {
    var lock = Self.lock(side, type: Int16(F_WRLCK))
    return unsafe clinux_fcntl_lock(descriptor.rawValue, clinux_ofd_setlk, &lock) == 0
  }

  func release(_ side: Side) {
    var lock = Self.lock(side, type: Int16(F_UNLCK))
    _ = unsafe clinux_fcntl_lock(descriptor.rawValue, clinux_ofd_setlk, &lock)
  }

  /// Whether another process has that role.
  func isTaken(_ side: Side) -> Bool { Self.isTaken(side, descriptor) }

  static func isTaken(_ side: Side, _ descriptor: OwnedDescriptor) -> Bool {
    var lock = lock(side, type: Int16(F_WRLCK))
    guard unsafe clinux_fcntl_lock(descriptor.rawValue, clinux_ofd_getlk, &lock) == 0 else { return false }
    return lock.l_type != Int16(F_UNLCK)
  }

  private static func lock(_ side: Side, type: Int16) -> flock {
    var lock = flock()
    lock.l_type = type
    lock.l_whence = Int16(SEEK_SET)
    lock.l_start = side.rawValue
    lock.l_len = 1
    return lock
  }
}
