/// The disk that a tool copies to, piece by piece.
internal import Glibc
internal import Qcow2
internal import SystemPackage
internal import VirtioCore

/// A raw file or a chain of qcow2 images, open for writing and locked.
struct DiskTarget {
  let image: ImageFile
  /// Used for a raw file.
  private let calls: Qcow2Calls

  /// - Parameters:
  ///   - location: the chain of which `path` is the top; `nil`: it is raw.
  ///   - witness: observes every call that changes the file, for tests.
  init(path: String, _ location: Qcow2Location?, witness: (any Qcow2Witness)?) throws(ImageToolFailure) {
    var options = ImageOptions(path: path, direct: .off, format: location == nil ? .raw : .auto)
    options.qcow2 = location
    options.qcow2Witness = witness
    do throws(ImageError) { image = try ImageFile(options) } catch { throw Self.failure(error, path) }
    guard image.lock != nil else { throw .noLocks(path: path) }
    calls = Qcow2Calls(descriptor: image.descriptor, witness: witness)
  }

  static func failure(_ error: ImageError, _ path: String) -> ImageToolFailure {
    switch error {
    case .locked(let path), .qcow2(.locked(let path)): .inUse(path: path)
    case .qcow2(.noImage(let path)): .cannotOpen(path: path, .noSuchFileOrDirectory)
    case .notWritable(let path, let error), .cannotOpen(let path, let error): .cannotOpen(path: path, error)
    case .qcow2(.notWritable(let path, let fault)): .fault(path: path, fault)
    case .qcow2(.fault(path, let fault)): .fault(path: path, fault)
    default: .image(error)
    }
  }

  /// - Returns: 0, or a negative errno.
  func write(_ bytes: [UInt8], at offset: UInt64) -> Int32 {
    guard let chain = image.chain else { return calls.put(bytes, at: offset) }
    return chain.put(bytes, at: offset)
  }

  /// - Returns: 0, or a negative errno.
  func zero(_ offset: UInt64, _ count: UInt64) -> Int32 {
    guard let chain = image.chain else { return calls.zero(offset, count, mayUnmap: true) }
    var operation = unsafe IOOperation(kind: .punchHole)
    (operation.offset, operation.length) = (offset, count)
    return chain.performAll(operation)
  }

  /// Extends a raw file.
  func extend(to size: UInt64) -> Int32 { calls.put([0], at: size - 1) }

  /// Makes everything stable. - Returns: 0, or a negative errno.
  func flush() -> Int32 {
    guard let chain = image.chain else { return calls.sync() }
    return chain.perform(unsafe IOOperation(kind: .flush))
  }
}

extension Qcow2Disk {
  /// - Returns: 0, or a negative errno.
  func performAll(_ operation: IOOperation) -> Int32 {
    let result = perform(operation)
    return result < 0 ? result : 0
  }

  /// Writes all of it. - Returns: 0, or a negative errno.
  func put(_ bytes: [UInt8], at offset: UInt64) -> Int32 {
    var done = 0
    while done < bytes.count {
      let result = unsafe bytes.withUnsafeBytes { buffer -> Int32 in
        guard let base = buffer.baseAddress else { return 0 }
        var segment = unsafe MemorySegment(
          base: UnsafeMutableRawPointer(mutating: base + done), count: buffer.count - done)
        var operation = unsafe IOOperation(kind: .write)
        (operation.offset, operation.length, operation.segmentCount) = (
          offset &+ UInt64(done), UInt64(buffer.count - done), 1
        )
        return unsafe withUnsafeMutablePointer(to: &segment) { segment in
          unsafe operation.segments = segment
          return perform(operation)
        }
      }
      guard result > 0 else { return result < 0 ? result : -EIO }
      done += Int(result)
    }
    return 0
  }
}
