/// Protection against files that another process truncates while they are mapped here: touching a page that is gone raises
/// SIGBUS, which is counted instead of ending the process.
internal import CLinux
internal import Glibc
internal import Synchronization

/// All shared mappings of the process, in a table that a signal handler can search: fixed memory, no lock and no allocation in
/// the handler. A page that is gone is replaced by an empty private one, so that the access that touched it completes; users of
/// the mapping see that the count has changed, and must no longer trust its contents.
///
/// After the first few faults of a mapping, more and more of the pages around the missing one are replaced together with it,
/// because each replaced piece uses up one of the mappings that a process can have.
public enum FaultGuard {
  /// Faults in all mappings since the process began. One load tells whether anything happened.
  public static var count: UInt64 { FaultTable.shared.total.loadRelaxed() }

  /// The counter of these faults, valid for as long as the process lives. Code that copies out of memory that can be truncated
  /// compares `loadAfterLoads` before and after: if it has not changed, the pages copied from were there.
  public static var counter: SharedCell<UInt64> { FaultTable.shared.total }

  /// Faults of the mapping that an address is in, since it was made; 0 if it is in none. This searches all mappings, so it is
  /// for when something has gone wrong.
  public static func count(at address: UnsafeRawPointer) -> UInt64 {
    FaultTable.shared.count(at: UInt64(UInt(bitPattern: address)))
  }
}

@safe
final class FaultTable: @unchecked Sendable {
  static let shared = FaultTable()
  /// Entries of the table. Every mapping is guarded: this is enough for 509 regions of each of a hundred guests.
  private static let capacity = 1 << 16
  /// Mappings that there may be at once: entry 0 is none.
  static var room: Int { capacity - 1 }
  /// Words of an entry: first address, bytes (0: free), faults. Entry 0 holds the total in its third word.
  private static let stride = 4

  private let words: UnsafeMutablePointer<UInt64>?
  private let places = Mutex((next: 1, free: [Int]()))
  let total: SharedCell<UInt64>
  private let spare: UnsafeMutablePointer<UInt64>

  private init() {
    let bytes = Self.capacity * Self.stride * MemoryLayout<UInt64>.stride
    // Reserved, not touched: a process with few mappings uses one page of it.
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
    // Read now, so that the handler does not have to ask for it.
    unsafe pageBytes = UInt64(PageSize.bytes)
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
    // Release: the handler must see the address before the size that makes the entry valid.
    size.storeRelease(UInt64(count))
    return entry
  }

  func remove(_ entry: Int) {
    cell(entry, 1)?.storeRelease(0)
    places.withLock { $0.free.append(entry) }
  }

  func count(at address: UInt64) -> UInt64 {
    for entry in 1..<places.withLock({ $0.next }) {
      guard let size = cell(entry, 1)?.loadAcquire(), size > 0, let start = cell(entry, 0)?.loadRelaxed() else { continue }
      if address &- start < size { return cell(entry, 2)?.loadRelaxed() ?? 0 }
    }
    return 0
  }

  func faultCount(_ entry: Int) -> SharedCell<UInt64>? { cell(entry, 2) }

  static var entries: Int { capacity }
  static var entryStride: Int { stride }
}

/// The handler reads these; they are set once, before it is installed.
nonisolated(unsafe) private var faultTableWords: UnsafeMutablePointer<UInt64>? = nil
nonisolated(unsafe) private var pageBytes: UInt64 = 4096

/// Replaces pages that are gone by empty ones if they are ours. Any other SIGBUS ends the process as usual.
private func handleBusError(_ info: UnsafeMutablePointer<siginfo_t>?) {
  // Only a missing page is replaced. A signal that a process sent has no address, and a misaligned access would be repeated
  // forever.
  let errorBefore = errno
  defer { errno = errorBefore }
  let code = unsafe info?.pointee.si_code ?? 0
  if code == clinux_bus_adrerr || code == clinux_bus_objerr || code == clinux_bus_mceerr_ar {
    let address = unsafe UInt64(UInt(bitPattern: clinux_fault_address(info)))
    if replace(address) { return }
  }
  _ = signal(SIGBUS, SIG_DFL)
  // A fault is raised again when this returns; a signal that was sent is not.
  if code <= 0 { raise(SIGBUS) }
}

/// - Returns: whether the access that failed can be tried again.
private func replace(_ address: UInt64) -> Bool {
  guard let words = unsafe faultTableWords else { return false }
  var entry = 1
  while entry < FaultTable.entries {
    let place = unsafe words + entry &* FaultTable.entryStride
    let size = unsafe SharedCell<UInt64>(place + 1)
    let count = size.loadAcquire()
    let start = unsafe SharedCell<UInt64>(place).loadRelaxed()
    if count > 0, address &- start < count, size.loadAcquire() == count {
      // Counted first: another thread that finds the empty page also finds the count changed.
      let faults = unsafe SharedCell<UInt64>(place + 2).increment()
      let total = unsafe SharedCell<UInt64>(words + 2).increment()
      fullFence()
      return replace(address, from: start, count: count, faults: faults, total: total)
    }
    entry &+= 1
  }
  return false
}

private func replace(_ address: UInt64, from start: UInt64, count: UInt64, faults: UInt64, total: UInt64) -> Bool {
  let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
  let page = unsafe pageBytes
  // Up to how many faults of one mapping only the missing page is replaced, and after how many faults of all mappings the next
  // one replaces its whole mapping.
  let (faultsOfOnePage, faultsOfPieces): (UInt64, UInt64) = (8, 1024)
  // Mappings begin and end at page boundaries, whatever the size of their file.
  let end = start &+ (count &+ (page &- 1)) & ~(page &- 1)
  var size = page
  if faults > faultsOfOnePage { size = page << min(faults &- faultsOfOnePage, 40) }
  if total > faultsOfPieces { size = 1 << 60 }
  // On hugetlbfs a page is larger, and a part of it cannot be replaced: the size is then doubled until it works.
  while true {
    // The aligned block of that size around the address, clipped to the mapping.
    let from = max(address & ~(size &- 1), start)
    let length = min(address | (size &- 1), end &- 1) &- from &+ 1
    let place = unsafe UnsafeMutableRawPointer(bitPattern: UInt(from))
    if unsafe mmap(place, Int(length), PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED { return true }
    guard errno == EINVAL, from > start || from &+ length < end else { return false }
    size <<= 1
  }
}
