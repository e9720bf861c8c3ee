/// A device that also watches its driver: what a transport serves instead of the device itself.
// First: of two modules that tell of epoll, the one that is loaded first is the one whose names count.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage
public import VirtioCore
public import VirtioRegisters

/// The watch over one device's driver. It holds on to what was seen, and not to the device.
///
///     let check = DriverCheck(name: "disk.img")
///     let watched = check.watch(device)
///     let transport = try MemoryFileDevice(file: file, device: watched)
///     transport.registerWatch = check.registers(.mmio, of: watched)
///     …
///     print(DriverReport.text([check.report], isWhole: false))
public final class DriverCheck: Sendable {
  /// For display: which device it is.
  public let name: String
  private let findings = DriverFindings()
  private let kickLimit: Duration
  private let bus = Mutex<RegisterInterface?>(nil)

  /// - Parameters:
  ///   - kickLimit: how long a kick may take that has to come. A driver that stalls that long between showing a chain and
  ///     kicking for it is taken for one that does not kick.
  public init(name: String, kickLimit: Duration = .seconds(10)) {
    self.name = name
    self.kickLimit = kickLimit
  }

  /// What a transport is given instead of the device: the same device to every driver.
  public func watch(_ device: any VirtioDevice) -> any VirtioDevice {
    WatchedDevice(device, findings, kickLimit: kickLimit)
  }

  /// The watch of the device's registers, where a driver reaches those. Used on the thread that owns them.
  ///
  /// - Parameters:
  ///   - interface: that they have.
  ///   - device: as `watch` gave it.
  ///   - isNew: no driver has had these registers before. Of others a driver may know what it does not ask again, and its
  ///     reset may
  ///     lie behind it.
  public func registers(
    _ interface: RegisterInterface, of device: any VirtioDevice, isNew: Bool = false
  ) -> any RegisterWatch {
    bus.withLock { $0 = interface }
    let watched = device as? WatchedDevice
    return RegisterRules(findings, isNew: isNew) { [weak watched] queue, value in watched?.notified(queue, value) }
  }

  /// What was seen so far.
  public var report: DriverReport { DriverReport(device: name, interface: bus.withLock { $0 }, findings: findings) }
}
