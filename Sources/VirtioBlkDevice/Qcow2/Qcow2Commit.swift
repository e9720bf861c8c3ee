/// Commits an overlay: writes its contents into its backing file.
internal import Glibc
internal import Qcow2
internal import SystemPackage
internal import VirtioCore

/// The progress of a tool: bytes of the disk that are done, and the size of the disk.
public typealias ToolProgress = (_ done: UInt64, _ size: UInt64) -> Void

/// Writes the contents of an overlay into its backing file.
///
/// The overlay is the same disk at every moment. Until everything is stable in the backing file, it keeps its contents, which
/// hide those of the backing file; only then is it emptied, atomically (`ImageRevision`).
public enum Qcow2Commit {
  /// How much is copied at once, bytes.
  static let step: UInt64 = 1 << 20

  /// - Parameters:
  ///   - location: that of the overlay; it has to name the first backing file, which is written to.
  ///   - keepsOverlay: the overlay is not emptied.
  ///   - progress: is called now and then.
  public static func run(
    _ location: Qcow2Location, keepsOverlay: Bool, progress: ToolProgress
  ) throws(ImageToolFailure) { try run(location, keepsOverlay: keepsOverlay, witnesses: (nil, nil), progress: progress) }

  /// - Parameter witnesses: observe every call that changes the overlay or the backing file.
  static func run(
    _ location: Qcow2Location, keepsOverlay: Bool,
    witnesses: (overlay: (any Qcow2Witness)?, base: (any Qcow2Witness)?), progress: ToolProgress
  ) throws(ImageToolFailure) {
    let path = location.path
    let editor = try Qcow2Editor(path: path, witness: witnesses.overlay)
    let header = try editor.header()
    guard let name = header.backingText else { throw .noBacking(path: path) }
    guard header.snapshotCount == 0 else { throw .hasSnapshots(path: path) }
    guard !header.hasDataFile else { throw .fault(path: path, .externalData) }
    guard location.snapshot == nil, location.dataFile == nil else { throw .onlyTheDisk(path: path) }
    guard let base = location.backing.first else { throw .baseNotNamed(path: path, name: name) }
    if let format = header.backingFormat, ImageFormat(rawValue: format) != nil, format != base.format.rawValue {
      throw .otherFormat(path: path, format: format, given: base.format.rawValue)
    }
    if base.format == .raw, let more = location.backing.dropFirst().first {
      throw .image(.qcow2(.nothingUnder(path: base.path, given: more.path)))
    }
    // Before any of it gets into the base.
    try editor.examine()
    let layer: Qcow2Layer
    do throws(Qcow2Failure) {
      try Qcow2Chain.compare(name, with: base.path, path)
      layer = try Qcow2Chain.top(editor.descriptor, header, path)
    } catch { throw .image(.qcow2(error)) }

    var under: Qcow2Location? = nil
    if base.format == .qcow2 {
      under = Qcow2Location(path: base.path)
      under?.backing = Array(location.backing.dropFirst())
      under?.folder = location.folder
      if let under { try prepare(under, for: layer.size, witnesses.base) }
    }
    let target = try DiskTarget(path: base.path, under, witness: witnesses.base)
    if target.image.size < layer.size {
      let result = target.image.isBlockDevice ? -ENOSPC : target.extend(to: layer.size)
      guard result == 0 else { throw .baseTooSmall(path: base.path, Errno(rawValue: -result)) }
    }
    try copy(layer, path, to: target, progress)
    // Before the overlay is emptied.
    let flushed = target.flush()
    guard flushed == 0 else { throw .cannotStore(path: base.path, Errno(rawValue: -flushed)) }
    target.image.finish()
    if !keepsOverlay { try editor.empty() }
    // Nobody else may open the overlay before this point.
    withExtendedLifetime(editor) {}
  }

  /// Examines a base that is a qcow2 image, and extends it if it is too short.
  private static func prepare(
    _ base: Qcow2Location, for size: UInt64, _ witness: (any Qcow2Witness)?
  ) throws(ImageToolFailure) {
    let editor = try Qcow2Editor(path: base.path, witness: witness)
    try editor.examine()
    if try editor.header().size < size {
      let chain: Qcow2Disk
      do throws(Qcow2Failure) {
        chain = try Qcow2Chain.open(base, top: editor.descriptor, isLocked: true)
      } catch { throw DiskTarget.failure(.qcow2(error), base.path) }
      // The disk under the base ends where its topmost image does.
      try editor.grow(to: size, over: chain.layers.dropFirst().first?.size ?? 0)
    }
    withExtendedLifetime(editor) {}
  }

  private static func copy(
    _ layer: Qcow2Layer, _ path: String, to target: DiskTarget, _ progress: ToolProgress
  ) throws(ImageToolFailure) {
    // The overlay alone: what it does not contain is skipped.
    let disk = Qcow2Disk([layer], isInMemory: false)
    var offset: UInt64 = 0
    while offset < layer.size {
      let piece = layer.look(at: offset, limit: layer.size - offset, mayWait: true)
      var count = piece.count
      var result: Int32 = 0
      switch piece.kind {
      case .absent: break
      case .zero: result = target.zero(offset, count)
      case .data, .compressed:
        count = min(count, step)
        guard let bytes = disk.content(offset, Int(count)) else { throw .cannotRead(path: path, offset: offset) }
        result = target.write(bytes, at: offset)
      case .notLoaded, .failed: throw .cannotRead(path: path, offset: offset)
      }
      guard result == 0 else { throw .cannotStore(path: target.image.path, Errno(rawValue: -result)) }
      offset += count
      progress(offset, layer.size)
    }
  }
}
