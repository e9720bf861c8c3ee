/// Resizing a disk while a driver uses it.
internal import VirtioCore

extension BlockDevice {
  /// The image was resized by somebody else. - Parameter bytes: its new size.
  func follow(_ bytes: UInt64) {
    let (before, size) = (image.size, bytes - bytes % UInt64(image.logicalBlockSize))
    guard size != before else { return }
    guard size > 0 else { return events.post(.notice("\(image.path) no longer has a whole block, so the disk keeps its size")) }
    events.post(.notice("\(image.path) has \(size) bytes now, and had \(before)"))
    resize(to: size)
  }

  /// Changes the size of the disk: the configuration space changes, the driver is notified, and requests beyond the end get
  /// IOERR. If the disk grows, the image must have the new length already; if it shrinks, requests in flight may still reach
  /// beyond the new end.
  ///
  /// - Parameter size: bytes; a multiple of the logical block size, not 0.
  public func resize(to size: UInt64) {
    precondition(size > 0 && size % UInt64(image.logicalBlockSize) == 0, "a disk has whole blocks")
    guard size != image.size else { return }
    image.state.size.storeRelaxed(size)
    if let mapped, size > UInt64(mapped.mapping.count), mapped.cut.loadRelaxed() == 0 {
      mapped.cut.storeRelaxed(1)
      events.post(
        .notice(
          "the disk is larger than the mapping of \(image.path), so every request is a system call from now on; a server that takes "
            + "over (--take-over) maps all of it"))
    }
    configuration.resize(to: size)
    configurationGeneration &+= 1
    // Release: a worker that sees the new end also sees that the mapping was given up.
    shared.capacity.storeRelease(size / 512)
    events.post(.configurationChanged)
  }
}
