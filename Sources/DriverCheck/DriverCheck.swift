/// A device that also watches its driver: what a transport serves instead of the device itself.
// First, because two modules declare epoll, and the declarations that are imported first win.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage
public import VirtioCore
public import VirtioRegisters

/// The watch over one device's driver. It retains what was observed, and not the device.
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
  ///   - kickLimit: how long a required kick may take. A driver that stalls for that long between making a chain available and
  ///     kicking for it is reported as one that does not kick.
  public init(name: String, kickLimit: Duration = .seconds(10)) {
    self.name = name
    self.kickLimit = kickLimit
  }

  /// The device to give to a transport in place of the original. A driver sees no difference.
  public func watch(_ device: any VirtioDevice) -> any VirtioDevice {
    WatchedDevice(device, findings, kickLimit: kickLimit)
  }

  /// The watch of the device's registers, if a driver accesses them. Used on the thread that owns them.
  ///
  /// - Parameters:
  ///   - interface: the interface that the registers have.
  ///   - device: the result of `watch`.
  ///   - isNew: no driver has used these registers before. Otherwise the driver may rely on what it has read earlier, and may
  ///     have reset the device already.
  public func registers(
    _ interface: RegisterInterface, of device: any VirtioDevice, isNew: Bool = false
  ) -> any RegisterWatch {
    bus.withLock { $0 = interface }
    let watched = device as? WatchedDevice
    return RegisterRules(findings, isNew: isNew) { [weak watched] queue, value in watched?.notified(queue, value) }
  }

  /// What has been observed so far.
  public var report: DriverReport { DriverReport(device: name, interface: bus.withLock { $0 }, findings: findings) }
}
