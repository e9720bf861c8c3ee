/// Guest memory as the client needs it: translated to addresses of this process once, during setup.
internal import GuestDriver
internal import VirtioCore

struct GuestWindow {
  private let memory: DriverMemory

  init(_ memory: DriverMemory) { self.memory = memory }

  /// Guest memory of our own, as both sides know it.
  @safe
  struct Piece {
    let address: UInt64
    let host: UnsafeMutableRawPointer
  }

  /// The address in this process of bytes within one region.
  func host(_ address: GuestAddress, count: Int) throws(BenchError) -> UnsafeMutableRawPointer {
    for region in memory.regions where address >= region.start {
      let distance = address.rawValue - region.start.rawValue
      guard distance < UInt64(region.size), count <= region.size - Int(distance) else { continue }
      return unsafe region.mapping.base + (region.offset + Int(distance))
    }
    throw .target("the ring at \(address) is not in guest memory")
  }

  func allocate(_ count: Int, alignment: Int) throws(BenchError) -> Piece {
    do {
      let buffer = try memory.allocate(count, alignment: alignment)
      return unsafe Piece(address: buffer.address.rawValue, host: try host(buffer.address, count: count))
    } catch {
      throw .target("\(error)")
    }
  }
}
