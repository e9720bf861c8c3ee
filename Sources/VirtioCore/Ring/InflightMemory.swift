/// Memory in which a device records the requests in flight, so that its successor (itself after a restart, or another device)
/// knows what is left to do.
internal import CLinux
internal import Glibc
public import SystemPackage

/// Why a file cannot hold in-flight records.
public enum InflightError: Error, Hashable, Sendable, CustomStringConvertible {
  /// Not 1 … 256 queues.
  case badQueueCount(Int)
  /// Not 1 … 32768 entries.
  case badQueueSize(UInt16)
  /// The records do not begin at a page of the file; bytes.
  case misalignedOffset(UInt64, page: UInt64)
  /// The file is smaller than the regions of all queues.
  case tooSmall(size: UInt64, needed: UInt64)
  /// They would end beyond the largest offset that a file can have; bytes.
  case rangeOverflows(offset: UInt64, size: UInt64)
  /// The file ends before the records do; bytes.
  case fileTooSmall(fileSize: Int64, needed: UInt64)
  /// The system gave no memory for new records.
  case notMade(Errno)
  /// The system refused the mapping.
  case notMappable(Errno)

  /// One sentence for a person: what happened, and with what.
  public var description: String {
    switch self {
    case .badQueueCount(let count): "in-flight records for \(count) queues were requested; there can be 1 to 256"
    case .badQueueSize(let size): "in-flight records for queues of \(size) entries were requested; there can be 1 to 32768"
    case .misalignedOffset(let offset, let page):
      "the in-flight records begin at byte \(offset) of their file, which is not a multiple of \(page)"
    case .tooSmall(let size, let needed): "the in-flight records have \(size) bytes, and the queues need \(needed)"
    case .rangeOverflows(let offset, let size):
      "in-flight records of \(size) bytes at byte \(offset) of their file end beyond the largest offset that a file can have"
    case .fileTooSmall(let fileSize, let needed):
      "the file of the in-flight records has \(fileSize) bytes, and the records end at byte \(needed)"
    case .notMade(let error): "there is no memory for in-flight records: \(error)"
    case .notMappable(let error): "the in-flight records cannot be mapped: \(error)"
    }
  }
}

/// The in-flight records of a device's queues.
///
/// One region for each queue, one after the other, in vhost-user's layout ("Inflight I/O tracking"), which other back-ends use,
/// too. It outlives the device: a front-end keeps the descriptor and hands it to the next one.
///
/// Front-end and device can access it, a guest cannot. Still, its contents are not trusted: a process that can write to it can
/// harm only its own guest.
@safe
public final class InflightMemory: Sendable {
  /// Split rings: bytes before the entries, and bytes of each entry; there is one entry for each descriptor.
  static let headerBytes = 16
  static let entryBytes = 16
  /// The same for packed rings.
  private static let packedHeaderBytes = PackedRecordOffset.header
  private static let packedEntryBytes = PackedRecordOffset.entry
  /// Each region's size is a multiple of this, as in other implementations.
  private static let alignment = 64

  /// The file, to be handed to the front-end that keeps it.
  public let descriptor: OwnedDescriptor
  /// Size in bytes of all regions and of the kept configuration behind them, or the size that was given with the file.
  public let size: UInt64
  /// Where in the file the regions begin, bytes.
  public let offset: UInt64
  /// Queues that have a region: 1 … 256.
  public let queueCount: Int
  /// The largest ring whose heads a region has room for.
  public let queueSize: UInt16
  /// The regions are laid out for packed rings.
  public let isPacked: Bool
  private let mapping: Mapping
  /// The word behind the regions (see `KeptConfiguration`); `nil` if there is no room for it.
  var kept: SharedCell<UInt64>? {
    guard hasRoomBehind else { return nil }
    return unsafe SharedCell(mapping.base + queueCount * Self.regionBytes(queueSize: queueSize, isPacked: isPacked))
  }
  private let hasRoomBehind: Bool
  /// The file is in memory, as one made by `create`: accessing its pages does not block. Other file systems may be served by a
  /// process that never answers; only helper threads and workers access those.
  public let isInMemory: Bool

