/// The device under test, as the frame needs it: something that a driver can come to again and again.
public import GuestDriver
public import VhostUser
public import VirtioCore

/// What lies between the driver and the device.
public enum Bus: String, CaseIterable, Sendable {
  case vhostUser = "vhost-user"
  case mmio = "virtio-mmio"
  case mmioLegacy = "virtio-mmio legacy"
  case pci = "virtio-pci"
  case pciLegacy = "virtio-pci legacy"
  case pciTransitional = "virtio-pci transitional"

  var isPCI: Bool { self == .pci || self == .pciLegacy || self == .pciTransitional }
}

/// Registers by offset, in the words of a memory file's mailbox.
public protocol RegisterPort {
  func read(_ offset: UInt32, _ width: Int) throws -> UInt64
  func write(_ offset: UInt32, _ width: Int, _ value: UInt64) throws
}

/// A device that works only when it is told to, on the thread of who drives it: what has not come after that never comes.
public protocol SteppedTransport: DriverTransport {
  func step()
}

/// A device under test.
public protocol Subject: AnyObject {
  /// For people.
  var name: String { get }
  var bus: Bus { get }
  /// A new driver comes to it. The one before has gone.
  func connect(_ settings: Settings) throws -> any DriverTransport
  /// The registers behind a transport that this made; `nil`: none.
  func registers(of transport: any DriverTransport) -> (any RegisterPort)?
  /// A connection of vhost-user on which nothing was said.
  func link(_ settings: Settings) throws -> Link
  /// Starts it afresh where that can be done.
  func renew() throws
  /// Gives the disk another size, bytes; `nil`: nobody can.
  var resize: ((UInt64) throws -> Void)? { get }
}

extension Subject {
  public func registers(of transport: any DriverTransport) -> (any RegisterPort)? { nil }
  public func link(_ settings: Settings) throws -> Link { throw Trouble.notApplicable("only over vhost-user") }
  public func renew() {}
  public var resize: ((UInt64) throws -> Void)? { nil }
}

public struct Settings: Sendable {
  /// How long an answer may take that has to come. No measure of speed: who takes longer hangs.
  public var limit: Duration = .seconds(20)
  /// How long nothing may happen where nothing has to. A device that is slower to do the wrong thing is not found out.
  public var settle: Duration = .milliseconds(25)
  /// Every random choice follows from it.
  public var seed: UInt64 = 1
  public init() {}
}

/// What a device says of itself before anything is negotiated.
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
  /// A disk with zones that are written in sequence.
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
    // The fields behind these 60 bytes belong to features that not every back-end knows of.
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
