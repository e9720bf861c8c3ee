/// A driver's ring that was laid out once: each slot keeps its descriptors, header, status and data for good, and a request is
/// a sector, an entry in the available ring and a step of its index. This is what makes the client cheaper than any device.
internal import CLinux
internal import Glibc
internal import GuestDriver
internal import Histogram
internal import MemoryFile
internal import VirtioCore

@safe
struct BenchQueue: ~Copyable {
  /// One request that can be under way.
  @safe
  private struct Slot {
    /// When it was handed over, nanoseconds.
    var start: UInt64 = 0
    /// 16 bytes of request header (virtio 5.2.6), and the status in the byte behind it: one cache line.
    var header: UnsafeMutableRawPointer
    var data: UnsafeMutableRawPointer
    /// The 16 bytes of the descriptor of the data, whose flags say the direction.
    var dataDescriptor: UnsafeMutableRawPointer
    var head: UInt16
    var isWrite = false
    var isOutstanding = false
    var block: UInt64 = 0
    /// Which write of the block it is, or should be found; 0 where that is not known.
    var generation: UInt32 = 0
  }

  private enum Flag {
    static let next: UInt64 = 1 << 32
    static let write: UInt64 = 2 << 32
    static let indirect: UInt64 = 4 << 32
  }

  /// The status that no device gives.
  private static let poison: UInt8 = 0xee

  let index: Int
  private let available: UnsafeMutableRawPointer
  private let used: UnsafeMutableRawPointer
  private let size: UInt16
  private let hasEventIndex: Bool
  private let lines: QueueLines
  private let slots: UnsafeMutablePointer<Slot>
  private let depth: Int
  /// Descriptors of a slot in the ring: 1 that refers to a table, or 3.
  private let stride: Int
  private let blockSize: Int
  private let sectorsPerBlock: UInt64
  private var source: OffsetSource
  private var checker: ContentChecker?
  /// The next block to read back, counted from the start of the area; `nil` during the run itself.
  private var readBack: UInt64?

  private var availableIndex: UInt16 = 0
  private var publishedIndex: UInt16 = 0
  private var reapedIndex: UInt16 = 0
  private(set) var outstanding = 0
  /// Whether what is recorded counts.
  private(set) var isRecording = false
  private(set) var tally = QueueTally()
  /// Requests answered since the queue was made, for whoever watches.
  private let progress: SharedCell<UInt64>
  private var answered: UInt64 = 0
  /// The count of calls in a memory file when it was looked at last.
  private(set) var seenCalls: UInt32 = 0

  /// Lays the ring out.
  ///
  /// - Parameters:
  ///   - progress: a word that this queue alone writes.
  init(
    _ setup: QueueSetup, features: FeatureSet, workload: Workload, capacity: UInt64, progress: SharedCell<UInt64>
  ) throws(BenchError) {
    let memory = GuestWindow(setup.memory)
    let layout = setup.ring.layout
    let entries = Int(layout.size)
    let table = unsafe try memory.host(layout.descriptorTable, count: RingLayout.descriptorTableBytes(layout.size))
    let available = unsafe try memory.host(layout.availableRing, count: RingLayout.availableRingBytes(layout.size))
    let used = unsafe try memory.host(layout.usedRing, count: RingLayout.usedRingBytes(layout.size))
    let place = try workload.range(of: setup.index, capacity: capacity)
    // Headers, statuses and tables: a line for header and status, one for the table.
    let control = try memory.allocate(128 * workload.depth, alignment: 128)
    var buffers: [GuestWindow.Piece] = []
    for _ in 0..<workload.depth { buffers.append(try memory.allocate(workload.blockSize, alignment: 4096)) }
    checker = try ContentChecker(workload, area: place.range)
    unsafe self.available = available
    unsafe self.used = used
    index = setup.index
    size = layout.size
    hasEventIndex = setup.eventIndex
    lines = setup.lines
    depth = workload.depth
    blockSize = workload.blockSize
    sectorsPerBlock = UInt64(workload.blockSize / 512)
    let isIndirect = features.contains(.indirectDescriptors)
    stride = isIndirect ? 1 : 3
    precondition(depth * stride <= entries, "the ring is too small for the depth")
    source = OffsetSource(workload, range: place.range, start: place.start, job: setup.index)
    self.progress = progress
    let slots = UnsafeMutablePointer<Slot>.allocate(capacity: depth)
    unsafe self.slots = slots
    for (slot, data) in buffers.enumerated() {
      let headerAddress = control.address + UInt64(128 * slot)
      let tableAddress = headerAddress + 64
      let head = slot * stride
      let chain = isIndirect ? unsafe control.host + (128 * slot + 64) : unsafe table + 16 * head
      let first = isIndirect ? 0 : head
      let isWrite = !workload.pattern.reads
      unsafe Self.store(
        at: chain, address: headerAddress, rest: 16 | Flag.next | UInt64(first + 1) << 48)
      unsafe Self.store(
        at: chain + 16, address: data.address,
        rest: UInt64(workload.blockSize) | Flag.next | (isWrite ? 0 : Flag.write) | UInt64(first + 2) << 48)
      unsafe Self.store(at: chain + 32, address: headerAddress + 16, rest: 1 | Flag.write)
      if isIndirect { unsafe Self.store(at: table + 16 * head, address: tableAddress, rest: 48 | Flag.indirect) }
      let header = unsafe control.host + 128 * slot
      unsafe header.initializeMemory(as: UInt8.self, repeating: 0, count: 64)
      unsafe header.storeBytes(of: UInt32(isWrite ? 1 : 0).littleEndian, as: UInt32.self)
      unsafe data.host.initializeMemory(
        as: UInt8.self, repeating: UInt8(truncatingIfNeeded: slot &+ 1), count: workload.blockSize)
      unsafe (slots + slot).initialize(
        to: Slot(header: header, data: data.host, dataDescriptor: chain + 16, head: UInt16(head), isWrite: isWrite))
    }
    disableCalls()
  }

