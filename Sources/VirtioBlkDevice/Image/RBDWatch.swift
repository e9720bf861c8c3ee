/// Receives notifications from the library when an image of a Ceph cluster changes.
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
    /// It changed before there was an image to tell.
    var hasChanged = false
  }

  /// - Returns: `nil` if the cluster does not send notifications; then the size is only queried on request.
  init?(_ handles: RBDHandles) {
    self.handles = handles
    let told: @convention(c) (UnsafeMutableRawPointer?) -> Void = { argument in
      guard let argument = unsafe argument else { return }
      let watch = unsafe Unmanaged<RBDWatch>.fromOpaque(argument).takeUnretainedValue()
      watch.changed()
    }
    // The library also has a reference until `end`.
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

  /// Tells this image of changes, including earlier ones.
  func tell(_ image: RBDImage) {
    let hasChanged = told.withLock { told in
      told.image = image
      return told.hasChanged
    }
    if hasChanged { image.hasChanged() }
  }

  /// No notification comes after this has returned. To be called once.
  func end() {
    _ = unsafe handles.library.functions.pointee.update_unwatch(handles.image, handle)
    unsafe Unmanaged.passUnretained(self).release()
  }
}
