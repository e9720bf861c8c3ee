/// What is known about a mapped image, window by window: whether all of a window is data whose pages are in the page tables.
///
/// On tmpfs, touching a hole through a mapping allocates a page, even for a read. So only windows without holes are used
/// through the mapping; the others are left to system calls, which read a hole without filling it. A window without holes is
/// populated in the page tables at once, for a fraction of the cost of a fault per page.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// Shared by all queues of a device. If two queues check a window at the same time, both are right. A queue that punches a hole
/// calls `forget` afterwards, which invalidates what others found before.
@safe
final class PopulatedWindows: @unchecked Sendable {
  /// What the kernel maps around a fault: the most that one fault can map, and quickly done.
  static let windowSize = 64 << 10
  private static let pageSize = PageSize.bytes
  fileprivate static let shift: UInt64 = 16

  enum State {
    /// No hole, and in the page tables.
    case data
    /// It has holes or pages that are not in the cache, or cannot be checked: left to system calls.
    case sparse
    /// The file ends before the image does.
    case cut
  }

  // A window's word: its kind, how many pages of a sparse one have to be filled before another check is worthwhile, and a
  // generation that changes whenever its state is forgotten.
  private static let unknown: UInt32 = 0
  fileprivate static let data: UInt32 = 1
  private static let sparse: UInt32 = 2
  fileprivate static let kindMask: UInt32 = 0xff
  private static let missingOne: UInt32 = 1 << 8
  private static let missingMask: UInt32 = 0xff00
  private static let generationOne: UInt32 = 1 << 16
  private static let generationMask: UInt32 = 0xffff_0000

  private let image: Mapping
  private let base: UnsafeMutableRawPointer
  private let descriptor: Int32
  /// Bytes of the image.
  private let size: UInt64
  /// Bytes from the beginning of the first window to that of the image: windows are aligned in the address space.
  private let skew: UInt64
  /// Whether the kernel tells this process which pages are resident: only processes that may write to the file learn that.
  private let canTell: Bool
  /// The mapping may be longer than the file, which grows.
  private let mayBeLonger: Bool
  /// Only mapped: of the table of a large image, only the used parts take memory.
  private let table: Mapping
  private let words: UnsafeMutablePointer<Atomic<UInt32>>

  /// What an engine checks before each copy: only two words, so that no reference count changes. A locked instruction would
  /// wait for the previous copy.
  @safe
  struct View {
    fileprivate let words: UnsafeMutablePointer<Atomic<UInt32>>
    fileprivate let skew: UInt64
  }

  /// What is known about a range: the words of its windows.
  @safe
  struct Spot {
    fileprivate let word: UnsafeMutablePointer<Atomic<UInt32>>
    /// How many windows the range has after the first one.
    fileprivate let more: Int
  }

  /// Valid for as long as this object lives.
  var view: View { unsafe View(words: words, skew: skew) }

  /// - Parameters:
  ///   - image: a mapping of all of it.
  ///   - descriptor: the image, open for as long as this object lives.
  ///   - mayBeLonger: the mapping may be longer than the file; what lies beyond its end is not there yet.
  init(_ image: Mapping, descriptor: Int32, isReadOnly: Bool, mayBeLonger: Bool = false) throws(Errno) {
    self.image = image
    unsafe base = image.base
    self.descriptor = descriptor
    self.mayBeLonger = mayBeLonger
    size = UInt64(image.count)
    skew = unsafe UInt64(UInt(bitPattern: image.base)) & UInt64(Self.windowSize - 1)
    let count = Int((size &+ skew) >> Self.shift) + 1
    table = try Mapping(anonymous: count * MemoryLayout<UInt32>.stride)
    unsafe words = table.base.assumingMemoryBound(to: Atomic<UInt32>.self)
    canTell = !isReadOnly || Self.mayWrite(descriptor)
  }

  private static func mayWrite(_ descriptor: Int32) -> Bool {
    var info = stat()
    guard unsafe fstat(descriptor, &info) == 0 else { return false }
    return unsafe info.st_uid == geteuid() || eaccess("/proc/self/fd/\(descriptor)", W_OK) == 0
  }

  private func window(_ offset: UInt64) -> Int { Int(truncatingIfNeeded: (offset &+ skew) &>> Self.shift) }
  private func load(_ window: Int) -> UInt32 { unsafe words[window].load(ordering: .relaxed) }

  func isData(_ offset: UInt64, _ length: UInt64) -> Bool { view.isData(offset, length) }

  // MARK: Windows that are not known to be data

  /// Checks the unknown windows of a range.
  @inline(never)
  func look(_ offset: UInt64, _ length: UInt64) -> State {
    var state = State.data
    for window in window(offset)...window(offset &+ length &- 1) {
      let word = load(window)
      switch word & Self.kindMask {
      case Self.data: continue
      case Self.sparse: state = .sparse
      default:
        let missing = populate(window)
        guard missing > 0 else {
          replace(window, word, word & Self.generationMask | Self.data)
          continue
        }
        guard mayBeLonger || !isCut else { return .cut }
        replace(window, word, word & Self.generationMask | UInt32(missing) &* Self.missingOne | Self.sparse)
        state = .sparse
      }
    }
    return state
  }

