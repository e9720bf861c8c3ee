/// Changes of a qcow2 image by a program with exclusive access.
internal import CLinux
internal import Glibc
public import Qcow2
internal import SystemPackage
internal import VirtioCore

/// An image that is locked, so that nobody else opens it while this object exists.
///
/// Every change is atomic, even if the program or the machine fails: see `ImageRevision`.
public final class Qcow2Editor {
  /// The path of the image, as it was given.
  public let path: String
  private let file: OwnedDescriptor
  private let calls: Qcow2Calls

  /// Opens it, and takes its lock.
  public convenience init(path: String) throws(ImageToolFailure) { try self.init(path: path, witness: nil) }

  /// - Parameter witness: observes every call that changes the file, for tests.
  init(path: String, witness: (any Qcow2Witness)?) throws(ImageToolFailure) {
    let descriptor = unsafe clinux_open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK, 0)
    guard descriptor >= 0 else {
      let error = Errno(rawValue: errno)
      if error == .isDirectory { throw .notAFile(path: path) }
      throw .cannotOpen(path: path, error)
    }
    let file = OwnedDescriptor(descriptor)
    var info = stat()
    guard unsafe fstat(descriptor, &info) == 0, info.st_mode & S_IFMT == S_IFREG else { throw .notAFile(path: path) }
    let isLocked: Bool
    do throws(ImageError) { isLocked = try ImageLock.take(descriptor, path: path, isReadOnly: false) } catch {
      throw .inUse(path: path)
    }
    guard isLocked else { throw .noLocks(path: path) }
    self.path = path
    self.file = file
    calls = Qcow2Calls(descriptor: descriptor, witness: witness)
  }

  /// Releases the lock at once: a process that was forked meanwhile may keep the file open a moment longer.
  deinit { ImageLock.release(file.rawValue) }

  /// For reading its contents.
  var descriptor: OwnedDescriptor { file }

  /// - Throws: `fault`.
  public func header() throws(ImageToolFailure) -> Qcow2Header { try Self.header(file.rawValue, path) }

  static func header(_ descriptor: Int32, _ path: String) throws(ImageToolFailure) -> Qcow2Header {
    do throws(Qcow2Fault) { return try Qcow2Header(try source(descriptor)) } catch { throw .fault(path: path, error) }
  }

  private static func source(_ descriptor: Int32) throws(Qcow2Fault) -> FileSource {
    do throws(Errno) { return try FileSource(descriptor) } catch { throw .cannotRead(error) }
  }

  // MARK: Changes

  /// - Parameters:
  ///   - name: 1 to 255 bytes; no snapshot may have this name yet.
  ///   - date: seconds since 1970, and nanoseconds.
  public func createSnapshot(_ name: String, date: (seconds: UInt32, nanoseconds: UInt32)) throws(ImageToolFailure) {
    try change { revision throws(Qcow2Fault) in try revision.createSnapshot(name, date: date) }
  }

  /// - Parameter name: of a snapshot, or its number.
  public func deleteSnapshot(_ name: String) throws(ImageToolFailure) {
    try change { revision throws(Qcow2Fault) in try revision.deleteSnapshot(name) }
  }

  /// Resets the disk to what it was in a snapshot.
  ///
  /// - Parameter name: of a snapshot, or its number.
  public func applySnapshot(_ name: String) throws(ImageToolFailure) {
    try change { revision throws(Qcow2Fault) in try revision.applySnapshot(name) }
  }

  /// Empties the image, so that the disk is that of the backing file.
  func empty() throws(ImageToolFailure) {
    try change { revision throws(Qcow2Fault) in try revision.empty() }
  }

  /// - Parameters:
  ///   - size: bytes.
  ///   - backing: the size of the disk in the backing file, bytes; 0 if there is none.
  func grow(to size: UInt64, over backing: UInt64) throws(ImageToolFailure) {
    try change { revision throws(Qcow2Fault) in try revision.grow(to: size, over: backing) }
  }

  /// Checks the whole image, as every change does first: it must not be marked as corrupt or dirty, and must not have errors.
  func examine() throws(ImageToolFailure) {
    do throws(Qcow2Fault) {
      let source = try Self.source(file.rawValue)
      _ = try ImageRevision(try Qcow2Header(source), source)
    } catch { throw .fault(path: path, error) }
  }

  /// Changes the name of the backing file in the header, and nothing else. So the disk changes if that file has different
  /// contents.
  ///
  /// - Parameters:
  ///   - name: `nil`: none.
  ///   - format: of that file.
  public func rename(backing name: String?, format: ImageFormat?) throws(ImageToolFailure) {
    try Self.rename(calls, path, backing: name, format: format)
  }

  /// - Parameter calls: calls on a file that this process has locked.
  static func rename(
    _ calls: Qcow2Calls, _ path: String, backing name: String?, format: ImageFormat?
  ) throws(ImageToolFailure) {
    let plan: StorePlan
    do throws(Qcow2Fault) {
      let source = try source(calls.descriptor)
      let change = try BackingChange(try Qcow2Header(source), source)
      plan = try change.plan(name.map { Array($0.utf8) }, format: format?.rawValue)
    } catch { throw .fault(path: path, error) }
    for group in plan.groups {
      for store in group { try check(calls.put(store.bytes, at: store.offset), path) }
      try check(calls.sync(), path)
    }
  }

  private static func check(_ result: Int32, _ path: String) throws(ImageToolFailure) {
    guard result == 0 else { throw .cannotStore(path: path, Errno(rawValue: -result)) }
  }

  private func change(
    _ body: (inout ImageRevision<FileSource>) throws(Qcow2Fault) -> Void
  ) throws(ImageToolFailure) {
    let length: UInt64
    var revision: ImageRevision<FileSource>
    do throws(Qcow2Fault) {
      let source = try Self.source(file.rawValue)
      length = source.byteCount
      revision = try ImageRevision(try Qcow2Header(source), source)
      try body(&revision)
    } catch { throw .fault(path: path, error) }
    let last: ImageStore
    let freed: [Range<UInt64>]
    do throws(ImageToolFailure) {
      do throws(Qcow2Fault) {
        last = try revision.store { store throws(Qcow2Fault) in
          let result = calls.put(store.bytes, at: store.offset)
          guard result == 0 else { throw .cannotStore(store.part, Errno(rawValue: -result)) }
        }
        freed = try revision.freed()
      } catch { throw .fault(path: path, error) }
      try Self.check(calls.sync(), path)
    } catch {
      // Nothing refers to what was stored.
      calls.cut(length)
      throw error
    }
    try Self.check(calls.put(last.bytes, at: last.offset), path)
    try Self.check(calls.sync(), path)
    // Deallocates their space; if that fails, the next use of the clusters reuses it.
    for range in freed { _ = calls.punch(range.lowerBound, UInt64(range.count)) }
  }
}
