/// Rebases an overlay: gives it another backing file, or none, without changing the disk.
internal import Glibc
internal import Qcow2
internal import SystemPackage
internal import VirtioCore

/// Gives an overlay another backing file, or none.
///
/// Where the contents of the new backing file differ from the old one, the overlay gets a copy of the old contents. Once all of
/// it is stable, the name is changed atomically (`BackingChange`). So at every moment the overlay is the same disk, over the
/// old file or over the new one.
public enum Qcow2Rebase {
  /// A new backing file.
  public struct Backing: Sendable, Hashable {
    /// The name that is written into the image.
    public var name: String
    /// The path of the file: the name, resolved from the image's folder.
    public var path: String
    /// Its format, which is also written into the image.
    public var format: ImageFormat

    /// The parameters are the properties of the same names.
    public init(name: String, path: String, format: ImageFormat) { (self.name, self.path, self.format) = (name, path, format) }
  }

  /// - Parameters:
  ///   - location: that of the overlay and of its present backing files.
  ///   - backing: `nil`: none.
  ///   - progress: is called now and then.
  public static func run(
    _ location: Qcow2Location, to backing: Backing?, progress: ToolProgress
  ) throws(ImageToolFailure) { try run(location, to: backing, witness: nil, progress: progress) }

  /// - Parameter witness: observes every call that changes the overlay.
  static func run(
    _ location: Qcow2Location, to backing: Backing?, witness: (any Qcow2Witness)?, progress: ToolProgress
  ) throws(ImageToolFailure) {
    let path = location.path
    let new = try examine(location, backing)
    let target = try DiskTarget(path: path, location, witness: witness)
    guard let disk = target.image.chain, let writer = disk.writer else { preconditionFailure("it was opened for writing") }
    // Checked again, because the image was unlocked for a moment.
    guard try Qcow2Editor.header(target.image.descriptor, path).snapshotCount == 0 else { throw .hasSnapshots(path: path) }
    try copy(disk, writer, path, over: new, progress)
    let flushed = target.flush()
    guard flushed == 0 else { throw .cannotStore(path: path, Errno(rawValue: -flushed)) }
    target.image.finish()
    try Qcow2Editor.rename(writer.calls, path, backing: backing?.name, format: backing?.format)
    // It owns the descriptor, and the lock.
    withExtendedLifetime(target) {}
  }

  /// Everything that can be refused is refused before anything is written: opening an image for writing invalidates its
  /// bitmaps.
  ///
  /// - Returns: the disk in the new backing file.
  private static func examine(_ location: Qcow2Location, _ backing: Backing?) throws(ImageToolFailure) -> Qcow2Disk? {
    let editor = try Qcow2Editor(path: location.path)
    guard try editor.header().snapshotCount == 0 else { throw .hasSnapshots(path: location.path) }
    try editor.examine()
    var new: Qcow2Disk? = nil
    if let backing {
      do throws(Qcow2Failure) {
        new = try Qcow2Chain.open(backing.path, backing.format, folder: location.folder)
      } catch { throw DiskTarget.failure(.qcow2(error), backing.path) }
    }
    // A chain that contains the overlay is refused, because the overlay is locked.
    withExtendedLifetime(editor) {}
    return new
  }

  private static func copy(
    _ disk: Qcow2Disk, _ writer: Qcow2Writer, _ path: String, over new: Qcow2Disk?, _ progress: ToolProgress
  ) throws(ImageToolFailure) {
    var offset: UInt64 = 0
    while offset < disk.size {
      let own = disk.layers[0].look(at: offset, limit: disk.size - offset, mayWait: true)
      guard own.kind != .failed else { throw .cannotRead(path: path, offset: offset) }
      var count = own.count
      if own.kind == .absent {
        let old = disk.find(offset, limit: count, mayWait: true, from: 1).1
        let other = Self.piece(new, offset, limit: count)
        if old.kind == .zero, other.kind == .zero {
          // There is nothing to read, however large the range is.
          count = min(old.count, other.count)
        } else {
          count = min(count, Qcow2Commit.step)
          try compare(offset..<offset + count, disk, writer, path, new)
        }
      }
      offset += count
      progress(offset, disk.size)
    }
  }

  /// Beyond the end of the new disk, and without one, there are zeroes.
  private static func piece(_ new: Qcow2Disk?, _ offset: UInt64, limit: UInt64) -> Qcow2Piece {
    new?.piece(at: offset, limit: limit) ?? Qcow2Piece(kind: .zero, count: limit)
  }

  /// Copies the units of allocation that differ, neighbouring ones together: a write to a new cluster waits for the medium.
  ///
  /// - Parameter range: bytes for which the overlay has no contents.
  private static func compare(
    _ range: Range<UInt64>, _ disk: Qcow2Disk, _ writer: Qcow2Writer, _ path: String, _ new: Qcow2Disk?
  ) throws(ImageToolFailure) {
    guard let old = disk.content(range.lowerBound, range.count) else { throw .cannotRead(path: path, offset: range.lowerBound) }
    var other = [UInt8](repeating: 0, count: old.count)
    if let new, range.lowerBound < new.size {
      let count = Int(min(UInt64(range.count), new.size - range.lowerBound))
      guard let bytes = new.content(range.lowerBound, count) else {
        throw .cannotRead(path: new.layers[0].path, offset: range.lowerBound)
      }
      other.replaceSubrange(..<count, with: bytes)
    }
    let (cluster, unit) = (disk.layers[0].clusterSize, disk.layers[0].geometry.subclusterSize)
    func inside(_ part: Range<UInt64>) -> Range<Int> {
      Int(part.lowerBound - range.lowerBound)..<Int(part.upperBound - range.lowerBound)
    }
    func difference(_ part: Range<UInt64>) -> Difference {
      let part = inside(part)
      guard old[part] != other[part] else { return .none }
      return old[part].allSatisfy { $0 == 0 } ? .zero : .data
    }
    func unitEnd(_ start: UInt64) -> UInt64 { min(range.upperBound, (start / unit + 1) * unit) }
    var start = range.lowerBound
    while start < range.upperBound {
      var end = unitEnd(start)
      let kind = difference(start..<end)
      // Zeroes are marked in one cluster at a time.
      while end < range.upperBound, kind != .zero || end % cluster != 0, difference(end..<unitEnd(end)) == kind {
        end = unitEnd(end)
      }
      let result: Int32
      switch kind {
      case .none: result = 0
      case .zero: result = disk.hide(start..<end, writer)
      case .data: result = disk.put(Array(old[inside(start..<end)]), at: start)
      }
      guard result == 0 else { throw .cannotStore(path: path, Errno(rawValue: -result)) }
      start = end
    }
  }

  /// What the overlay needs so that the disk does not change.
  private enum Difference { case none, zero, data }
}