  deinit { unsafe slots.deallocate() }

  private static func store(at place: UnsafeMutableRawPointer, address: UInt64, rest: UInt64) {
    unsafe SharedCell<UInt64>(place).storeRelaxed(address.littleEndian)
    unsafe SharedCell<UInt64>(place + 8).storeRelaxed(rest.littleEndian)
  }

  // MARK: The loop

  /// Makes all slots available.
  mutating func fill() {
    let now = Clock.now
    for slot in 0..<depth { submit(slot, now) }
    publish()
  }

  /// Takes what is done and, unless the queue is draining, asks for as much again.
  ///
  /// - Returns: how many requests were answered.
  @inline(__always)
  mutating func turn(refills: Bool) throws(BenchError) -> Int {
    // Acquire: elements, statuses and data are read after the index that shows them (virtio 2.6.14).
    let usedIndex = unsafe SharedCell<UInt16>(used + 2).loadAcquire()
    guard usedIndex != reapedIndex else { return 0 }
    let count = Int(usedIndex &- reapedIndex)
    guard count <= outstanding else { throw .brokenRing(queue: index, "used.idx jumped to \(usedIndex)") }
    let now = Clock.now
    while reapedIndex != usedIndex {
      let element = unsafe used + (4 &+ Int(reapedIndex & (size &- 1)) &* 8)
      let id = unsafe Int(SharedCell<UInt32>(element).loadRelaxed())
      let slot = stride == 1 ? id : id / 3
      guard slot < depth, unsafe slots[slot].isOutstanding, unsafe Int(slots[slot].head) == id else {
        throw .brokenRing(queue: index, "the used element has the id \(id), which is not outstanding")
      }
      try finish(slot, now)
      reapedIndex &+= 1
      if refills { submit(slot, now) }
    }
    answered &+= UInt64(count)
    progress.storeRelaxed(answered)
    publish()
    return count
  }

  @inline(__always)
  private mutating func finish(_ slot: Int, _ now: UInt64) throws(BenchError) {
    let place = unsafe slots + slot
    unsafe place.pointee.isOutstanding = false
    outstanding &-= 1
    let status = unsafe place.pointee.header.load(fromByteOffset: 16, as: UInt8.self)
    let isWrite = unsafe place.pointee.isWrite
    guard status == 0 else {
      guard status != Self.poison else { throw .brokenRing(queue: index, "a chain was used without a status") }
      throw .requestFailed(
        queue: index, status: status, isWrite: isWrite, sector: unsafe place.pointee.block &* sectorsPerBlock)
    }
    if isRecording { tally.record(now &- (unsafe place.pointee.start), isWrite: isWrite) }
    if checker != nil { try check(slot) }
  }

  @inline(__always)
  private mutating func submit(_ slot: Int, _ now: UInt64) {
    let isWrite = source.nextWrites()
    submit(slot, now, block: source.nextBlock(), isWrite: isWrite)
  }

  @inline(__always)
  private mutating func submit(_ slot: Int, _ now: UInt64, block: UInt64, isWrite: Bool) {
    let place = unsafe slots + slot
    if unsafe isWrite != place.pointee.isWrite { turnAround(slot, isWrite: isWrite) }
    var block = block
    if checker != nil { block = prepare(slot, block, isWrite: isWrite) }
    unsafe place.pointee.start = now
    unsafe place.pointee.isOutstanding = true
    unsafe place.pointee.block = block
    let header = unsafe place.pointee.header
    unsafe header.storeBytes(of: (block &* sectorsPerBlock).littleEndian, toByteOffset: 8, as: UInt64.self)
    unsafe header.storeBytes(of: Self.poison, toByteOffset: 16, as: UInt8.self)
    let entry = unsafe available + (4 &+ Int(availableIndex & (size &- 1)) &* 2)
    unsafe SharedCell<UInt16>(entry).storeRelaxed(place.pointee.head)
    availableIndex &+= 1
    outstanding &+= 1
  }

