/// Memory in which a device writes down what it has taken and not yet answered, so that whoever comes after it (itself, started
/// anew, or another device) knows what is left to do.
internal import CLinux
internal import Glibc
public import SystemPackage

/// Why a file is no memory for in-flight records.
public enum InflightError: Error, Hashable, Sendable, CustomStringConvertible {
  case badQueueCount(Int)
  case badQueueSize(UInt16)
  case misalignedOffset(UInt64, page: UInt64)
  /// Less is offered than the regions of all queues need.
  case tooSmall(size: UInt64, needed: UInt64)
  case rangeOverflows(offset: UInt64, size: UInt64)
  case fileTooSmall(fileSize: Int64, needed: UInt64)
  case notMade(Errno)
  case notMappable(Errno)

  public var description: String {
    switch self {
    case .badQueueCount(let count): "in-flight records of \(count) queues were asked for; there can be 1 to 256"
    case .badQueueSize(let size): "in-flight records of queues of \(size) entries were asked for; there can be 1 to 32768"
    case .misalignedOffset(let offset, let page):
      "the in-flight records begin at byte \(offset) of their file, which is no multiple of \(page)"
    case .tooSmall(let size, let needed): "the in-flight records have \(size) bytes, and the queues need \(needed)"
    case .rangeOverflows(let offset, let size):
      "the in-flight records with \(size) bytes at byte \(offset) of their file go past the end of what a file can have"
    case .fileTooSmall(let fileSize, let needed):
      "the file of the in-flight records has \(fileSize) bytes, and the records end at byte \(needed)"
    case .notMade(let error): "there is no memory for in-flight records: \(error)"
    case .notMappable(let error): "the in-flight records cannot be mapped: \(error)"
    }
  }
}

/// Regions, one for each queue, one after the other, in the layout that vhost-user gives them ("Inflight I/O tracking") and
/// that other back-ends have, too. It outlives the device: a front-end keeps the descriptor and hands it to the next one.
///
/// Front-end and device see it, a guest does not. Still nothing in it is believed: whoever can write it may harm its own guest
/// and nobody else.
@safe
public final class InflightMemory: Sendable {
  /// Split rings: bytes before the entries, and bytes of each entry, of which there is one for each descriptor.
  static let headerBytes = 16
  static let entryBytes = 16
  /// The same for packed rings.
  private static let packedHeaderBytes = PackedRecordOffset.header
  private static let packedEntryBytes = PackedRecordOffset.entry
  /// Each region is a multiple of this, as it is elsewhere.
  private static let alignment = 64

  /// The file, for whoever is to keep it.
  public let descriptor: OwnedDescriptor
  /// Bytes of all regions, or what came with the file, which may be more.
  public let size: UInt64
  /// Where in the file the regions begin, bytes.
  public let offset: UInt64
  public let queueCount: Int
  /// The largest ring whose heads a region has room for.
  public let queueSize: UInt16
  /// The regions are laid out for packed rings.
  public let isPacked: Bool
  private let mapping: Mapping

  /// More is mapped than is used, so that whatever head a link names has its entry in the mapping, and links can be followed
  /// unchecked. What is not in the file is a fault there, as in a file that was cut, and stops the queue.
  private static let beyond = UInt64(headerBytes + entryBytes * (Int(UInt16.max) + 1))

