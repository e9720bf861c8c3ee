/// Guest memory that goes away, and descriptors that cannot be polled: what a careless or hostile front-end can send.
import CLinux
import Glibc
import GuestDriver
import Testing
import VirtioBlkDevice
import VirtioCore

@Suite struct LostMemoryTests {
  private struct Disk {
    let scratch: Scratch
    let device: BlockDevice
    let memory: DriverMemory
    let transport: InProcessTransport
    let client: BlockClient

    init(_ engine: EngineKind) throws {
      scratch = try Scratch()
      let image = try ImageFile(ImageOptions(path: try scratch.image(size: 4 << 20)))
      var options = BlockDeviceOptions()
      options.engine = engine
      device = try BlockDevice(image: image, options: options)
      memory = try DriverMemory(anonymous: [(GuestAddress(0), 8 << 20)])
      transport = try InProcessTransport(device: device, memory: memory)
      client = try BlockClient(transport)
    }
  }

  @Test("37: truncated guest memory stops its own queues, and no others", arguments: [EngineKind.sync, .uring, .aio])
  func memoryThatIsCut(engine: EngineKind) throws {
    let victim = try Disk(engine)
    let witness = try Disk(engine)
    try victim.client.write([UInt8](repeating: 1, count: 4096), at: 0)
    let descriptor = try #require(victim.memory.regions.first?.descriptor)
    try #require(ftruncate(descriptor.rawValue, 0) == 0)
    // The request may be answered, refused or never return; the queue must be seen to stop.
    victim.client.patience = .seconds(1)
    _ = try? victim.client.write([UInt8](repeating: 2, count: 4096), at: 4096)
    // Driver and device share one mapping here, so the driver may have reached the hole first and, reading zeroes, not have
    // kicked: any wake-up does.
    victim.device.replaceCall(queue: 0, .none)
    #expect(victim.transport.waitForFailure(queue: 0, milliseconds: Int(Patience.limit / .milliseconds(1))))
    try witness.client.write([UInt8](repeating: 3, count: 4096), at: 8192)
    #expect(try witness.client.read(at: 8192, count: 4096) == [UInt8](repeating: 3, count: 4096))
    #expect(!witness.transport.waitForFailure(queue: 0, milliseconds: 0))
    try witness.client.shutDown()
    _ = victim.transport.stopQueue(0)
  }

  @Test(arguments: [EngineKind.sync, .uring]) func aKickThatIsARegularFileIsRefused(engine: EngineKind) throws {
    let scratch = try Scratch()
    let path = try scratch.image(size: 1 << 20)
    var options = BlockDeviceOptions()
    options.engine = engine
    let device = try BlockDevice(image: try ImageFile(ImageOptions(path: path)), options: options)
    let mapping = try Mapping(anonymous: 1 << 16)
    let memory = try GuestMemory([GuestRegion(start: GuestAddress(0), size: 1 << 16, mapping: mapping)])
    let file = OwnedDescriptor(unsafe clinux_open(path, O_RDWR | O_CLOEXEC, 0))
    try #require(file.rawValue >= 0)
    let attended = AttendedDevice(device)
    #expect(throws: QueueError.kickCannotBeWaitedFor) {
      try attended.startAndWait(
        Activation(
          queue: 0, memory: memory, features: .version1,
          configuration: QueueConfiguration(
            size: 8, descriptorTable: GuestAddress(0), availableRing: GuestAddress(0x1000), usedRing: GuestAddress(0x2000)),
          kick: .eventCounter(file), call: .none))
    }
    #expect(attended.stopAndWait(queue: 0) == nil)
  }
}
