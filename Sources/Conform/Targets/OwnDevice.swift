/// The device of this program on a scratch image, in a thread of this process: what `--self` checks.
internal import Glibc
public import GuestDriver
internal import MemoryFile
internal import Sockets
internal import Synchronization
internal import SystemPackage
internal import VhostUser
internal import VirtioBlkDevice
internal import VirtioCore
public import VirtioRegisters

/// Which device of this program to check.
public struct OwnSetup: Hashable, Sendable {
  public var interface: RegisterInterface?
  public var prefersLegacy = false
  public var isReadOnly = false
  public var zones = Zones.none

  /// Disks with zones that require sequential writes.
  public enum Zones: String, Sendable {
    case none
    /// Every kind of zone, and every limit.
    case zoned = "zoned"
    case withoutAppends = "zoned without appends"
  }

  /// - Parameter interface: `nil`: over vhost-user.
  public init(
    _ interface: RegisterInterface?, prefersLegacy: Bool = false, isReadOnly: Bool = false, zones: Zones = .none
  ) {
    self.interface = interface
    self.prefersLegacy = prefersLegacy
    self.isReadOnly = isReadOnly
    self.zones = zones
  }

  /// Everything that a driver can meet: vhost-user and every register interface, a read-only disk, and disks with zones.
  public static let all: [OwnSetup] =
    [OwnSetup(nil), OwnSetup(nil, isReadOnly: true)] + RegisterInterface.allCases.map { OwnSetup($0) }
    + [OwnSetup(.pciTransitional, prefersLegacy: true)]
    + [
      OwnSetup(nil, zones: .zoned), OwnSetup(nil, zones: .withoutAppends), OwnSetup(.mmio, zones: .zoned),
      OwnSetup(.pci, zones: .zoned),
    ]

  public var name: String {
    let face = interface.map { $0.name } ?? "vhost-user"
    return "vmm-blk, \(face)\(prefersLegacy ? " by its legacy interface" : "")\(isReadOnly ? ", read-only" : "")"
      + (zones == .none ? "" : ", \(zones.rawValue)")
  }
}

/// A device with its event loop on a thread, from `init` to the last release.
final class OwnDevice {
  static let diskBytes: UInt64 = 8 << 20
  private final class Shared: Sendable {
    let wish = Mutex<(size: UInt64, isDone: Bool)?>(nil)
    let outcome = Mutex<String?>(nil)
  }

  private let folder: ScratchFolder
  let path: String
  private let stop: OwnedDescriptor
  private let resizing: OwnedDescriptor
  private let shared = Shared()
  private var thread: SystemThread?

  struct Failed: Error, CustomStringConvertible { let description: String }

  init(_ setup: OwnSetup) throws {
    folder = try ScratchFolder()
    let image = try folder.image("disk", bytes: Self.diskBytes)
    path = folder.file("device")
    // The states of zones are kept beside the image.
    if setup.zones != .none { _ = folder.file("disk.zones") }
    stop = try OwnedDescriptor.eventCounter()
    resizing = try OwnedDescriptor.eventCounter()
    let isUp = try OwnedDescriptor.eventCounter()
    thread = try SystemThread(name: "conform-self", stackSize: 1 << 20) { [path, stop, resizing, shared] in
      do {
        try Self.serve(setup, image: image, path: path, isUp: isUp, stop: stop, resizing: resizing, shared)
      } catch {
        shared.outcome.withLock { $0 = "\(error)" }
        EventCounter.signal(isUp.rawValue)
      }
    }
    var one = pollfd(fd: isUp.rawValue, events: Int16(POLLIN), revents: 0)
    _ = unsafe poll(&one, 1, Int32(Patience.limit / .milliseconds(1)))
    if let failure = shared.outcome.withLock({ $0 }) { throw Failed(description: failure) }
  }

  deinit {
    EventCounter.signal(stop.rawValue)
    thread?.join()
  }