  /// More is mapped than is used, so that the entry of any head that a link names lies in the mapping, and links can be
  /// followed unchecked. Access past the end of the file is a fault, as in a file that was truncated, and stops the queue.
  private static let beyond = UInt64(headerBytes + entryBytes * (Int(UInt16.max) + 1))

  /// A new file in memory, full of zeroes, sealed against truncation.
  ///
  /// - Parameters:
  ///   - queueCount: 1 … 256.
  ///   - queueSize: of the largest ring, 1 … 32768.
  ///   - isPacked: the rings are packed ones.
  public static func create(
    queueCount: Int, queueSize: UInt16, isPacked: Bool = false
  ) throws(InflightError) -> InflightMemory {
    let size = try bytes(queueCount: queueCount, queueSize: queueSize, isPacked: isPacked) + keepingBytes
    let number = unsafe memfd_create("vmm-blk-inflight", UInt32(MFD_CLOEXEC) | UInt32(MFD_ALLOW_SEALING))
    guard number >= 0 else { throw .notMade(Errno(rawValue: errno)) }
    let descriptor = OwnedDescriptor(number)
    guard ftruncate(number, off_t(size)) == 0 else { throw .notMade(Errno(rawValue: errno)) }
    // Sealed, because other processes have the descriptor: a page that is gone would stop the queue.
    guard fcntl(number, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0 else {
      throw .notMade(Errno(rawValue: errno))
    }
    return try InflightMemory(
      descriptor: descriptor, size: size, offset: 0, queueCount: queueCount, queueSize: queueSize, isPacked: isPacked)
  }

  /// Maps a file that comes from outside. Calls into its file system, which may block forever: not for a control thread.
  ///
  /// - Parameters:
  ///   - descriptor: open for reading and writing; the memory is unmapped by its disposer.
  ///   - size: size of the area, in bytes; at least `bytes(queueCount:queueSize:isPacked:)`.
  ///   - offset: where the regions begin, bytes, a multiple of the page size.
  ///   - queueCount: 1 … 256.
  ///   - queueSize: the queue size that the regions were laid out for, 1 … 32768.
  ///   - isPacked: they were laid out for packed rings.
  public init(
    descriptor: OwnedDescriptor, size: UInt64, offset: UInt64, queueCount: Int, queueSize: UInt16, isPacked: Bool = false
  ) throws(InflightError) {
    let needed = try Self.bytes(queueCount: queueCount, queueSize: queueSize, isPacked: isPacked)
    guard size >= needed else { throw .tooSmall(size: size, needed: needed) }
    // Half of the signed range, so that rounding up to a page cannot overflow either.
    let (end, overflow) = offset.addingReportingOverflow(size)
    guard !overflow, end <= UInt64(Int64.max / 2) else { throw .rangeOverflows(offset: offset, size: size) }
    var information = stat()
    guard unsafe fstat(descriptor.rawValue, &information) == 0 else { throw .notMappable(Errno(rawValue: errno)) }
    guard information.st_mode & S_IFMT == S_IFREG else { throw .notMappable(.invalidArgument) }
    // Touching a mapping past the end of its file is a fault.
    guard UInt64(max(information.st_size, 0)) >= offset + needed else {
      throw .fileTooSmall(fileSize: Int64(information.st_size), needed: offset + needed)
    }
    let whole = needed + Self.keepingBytes
    isInMemory = Self.isInMemory(descriptor)
    // The kept configuration is read and written by a control thread, which must not block.
    hasRoomBehind = isInMemory && size >= whole && UInt64(max(information.st_size, 0)) >= offset + whole
    // On hugetlbfs a page is the file's block size.
    let page = UInt64(max(PageSize.bytes, Int(information.st_blksize).nonzeroBitCount == 1 ? Int(information.st_blksize) : 0))
    let ordinary = UInt64(PageSize.bytes)
    guard offset % ordinary == 0 else { throw .misalignedOffset(offset, page: ordinary) }
    do throws(Errno) {
      mapping = try Self.map(descriptor, offset: offset, needed: needed, page: offset % page == 0 ? page : ordinary)
    } catch { throw .notMappable(error) }
    self.descriptor = descriptor
    self.size = size
    self.offset = offset
    self.queueCount = queueCount
    self.queueSize = queueSize
    self.isPacked = isPacked
  }

  private static func isInMemory(_ descriptor: OwnedDescriptor) -> Bool {
    var system = statfs()
    guard unsafe fstatfs(descriptor.rawValue, &system) == 0 else { return false }
    // tmpfs, which memfd_create uses as well, and hugetlbfs.
    return [0x0102_1994, 0x9584_58f6].contains(UInt32(truncatingIfNeeded: system.f_type))
  }

  private static func map(
    _ descriptor: OwnedDescriptor, offset: UInt64, needed: UInt64, page: UInt64
  ) throws(Errno) -> Mapping {
    try Mapping(
      descriptor: descriptor.rawValue, offset: Int64(offset), count: Int((needed + beyond + page - 1) / page * page),
      unmappedBy: descriptor.disposer)
  }

  /// Bytes that the regions of all queues need.
  public static func bytes(
    queueCount: Int, queueSize: UInt16, isPacked: Bool = false
  ) throws(InflightError) -> UInt64 {
    guard (1...256).contains(queueCount) else { throw .badQueueCount(queueCount) }
    guard (1...32768).contains(queueSize) else { throw .badQueueSize(queueSize) }
    return UInt64(queueCount * regionBytes(queueSize: queueSize, isPacked: isPacked))
  }

  private static func regionBytes(queueSize: UInt16, isPacked: Bool) -> Int {
    let bytes =
      isPacked ? packedHeaderBytes + packedEntryBytes * Int(queueSize) : headerBytes + entryBytes * Int(queueSize)
    return (bytes + alignment - 1) / alignment * alignment
  }

  /// Some page of it is gone: another process truncated the file. Writes to it are lost then.
  public var hasFaulted: Bool { mapping.faults > 0 }

  /// Clears all regions and the kept configuration: they describe rings and a driver that no longer exist. No queue may be
  /// using them. Like `forgetIfOver`, not for a control thread unless `isInMemory`.
  public func forget() {
    keep(nil)
    for queue in 0..<queueCount {
      guard let region = unsafe region(ofQueue: queue) else { continue }
      unsafe SharedCell<UInt16>(region + 8).storeRelease(0)
    }
  }

  /// `forgetIfOver`, or `forget` if no queue is named.
  public func forget(queue: Int?) {
    if let queue { forgetIfOver(queue: queue) } else { forget() }
  }

  /// Clears a queue's region if nothing in it is in flight: the next ring starts where its driver says. The queue must be
  /// stopped.
  public func forgetIfOver(queue: Int) {
    guard let region = unsafe region(ofQueue: queue) else { return }
    let header = isPacked ? Self.packedHeaderBytes : Self.headerBytes
    let entry = isPacked ? Self.packedEntryBytes : Self.entryBytes
    for index in 0..<Int(queueSize) {
      // The mark is the first byte of an entry in both layouts.
      guard unsafe SharedCell<UInt8>(region + (header + index * entry)).loadRelaxed() == 0 else { return }
    }
    unsafe SharedCell<UInt16>(region + 8).storeRelease(0)
  }

  /// Where a queue's region begins; `nil` if the queue has none. Valid as long as this object exists.
  @usableFromInline func region(ofQueue queue: Int) -> UnsafeMutableRawPointer? {
    guard (0..<queueCount).contains(queue) else { return nil }
    return unsafe mapping.base + queue * Self.regionBytes(queueSize: queueSize, isPacked: isPacked)
  }
}
