/// One device under test with a driver, over any of the transports, so that a test's body is written once.
import CLinux
import Foundation
import MemoryFile
import Sockets
import Synchronization
import SystemPackage
import Testing
import VhostUser
import VirtioBlkDevice
import VirtioCore
import VirtioRegisters

@testable import GuestDriver

/// Which device, which transport to it, and which ring format.
struct Setup: Hashable, CaseIterable, Sendable, CustomTestStringConvertible {
  enum Device: String, CaseIterable, Sendable {
    /// A second implementation: if it disagrees with a test, the test is wrong.
    case reference = "reference device, in process"
    case inProcess = "block device, in process"
    case synchronous = "block device with the sync engine, in process"
    case vhostUser = "block device, vhost-user"
    case memoryFile = "block device, memory file"
  }

  var device: Device
  var ring = RingFormat.split
  /// The register interface of a memory file, and which one is used if it has two.
  var interface = RegisterInterface.mmio
  var prefersLegacy = false
  var testDescription: String {
    let face = interface == .mmio ? "" : " with \(interface.name) registers\(prefersLegacy ? ", the legacy way" : "")"
    return "\(device.rawValue)\(face), \(ring)"
  }

  /// Memory files with every register interface except the first, which `allCases` includes.
  static let faces: [Setup] =
    RegisterInterface.allCases.filter { $0 != .mmio }.map { Setup(device: .memoryFile, interface: $0) } + [
      Setup(device: .memoryFile, interface: .pciTransitional, prefersLegacy: true),
      Setup(device: .memoryFile, ring: .packed, interface: .pci),
    ]
  static let allFaces = allCases + faces
  /// Those of them that support what was added after version 1.
  static let modernFaces = faces.filter { $0.interface == .pci }

  static let split = Device.allCases.map { Setup(device: $0) }
  static let packed = Device.allCases.map { Setup(device: $0, ring: .packed) }
  static let allCases = split + packed
  static let real = allCases.filter { $0.device != .reference }

  /// Set-ups with these devices, in every ring format.
  static func with(_ devices: Device...) -> [Setup] { allCases.filter { devices.contains($0.device) } }
}

struct BenchOptions: Sendable {
  var features = BlockFeature.understood
  var queueSize: UInt16 = 16
  var maximumQueueSize: UInt16 = 1024
  var diskBytes = 1 << 20
  var readOnly = false
  /// Features that the device offers beyond its default.
  var requested: FeatureSet = []
  /// The front-end's reconnection.
  var reconnection: Reconnection?
  var logicalBlock = 512
  var format = ImageOptions.Format.auto
  /// `false`: leaves the device as it is before the first status write.
  var startsDriver = true
}

/// A device with two queues: the victim, on which a test does what no driver may do, and the witness, which has to continue
/// undisturbed.
final class Bench {
  let setup: Setup
  let options: BenchOptions
  private(set) var transport: any DriverTransport
  let directory: String
  private var startedClient: BlockClient?
  private var startedVictim: (queue: BlockQueue, victim: Victim)?
  private let reference: ReferenceDevice?
  private var server: Server?

  var client: BlockClient {
    guard let startedClient else { preconditionFailure("the driver was not started") }
    return startedClient
  }
  var memory: DriverMemory { transport.memory }
  var image: String { directory + "/disk" }
  var socket: String { directory + "/sock" }

  /// A thread that runs a device's transport, and a way to end it.
  private final class Server: Sendable {
    let stop: OwnedDescriptor
    let ended = DispatchSemaphore(value: 0)

    init(_ body: @escaping @Sendable (_ stop: OwnedDescriptor) throws -> Void) throws {
      let stop = try OwnedDescriptor.eventCounter()
      self.stop = stop
      let ended = ended
      Thread.detachNewThread {
        do { try body(stop) } catch { Issue.record("the server ended: \(error)") }
        ended.signal()
      }
    }

    func end() {
      EventCounter.signal(stop.rawValue)
      _ = ended.wait(timeout: .now() + Patience.limit / .seconds(1))
    }
  }

