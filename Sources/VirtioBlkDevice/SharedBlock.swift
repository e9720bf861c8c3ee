/// The few words that all workers of a device read while they run.
internal import SystemPackage
internal import VirtioCore

/// Freed with the device, after its workers have ended.
@safe
final class SharedBlock: @unchecked Sendable {
  /// The configuration's `writeback` byte, as a word.
  let writeback: SharedCell<UInt32>
  /// The size of the disk, 512-byte sectors. Release and acquire: a worker that sees a new size also sees what was done before
  /// it was stored.
  let capacity: SharedCell<UInt64>
  let serial: UnsafeRawPointer
  let zeroes: UnsafeMutableRawPointer

  private let block: UnsafeMutableRawPointer
  /// Only mapped: its pages are allocated when they are first used.
  private let zeroMapping: Mapping

  init(serial text: String, capacity sectors: UInt64) throws(Errno) {
    zeroMapping = try Mapping(anonymous: MediumFacts.zeroChunk)
    unsafe zeroes = zeroMapping.base
    let block = UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 64)
    unsafe block.initializeMemory(as: UInt8.self, repeating: 0, count: 64)
    for (index, byte) in text.utf8.prefix(BlockDeviceOptions.serialSize).enumerated() {
      unsafe block.storeBytes(of: byte, toByteOffset: 8 + index, as: UInt8.self)
    }
    unsafe self.block = block
    writeback = unsafe SharedCell(block)
    unsafe serial = UnsafeRawPointer(block + 8)
    unsafe capacity = SharedCell(block + 32)
    capacity.storeRelaxed(sectors)
  }

  deinit { unsafe block.deallocate() }
}
