/// A flush that no guest asked for.
internal import Glibc
internal import Synchronization
public import SystemPackage
internal import VirtioCore

extension ImageFile {
  /// Makes stable what was written to the image before, by whichever queue. Waits for the medium, so it is for a helper thread; of
  /// several at once each waits for those before.
  ///
  /// - Returns: why it failed; `nil` when it did not. After a failure on an image that is not direct no guest's flush succeeds any
  ///   more, because the kernel tells of lost data once.
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
      // A guest's flush beside this one succeeds only if it finds the word above as it was.
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
