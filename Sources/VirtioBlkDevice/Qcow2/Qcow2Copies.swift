/// Copies from and to the mappings of a disk of qcow2 images.
internal import VirtioCore

/// Where the data of a transfer is mapped.
@safe
struct MappedPlace {
  let address: UnsafeMutableRawPointer
}

/// One worker's view of the mappings.
@safe
struct Qcow2Copies: CopyMedium, ~Copyable {
  private let disk: Qcow2Disk
  private let streamedFrom: Int
  /// Faults of all mappings of the process, and how many of them are known to concern others.
  private let faults = FaultGuard.counter
  private var seen: UInt64
  /// System calls made.
  private(set) var calls: UInt64 = 0

  init(_ disk: Qcow2Disk) {
    self.disk = disk
    streamedFrom = CopyKernel.streamedFrom(imageSize: disk.size)
    seen = disk.hasLostMapping ? .max : faults.loadRelaxed()
  }

  /// Or there was a fault since, of which it is not known yet whom it concerns.
  var isCut: Bool {
    @inline(__always) get { faults.loadRelaxed() != seen }
  }

  @inline(__always)
  func isData(_ operation: IOOperation, _ place: MappedPlace) -> Bool { true }

  @inline(__always)
  func address(of operation: IOOperation, _ place: MappedPlace) -> UnsafeMutableRawPointer { unsafe place.address }

  @inline(__always)
  mutating func perform(_ operation: IOOperation, _ place: MappedPlace) -> Int32 {
    guard !isCut else { return performOtherwise(operation) }
    if operation.kind == .read {
      unsafe CopyKernel.read(operation, from: place.address)
    } else {
      unsafe CopyKernel.write(operation, to: place.address, streamedFrom: streamedFrom)
    }
    return result(of: operation)
  }

  @inline(__always)
  mutating func result(of operation: IOOperation) -> Int32 {
    guard faults.loadAfterLoads() == seen else { return performOtherwise(operation) }
    return Int32(truncatingIfNeeded: operation.length)
  }

  /// The mapping may be lost: a system call repeats the transfer, and returns the exact error.
  @inline(never)
  private mutating func performOtherwise(_ operation: IOOperation) -> Int32 {
    // Before the mappings are asked, so that a fault in between is seen the next time.
    let now = faults.loadAfterLoads()
    if !disk.hasLostMapping { seen = now }
    calls &+= 1
    return disk.perform(operation)
  }
}
