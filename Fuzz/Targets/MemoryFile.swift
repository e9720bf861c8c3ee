/// A memory file of unknown origin: its header, its control block, what a starting device reads from it, and the picture of it
/// for people and for programs.
internal import CLinux
internal import FoundationEssentials
internal import Glibc

@testable internal import MemoryFile
@testable internal import RingInspector
@testable internal import VirtioCore
@testable internal import VirtioRegisters

func attackMemoryFile(_ shaper: inout Shaper) {
  let file = MemoryFileBytes.shared
  let before = (Descriptors.open, AddressSpace.shared.reserved)
  file.fill(&shaper)
  lookAt(file, &shaper)
  check(Descriptors.open == before.0, "descriptors of a memory file were left open")
  check(AddressSpace.shared.reserved == before.1, "mappings of a memory file were leaked")
}

private func lookAt(_ file: MemoryFileBytes, _ shaper: inout Shaper) {
  if shaper.flag(), let adopted = try? MemoryFile.adopt(file.descriptor, path: file.path) {
    // As a starting device: the state that it reads can be stored again.
    let image = adopted.control.loadState()
    adopted.control.storeState(image)
    check(
      adopted.control.loadState().encoded(queueCount: 1) == image.encoded(queueCount: 1),
      "the state changes when it is stored and loaded")
    adopted.control.kick(adopted.layout.maximumQueues - 1).counter.storeRelaxed(1)
  }
  guard let snapshot = try? MemoryFileSnapshot(path: file.path) else { return }
  let picture = MemoryFilePicture(snapshot)
  if shaper.choice(4) == 1 {
    guard let text = try? JSONEncoder().encode(FileDescription(picture)) else { fail("a description cannot be encoded") }
    check(text.count < 64 << 20, "a description has \(text.count) bytes")
  } else {
    let lines = picture.draw()
    check(lines.count < 200_000, "a picture has \(lines.count) lines")
  }
}

/// One file for all runs.
@safe
final class MemoryFileBytes {
  nonisolated(unsafe) static let shared = MemoryFileBytes()

  let descriptor: OwnedDescriptor
  let path: String
  private let base: UnsafeMutableRawPointer
  private let size = 0x10000
  private let queues = 2

  private init() {
    descriptor = OwnedDescriptor(unsafe memfd_create("memory-file", UInt32(MFD_CLOEXEC)))
    path = "/proc/self/fd/\(descriptor.rawValue)"
    guard ftruncate(descriptor.rawValue, off_t(size)) == 0,
      let base = unsafe mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor.rawValue, 0)
    else { fail("no memory for a file") }
    unsafe self.base = base
  }

  private func store<Word: FixedWidthInteger>(_ word: Word, _ place: Int) {
    guard place >= 0, place + 8 <= size else { return }
    unsafe base.storeBytes(of: word, toByteOffset: place, as: Word.self)
  }

  /// A correct header, registers of a running driver, rings with a few requests, and mistakes in them.
  func fill(_ shaper: inout Shaper) {
    unsafe memset(base, 0, size)
    guard let layout = MemoryFileLayout(memorySize: 0x8000, maximumQueues: queues) else { fail("no layout") }
    let header = layout.encoded(magic: MemoryFileLayout.magic)
    for (index, byte) in header.enumerated() { store(byte, index) }
    if shaper.mistake() {
      for _ in 0...shaper.choice(4) {
        store(shaper.flag() ? shaper.oddNumber() : UInt64(shaper.byte()) << 12, shaper.choice(10) * 8)
      }
    }
    var image = RegisterImage()
    image.status = DeviceStatus(rawValue: shaper.mistake() ? shaper.byte() : 15)
    let isPacked = shaper.choice(3) == 1
    image.driverFeatures = FeatureSet(
      rawValue: shaper.mistake() ? shaper.oddNumber() : 1 << 32 | 3 << 28 | (isPacked ? 1 << 34 : 0))
    let entries = UInt16(shaper.pick([16, 4, 256, 1]))
    for queue in 0..<queues {
      func place(_ ordinary: UInt64) -> GuestAddress { GuestAddress(shaper.mistake() ? shaper.oddNumber() : ordinary) }
      let start = UInt64(queue) * 0x4000
      image.queues.append(
        .init(
          configuration: QueueConfiguration(
            size: shaper.mistake() ? shaper.word16() : entries, descriptorTable: place(start),
            availableRing: place(start + 0x1000),
            usedRing: place(start + 0x2000)),
          ready: shaper.choice(4) != 1, position: shaper.choice(4) == 1 ? PackedPosition(rawValue: shaper.word16()) : nil))
    }
    let state = Int(layout.controlOffset) + ControlOffset.state(0, maximumQueues: queues, layout.interface)
    for (index, byte) in image.encoded(queueCount: queues, interface: layout.interface).enumerated() {
      store(byte, state + index)
    }
    fillRings(&shaper, Int(layout.memoryOffset), entries: Int(entries), isPacked: isPacked)
    for _ in 0..<shaper.choice(8) {
      store(shaper.flag() ? shaper.oddNumber() : UInt64(shaper.byte()), Int(shaper.word16()))
    }
  }

  private func fillRings(_ shaper: inout Shaper, _ memory: Int, entries: Int, isPacked: Bool) {
    for index in 0..<min(entries, 24) {
      let place = memory + index * 16
      store(shaper.mistake() ? shaper.oddNumber() : UInt64(0x3000 + shaper.choice(16) * 64), place)
      store(shaper.mistake() ? shaper.word32() : 16, place + 8)
      let flags = shaper.mistake() ? shaper.word16() : UInt16(shaper.choice(4)) | (shaper.choice(8) == 1 ? 4 : 0)
      let next = shaper.mistake() ? shaper.word16() : UInt16(index + 1)
      store(isPacked ? UInt16(index) : flags, place + 12)
      store(isPacked ? flags | (shaper.choice(3) == 1 ? 0x8080 : 0x80) : next, place + 14)
      store(UInt16(shaper.choice(entries)), memory + 0x1004 + index * 2)
      store(UInt32(shaper.choice(entries)), memory + 0x2004 + index * 8)
    }
    store(UInt16(shaper.choice(20)), memory + 0x1002)
    store(UInt16(shaper.choice(20)), memory + 0x2002)
  }
}
