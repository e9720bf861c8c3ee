/// What an operator may know of a memory file's driver.
public import VirtioCore
internal import VirtioRegisters

extension MemoryFileDevice {
  /// A driver that has said that it drives the device (DRIVER, virtio 2.1), as it stands now.
  public struct DriverStatus: Hashable, Sendable {
    public struct Ring: Hashable, Sendable {
      public var queue: Int
      /// Entries.
      public var size: Int
      /// The device serves it.
      public var isRunning: Bool
      /// The device met something that it could not continue after.
      public var hasFailed: Bool
    }

    /// What it has chosen so far.
    public var features: FeatureSet
    /// Guest memory, bytes.
    public var memory: UInt64
    /// Those that it has made ready.
    public var rings: [Ring]
  }

  /// A driver has said that it drives the device.
  public var isDriven: Bool { registers.status.contains(.driver) }

  /// The driver has suspended it (SUSPEND, virtio 3.4), or is about to: queues may still be coming to rest.
  public var isSuspended: Bool { registers.status.contains(.suspend) }

  /// `nil`: nobody drives the device.
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
