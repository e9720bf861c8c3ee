/// Is told by the library when an image of a Ceph cluster changes.
internal import CLinux
internal import Synchronization
internal import VirtioCore

@safe
final class RBDWatch: @unchecked Sendable {
  private let handles: RBDHandles
  private var handle: UInt64 = 0
  private let told = Mutex(Told())

  private struct Told: Sendable {
    weak var image: RBDImage?
    /// Before there was one to tell.
    var hasChanged = false
  }

  /// - Returns: `nil` where the cluster does not tell; then the size is looked at when somebody asks.
  init?(_ handles: RBDHandles) {
    self.handles = handles
    let told: @convention(c) (UnsafeMutableRawPointer?) -> Void = { argument in
      guard let argument = unsafe argument else { return }
      let watch = unsafe Unmanaged<RBDWatch>.fromOpaque(argument).takeUnretainedValue()
      watch.changed()
    }
    // Until it is ended the library has a reference, too.
    let argument = unsafe Unmanaged.passRetained(self).toOpaque()
    guard unsafe handles.library.functions.pointee.update_watch(handles.image, &handle, told, argument) >= 0 else {
      unsafe Unmanaged<RBDWatch>.fromOpaque(argument).release()
      return nil
    }
  }

  private func changed() {
    let image = told.withLock { told in
      told.hasChanged = told.image == nil
      return told.image
    }
    image?.hasChanged()
  }

  /// Tells this image, also of what has changed before.
  func tell(_ image: RBDImage) {
    let hasChanged = told.withLock { told in
      told.image = image
      return told.hasChanged
    }
    if hasChanged { image.hasChanged() }
  }

  /// Nothing is told any more when this has returned. Once.
  func end() {
    _ = unsafe handles.library.functions.pointee.update_unwatch(handles.image, handle)
    unsafe Unmanaged.passUnretained(self).release()
  }
}
