/// A mapping of a file that somebody else may cut short: touching what is gone raises SIGBUS, which becomes a count here
/// instead of the end of the process.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// Its pages that fault are replaced by empty ones, so that a copy under way comes to its end; whoever made the copy sees that
/// the count moved, and must not use the mapping any more.
@safe
final class GuardedMapping: @unchecked Sendable {
  let base: UnsafeMutableRawPointer
  private let mapping: Mapping
  private let entry: Int

  init(descriptor: Int32, count: Int, readOnly: Bool) throws(Errno) {
    mapping = try Mapping(descriptor: descriptor, count: count, readOnly: readOnly)
    unsafe base = mapping.base
    guard let entry = unsafe FaultTable.shared.add(base, count: count) else { throw .tooManyOpenFiles }
    self.entry = entry
  }

  deinit { FaultTable.shared.remove(entry) }

  /// How often a page was not there so far.
  var faults: UInt32 { FaultTable.shared.faults(entry) }
}

/// All guarded mappings of the process, where a signal handler can find them: fixed memory, no locks, no allocation.
@safe
private final class FaultTable: @unchecked Sendable {
  static let shared = FaultTable()
  private static let capacity = 4096
  /// Words of an entry: first address, bytes (0: free), faults.
  private static let stride = 4

  private let words: UnsafeMutablePointer<UInt64>
  private let used = Mutex(Set<Int>())

  private init() {
    unsafe words = .allocate(capacity: Self.capacity * Self.stride)
    unsafe words.initialize(repeating: 0, count: Self.capacity * Self.stride)
    unsafe faultTableWords = words
    var action = sigaction()
    unsafe action.__sigaction_handler.sa_sigaction = { _, info, _ in unsafe handleBusError(info) }
    action.sa_flags = SA_SIGINFO | Int32(bitPattern: UInt32(SA_NODEFER))
    _ = unsafe sigaction(SIGBUS, &action, nil)
  }

  private func cell(_ entry: Int, _ word: Int) -> SharedCell<UInt64> {
    unsafe SharedCell(words + (entry * Self.stride + word))
  }

  func add(_ base: UnsafeMutableRawPointer, count: Int) -> Int? {
    let entry = used.withLock { used -> Int? in
      guard let free = (0..<Self.capacity).first(where: { !used.contains($0) }) else { return nil }
      used.insert(free)
      return free
    }
    guard let entry else { return nil }
    cell(entry, 0).storeRelaxed(UInt64(UInt(bitPattern: base)))
    cell(entry, 2).storeRelaxed(0)
    // Release: the handler sees the address before the size that makes the entry count.
    cell(entry, 1).storeRelease(UInt64(count))
    return entry
  }

  func remove(_ entry: Int) {
    cell(entry, 1).storeRelease(0)
    _ = used.withLock { $0.remove(entry) }
  }

  @inline(__always)
  func faults(_ entry: Int) -> UInt32 { UInt32(truncatingIfNeeded: cell(entry, 2).loadRelaxed()) }

  static var entries: Int { capacity }
  static var entryStride: Int { stride }
}

/// What the handler reads; set once, before the handler is installed.
nonisolated(unsafe) private var faultTableWords: UnsafeMutablePointer<UInt64>? = nil

/// Puts an empty page in the place of the one that is gone, if it is one of ours; any other SIGBUS ends the process as
/// always.
private func handleBusError(_ info: UnsafeMutablePointer<siginfo_t>?) {
  let address = unsafe UInt64(UInt(bitPattern: clinux_fault_address(info)))
  if let words = unsafe faultTableWords {
    var entry = 0
    while entry < FaultTable.entries {
      let place = unsafe words + entry &* FaultTable.entryStride
      let count = unsafe SharedCell<UInt64>(place + 1).loadAcquire()
      let start = unsafe SharedCell<UInt64>(place).loadRelaxed()
      if count > 0, address &- start < count {
        let page = unsafe UnsafeMutableRawPointer(bitPattern: UInt(address) & ~4095)
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        let mapped = unsafe mmap(page, 4096, PROT_READ | PROT_WRITE, flags, -1, 0)
        guard unsafe mapped != MAP_FAILED else { break }
        let faults = unsafe SharedCell<UInt64>(place + 2)
        faults.storeRelaxed(faults.loadRelaxed() &+ 1)
        return
      }
      entry &+= 1
    }
  }
  signal(SIGBUS, SIG_DFL)
}
