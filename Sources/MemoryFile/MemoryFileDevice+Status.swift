/// The status of a memory file's driver, for the operator.
public import VirtioCore
internal import VirtioRegisters

extension MemoryFileDevice {
  /// The present state of a driver that has set DRIVER (virtio 2.1).
  public struct DriverStatus: Hashable, Sendable {
    public struct Ring: Hashable, Sendable {
      public var queue: Int
      /// Entries.
      public var size: Int
      /// The device serves it.
      public var isRunning: Bool
      /// The queue broke while the device served it.
      public var hasFailed: Bool
    }

    /// The features that it has chosen so far.
    public var features: FeatureSet
    /// Guest memory, bytes.
    public var memory: UInt64
    /// The rings that it has made ready.
    public var rings: [Ring]
  }

  /// A driver uses the device: it has set DRIVER.
  public var isDriven: Bool { registers.status.contains(.driver) }

  /// The driver has suspended the device (SUSPEND, virtio 3.4); queues may still be stopping.
  public var isSuspended: Bool { registers.status.contains(.suspend) }

  /// `nil`: no driver uses the device.
  public var driver: DriverStatus? {
    guard isDriven else { return nil }
    let rings = registers.readyQueues.map { queue, configuration in
      DriverStatus.Ring(
        queue: queue, size: Int(configuration.size), isRunning: attended.state(of: queue) == .running,
        hasFailed: failedQueues.contains(queue))
    }
    return DriverStatus(features: registers.features, memory: file.layout.memorySize, rings: rings)
  }
}