  /// A new file in memory, full of zeroes, which nobody can cut.
  ///
  /// - Parameters:
  ///   - queueCount: 1 … 256.
  ///   - queueSize: of the largest ring, 1 … 32768.
  ///   - isPacked: the rings are packed ones.
  public static func create(
    queueCount: Int, queueSize: UInt16, isPacked: Bool = false
  ) throws(InflightError) -> InflightMemory {
    let size = try bytes(queueCount: queueCount, queueSize: queueSize, isPacked: isPacked)
    let number = unsafe memfd_create("vmm-blk-inflight", UInt32(MFD_CLOEXEC) | UInt32(MFD_ALLOW_SEALING))
    guard number >= 0 else { throw .notMade(Errno(rawValue: errno)) }
    let descriptor = OwnedDescriptor(number)
    guard ftruncate(number, off_t(size)) == 0 else { throw .notMade(Errno(rawValue: errno)) }
    // Against others who hold it: a page that is gone would stop the queue.
    guard fcntl(number, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0 else {
      throw .notMade(Errno(rawValue: errno))
    }
    return try InflightMemory(
      descriptor: descriptor, size: size, offset: 0, queueCount: queueCount, queueSize: queueSize, isPacked: isPacked)
  }

  /// The file of somebody else. Asks its file system, which may take forever: not for a control thread.
  ///
  /// - Parameters:
  ///   - descriptor: open for reading and writing; whoever closes it unmaps the memory, too.
  ///   - size: bytes that are offered; at least what the queues need.
  ///   - offset: where they begin, bytes, a multiple of the page size.
  ///   - queueCount: 1 … 256.
  ///   - queueSize: that the regions were laid out for, 1 … 32768.
  ///   - isPacked: they were laid out for packed rings.
  public init(
    descriptor: OwnedDescriptor, size: UInt64, offset: UInt64, queueCount: Int, queueSize: UInt16, isPacked: Bool = false
  ) throws(InflightError) {
    let needed = try Self.bytes(queueCount: queueCount, queueSize: queueSize, isPacked: isPacked)
    guard size >= needed else { throw .tooSmall(size: size, needed: needed) }
    // Half of the signed range, so that rounding to a page cannot overflow either.
    let (end, overflow) = offset.addingReportingOverflow(size)
    guard !overflow, end <= UInt64(Int64.max / 2) else { throw .rangeOverflows(offset: offset, size: size) }
    var information = stat()
    guard unsafe fstat(descriptor.rawValue, &information) == 0 else { throw .notMappable(Errno(rawValue: errno)) }
    guard information.st_mode & S_IFMT == S_IFREG else { throw .notMappable(.invalidArgument) }
    // Touching what is mapped past the end of a file is a fault.
    guard UInt64(max(information.st_size, 0)) >= offset + needed else {
      throw .fileTooSmall(fileSize: Int64(information.st_size), needed: offset + needed)
    }
    // On hugetlbfs a page is the block of the file.
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

  private static func map(
    _ descriptor: OwnedDescriptor, offset: UInt64, needed: UInt64, page: UInt64
  ) throws(Errno) -> Mapping {
    try Mapping(
      descriptor: descriptor.rawValue, offset: Int64(offset), count: Int((needed + beyond + page - 1) / page * page),
      unmappedBy: descriptor.disposer)
  }

  /// What the regions of so many queues need, bytes.
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

  /// Some page of it is gone: whoever else holds the file cut it. What is written here is lost then.
  public var hasFaulted: Bool { mapping.faults > 0 }

  /// Makes all regions new: what is in them is about rings that are no more. No queue may be using them.
  public func forget() {
    for queue in 0..<queueCount {
      guard let region = unsafe region(ofQueue: queue) else { continue }
      unsafe SharedCell<UInt16>(region + 8).storeRelease(0)
    }
  }

  /// Makes a queue's region new if nothing in it is in flight: whatever ring comes next begins where its driver says. The
  /// queue is stopped.
  public func forgetIfOver(queue: Int) {
    guard let region = unsafe region(ofQueue: queue) else { return }
    let header = isPacked ? Self.packedHeaderBytes : Self.headerBytes
    let entry = isPacked ? Self.packedEntryBytes : Self.entryBytes
    for index in 0..<Int(queueSize) {
      // The mark is an entry's first byte in either layout.
      guard unsafe SharedCell<UInt8>(region + (header + index * entry)).loadRelaxed() == 0 else { return }
    }
    unsafe SharedCell<UInt16>(region + 8).storeRelease(0)
  }

  /// Where a queue's region begins; `nil` for a queue that has none. Valid for as long as this is.
  @usableFromInline func region(ofQueue queue: Int) -> UnsafeMutableRawPointer? {
    guard (0..<queueCount).contains(queue) else { return nil }
    return unsafe mapping.base + queue * Self.regionBytes(queueSize: queueSize, isPacked: isPacked)
  }
}
