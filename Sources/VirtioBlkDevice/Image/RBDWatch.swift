/// Is told by the library when an image of a Ceph cluster changes.
internal import CLinux
internal import Synchronization
internal import VirtioCore

@safe
final class RBDWatch: @unchecked Sendable {
  private let handles: RBDHandles
  private var handle: UInt64 = 0
  private let image = Mutex(Weak())

  private struct Weak: Sendable { weak var image: RBDImage? }

  /// - Returns: `nil` where the cluster does not tell; then the size is looked at when somebody asks.
  init?(_ handles: RBDHandles) {
    self.handles = handles
    let told: @convention(c) (UnsafeMutableRawPointer?) -> Void = { argument in
      guard let argument = unsafe argument else { return }
      let watch = unsafe Unmanaged<RBDWatch>.fromOpaque(argument).takeUnretainedValue()
      watch.image.withLock(\.image)?.hasChanged()
    }
    // Until it is ended the library has a reference, too.
    let argument = unsafe Unmanaged.passRetained(self).toOpaque()
    guard unsafe handles.library.functions.pointee.update_watch(handles.image, &handle, told, argument) >= 0 else {
      unsafe Unmanaged<RBDWatch>.fromOpaque(argument).release()
      return nil
    }
  }

  /// Tells this image.
  func tell(_ image: RBDImage) { self.image.withLock { $0.image = image } }

  /// Nothing is told any more when this has returned. Once.
  func end() {
    _ = unsafe handles.library.functions.pointee.update_unwatch(handles.image, handle)
    unsafe Unmanaged.passUnretained(self).release()
  }
}