  private static func serve(
    _ setup: OwnSetup, image: String, path: String, isUp: OwnedDescriptor, stop: OwnedDescriptor, resizing: OwnedDescriptor,
    _ shared: Shared
  ) throws {
    var options = BlockDeviceOptions()
    options.queueCount = 2
    options.maximumQueueSize = 256
    options.serial = "conform-serial"
    var imageOptions = ImageOptions(path: image, isReadOnly: setup.isReadOnly, format: .raw)
    if setup.zones != .none {
      var zoned = ZonedOptions()
      (zoned.zoneSize, zoned.zoneCapacity, zoned.conventional) = (128 << 10, 96 << 10, 16)
      (zoned.maximumOpen, zoned.maximumActive, zoned.granularity) = (4, 6, 4096)
      zoned.maximumAppend = setup.zones == .withoutAppends ? 0 : 32 << 10
      (zoned.readOnlyZones, zoned.offlineZones) = ([60], [61])
      imageOptions.zoned = zoned
    }
    let file = try ImageFile(imageOptions)
    options.requestedFeatures = BlockDevice.featuresOnRequest(of: file)
    if setup.interface == nil { options.requestedFeatures.subtract([.notificationData, .suspend]) }
    // Behind registers nobody translates addresses. And with translation, segments are short, so not every zone limit fits into
    // one.
    if setup.interface != nil || setup.zones != .none { options.requestedFeatures.remove(.accessPlatform) }
    let device = try BlockDevice(image: file, options: options)
    let loop = try EventLoop()
    let stopping = try loop.add(stop.rawValue) { _ in loop.stop() }
    let sizing = try loop.add(resizing.rawValue) { _ in
      EventCounter.drain(resizing.rawValue)
      guard let size = shared.wish.withLock({ $0?.size }) else { return }
      unsafe truncate(image, off_t(size))
      device.resize(to: size)
      shared.wish.withLock { $0?.isDone = true }
    }
    if let interface = setup.interface {
      let memory = try MemoryFile.create(
        path: path, memorySize: 8 << 20, memoryBase: GuestAddress(0x10000), maximumQueues: 2, interface: interface)
      let server = try MemoryFileDevice(file: memory, device: device)
      try server.open(in: loop)
      EventCounter.signal(isUp.rawValue)
      try loop.run()
      loop.remove(stopping)
      loop.remove(sizing)
      server.close { loop.stop() }
      try loop.run()
    } else {
      let server = BackendServer(device: device, on: .listening(try Listener(path: path)), in: loop) { _ in }
      try server.open()
      EventCounter.signal(isUp.rawValue)
      try loop.run()
      loop.remove(stopping)
      loop.remove(sizing)
      server.close { loop.stop() }
      try loop.run()
    }
  }

  /// Changes the size of the disk, and waits until it is done.
  func resize(_ size: UInt64) throws {
    shared.wish.withLock { $0 = (size, false) }
    EventCounter.signal(resizing.rawValue)
    let end = ContinuousClock.now + Patience.limit
    while !(shared.wish.withLock { $0?.isDone ?? false }) {
      guard .now < end else { throw Failed(description: "the disk did not adopt its new size") }
      usleep(200)
    }
  }
}

/// This program's own device, on a memory file or on a socket.
public final class OwnSubject: Subject {
  public let name: String
  public let bus: Bus
  private let device: OwnDevice
  private let inner: any Subject
  /// A zoned disk's size cannot be changed.
  private let isZoned: Bool

  public init(_ setup: OwnSetup) throws {
    isZoned = setup.zones != .none
    device = try OwnDevice(setup)
    name = setup.name
    inner =
      if setup.interface == nil { SocketSubject(path: device.path, name: setup.name) } else {
        try MemorySubject(path: device.path, prefersLegacy: setup.prefersLegacy, name: setup.name)
      }
    bus = setup.prefersLegacy ? .pciLegacy : inner.bus
  }

  public func connect(_ settings: Settings) throws -> any DriverTransport { try inner.connect(settings) }
  public func registers(of transport: any DriverTransport) -> (any RegisterPort)? { inner.registers(of: transport) }
  public func link(_ settings: Settings) throws -> Link { try inner.link(settings) }
  public var resize: ((UInt64) throws -> Void)? { isZoned ? nil : { [device] size in try device.resize(size) } }
}