  /// Makes a slot read that wrote before, or the other way round.
  private mutating func turnAround(_ slot: Int, isWrite: Bool) {
    let place = unsafe slots + slot
    unsafe place.pointee.isWrite = isWrite
    unsafe place.pointee.header.storeBytes(of: UInt32(isWrite ? 1 : 0).littleEndian, as: UInt32.self)
    let rest = unsafe SharedCell<UInt64>(place.pointee.dataDescriptor + 8)
    rest.storeRelaxed(isWrite ? rest.loadRelaxed() & ~Flag.write : rest.loadRelaxed() | Flag.write)
  }

  @inline(__always)
  private mutating func publish() {
    guard availableIndex != publishedIndex else { return }
    let old = publishedIndex
    publishedIndex = availableIndex
    // Release: headers, descriptors and entries before the index that shows them (virtio 2.6.13.3.1).
    unsafe SharedCell<UInt16>(available + 2).storeRelease(availableIndex)
    // The index before the look at whether the device sleeps (virtio 2.6.13.4.1).
    fullFence()
    let wanted: Bool
    if hasEventIndex {
      let event = unsafe SharedCell<UInt16>(used + (4 &+ Int(size) &* 8)).loadRelaxed()
      wanted = availableIndex &- event &- 1 < availableIndex &- old
    } else {
      wanted = unsafe SharedCell<UInt16>(used).loadRelaxed() & 1 == 0
    }
    if wanted {
      lines.kick()
      if isRecording { tally.kicks &+= 1 }
    }
  }

  // MARK: Calls

  /// The client looks by itself.
  mutating func disableCalls() {
    if hasEventIndex {
      unsafe SharedCell<UInt16>(available + (4 &+ Int(size) &* 2)).storeRelaxed(reapedIndex &- 1)
    } else {
      unsafe SharedCell<UInt16>(available).storeRelaxed(1)
    }
  }

  /// Asks for a call at the next used chain.
  /// - Returns: false when something was used meanwhile, for which none may come.
  mutating func enableCalls() -> Bool {
    if hasEventIndex {
      unsafe SharedCell<UInt16>(available + (4 &+ Int(size) &* 2)).storeRelaxed(reapedIndex)
    } else {
      unsafe SharedCell<UInt16>(available).storeRelaxed(0)
    }
    // The wish before the look at what is used already (virtio 2.6.14).
    fullFence()
    return unsafe SharedCell<UInt16>(used + 2).loadAcquire() == reapedIndex
  }

  /// What to sleep on.
  var callLine: QueueLines { lines }

  /// Takes the calls that came, and counts them.
  mutating func takeCalls() {
    let calls: UInt64
    switch lines {
    case .eventCounters(_, let call): calls = EventCounter.drain(call.rawValue)
    case .memoryFile(let file, let queue):
      let now = file.callCount(queue: queue)
      if now != seenCalls { file.acknowledgeInterrupt(1) }
      calls = UInt64(now &- seenCalls)
      seenCalls = now
    }
    if isRecording { tally.calls &+= calls }
  }

  /// Starts counting from nothing.
  mutating func startRecording() {
    takeCalls()
    tally = QueueTally()
    isRecording = true
  }

  mutating func stopRecording() {
    takeCalls()
    isRecording = false
  }

  // MARK: Contents

  /// Finds a block without a request under way and, for a write, makes its data.
  @inline(never)
  private mutating func prepare(_ slot: Int, _ wanted: UInt64, isWrite: Bool) -> UInt64 {
    let place = unsafe slots + slot
    var block = wanted
    // The area has more blocks than there are slots, so that a free one is found.
    while checker?.take(block) == false { block = source.nextBlock() }
    let generation = unsafe checker?.begin(block, isWrite: isWrite, data: place.pointee.data)
    unsafe place.pointee.generation = generation ?? 0
    return block
  }

  @inline(never)
  private mutating func check(_ slot: Int) throws(BenchError) {
    let place = unsafe slots + slot
    let (block, generation, isWrite) = unsafe (place.pointee.block, place.pointee.generation, place.pointee.isWrite)
    let wasChecked = unsafe try checker?.finish(
      block, isWrite: isWrite, generation: generation, data: place.pointee.data)
    if wasChecked == true { tally.verified &+= 1 }
  }

  /// After a run that wrote: reads what was written, once, in order. - Precondition: nothing is outstanding.
  mutating func startReadingBack() {
    precondition(outstanding == 0, "reading back begins when everything is answered")
    readBack = checker == nil ? nil : 0
  }

  /// A turn of reading back.
  /// - Returns: false when everything was read.
  mutating func turnReadingBack() throws(BenchError) -> Bool {
    _ = try turn(refills: false)
    let now = Clock.now
    var slot = 0
    while slot < depth, let from = readBack {
      guard unsafe !slots[slot].isOutstanding else {
        slot += 1
        continue
      }
      guard let block = checker?.nextWritten(from: from) else {
        readBack = nil
        break
      }
      readBack = block.next
      submit(slot, now, block: block.block, isWrite: false)
    }
    publish()
    return readBack != nil || outstanding > 0
  }
}
