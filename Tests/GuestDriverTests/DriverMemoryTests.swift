/// The allocator, the guards and the poison: everything else relies on them.
import Testing
import VirtioCore

@testable import GuestDriver

struct DriverMemoryTests {
  @Test("buffers do not overlap, are aligned, and come back")
  func allocation() throws {
    let memory = try DriverMemory(anonymous: [
      (GuestAddress(0x1000), 64 << 10), (GuestAddress(1 << 32), 64 << 10), (GuestAddress(0x1_0000_0000 + (64 << 10)), 4096),
    ])
    var random = SeededRandom(seed: 1)
    var held: [GuestBuffer] = []
    for _ in 0..<3000 {
      if random.chance(1, in: 2), let buffer = held.popLast() {
        memory.release(buffer)
      } else {
        let alignment = 1 << Int(random.next() % 13)
        guard let buffer = try? memory.allocate(1 + Int(random.next() % 3000), alignment: alignment) else { continue }
        #expect(buffer.address.isAligned(to: UInt64(alignment)))
        let range = buffer.address.rawValue..<buffer.address.rawValue + UInt64(buffer.count)
        for other in held {
          #expect(!range.overlaps(other.address.rawValue..<other.address.rawValue + UInt64(other.count)))
        }
        held.insert(buffer, at: Int(random.next() % UInt64(held.count + 1)))
      }
    }
    for buffer in held { memory.release(buffer) }
    // Everything is free again, as one piece per region.
    let whole = try memory.allocate((64 << 10) - 2 * DriverMemory.guardBytes)
    #expect(whole.count > 0)
  }

  @Test("a full memory is reported")
  func full() throws {
    let memory = try DriverMemory(size: 4096)
    #expect(throws: DriverError.self) { _ = try memory.allocate(4096) }
  }

  @Test("a write next to a buffer is found, wherever it is", arguments: [-32, -31, -1, 0, 1, 31])
  func guards(_ place: Int) throws {
    let memory = try DriverMemory(size: 1 << 16)
    let buffer = try memory.allocate(100, alignment: 4)
    #expect(memory.damage(around: buffer) == nil)
    let address = GuestAddress(UInt64(Int(buffer.address.rawValue) + (place < 0 ? place : 100 + place)))
    let old = memory.load(UInt8.self, at: address)
    memory.store(old ^ 1, at: address)
    #expect(memory.damage(around: buffer) == address)
    memory.store(old, at: address)
    #expect(memory.damage(around: buffer) == nil)
  }

  @Test("a write far from every buffer is found")
  func poison() throws {
    let memory = try DriverMemory(anonymous: [(GuestAddress(0), 64 << 10), (GuestAddress(1 << 30), 64 << 10)])
    let buffers = try (0..<10).map { try memory.allocate(1000 * ($0 + 1)) }
    memory.poisonFreeMemory()
    for buffer in buffers { buffer.fill(0xff) }
    #expect(memory.damageOutside() == nil)
    memory.store(0 as UInt8, at: GuestAddress((1 << 30) + 65535))
    #expect(memory.damageOutside() == GuestAddress((1 << 30) + 65535))
  }

  @Test("bytes cross adjacent regions")
  func acrossRegions() throws {
    let memory = try DriverMemory(anonymous: [(GuestAddress(0), 4096), (GuestAddress(4096), 4096), (GuestAddress(16384), 4096)])
    let bytes = (0..<3000).map { UInt8(truncatingIfNeeded: $0) }
    memory.store(bytes, at: GuestAddress(3000))
    #expect(memory.bytes(at: GuestAddress(3000), count: 3000) == bytes)
    #expect(memory.contains(GuestAddress(0), count: 8192))
    #expect(!memory.contains(GuestAddress(0), count: 8193))
    #expect(!memory.contains(GuestAddress(8192), count: 1))
    memory.store(0x1122_3344 as UInt32, at: GuestAddress(4094))
    #expect(memory.bytes(at: GuestAddress(4094), count: 4) == [0x44, 0x33, 0x22, 0x11])
    #expect(memory.load(UInt32.self, at: GuestAddress(4094)) == 0x1122_3344)
  }

  @Test(
    "invalid layouts",
    arguments: [
      [(0, 100)], [(0, 0)], [(0, 8192), (4096, 4096)], [(UInt64.max - 4095, 8192)],
    ] as [[(UInt64, Int)]])
  func badLayout(_ layout: [(UInt64, Int)]) {
    #expect(throws: DriverError.self) {
      _ = try DriverMemory(anonymous: layout.map { (start: GuestAddress($0.0), size: $0.1) })
    }
  }

  @Test("a region may end at 2^64")
  func lastPage() throws {
    let memory = try DriverMemory(anonymous: [(GuestAddress(UInt64.max - 4095), 4096)])
    memory.store([1, 2, 3], at: GuestAddress(UInt64.max - 2))
    #expect(memory.bytes(at: GuestAddress(UInt64.max - 2), count: 3) == [1, 2, 3])
  }
}
