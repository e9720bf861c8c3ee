/// The device under test, as the checks need it: a driver can attach to it again and again.
public import GuestDriver
public import VhostUser
public import VirtioCore

/// What is between the driver and the device.
public enum Bus: String, CaseIterable, Sendable {
  case vhostUser = "vhost-user"
  case mmio = "virtio-mmio"
  case mmioLegacy = "virtio-mmio legacy"
  case pci = "virtio-pci"
  case pciLegacy = "virtio-pci legacy"
  case pciTransitional = "virtio-pci transitional"

  var isPCI: Bool { self == .pci || self == .pciLegacy || self == .pciTransitional }
}

/// Registers by offset, as in a memory file's mailbox.
public protocol RegisterPort {
  func read(_ offset: UInt32, _ width: Int) throws -> UInt64
  func write(_ offset: UInt32, _ width: Int, _ value: UInt64) throws
}

/// A device that only works when called, on the driver's thread: what has not happened by then never will.
public protocol SteppedTransport: DriverTransport {
  func step()
}

/// A device under test.
public protocol Subject: AnyObject {
  /// For people.
  var name: String { get }
  var bus: Bus { get }
  /// Attaches a new driver. The previous one is gone.
  func connect(_ settings: Settings) throws -> any DriverTransport
  /// The registers behind a transport from `connect`; `nil` if it has none.
  func registers(of transport: any DriverTransport) -> (any RegisterPort)?
  /// A vhost-user connection on which nothing has been sent.
  func link(_ settings: Settings) throws -> Link
  /// Restarts it if possible.
  func renew() throws
  /// Changes the size of the disk, in bytes; `nil` if that is not possible.
  var resize: ((UInt64) throws -> Void)? { get }
}

extension Subject {
  public func registers(of transport: any DriverTransport) -> (any RegisterPort)? { nil }
  public func link(_ settings: Settings) throws -> Link { throw Trouble.notApplicable("only over vhost-user") }
  public func renew() {}
  public var resize: ((UInt64) throws -> Void)? { nil }
}

public struct Settings: Sendable {
  /// How long a required answer may take. It does not measure speed: a device that takes longer counts as hanging.
  public var limit: Duration = .seconds(20)
  /// For how long to check that nothing happens. A device that does the wrong thing later is not caught.
  public var settle: Duration = .milliseconds(25)
  /// The seed of every random choice.
  public var seed: UInt64 = 1
  public init() {}
}

/// What a device reports about itself before anything is negotiated.
public struct Facts: Sendable {
  public var bus: Bus
  public var offered: FeatureSet
  /// 96 bytes, zero where the device has none.
  public var configuration: [UInt8]
  public var queueCount: Int
  public var maximumQueueSize: UInt16
  public var protocolFeatures: ProtocolFeatures
  public var hasStatus: Bool
  public var canResize: Bool

  public var isReadOnly: Bool { offered.contains(BlockFeature.readOnly) }
  /// A disk with zones that require sequential writes.
  public var isHostManaged: Bool { offered.contains(BlockFeature.zoned) && configuration[92] == 1 }
  public var isModern: Bool { offered.contains(.version1) }
  var config: BlockConfig { BlockConfig(configuration, offered: offered) }
  /// Bytes of a logical block.
  var block: Int { config.logicalBlock }

  init(_ subject: any Subject, _ transport: any DriverTransport) throws {
    bus = subject.bus
    offered = try transport.offeredFeatures()
    let vhostUser = transport as? VhostUserTransport
    protocolFeatures = vhostUser?.protocolFeatures ?? []
    hasStatus = vhostUser.map { $0.protocolFeatures.contains(.status) } ?? true
    // The fields after these 60 bytes belong to features that not every back-end knows.
    let late: FeatureSet = [BlockFeature.secureErase, FeatureSet(bit: 17)]
    let count = offered.isDisjoint(with: late) ? 60 : 96
    let bytes = try transport.readConfiguration(at: 0, count: count)
    configuration = bytes + [UInt8](repeating: 0, count: max(0, 96 - bytes.count))
    let all = try transport.queueCount()
    let mine = BlockConfig(configuration, offered: offered).queues.map(Int.init) ?? 1
    queueCount = max(1, min(all, mine))
    maximumQueueSize = try transport.maximumQueueSize(0)
    canResize = subject.resize != nil
  }
}
