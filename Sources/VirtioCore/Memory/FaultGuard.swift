/// Files that somebody else may cut short while they are mapped here: touching a page that is gone raises SIGBUS, which becomes
/// a count instead of the end of the process.
internal import CLinux
internal import Glibc
internal import Synchronization

/// All shared mappings of the process, where a signal handler can find them: fixed memory, no lock and no allocation in the
/// handler. A page that is gone is replaced by an empty one of this process's own, so that whatever touched it comes to its
/// end; whoever uses the mapping sees that the count moved, and must not trust it any more.
public enum FaultGuard {
  /// Pages of all mappings that were not there, since the process began. One look at it tells that nothing happened.
  public static var count: UInt64 { total.loadRelaxed() }

  /// Where that is counted, for those who look at it often.
  public static var total: SharedCell<UInt64> { FaultTable.shared.total }
}

@safe
final class FaultTable: @unchecked Sendable {
  static let shared = FaultTable()
  /// Mappings at once; those beyond are not guarded. 509 regions for each of a hundred guests.
  private static let capacity = 1 << 16
  /// Words of an entry: first address, bytes (0: free), faults. Entry 0 holds the total in its third word.
  private static let stride = 4

  private let words: UnsafeMutablePointer<UInt64>?
  private let places = Mutex((next: 1, free: [Int]()))
  let total: SharedCell<UInt64>
  private let spare: UnsafeMutablePointer<UInt64>

  private init() {
    let bytes = Self.capacity * Self.stride * MemoryLayout<UInt64>.stride
    // Only mapped: a process with few mappings touches a page of it.
    let area = unsafe mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    unsafe spare = .allocate(capacity: 1)
    unsafe spare.initialize(to: 0)
    guard let area = unsafe area, unsafe area != MAP_FAILED else {
      unsafe words = nil
      total = unsafe SharedCell(spare)
      return
    }
    let words = unsafe area.bindMemory(to: UInt64.self, capacity: Self.capacity * Self.stride)
    unsafe self.words = words
    total = unsafe SharedCell(words + 2)
    unsafe faultTableWords = words
    var action = sigaction()
    unsafe action.__sigaction_handler.sa_sigaction = { _, info, _ in unsafe handleBusError(info) }
    action.sa_flags = SA_SIGINFO | Int32(bitPattern: UInt32(SA_NODEFER))
    _ = unsafe sigaction(SIGBUS, &action, nil)
  }

  private func cell(_ entry: Int, _ word: Int) -> SharedCell<UInt64>? {
    guard let words = unsafe words else { return nil }
    return unsafe SharedCell(words + (entry * Self.stride + word))
  }

  /// - Returns: the mapping's entry, or `nil` when there is no room for another.
  func add(_ base: UnsafeMutableRawPointer, count: Int) -> Int? {
    let entry = places.withLock { places -> Int? in
      if let free = places.free.popLast() { return free }
      guard places.next < Self.capacity else { return nil }
      places.next += 1
      return places.next - 1
    }
    guard let entry, let address = cell(entry, 0), let size = cell(entry, 1), let faults = cell(entry, 2) else { return nil }
    address.storeRelaxed(UInt64(UInt(bitPattern: base)))
    faults.storeRelaxed(0)
    // Release: the handler sees the address before the size that makes the entry count.
    size.storeRelease(UInt64(count))
    return entry
  }

  func remove(_ entry: Int) {
    cell(entry, 1)?.storeRelease(0)
    places.withLock { $0.free.append(entry) }
  }

  func faultCount(_ entry: Int) -> SharedCell<UInt64>? { cell(entry, 2) }

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
    var entry = 1
    while entry < FaultTable.entries {
      let place = unsafe words + entry &* FaultTable.entryStride
      let count = unsafe SharedCell<UInt64>(place + 1).loadAcquire()
      let start = unsafe SharedCell<UInt64>(place).loadRelaxed()
      if count > 0, address &- start < count {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        let faults = unsafe SharedCell<UInt64>(place + 2)
        faults.storeRelaxed(faults.loadRelaxed() &+ 1)
        let total = unsafe SharedCell<UInt64>(words + 2)
        total.storeRelaxed(total.loadRelaxed() &+ 1)
        // Counted first: another thread that finds the empty page finds the count moved, too. On hugetlbfs a page is larger,
        // and a part of it cannot be replaced.
        var size: UInt64 = 4096
        while size <= 1 << 30 {
          let page = address & ~(size &- 1)
          guard page >= start, page &- start <= count, size <= (count &+ 4095) & ~4095 &- (page &- start) else { break }
          let place = unsafe UnsafeMutableRawPointer(bitPattern: UInt(page))
          if unsafe mmap(place, Int(size), PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED { return }
          guard errno == EINVAL else { break }
          size <<= 9
        }
        break
      }
      entry &+= 1
    }
  }
  signal(SIGBUS, SIG_DFL)
}