  init(_ setup: Setup, _ options: BenchOptions = BenchOptions()) throws {
    self.setup = setup
    self.options = options
    let directory = try unsafe String(
      cString: #require(unsafe mkdtemp(strdup("/var/tmp/guest-driver-XXXXXX"))))
    self.directory = directory
    let image = directory + "/disk"
    try Data(count: options.diskBytes).write(to: URL(fileURLWithPath: image))
    reference =
      setup.device == .reference
      ? try ReferenceDevice(
        bytes: options.diskBytes, readOnly: options.readOnly, logicalBlock: options.logicalBlock,
        offersPacked: setup.ring == .packed) : nil
    (transport, server) = try Self.connect(setup, options, directory, reference)
    if options.startsDriver {
      startedClient = try makeClient()
      memory.poisonFreeMemory()
    }
  }

  /// Starts the device on its image. - Returns: a driver's transport to it.
  private static func connect(
    _ setup: Setup, _ options: BenchOptions, _ directory: String, _ reference: ReferenceDevice?
  ) throws -> (any DriverTransport, Server?) {
    if let reference { return (try InProcessTransport(device: reference, memory: makeMemory()), nil) }
    let device = try makeDevice(directory + "/disk", options, engine: setup.device == .synchronous ? .sync : .auto)
    switch setup.device {
    case .reference, .inProcess, .synchronous: return (try InProcessTransport(device: device, memory: makeMemory()), nil)
    case .vhostUser:
      let path = directory + "/sock"
      let listener = Mutex<Listener?>(try Listener(path: path))
      let server = try Server { stop in
        let loop = try EventLoop()
        guard let listener = listener.withLock({ $0.take() }) else { return }
        let server = BackendServer(device: device, on: .listening(listener), in: loop) { _ in }
        try server.open()
        let stopping = try loop.add(stop.rawValue) { _ in loop.stop() }
        try loop.run()
        loop.remove(stopping)
        server.close { loop.stop() }
        try loop.run()
      }
      return (try connect(to: path, options.reconnection), server)
    case .memoryFile:
      let path = directory + "/memory"
      try? FileManager.default.removeItem(atPath: path)
      let file = try MemoryFile.create(
        path: path, memorySize: 2 << 20, memoryBase: GuestAddress(0x10000), maximumQueues: 2, interface: setup.interface)
      let server = try Server { stop in
        let loop = try EventLoop()
        let server = try MemoryFileDevice(file: file, device: device)
        try server.open(in: loop)
        let stopping = try loop.add(stop.rawValue) { _ in loop.stop() }
        try loop.run()
        loop.remove(stopping)
        server.close { loop.stop() }
        try loop.run()
      }
      let transport = try MemoryFileTransport(
        path: path, milliseconds: patientMilliseconds, prefersLegacy: setup.prefersLegacy)
      return (transport, server)
    }
  }

  private static func connect(to path: String, _ reconnection: Reconnection? = nil) throws -> VhostUserTransport {
    try VhostUserTransport(
      Frontend(connectingTo: path, patience: Patience.limit), memory: makeMemory(), reconnection: reconnection)
  }

  private static func makeDevice(_ path: String, _ options: BenchOptions, engine: EngineKind) throws -> BlockDevice {
    let image = try ImageFile(
      ImageOptions(path: path, isReadOnly: options.readOnly, format: options.format, logicalBlockSize: options.logicalBlock))
    var device = BlockDeviceOptions()
    device.queueCount = 2
    device.engine = engine
    device.maximumQueueSize = options.maximumQueueSize
    device.requestedFeatures = options.requested
    device.serial = ReferenceDevice.serial
    return try BlockDevice(image: image, options: device)
  }

  /// Where two regions meet; 16 KiB on either side are free for manual placement.
  static let border: UInt64 = 1 << 20

  /// Two regions next to each other, a hole, a third.
  private static func makeMemory() throws -> DriverMemory {
    let memory = try DriverMemory(anonymous: [
      (GuestAddress(0), Int(border)), (GuestAddress(border), 512 << 10), (GuestAddress(1 << 30), 512 << 10),
    ])
    memory.reserve(GuestAddress(border - (16 << 10)), count: 32 << 10)
    return memory
  }

  func makeClient() throws -> BlockClient {
    let client = try BlockClient(transport, options: driverOptions())
    return client
  }

  /// The ring format is the set-up's, or the device does not start.
  func driverOptions(queues: Int? = nil) -> DriverOptions {
    var options = DriverOptions(
      features: features, queues: queues, queueSize: options.queueSize, indirectTables: 4, indirectEntries: 32)
    options.needsPacked = setup.ring == .packed
    return options
  }

  /// Features that the driver accepts.
  var features: FeatureSet { setup.ring == .packed ? options.features.union(.packedRing) : options.features }

  /// Resets the device and starts it again.
  func restart() throws {
    try startedClient?.shutDown()
    startedClient = try makeClient()
  }

  /// Connects again as a new driver, whatever state the old one left: over vhost-user with a new connection.
  func reconnect() throws {
    startedClient = nil
    if setup.device == .vhostUser {
      // The old connection is closed with its last reference, before the new one can be accepted.
      transport = try InProcessTransport(device: ReferenceDevice(bytes: 512), memory: Self.makeMemory())
      transport = try Self.connect(to: socket)
    }
    startedClient = try makeClient()
    memory.poisonFreeMemory()
  }

  /// Ends the device and starts another one with the same image.
  func reopen() throws {
    try startedClient?.shutDown()
    startedClient = nil
    transport = try InProcessTransport(device: ReferenceDevice(bytes: 512), memory: Self.makeMemory())
    server?.end()
    server = nil
    // The image's lock goes with the old device's last thread, for which nothing waits.
    let end = ContinuousClock.now + Patience.limit
    while true {
      do {
        (transport, server) = try Self.connect(setup, options, directory, reference)
        break
      } catch ImageError.locked(let path) {
        guard .now < end else { throw ImageError.locked(path: path) }
        usleep(1000)
      }
    }
    startedClient = try makeClient()
    memory.poisonFreeMemory()
  }

  deinit {
    startedClient = nil
    try? transport.reset()
    server?.end()
    try? FileManager.default.removeItem(atPath: directory)
  }

  /// The content of the medium.
  var disk: [UInt8] {
    get throws {
      if let reference { return reference.disk }
      return [UInt8](try Data(contentsOf: URL(fileURLWithPath: image)))
    }
  }

  /// An address in no region.
  var unmapped: GuestAddress { GuestAddress(1 << 40) }
  /// The first address after the last region.
  var end: GuestAddress {
    guard let last = memory.regions.last else { preconditionFailure("there is memory") }
    return GuestAddress(last.start.rawValue + UInt64(last.size))
  }

  // MARK: the victim

  var victim: Victim {
    let queue = client.queues[0]
    if let startedVictim, startedVictim.queue === queue { return startedVictim.victim }
    let victim = Victim(queue)
    startedVictim = (queue, victim)
    return victim
  }
  func kickVictim() { client.session.queues[0].lines.kick() }
  var victimFailed: Bool {
    get throws { try transport.waitForFailure(queue: 0, milliseconds: patientMilliseconds) }
  }

  /// Waits until that many elements are used on the victim. - Returns: how many there are.
  @discardableResult func waitForUsed(_ count: UInt16) throws -> UInt16 {
    try waitUntil("\(count) elements are used, not \(victim.usedCount)") { victim.usedCount >= count }
    return victim.usedCount
  }

  /// Writes descriptors from `first` on, linked in order; the last one ends the chain.
  func link(_ descriptors: [RawDescriptor], from first: UInt16 = 0) { victim.link(descriptors, from: first) }

  /// The descriptors of a request, not yet linked.
  func descriptors(_ request: FramedRequest) -> [RawDescriptor] {
    request.pieces.map {
      RawDescriptor(address: $0.address.rawValue, length: $0.length, flags: $0.deviceWrites ? .write : [])
    }
  }

  func frame(_ request: BlockRequest, _ framing: Framing? = nil) throws -> FramedRequest {
    try FramedRequest(request, framing ?? .classic(request), in: memory)
  }

  /// Stores descriptors as an indirect table; the entries of a split ring's are linked in order.
  func table(_ descriptors: [RawDescriptor]) throws -> GuestBuffer {
    let buffer = try memory.allocate(16 * descriptors.count, alignment: 16)
    for (place, descriptor) in descriptors.enumerated() {
      var copy = descriptor
      if setup.ring == .split, place < descriptors.count - 1 {
        copy.flags.insert(.next)
        copy.next = UInt16(place + 1)
      }
      buffer.store(copy.bytes(setup.ring), at: 16 * place)
    }
    return buffer
  }

  // MARK: the witness

  /// Writes and reads through the other queue, and checks that nothing was written where it must not be.
  func expectWitnessWell(_ place: SourceLocation = #_sourceLocation) throws {
    let payload = (0..<4096).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ 3) }
    let witness = client.queues[1]
    let sector = UInt64(options.diskBytes / 512 - 8)
    if !options.readOnly {
      let write = try witness.perform(.write(sector: sector, payload))
      #expect(write.status == .ok, sourceLocation: place)
    }
    let read = try witness.perform(.read(sector: sector, bytes: 4096))
    #expect(read.status == .ok && (options.readOnly || read.answer == payload), sourceLocation: place)
    #expect(memory.damageOutside() == nil, sourceLocation: place)
  }

  /// The victim failed, and nothing else: the device reports it, the witness continues, and everything works after a reset.
  /// - Parameter used: how many elements the device has used when it fails, if that is known.
  func expectQueueFailure(usedBefore used: UInt16? = nil, _ place: SourceLocation = #_sourceLocation) throws {
    #expect(try victimFailed, "no failure was signalled", sourceLocation: place)
    if let used { #expect(victim.usedCount == used, sourceLocation: place) }
    // The worker signals; the device's control thread learns of it a moment later.
    try waitUntil("the device sets NEEDS_RESET") { try transport.status().contains(.needsReset) }
    // Virtio 2.1.2: a configuration change notification goes with it; vhost-user has the err descriptor for that.
    if setup.device != .vhostUser {
      #expect(
        try transport.waitForConfigurationChange(milliseconds: patientMilliseconds), "no notification", sourceLocation: place)
    }
    try expectWitnessWell(place)
    try restart()
    let again = try client.queues[0].perform(.read(sector: 0, bytes: 512))
    #expect(again.status == .ok, "no answer after a reset", sourceLocation: place)
    try expectWitnessWell(place)
  }

  /// Performs a request on the victim, and expects a status; the queue has to continue.
  func expect(
    _ request: BlockRequest, _ status: BlockStatusCode, framing: Framing? = nil, _ place: SourceLocation = #_sourceLocation
  ) throws {
    let outcome = try client.queues[0].perform(request, framing: framing)
    #expect(outcome.status == status, "\(request)", sourceLocation: place)
    #expect(outcome.unwrittenByte == nil, "\(request) reports bytes that it did not write", sourceLocation: place)
    try expectWitnessWell(place)
  }
}

extension DriverMemory {
  /// All bytes of all regions.
  func snapshot() -> [[UInt8]] { regions.map { bytes(at: $0.start, count: $0.size) } }
}
