/// What may be copied to and from a mapped image, and what happens to the rest.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// One worker's view of a `MappedImage`: copies where the pages are there, system calls elsewhere.
@safe
struct MappedTransfers: ~Copyable {
  private let medium: PlainIO
  private let image: MappedImage
  // What each copy needs of it.
  let base: UnsafeMutableRawPointer
  private let windows: PopulatedWindows.View?
  private let faults: SharedCell<UInt64>?
  private let cut: SharedCell<UInt32>
  private let size: UInt64
  private let streamedFrom: Int
  private var length: FileLength
  private var made: UInt64 = 0
  /// System calls made.
  var calls: UInt64 { made &+ length.calls }

  /// - Parameter descriptor: the image.
  init(_ image: MappedImage, descriptor: Int32) {
    self.image = image
    unsafe base = image.mapping.base
    windows = image.windows?.view
    faults = image.mapping.faultCount
    cut = image.cut
    size = UInt64(image.mapping.count)
    medium = PlainIO(descriptor: descriptor)
    length = FileLength(descriptor: descriptor, full: size)
    streamedFrom = image.streamedFrom
  }

  /// Whether all that a transfer touches is known to be data.
  @inline(__always)
  func isData(_ operation: IOOperation) -> Bool { windows?.isData(operation.offset, operation.length) ?? true }

  /// The mapping is not to be used any more.
  var isCut: Bool {
    @inline(__always) get { cut.loadRelaxed() != 0 }
  }

  /// Where a transfer is in the image.
  @inline(__always)
  func place(_ operation: IOOperation) -> UnsafeMutableRawPointer {
    unsafe base + Int(truncatingIfNeeded: operation.offset)
  }

  /// Transfers. - Returns: bytes, or a negative errno.
  @inline(__always)
  mutating func perform(_ operation: IOOperation) -> Int32 {
    // The order matters: beyond what is mapped there is only what is cut.
    guard !isCut, isData(operation) else { return performWithoutData(operation) }
    return copy(operation)
  }

  @inline(__always)
  private mutating func copy(_ operation: IOOperation) -> Int32 {
    if operation.kind == .read {
      unsafe CopyKernel.read(operation, from: place(operation))
    } else {
      unsafe CopyKernel.write(operation, to: place(operation), streamedFrom: streamedFrom)
    }
    return result(of: operation)
  }

  /// What is to be said of a copy that was made.
  @inline(__always)
  mutating func result(of operation: IOOperation) -> Int32 {
    guard faults?.loadAfterLoads() ?? 0 == 0 else { return lost(operation) }
    if operation.isDurable { return unsafe performOtherwise(IOOperation(kind: .flush), answer: Int32(operation.length)) }
    return Int32(truncatingIfNeeded: operation.length)
  }

  /// The copy, or another queue's, ran into the end of a file that was cut, of the memory behind it, or into what the medium
  /// cannot read. The kernel can say more.
  @inline(never)
  private mutating func lost(_ operation: IOOperation) -> Int32 {
    cut.storeRelaxed(1)
    return performOtherwise(operation)
  }

  /// A transfer of what is not known to be data.
  @inline(never)
  private mutating func performWithoutData(_ operation: IOOperation) -> Int32 {
    guard let windows = image.windows, !isCut else { return performOtherwise(operation) }
    switch windows.look(operation.offset, operation.length) {
    case .data: return copy(operation)
    case .sparse:
      let result = performOtherwise(operation)
      if operation.kind == .write, result > 0 { windows.filled(operation.offset, UInt64(result)) }
      // Only the end of the file makes a read fall short.
      if operation.kind == .read, result >= 0, result < Int32(operation.length) { cut.storeRelaxed(1) }
      return result
    case .cut: return lost(operation)
    }
  }

  /// By a system call. A write must not make a file long again that was cut.
  @inline(never)
  mutating func performOtherwise(_ operation: IOOperation, answer: Int32? = nil) -> Int32 {
    if operation.kind == .write, image.isFile {
      guard length.holds(end: operation.offset &+ operation.length) else { return -EIO }
    }
    if operation.kind == .flush, image.isFile, !isCut, losesItsEnd() { return -EIO }
    made &+= 1
    let result = medium.perform(operation)
    forgetHoles(of: operation)
    return result < 0 ? result : answer ?? result
  }

  /// A copy to behind the end of a file that was cut, in the page where it ends, goes nowhere, and no fault says so. The next
  /// flush reports it.
  private mutating func losesItsEnd() -> Bool {
    guard !length.holds(end: min(size, image.size)) else { return false }
    cut.storeRelaxed(1)
    return length.endsInAPage
  }

  /// What is known of a range is void where an operation makes holes or fills them.
  func forgetHoles(of operation: IOOperation) {
    switch operation.kind {
    case .punchHole, .zeroRange, .allocate, .blockDiscard:
      image.windows?.forget(operation.offset, min(operation.length, size &- min(operation.offset, size)))
    case .read, .write, .flush: break
    }
  }
}
