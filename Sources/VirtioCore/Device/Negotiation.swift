/// Feature negotiation and the device status as a state machine without side effects (virtio 2.1, 2.2, 3.1.1): register writes
/// go in, and what the transport has to do comes out.

/// The status and the features of one device, as every register model needs them.
public struct Negotiation: Sendable {
  /// What the transport has to do after a write to the status field.
  public enum Effect: Hashable, Sendable {
    /// Stop everything and forget all that the driver has set.
    case reset
    /// The features are fixed now (FEATURES_OK was accepted, or a legacy driver has set DRIVER_OK).
    case featuresFixed(FeatureSet)
    /// Queues may be served from now on.
    case live
    /// Queues stop until the driver resumes the device (SUSPEND, virtio 3.4).
    case suspended
    /// Queues continue from where they stopped.
    case resumed
  }

  /// The features that the device offers.
  public let offered: FeatureSet
  /// Bits that the driver wrote, offered or not.
  public private(set) var accepted = FeatureSet()
  /// The status byte, as the driver reads it.
  public private(set) var status = DeviceStatus()

  /// A device after its reset. - Parameter offered: its feature bits.
  public init(offered: FeatureSet) { self.offered = offered }

  /// DRIVER_OK is set and DEVICE_NEEDS_RESET is not: buffers may be consumed (virtio 2.1.2).
  public var isLive: Bool { status.contains(.driverOK) && !status.contains(.needsReset) }

  /// 32 of the offered bits; words that do not exist read as zero (virtio 4.2.2).
  public func offeredWord(_ select: UInt32) -> UInt32 {
    select < 2 ? UInt32(truncatingIfNeeded: offered.rawValue >> (UInt64(select) * 32)) : 0
  }

  /// Takes 32 bits of the driver's choice. Bits beyond the 64 that exist can only be wrong, and are remembered as `strayBits`.
  /// After FEATURES_OK the choice is fixed and the write has no effect (virtio 2.2).
  public mutating func acceptWord(_ select: UInt32, _ bits: UInt32) {
    guard !status.contains(.featuresOK) else { return }
    guard select < 2 else {
      if bits != 0 { strayBits = true }
      return
    }
    let shift = UInt64(select) * 32
    accepted.rawValue = accepted.rawValue & ~(0xffff_ffff << shift) | UInt64(bits) << shift
  }

  /// A write to the status field.
  ///
  /// - Parameter deviceAccepts: called at most once, with a subset of the offered features.
  public mutating func writeStatus(_ value: UInt8, deviceAccepts: (FeatureSet) -> Bool) -> [Effect] {
    guard value != 0 else {
      self = Negotiation(offered: offered)
      return [.reset]
    }
    var effects: [Effect] = []
    let written = DeviceStatus(rawValue: value)
    // DEVICE_NEEDS_RESET belongs to the device: a driver can neither set nor clear it. The other bits are only ever added
    // (virtio 2.1.1: the driver must not clear a bit); a write that would clear some leaves them set.
    var wanted = written.subtracting([.needsReset, .suspend]).union(status)
    if status.contains(.suspend) {
      // DRIVER_OK resumes the device, whatever else is written with it.
      if wanted.contains(.driverOK) {
        wanted.remove(.suspend)
        effects.append(.resumed)
      }
      status = wanted
      return effects
    }
    // SUSPEND has no effect before DRIVER_OK, or if the driver did not accept the feature (virtio 3.4.2).
    if written.contains(.suspend), isLive, status.contains(.featuresOK), accepted.contains(.suspend) {
      wanted.remove(.driverOK)
      status = wanted.union(.suspend)
      return [.suspended]
    }
    if wanted.contains(.featuresOK), !status.contains(.featuresOK) {
      if !strayBits, accepted.isSubset(of: offered), deviceAccepts(accepted) {
        effects.append(.featuresFixed(accepted))
      } else {
        wanted.remove(.featuresOK)
      }
    }
    if wanted.contains(.driverOK), !status.contains(.driverOK) {
      // A legacy driver does not know FEATURES_OK; its choice is fixed by DRIVER_OK (virtio 3.1.2).
      if !wanted.contains(.featuresOK) {
        guard !accepted.contains(.version1), !strayBits, accepted.isSubset(of: offered), deviceAccepts(accepted) else {
          wanted.remove(.driverOK)
          status = wanted
          return effects
        }
        effects.append(.featuresFixed(accepted))
      }
      effects.append(.live)
    }
    status = wanted
    return effects
  }

  /// The device cannot continue until it is reset (virtio 2.1.2).
  /// - Returns: whether a configuration change notification is due: DRIVER_OK is set, and the bit was not set before.
  public mutating func needReset() -> Bool {
    let news = !status.contains(.needsReset)
    status.insert(.needsReset)
    return news && status.contains(.driverOK)
  }

  /// The driver has accepted a bit above 63, so its choice can never be valid.
  public private(set) var strayBits = false
}