  /// The part of a range that is mapped: bytes from its offset on.
  private func mapped(_ offset: UInt64, _ length: UInt64) -> UInt64 { min(length, size &- min(offset, size)) }

  /// The pages of a range have been filled by system calls, or soon will be. Windows that may be complete now are checked again
  /// when they are next used.
  func filled(_ offset: UInt64, _ length: UInt64) {
    let length = mapped(offset, length)
    guard length > 0 else { return }
    for window in window(offset)...window(offset &+ length &- 1) {
      let word = load(window)
      guard word & Self.kindMask == Self.sparse else { continue }
      let start = max(offset &+ skew, UInt64(window) << Self.shift)
      let end = min(offset &+ length &+ skew, UInt64(window + 1) << Self.shift)
      let pages = UInt32(truncatingIfNeeded: (end &- start &+ UInt64(Self.pageSize - 1)) / UInt64(Self.pageSize))
      let missing = (word & Self.missingMask) / Self.missingOne
      let generation = word & Self.generationMask
      replace(
        window, word,
        missing > pages ? generation | (missing - pages) &* Self.missingOne | Self.sparse : generation | Self.unknown)
    }
  }

  /// Holes may have been made in a range, or filled: what is known about it, and what others are just finding out, becomes
  /// invalid.
  func forget(_ offset: UInt64, _ length: UInt64) {
    let length = mapped(offset, length)
    guard length > 0 else { return }
    for window in window(offset)...window(offset &+ length &- 1) {
      while true {
        let word = load(window)
        if replace(window, word, (word & Self.generationMask) &+ Self.generationOne | Self.unknown) { break }
      }
    }
  }

  /// Unknown pages have been reclaimed: forgets everything. A check that is still in progress may store its result.
  func forgetAll() { _ = unsafe madvise(table.base, table.count, MADV_DONTNEED) }

  /// The file is shorter than the image.
  var isCut: Bool {
    let length = clinux_file_length(descriptor)
    return length < 0 || UInt64(length) < size
  }

  @discardableResult
  private func replace(_ window: Int, _ word: UInt32, _ other: UInt32) -> Bool {
    unsafe words[window].compareExchange(expected: word, desired: other, ordering: .acquiringAndReleasing).exchanged
  }

  /// Populates a window in the page tables if it has no holes.
  /// - Returns: the number of missing pages; 0: none.
  private func populate(_ window: Int) -> Int {
    let position = UInt64(window) << Self.shift
    let start = position > skew ? position &- skew : 0
    let end = min(position &+ UInt64(Self.windowSize) &- skew, size)
    let pages = Int((end &- start &+ UInt64(Self.pageSize - 1)) / UInt64(Self.pageSize))
    guard canTell else { return pages }
    let place = unsafe base + Int(start)
    let missing = unsafe withUnsafeTemporaryAllocation(byteCount: Self.windowSize / Self.pageSize, alignment: 1) { resident in
      guard unsafe mincore(place, Int(end &- start), resident.baseAddress) == 0 else { return pages }
      var missing = 0
      for page in 0..<pages where unsafe resident[page] & 1 == 0 { missing += 1 }
      return missing
    }
    guard missing == 0 else { return missing }
    // On a shared mapping of memory, pages populated for reading can also be written, and populating for reading takes 16 pages
    // at a time. A kernel without this advice faults the pages in one by one.
    guard unsafe madvise(place, Int(end &- start), clinux_madv_populate_read) == 0 || errno == EINVAL else { return pages }
    return 0
  }
}

extension PopulatedWindows.View {
  /// Where it is known whether a range, not empty and inside the image, is data.
  @inline(__always)
  func spot(_ offset: UInt64, _ length: UInt64) -> PopulatedWindows.Spot {
    let first = (offset &+ skew) &>> PopulatedWindows.shift
    let last = (offset &+ skew &+ length &- 1) &>> PopulatedWindows.shift
    let more = Int(truncatingIfNeeded: last &- first)
    return unsafe PopulatedWindows.Spot(word: words + Int(truncatingIfNeeded: first), more: more)
  }

  /// Whether a range, not empty and inside the image, is known to be data. If it is not, use `look`.
  @inline(__always)
  func isData(_ offset: UInt64, _ length: UInt64) -> Bool { spot(offset, length).isData }
}

extension PopulatedWindows.Spot {
  /// Brings it into the CPU's caches, without waiting for that.
  @inline(__always)
  func fetch() { unsafe clinux_prefetch(word, 1) }

  /// Whether the range is known to be data. If it is not, use `look`.
  @inline(__always)
  var isData: Bool {
    var window = 0
    while true {
      let state = unsafe word[window].load(ordering: .relaxed) & PopulatedWindows.kindMask
      guard state == PopulatedWindows.data else { return false }
      // Nearly always in the first round.
      if window == more { return true }
      window &+= 1
    }
  }
}
