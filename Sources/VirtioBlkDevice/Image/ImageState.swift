/// The state of an open image, for all queues that share it.
internal import Synchronization
public import VirtioCore

/// What has happened to an image since it was opened.
///
/// Shared by all workers of a disk: words that are read and written without a lock. Freed with the image.
@safe
public final class ImageState: @unchecked Sendable {
  /// Not 0 once a flush or a stable write has failed on an image that is not direct: the kernel reports such an error once and
  /// then drops it, together with the data, so no later flush may succeed until the image is opened again.
  public let flushFailed: SharedCell<UInt32>
  /// The size of the disk, bytes.
  let size: SharedCell<UInt64>

  /// Flushes and stable writes in flight.
  let syncs: SyncLedger

  /// Held by a flush that no guest requested.
  let operatorFlush = Mutex<Void>(())

  private let block: UnsafeMutableRawPointer

  /// - Parameter bytes: of the image, when it is opened.
  init(size bytes: UInt64) {
    // The first words have a cache line to themselves: every flush reads them, and they are hardly ever written.
    let line = 64
    let byteCount = line + SyncLedger.byteCount
    let block = UnsafeMutableRawPointer.allocate(byteCount: byteCount, alignment: line)
    unsafe block.initializeMemory(as: UInt8.self, repeating: 0, count: byteCount)
    unsafe self.block = block
    unsafe flushFailed = SharedCell(block)
    unsafe size = SharedCell(block + 8)
    size.storeRelaxed(bytes)
    unsafe syncs = SyncLedger(block + line)
  }

  deinit { unsafe block.deallocate() }
}
