/// A driver's queue that is laid out once: each slot keeps its descriptors, header, status and data, and a request is only a
/// sector and a step of the ring. This is what makes the client cheaper than any device.
internal import CLinux
internal import Glibc
internal import GuestDriver
internal import Histogram
internal import MemoryFile
internal import VirtioCore

@safe
struct BenchQueue<Ring: BenchRing>: ~Copyable {
  /// One request that can be in flight.
  @safe
  private struct Slot {
    /// When it was submitted, nanoseconds.
    var start: UInt64 = 0
    /// 16 bytes of request header (virtio 5.2.6), and the status in the byte after it: one cache line.
    var header: UnsafeMutableRawPointer
    var data: UnsafeMutableRawPointer
    /// The 16 bytes of the data's descriptor, whose flags set the direction.
    var dataDescriptor: UnsafeMutableRawPointer
    var isWrite = false
    var isOutstanding = false
    var block: UInt64 = 0
    /// Which write of the block it is, or is expected; 0 if unknown.
    var generation: UInt32 = 0
  }

  /// A status that no device returns.
  private static var poison: UInt8 { 0xee }

  let index: Int
  private var ring: Ring
  private let lines: QueueLines
  private let slots: UnsafeMutablePointer<Slot>
  private let depth: Int
  private let blockSize: Int
  private let sectorsPerBlock: UInt64
  private var source: OffsetSource
  private var checker: ContentChecker?
  /// The next block to read back, counted from the start of the area; `nil` during the run itself.
  private var readBack: UInt64?

  private(set) var outstanding = 0
  /// Whether results are being recorded.
  private(set) var isRecording = false
  private(set) var tally = QueueTally()
  /// Requests answered since the queue was made, for a progress display.
  private let progress: SharedCell<UInt64>
  private var answered: UInt64 = 0
  /// The count of calls in a memory file when it was last read.
  private(set) var seenCalls: UInt32 = 0

  /// Lays the ring out.
  ///
  /// - Parameters:
  ///   - progress: a word that only this queue writes.
  init(
    _ setup: QueueSetup, features: FeatureSet, workload: Workload, capacity: UInt64, progress: SharedCell<UInt64>
  ) throws(BenchError) {
    let memory = GuestWindow(setup.memory)
    let place = try workload.range(of: setup.index, capacity: capacity)
    // Headers, statuses and tables: a line for header and status, one for the table.
    let control = try memory.allocate(SlotPlaces.controlBytes * workload.depth, alignment: 128)
    var buffers: [GuestWindow.Piece] = []
    for _ in 0..<workload.depth { buffers.append(try memory.allocate(workload.blockSize, alignment: 4096)) }
    let isIndirect = features.contains(.indirectDescriptors)
    precondition(
      workload.depth * (isIndirect ? 1 : 3) <= Int(setup.ring.layout.size), "the ring is too small for the depth")
    let ring = try Ring(setup, isIndirect: isIndirect, memory: memory)
    checker = try ContentChecker(workload, area: place.range)
    index = setup.index
    lines = setup.lines
    depth = workload.depth
    blockSize = workload.blockSize
    sectorsPerBlock = UInt64(workload.blockSize / 512)
    self.ring = ring
    source = OffsetSource(workload, range: place.range, start: place.start, job: setup.index)
    self.progress = progress
    let slots = UnsafeMutablePointer<Slot>.allocate(capacity: depth)
    unsafe self.slots = slots
    for (slot, data) in buffers.enumerated() {
      let offset = SlotPlaces.controlBytes * slot
      let places = SlotPlaces(
        control: unsafe GuestWindow.Piece(address: control.address + UInt64(offset), host: control.host + offset), data: data,
        bytes: workload.blockSize)
      let isWrite = !workload.pattern.reads
      let dataDescriptor = unsafe ring.lay(slot, places, isWrite: isWrite)
      let header = unsafe places.control.host
      unsafe header.initializeMemory(as: UInt8.self, repeating: 0, count: 64)
      unsafe header.storeBytes(of: UInt32(isWrite ? 1 : 0).littleEndian, as: UInt32.self)
      unsafe data.host.initializeMemory(
        as: UInt8.self, repeating: UInt8(truncatingIfNeeded: slot &+ 1), count: workload.blockSize)
      unsafe (slots + slot).initialize(
        to: Slot(header: header, data: data.host, dataDescriptor: dataDescriptor, isWrite: isWrite))
    }
    disableCalls()
  }

  deinit {
    unsafe slots.deallocate()
    ring.deallocate()
  }

  // MARK: The loop

  /// Makes all slots available.
  mutating func fill() {
    let now = Clock.now
    for slot in 0..<depth { submit(slot, now) }
    publish()
  }

  /// Takes what is done and, unless the queue is draining, submits as many requests again.
  ///
  /// - Returns: how many requests were answered.
  @inline(__always)
  mutating func turn(refills: Bool) throws(BenchError) -> Int {
    guard try ring.look(outstanding: outstanding, queue: index) else { return 0 }
    let now = Clock.now
    var count = 0
    while let name = ring.take() {
      let slot = ring.slot(of: name)
      guard slot >= 0, slot < depth, unsafe slots[slot].isOutstanding else {
        throw .brokenRing(queue: index, "the used element has the id \(name), which is not outstanding")
      }
      try finish(slot, now)
      count &+= 1
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
    ring.offer(slot)
    outstanding &+= 1
  }

  /// Turns a writing slot into a reading one, or the other way round.
  private mutating func turnAround(_ slot: Int, isWrite: Bool) {
    let place = unsafe slots + slot
    unsafe place.pointee.isWrite = isWrite
    unsafe place.pointee.header.storeBytes(of: UInt32(isWrite ? 1 : 0).littleEndian, as: UInt32.self)
    let rest = unsafe SharedCell<UInt64>(place.pointee.dataDescriptor + 8)
    rest.storeRelaxed(isWrite ? rest.loadRelaxed() & ~Ring.writeMark : rest.loadRelaxed() | Ring.writeMark)
  }

  @inline(__always)
  private mutating func publish() {
    if ring.publish() {
      lines.kick()
      if isRecording { tally.kicks &+= 1 }
    }
  }

  // MARK: Calls

  /// The client polls.
  mutating func disableCalls() { ring.disableCalls() }

  /// Asks for a call at the next used chain.
  /// - Returns: false when something was used in the meantime, for which none may come.
  mutating func enableCalls() -> Bool { ring.enableCalls() }

  /// What to sleep on.
  var callLine: QueueLines { lines }

  /// Takes and counts the calls that have arrived.
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

  /// Starts counting from zero.
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

  /// Finds a block without a request in flight and, for a write, makes its data.
  @inline(never)
  private mutating func prepare(_ slot: Int, _ wanted: UInt64, isWrite: Bool) -> UInt64 {
    let place = unsafe slots + slot
    var block = wanted
    // The area has more blocks than there are slots, so a free one is always found.
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

  /// One turn of reading back.
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
