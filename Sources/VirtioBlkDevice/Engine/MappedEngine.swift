/// The image mapped into the process: a transfer is a copy. For images that live in memory (tmpfs, hugetlbfs, DAX), where
/// nothing beats it; on a disk each page fault would block the queue.
internal import SystemPackage
internal import VirtioCore

@safe
struct MappedEngine: BlockEngine, ~Copyable {
  static let fillsReads = true

  private let medium: PlainIO
  private let mapping: Mapping
  private let base: UnsafeMutableRawPointer
  private let size: UInt64
  private var waiter: EpollWaiter
  private var calls: UInt64
  /// The file is shorter than the mapping: from here on every operation is a system call, which can say so.
  private var isTruncated: Bool

  /// - Parameter size: bytes of the image.
  init(descriptor: Int32, mailbox: Int32, size: UInt64, isReadOnly: Bool) throws(Errno) {
    let waiter = try EpollWaiter(mailbox: mailbox)
    let mapping = try Mapping(descriptor: descriptor, count: Int(size), readOnly: isReadOnly)
    self.waiter = waiter
    self.mapping = mapping
    unsafe base = mapping.base
    self.size = size
    medium = PlainIO(descriptor: descriptor)
    calls = 0
    isTruncated = false
  }

  @inline(__always)
  mutating func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    let isTransfer = operation.kind == .read || operation.kind == .write
    guard isTransfer, !isTruncated, operation.length <= 0x7fff_f000, operation.offset <= size,
      operation.length <= size &- operation.offset
    else { return performOtherwise(operation) }
    let faults = mapping.faults
    var place = unsafe base + Int(operation.offset)
    for index in 0..<operation.segmentCount {
      guard let segment = unsafe operation.segments?[index] else { break }
      if operation.kind == .read {
        unsafe segment.base.copyMemory(from: place, byteCount: segment.count)
      } else {
        unsafe place.copyMemory(from: segment.base, byteCount: segment.count)
      }
      unsafe place += segment.count
    }
    guard mapping.faults == faults else {
      // The copy ran into the end of a file that was cut, or of the memory behind it.
      isTruncated = true
      return .finished(-Errno.ioError.rawValue)
    }
    if operation.isDurable { return unsafe performOtherwise(IOOperation(kind: .flush), answer: Int32(operation.length)) }
    return .finished(Int32(truncatingIfNeeded: operation.length))
  }

  @inline(never)
  private mutating func performOtherwise(_ operation: IOOperation, answer: Int32? = nil) -> IOOutcome {
    calls &+= 1
    let result = medium.perform(operation)
    return .finished(result < 0 ? result : answer ?? result)
  }

  mutating func submit() {}
  mutating func wait(nanoseconds: Int64?) { waiter.wait(nanoseconds: nanoseconds) }
  mutating func poll() { waiter.wait(nanoseconds: 0) }

  mutating func nextEvent() -> EngineEvent? {
    switch waiter.nextWake() {
    case nil, .completions: nil
    case .kick(let lane): .kick(lane: lane)
    case .mailbox: .mailbox
    }
  }

  mutating func watch(_ kick: KickSource, lane: Int) { waiter.watch(kick, lane: lane) }
  mutating func unwatch(lane: Int) { waiter.unwatch(lane: lane) }
  var systemCalls: UInt64 { calls &+ waiter.systemCalls }
}
