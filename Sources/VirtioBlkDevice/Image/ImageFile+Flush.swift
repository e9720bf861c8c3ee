/// A flush that no guest requested.
internal import Glibc
internal import Synchronization
public import SystemPackage
internal import VirtioCore

extension ImageFile {
  /// Makes everything stable that was written to the image before, by any queue. It waits for the medium, so it is for a helper
  /// thread; concurrent calls are executed one after the other.
  ///
  /// - Returns: why it failed; `nil` if it succeeded. After a failure on an image that is not direct, no guest's flush succeeds
  ///   any more, because the kernel reports lost data only once.
  public func flush() -> Errno? {
    if let export { return flush(export) }
    if let rbd {
      let error = rbd.flush()
      return error == 0 ? nil : Errno(rawValue: error)
    }
    if let chain {
      let result = chain.writer?.flush() ?? 0
      return result == 0 ? nil : Errno(rawValue: -result)
    }
    return state.operatorFlush.withLock { _ in
      guard state.flushFailed.loadRelaxed() == 0 else { return Errno.ioError }
      let syncs = state.syncs
      syncs.publish(syncs.begin(), worker: SyncLedger.operatorPlace)
      let error = sync()
      if error != nil, !isDirect { state.flushFailed.storeRelaxed(1) }
      // A guest's flush that runs concurrently succeeds only if it finds the word above unchanged.
      syncs.publish(0, worker: SyncLedger.operatorPlace)
      return error
    }
  }

  private func sync() -> Errno? {
    while fdatasync(descriptor) < 0 {
      let error = Errno(rawValue: errno)
      guard error == .interrupted else { return error }
    }
    return nil
  }
}
