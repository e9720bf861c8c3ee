/// Decides which transfers of a mapped image are copies, and executes the others.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// One worker's view of a `MappedImage`: copies if the pages are there, system calls otherwise.
@safe
struct MappedTransfers: CopyMedium, ~Copyable {
  private let medium: PlainIO
  private let image: MappedImage
  // The parts of it that each copy needs.
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

  /// Whether everything that a transfer touches is known to be data.
  @inline(__always)
  func isData(_ operation: IOOperation, _: Void = ()) -> Bool { windows?.isData(operation.offset, operation.length) ?? true }

  /// The mapping must not be used any more.
  var isCut: Bool {
    @inline(__always) get { cut.loadRelaxed() != 0 }
  }

  /// Where a transfer is in the image.
  @inline(__always)
  func address(of operation: IOOperation, _: Void = ()) -> UnsafeMutableRawPointer {
    unsafe base + Int(truncatingIfNeeded: operation.offset)
  }

  /// Transfers. - Returns: bytes, or a negative errno.
  @inline(__always)
  mutating func perform(_ operation: IOOperation, _: Void = ()) -> Int32 {
    // The order matters: an operation beyond the mapping is only possible if `isCut` is set.
    guard !isCut, isData(operation) else { return performWithoutData(operation) }
    return copy(operation)
  }

  @inline(__always)
  private mutating func copy(_ operation: IOOperation) -> Int32 {
    if operation.kind == .read {
      unsafe CopyKernel.read(operation, from: address(of: operation))
    } else {
      unsafe CopyKernel.write(operation, to: address(of: operation), streamedFrom: streamedFrom)
    }
    return result(of: operation)
  }

  /// The result of a copy that was made.
  @inline(__always)
  mutating func result(of operation: IOOperation) -> Int32 {
    guard faults?.loadAfterLoads() ?? 0 == 0 else { return lost(operation) }
    if operation.isDurable { return unsafe performOtherwise(IOOperation(kind: .flush), answer: Int32(operation.length)) }
    return Int32(truncatingIfNeeded: operation.length)
  }

  /// This copy, or one of another queue, ran past the end of a truncated file, out of memory, or into a read error of the
  /// medium. A system call returns the exact error.
  @inline(never)
  private mutating func lost(_ operation: IOOperation) -> Int32 {
    cut.storeRelaxed(1)
    return performOtherwise(operation)
  }

  /// Executes a transfer of something that is not known to be data.
  @inline(never)
  private mutating func performWithoutData(_ operation: IOOperation) -> Int32 {
    guard let windows = image.windows, !isCut else { return performOtherwise(operation) }
    switch windows.look(operation.offset, operation.length) {
    case .data: return copy(operation)
    case .sparse:
      let result = performOtherwise(operation)
      if operation.kind == .write, result > 0 { windows.filled(operation.offset, UInt64(result)) }
      // Only the end of the file makes a read short.
      if operation.kind == .read, result >= 0, result < Int32(operation.length) { cut.storeRelaxed(1) }
      return result
    case .cut: return lost(operation)
    }
  }

  /// Executes an operation with a system call. A write must not extend a truncated file again.
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

  /// Data copied past the end of a truncated file, but within its last page, is lost without a fault. The next flush reports
  /// that.
  private mutating func losesItsEnd() -> Bool {
    guard !length.holds(end: min(size, image.size)) else { return false }
    cut.storeRelaxed(1)
    return length.endsInAPage
  }

  /// Forgets what is known about a range if an operation makes holes in it or fills them.
  func forgetHoles(of operation: IOOperation) {
    switch operation.kind {
    case .punchHole, .zeroRange, .allocate, .blockDiscard:
      image.windows?.forget(operation.offset, operation.length)
    case .read, .write, .flush: break
    }
  }
}
