/// A toy monitor: a disk of the library on one queue, and a "guest" of a few lines that writes a sector by hand and reads it
/// back.
///
///     truncate -s 1M disk.img; swift run toy-monitor disk.img
///
/// A real monitor has the guest's memory from KVM, and learns addresses, features and kicks from the registers that the guest
/// writes.
import Glibc
import SystemPackage
import VirtioBlkDevice
import VirtioCore

/// The layout of guest memory. A ring of 8: descriptors, available ring, used ring; then a request.
let (table, available, used): (Int, Int, Int) = (0x0, 0x100, 0x200)
let (header, data, status): (Int, Int, Int) = (0x1000, 0x2000, 0x3000)
let ringSize: UInt16 = 8

/// Prints why, and exits. (A Swift error that nobody catches is a crash, with a stack trace.)
func fail(_ why: String) -> Never {
  _ = try? FileDescriptor.standardError.writeAll("toy-monitor: \(why)\n".utf8)
  exit(1)
}

func openImage(_ path: String) -> ImageFile {
  do { return try ImageFile(ImageOptions(path: path)) } catch { fail("\(error)") }
}

guard CommandLine.arguments.count == 2 else { fail("usage: toy-monitor disk.img") }

// The machine: 64 KiB of memory from guest-physical address 0, which monitor and device share.
let mapping = try Mapping(anonymous: 1 << 16)
let memory = try GuestMemory([GuestRegion(start: GuestAddress(0), size: 1 << 16, mapping: mapping)])
let base = unsafe mapping.base
@MainActor func word<Value: FixedWidthInteger>(_ address: Int, _ value: Value) {
  unsafe base.storeBytes(of: value.littleEndian, toByteOffset: address, as: Value.self)
}

// The disk. No thread runs before a queue is started.
var options = BlockDeviceOptions()
options.engine = .sync
let device = try BlockDevice(image: openImage(CommandLine.arguments[1]), options: options)
let features: FeatureSet = [.version1, .blockFlush]
device.negotiated(features)
print("a disk of \(device.image.size / 512) sectors, served by \(device.engineReason)")

// One queue, as the driver set it up: `Activation` has everything that it needs to run.
let (kick, call) = (try OwnedDescriptor.eventCounter(), try OwnedDescriptor.eventCounter())
let queue = AttendedDevice(device)
try queue.startAndWait(
  Activation(
    queue: 0, memory: memory, features: features,
    configuration: QueueConfiguration(
      size: ringSize, descriptorTable: GuestAddress(UInt64(table)), availableRing: GuestAddress(UInt64(available)),
      usedRing: GuestAddress(UInt64(used))),
    kick: .eventCounter(kick), call: .eventCounter(call)))

/// The driver: three descriptors, one entry of the available ring, a kick; then it waits for the used element.
@MainActor struct Driver {
  /// The next value of the available index.
  private var index: UInt16 = 0
  private let availableIndex = unsafe SharedCell<UInt16>(base + available + 2)
  private let usedIndex = unsafe SharedCell<UInt16>(base + used + 2)

  /// - Returns: the status byte, and the length in the used element.
  mutating func request(type: UInt32, sector: UInt64, deviceWrites: Bool) -> (status: UInt8, written: UInt32) {
    word(header, type)
    word(header + 4, UInt32(0))
    word(header + 8, sector)
    word(status, UInt8(0xff))
    describe(0, header, 16, flags: 1, next: 1)  // NEXT
    describe(1, data, 512, flags: deviceWrites ? 3 : 1, next: 2)  // NEXT, and WRITE where the device fills it
    describe(2, status, 1, flags: 2, next: 0)  // WRITE
    word(available + 4 + Int(index % ringSize) * 2, UInt16(0))
    index &+= 1
    // Release: a device that sees the index sees everything above.
    availableIndex.storeRelease(index)
    EventCounter.signal(kick.rawValue)
    // Acquire: with the index, the element and the data are there. A driver with other work would wait for the call.
    while usedIndex.loadAcquire() != index { sched_yield() }
    EventCounter.drain(call.rawValue)
    let element = used + 4 + Int((index &- 1) % ringSize) * 8
    return unsafe (base.load(fromByteOffset: status, as: UInt8.self), base.load(fromByteOffset: element + 4, as: UInt32.self))
  }

  private func describe(_ number: Int, _ address: Int, _ length: UInt32, flags: UInt16, next: UInt16) {
    let place = table + number * 16
    word(place, UInt64(address))
    word(place + 8, length)
    word(place + 12, flags)
    word(place + 14, next)
  }
}

var driver = Driver()
let text = Array("written through a virtqueue".utf8)
for (offset, byte) in text.enumerated() { word(data + offset, byte) }
let write = driver.request(type: 1, sector: 7, deviceWrites: false)
print("OUT  sector 7  status \(write.status)  len \(write.written)")

for offset in text.indices { word(data + offset, UInt8(0)) }
let read = driver.request(type: 0, sector: 7, deviceWrites: true)
print("IN   sector 7  status \(read.status)  len \(read.written)")
let back = text.indices.map { unsafe base.load(fromByteOffset: data + $0, as: UInt8.self) }
print("\"\(String(decoding: back, as: UTF8.self))\"")

// The queue reports its position, from which another device could continue.
let position = queue.stopAndWait(queue: 0)
print("stopped at \(position.map { "\($0.available)" } ?? "an unknown place") of the available ring")
