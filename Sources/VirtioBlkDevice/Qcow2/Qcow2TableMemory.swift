/// The memory of an image's L2 tables.
internal import Glibc
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// Random lookups in many tables miss the CPU's translation caches, and on a virtual machine each miss costs more than the
/// lookup. So the tables of a large disk are put into huge pages, once there are so many that what is unused of one is little.
///
/// Tables live as long as this object. Any thread may ask for one.
@safe
final class Qcow2TableMemory: Sendable {
  private static let hugePage = 2 << 20
  /// Bytes of tables from which on they are in huge pages: at most an eighth is unused.
  private static let ample = 8 * hugePage

  /// Bytes of a table: a power of two.
  private let size: Int

  private struct State {
    /// Tables that were given back.
    var spare: [UInt] = []
    /// Tables in memory of their own.
    var single: [UInt] = []
    var chunks: [Mapping] = []
    /// What is unused of the last chunk.
    var rest: Range<UInt> = 0..<0
  }

  private let state = Mutex(State())

  init(tableBytes: UInt64) { size = Int(tableBytes) }

  deinit {
    state.withLock { state in
      for table in state.single { unsafe UnsafeMutableRawPointer(bitPattern: table)?.deallocate() }
    }
  }

  /// A table with any contents, aligned to 16 bytes.
  func take() -> UnsafeMutableRawBufferPointer {
    let address = state.withLock { state in
      if let spare = state.spare.popLast() { return spare }
      if state.rest.isEmpty, state.single.count * size >= Self.ample { addChunk(&state) }
      if !state.rest.isEmpty {
        let table = state.rest.lowerBound
        state.rest = table + UInt(size)..<state.rest.upperBound
        return table
      }
      let table = UInt(bitPattern: UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 16))
      state.single.append(table)
      return table
    }
    return unsafe UnsafeMutableRawBufferPointer(start: UnsafeMutableRawPointer(bitPattern: address), count: size)
  }

  /// A table that nothing refers to.
  func giveBack(_ table: UnsafeMutableRawBufferPointer) {
    let address = UInt(bitPattern: table.baseAddress)
    state.withLock { $0.spare.append(address) }
  }

  /// Without memory, or on a kernel without huge pages, tables are as before.
  private func addChunk(_ state: inout State) {
    let count = max(Self.hugePage, size)
    // Twice as much address space, because a huge page has to be aligned; what is not used is not touched.
    guard let chunk = try? Mapping(anonymous: count + Self.hugePage) else { return }
    let mask = UInt(Self.hugePage - 1)
    let start = unsafe (UInt(bitPattern: chunk.base) + mask) & ~mask
    guard let place = unsafe UnsafeMutableRawPointer(bitPattern: start), unsafe madvise(place, count, MADV_HUGEPAGE) == 0 else {
      return
    }
    state.chunks.append(chunk)
    state.rest = start..<start + UInt(count)
  }
}
