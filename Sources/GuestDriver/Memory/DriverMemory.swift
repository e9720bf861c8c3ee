/// Guest memory as the driver sees it: regions at guest addresses of its choice, which it fills, allocates and watches.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage
public import VirtioCore

/// The whole of a guest's memory. It owns the mappings; buffers and rings are handed out by `allocate`.
///
/// Addresses passed to it come from the driver, so a wrong one is our mistake and fails a precondition. All methods can be
/// called from any thread; the bytes themselves are shared with the device, without any synchronization.
@safe
public final class DriverMemory: Sendable {
  /// One region: a guest-physical range, its place in this process, and the file behind it, if any.
  public struct Region: Sendable {
    public let start: GuestAddress
    /// Bytes, at least 1.
    public let size: Int
    public let mapping: Mapping
    /// Where in the mapping the region begins, bytes.
    public let offset: Int
    /// What another process can map, and from which offset on.
    public let descriptor: OwnedDescriptor?
    public let fileOffset: UInt64

    public init(
      start: GuestAddress, size: Int, mapping: Mapping, offset: Int = 0, descriptor: OwnedDescriptor? = nil,
      fileOffset: UInt64 = 0
    ) {
      self.start = start
      self.size = size
      self.mapping = mapping
      self.offset = offset
      self.descriptor = descriptor
      self.fileOffset = fileOffset
    }

    var host: UnsafeMutableRawPointer { unsafe mapping.base + offset }
    func contains(_ address: GuestAddress) -> Bool {
      address >= start && address.rawValue &- start.rawValue < UInt64(size)
    }
  }

  /// Sorted by guest address.
  public let regions: [Region]
  let allocator: Mutex<GuestAllocator>

  public init(_ regions: [Region]) throws(DriverError) {
    let sorted = regions.sorted { $0.start < $1.start }
    var end: UInt64 = 0
    for region in sorted {
      let (last, overflow) = region.start.rawValue.addingReportingOverflow(UInt64(max(region.size, 1)) - 1)
      guard
        region.size > 0, !overflow, region.start.rawValue >= end, region.offset >= 0,
        region.offset <= region.mapping.count - region.size
      else { throw .badRegion(region.start, size: region.size) }
      end = last == .max ? .max : last + 1
    }
    self.regions = sorted
    allocator = Mutex(GuestAllocator(sizes: sorted.map(\.size)))
  }

  /// Fresh zeroed memory in one anonymous file that can be handed to another process; a mapping for each region.
  ///
  /// - Parameter layout: guest address and bytes of each region, whole pages.
  public convenience init(anonymous layout: [(start: GuestAddress, size: Int)]) throws(DriverError) {
    let page = Int(sysconf(Int32(_SC_PAGESIZE)))
    for (start, size) in layout where size <= 0 || size % page != 0 { throw .badRegion(start, size: size) }
    let number = unsafe memfd_create("guest-memory", UInt32(MFD_CLOEXEC))
    guard number >= 0 else { throw .system("memfd_create for guest memory", Errno(rawValue: errno)) }
    let descriptor = OwnedDescriptor(number)
    guard ftruncate(number, off_t(layout.reduce(0) { $0 + $1.size })) == 0 else {
      throw .system("ftruncate of guest memory", Errno(rawValue: errno))
    }
    var regions: [Region] = []
    var offset = 0
    for (start, size) in layout {
      let mapping: Mapping
      do { mapping = try Mapping(descriptor: number, offset: Int64(offset), count: size) } catch {
        throw .system("mmap of guest memory", error)
      }
      regions.append(
        Region(start: start, size: size, mapping: mapping, descriptor: descriptor, fileOffset: UInt64(offset)))
      offset += size
    }
    try self.init(regions)
  }

  /// One region of fresh memory. - Parameter size: bytes, whole pages.
  public convenience init(size: Int, at start: GuestAddress = GuestAddress(0)) throws(DriverError) {
    try self.init(anonymous: [(start, size)])
  }

  /// The host address of bytes that lie in one region; `nil` otherwise.
  func host(_ address: GuestAddress, count: Int) -> UnsafeMutableRawPointer? {
    guard let region = region(of: address) else { return nil }
    let distance = Int(address.rawValue - region.start.rawValue)
    guard count >= 0, count <= region.size - distance else { return nil }
    return unsafe region.host + distance
  }

  private func region(of address: GuestAddress) -> Region? {
    var low = 0
    var high = regions.count
    while low < high {
      let middle = (low + high) / 2
      if regions[middle].start <= address { low = middle + 1 } else { high = middle }
    }
    guard low > 0, regions[low - 1].contains(address) else { return nil }
    return regions[low - 1]
  }

  /// Whether all bytes of the range are memory, possibly in several regions.
  public func contains(_ address: GuestAddress, count: Int) -> Bool {
    var next = address
    var remaining = count
    while remaining > 0 {
      guard let region = region(of: next) else { return false }
      let here = min(remaining, region.size - Int(next.rawValue - region.start.rawValue))
      remaining -= here
      guard remaining > 0 else { break }
      guard let following = next.advanced(by: UInt64(here)) else { return false }
      next = following
    }
    return true
  }

  /// The bytes of a range, which may span adjacent regions.
  public func bytes(at address: GuestAddress, count: Int) -> [UInt8] {
    var result: [UInt8] = []
    result.reserveCapacity(count)
    unsafe forEachPiece(address, count) { piece in unsafe result.append(contentsOf: piece) }
    return result
  }

  /// Stores bytes, across adjacent regions if needed.
  public func store(_ bytes: [UInt8], at address: GuestAddress) {
    var done = 0
    unsafe forEachPiece(address, bytes.count) { piece in
      unsafe bytes.withUnsafeBytes { source in
        unsafe piece.copyMemory(from: UnsafeRawBufferPointer(rebasing: source[done..<done + piece.count]))
      }
      done += piece.count
    }
  }

  /// Stores an integer, little-endian.
  public func store<Value: FixedWidthInteger>(_ value: Value, at address: GuestAddress) {
    store((0..<Value.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> Value($0 * 8)) }, at: address)
  }

  /// Loads a little-endian integer.
  public func load<Value: FixedWidthInteger>(_ type: Value.Type, at address: GuestAddress) -> Value {
    bytes(at: address, count: Value.bitWidth / 8).reversed().reduce(0) { $0 << 8 | Value(truncatingIfNeeded: $1) }
  }

  func forEachPiece(_ address: GuestAddress, _ count: Int, _ body: (UnsafeMutableRawBufferPointer) -> Void) {
    var next = address
    var remaining = count
    while remaining > 0 {
      guard let region = region(of: next) else { preconditionFailure("\(next) is not in guest memory") }
      let distance = Int(next.rawValue - region.start.rawValue)
      let here = min(remaining, region.size - distance)
      unsafe body(UnsafeMutableRawBufferPointer(start: region.host + distance, count: here))
      remaining -= here
      guard remaining > 0 else { break }
      guard let following = next.advanced(by: UInt64(here)) else { preconditionFailure("the range leaves 64 bits") }
      next = following
    }
  }
}
