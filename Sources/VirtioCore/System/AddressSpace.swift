/// How much of this process's address space may be used for mappings that other processes ask for.
internal import CLinux
internal import Glibc
internal import Synchronization
public import SystemPackage

/// A budget of bytes and of mappings. A front-end can ask for any number of mappings of any size; enough has to be left for
/// threads, for the heap and for other front-ends, because a program that gets no memory crashes.
public final class AddressSpace: Sendable {
  /// The budget of this process, with limits taken from the system on first use.
  public static let shared = AddressSpace(bytes: SystemLimits.bytes, mappings: SystemLimits.mappings)

  /// Bytes that may be reserved at once.
  public let bytes: UInt64
  /// Mappings that there may be at once.
  public let mappings: Int
  private let used = Mutex((bytes: UInt64(0), mappings: 0))

  /// - Parameters:
  ///   - bytes: the most that may be reserved at once.
  ///   - mappings: the most that there may be at once.
  public init(bytes: UInt64, mappings: Int) {
    self.bytes = bytes
    self.mappings = mappings
  }

  /// Takes room for one mapping out of the budget, to be given back with `release`.
  ///
  /// - Throws: ENOMEM if less than that is left.
  public func reserve(_ count: Int) throws(Errno) {
    let isThere = used.withLock { used in
      let wanted = UInt64(max(count, 0))
      guard used.mappings < mappings, used.bytes <= bytes, wanted <= bytes - used.bytes else { return false }
      used.mappings += 1
      used.bytes += wanted
      return true
    }
    guard isThere else { throw .noMemory }
  }

  /// Most of it is left: a mapping that only makes something faster may be made.
  public var isAmple: Bool { used.withLock { $0.mappings < mappings / 4 && $0.bytes < bytes / 2 } }

  /// Mappings that are reserved at this moment.
  var reserved: Int { used.withLock(\.mappings) }

  /// Returns what one `reserve` took. - Parameter count: the same bytes.
  public func release(_ count: Int) {
    used.withLock { used in
      used.mappings -= 1
      used.bytes -= UInt64(max(count, 0))
    }
  }
}

private enum SystemLimits {
  /// The smaller of the CPU's address space and the limit of the process (RLIMIT_AS), less what is in use already and a
  /// sixteenth, at least 256 MiB, for whatever else the program needs.
  static var bytes: UInt64 {
    var limit = addressable
    var allowed = rlimit()
    if unsafe getrlimit(__rlimit_resource_t(UInt32(RLIMIT_AS.rawValue)), &allowed) == 0, UInt64(allowed.rlim_cur) < limit {
      limit = UInt64(allowed.rlim_cur)
    }
    let kept = max(limit / 16, 256 << 20) + inUse
    return limit > kept ? limit - kept : 0
  }

  /// Derived from the stack, which lies at the upper end of a program's addresses: 47 bits on x86-64, 39 to 52 on Arm.
  private static var addressable: UInt64 {
    var local: UInt8 = 0
    let address = unsafe withUnsafeMutablePointer(to: &local) { UInt64(UInt(bitPattern: $0)) }
    return 1 << UInt64(64 - address.leadingZeroBitCount)
  }

  /// Bytes that are mapped now; 0 if the system does not tell.
  private static var inUse: UInt64 {
    guard let words = firstWords(of: "/proc/self/statm"), let pages = UInt64(words) else { return 0 }
    return pages &* UInt64(PageSize.bytes)
  }

  /// vm.max_map_count less an eighth, which is kept for threads, libraries and mappings that get split; never more than the
  /// fault table can guard.
  static var mappings: Int {
    let most = firstWords(of: "/proc/sys/vm/max_map_count").flatMap { Int($0) } ?? 65530
    return min(max(most - most / 8, 0), FaultTable.room)
  }

  /// The first word of a small file of the kernel.
  private static func firstWords(of path: String) -> String? {
    let descriptor = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC, 0)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    var text = [UInt8](repeating: 0, count: 64)
    let count = unsafe text.withUnsafeMutableBytes { unsafe read(descriptor, $0.baseAddress, $0.count) }
    guard count > 0 else { return nil }
    return String(decoding: text[..<count].prefix { $0 > 32 }, as: UTF8.self)
  }
}
