/// The interface that all register faces share.
public import VirtioCore

/// A register face around the registers that all of them have in common.
public protocol RegisterWindow: Sendable {
  var device: DeviceRegisters { get set }
}

extension RegisterWindow {
  public typealias Effect = RegisterEffect
  public typealias Restoration = RegisterRestoration

  public var status: DeviceStatus { device.status }
  /// The features that the driver has accepted so far, without those of the register face; fixed once FEATURES_OK is set.
  public var features: FeatureSet { device.features }
  /// The driver has set DRIVER_OK, or is a legacy one that did not wait for that: notifications may be sent.
  public var isInUse: Bool { device.isInUse }
  /// Queues that are ready are served: the driver uses the device, and the device does not need a reset.
  public var isLive: Bool { device.isLive }
  /// The queues that the driver has made ready, served or not, with the driver's parameters.
  public var readyQueues: [(queue: Int, configuration: QueueConfiguration)] {
    device.queues.indices.filter { device.queues[$0].ready }.map { ($0, device.queues[$0].configuration) }
  }

  /// The device cannot continue until it is reset (virtio 2.1.2).
  /// - Returns: whether a configuration change notification is due.
  public mutating func needReset() -> Bool {
    let isNews = !device.status.contains(.needsReset)
    _ = device.negotiation.needReset()
    return isNews && device.isInUse
  }

  /// The device's configuration space has changed.
  ///
  /// - Returns: whether to notify the driver now: it uses the device, and has not suspended it. For a suspended device
  ///   `RegisterEffect.configurationChanged` follows when it is resumed.
  public mutating func configurationChanged() -> Bool { device.configurationChanged() }

  /// The owner has executed `resetQueue`: the queue's reset and ready bits read 0 from now on.
  public mutating func queueResetFinished(_ queue: Int) { device.queueResetFinished(queue) }

  /// The device accepted a `configWrite`: the bytes are recorded, so that they can be written again to a device that restarts.
  public mutating func configurationWritten(at offset: Int, _ bytes: [UInt8]) {
    device.configurationWrites.record(at: offset, bytes)
  }
}

/// The bytes of an access, lowest first, and back.
enum AccessBytes {
  /// Access widths that byte-wise spaces accept.
  static let widths: Set<Int> = [1, 2, 4, 8]

  static func number(_ bytes: some BidirectionalCollection<UInt8>) -> UInt64 {
    bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) }
  }

  /// - Parameter width: 1 … 8.
  static func bytes(_ value: UInt64, width: Int) -> [UInt8] {
    (0..<width).map { UInt8(truncatingIfNeeded: value >> (UInt64($0) * 8)) }
  }

  /// The value of a read that nothing answers: all ones.
  static func ones(width: Int) -> UInt64 { width >= 8 ? .max : (1 << (UInt64(max(width, 0)) * 8)) &- 1 }
}
