/// Resolves the descriptors of a chain, in either ring format: the slow path, for chains that differ from those that most
/// drivers make.

/// Collects descriptors in order, and reports what is wrong with them.
@safe
struct ChainCollector {
  private let segments: UnsafeMutablePointer<MemorySegment>
  private let capacity: Int
  private var stored = 0
  private var readableCount = 0
  private var readableBytes: UInt64 = 0
  private var writableBytes: UInt64 = 0
  private var sawWritable = false
  private var lastWritable: UnsafeMutableRawPointer?
  private var lastWritableIsUnmapped = false
  /// Behind an IOMMU: the last writable address of a chain that fails, which is looked up if there is no later one.
  private var lastWritableAddress: UInt64?
  private var defect: Chain.Defect?

  /// - Parameter segments: room for `capacity` segments, and for one more if the driver is behind an IOMMU.
  init(into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int) {
    unsafe self.segments = segments
    self.capacity = capacity
  }

  /// Takes the next descriptor. Called at most 32768 times for a chain, so that no sum can overflow.
  mutating func add(
    _ address: UInt64, length: UInt32, isWritable: Bool, head: UInt16, _ view: inout GuestMemoryView
  ) throws(QueueError) {
    if isWritable {
      sawWritable = true
    } else if sawWritable {
      throw .readableAfterWritable(head: head)
    }
    // An empty descriptor transfers nothing, and gets no segment.
    guard length > 0 else { return }
    // Of a chain that fails, only the place of its status has to be translated.
    if view.isTranslated, defect != nil {
      guard isWritable else { return }
      writableBytes &+= UInt64(length)
      return setLast(address, length, &view)
    }
    let pieces: Int
    do throws(TranslationError) {
      pieces = unsafe try view.translate(
        address, length: length, for: isWritable ? .write : .read, into: segments + stored, capacity: capacity &- stored)
    } catch {
      if let miss = view.takeMiss() { throw .untranslated(miss) }
      pieces = 0
      if defect == nil { defect = error == .unmapped ? .unmapped : .tooManySegments }
    }
    stored &+= pieces
    guard isWritable else {
      readableBytes &+= UInt64(length)
      readableCount = stored
      return
    }
    writableBytes &+= UInt64(length)
    if pieces > 0 {
      let last = unsafe segments[stored &- 1]
      unsafe lastWritable = last.base + (last.count &- 1)
      lastWritableIsUnmapped = false
    } else {
      setLast(address, length, &view)
    }
  }

  /// The last writable byte is in a descriptor that is not completely in memory.
  private mutating func setLast(_ address: UInt64, _ length: UInt32, _ view: inout GuestMemoryView) {
    let end = GuestAddress(address).advanced(by: UInt64(length) - 1)
    lastWritableAddress = view.isTranslated ? end?.rawValue : nil
    unsafe lastWritable = view.isTranslated ? nil : end.flatMap { unsafe view.find($0.rawValue, for: .write)?.base }
    lastWritableIsUnmapped = unsafe lastWritable == nil
  }

  /// Finds the place of the status, which a chain that fails has, too.
  private mutating func finishTranslated(_ view: inout GuestMemoryView) throws(QueueError) {
    if lastWritableIsUnmapped, let lastWritableAddress {
      unsafe lastWritable = view.find(lastWritableAddress, for: .write)?.base
      lastWritableIsUnmapped = unsafe lastWritable == nil
      if lastWritableIsUnmapped, let miss = view.takeMiss() { throw .untranslated(miss) }
    }
    view.chainIsOver()
  }

  /// The chain is complete.
  mutating func finish(head: UInt16, _ shape: inout ChainShape, _ view: inout GuestMemoryView) throws(QueueError) {
    if view.isTranslated { try finishTranslated(&view) }
    guard readableBytes &+ writableBytes <= 1 << 32 else { throw .chainTooLarge(head: head) }
    guard !lastWritableIsUnmapped else { throw .statusUnmapped(head: head) }
    var (readableCount, stored) = (readableCount, stored)
    shape.readableBytes = readableBytes
    shape.writableBytes = writableBytes
    shape.defect = defect
    if defect != nil {
      shape.readableBytes = 0
      readableCount = 0
      stored = 0
      if let lastWritable = unsafe lastWritable {
        unsafe segments.pointee = MemorySegment(base: lastWritable, count: 1)
        stored = 1
      }
    }
    unsafe shape.writable = segments + readableCount
    unsafe shape.end = segments + stored
    if view.isTranslated { unsafe segments[stored] = .end }
  }
}

extension GuestMemoryView {
  /// The 16 bytes of a descriptor in an indirect table that is misaligned or spans regions, gathered byte by byte.
  @inline(never)
  mutating func gatherDescriptor(_ address: UInt64) -> (UInt64, UInt64)? {
    var words: (UInt64, UInt64) = (0, 0)
    let complete = unsafe withUnsafeMutableBytes(of: &words) { bytes in
      for offset in 0..<16 {
        guard let byte = find(address &+ UInt64(offset), for: .read) else { return false }
        unsafe bytes[offset] = byte.base.load(as: UInt8.self)
      }
      return true
    }
    return complete ? words : nil
  }
}
