/// Feature negotiation and the device status as a value with rules (virtio 2.1, 2.2, 3.1.1): register writes go in, what
/// the transport has to do comes out.

/// The conversation up to DRIVER_OK, as every register model needs it.
public struct Negotiation: Sendable {
  /// What a write to the status field asks of the transport.
  public enum Effect: Hashable, Sendable {
    /// Stop everything and forget what the driver said.
    case reset
    /// The features are fixed now (FEATURES_OK was accepted, or a legacy driver came to DRIVER_OK).
    case featuresFixed(FeatureSet)
    /// Queues may be served from now on.
    case live
    /// Queues rest until the driver resumes the device (SUSPEND, virtio 3.4).
    case suspended
    /// Queues continue where they stood.
    case resumed
  }

  /// What the device offers.
  public let offered: FeatureSet
  /// Bits that the driver wrote, offered or not.
  public private(set) var accepted = FeatureSet()
  /// The status byte, as the driver reads it.
  public private(set) var status = DeviceStatus()

  /// A device after its reset. - Parameter offered: its feature bits.
  public init(offered: FeatureSet) { self.offered = offered }

  /// DRIVER_OK is set and nothing is wrong: buffers may be consumed (virtio 2.1.2).
  public var isLive: Bool { status.contains(.driverOK) && !status.contains(.needsReset) }

  /// 32 of the offered bits; words that do not exist read as zero (virtio 4.2.2).
  public func offeredWord(_ select: UInt32) -> UInt32 {
    select < 2 ? UInt32(truncatingIfNeeded: offered.rawValue >> (UInt64(select) * 32)) : 0
  }

  /// Takes 32 bits of the driver's choice. Bits of words beyond ours can only be wrong, and are remembered as such. After
  /// FEATURES_OK the choice is closed and the write has no effect (virtio 2.2).
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
  /// - Parameter deviceAccepts: asked once, with a set that is part of what was offered.
  public mutating func writeStatus(_ value: UInt8, deviceAccepts: (FeatureSet) -> Bool) -> [Effect] {
    guard value != 0 else {
      self = Negotiation(offered: offered)
      return [.reset]
    }
    var effects: [Effect] = []
    let written = DeviceStatus(rawValue: value)
    // DEVICE_NEEDS_RESET is the device's own: a driver can neither set nor clear it. The other bits only ever grow
    // (virtio 2.1.1: the driver must not clear a bit); a write that would clear some keeps them.
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
    // Before DRIVER_OK, or from a driver that did not accept it, SUSPEND has no effect (virtio 3.4.2).
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
      // A legacy driver knows no FEATURES_OK; its choice is fixed by DRIVER_OK (virtio 3.1.2).
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
  /// - Returns: whether a configuration change notification is due: DRIVER_OK was set, and this is news.
  public mutating func needReset() -> Bool {
    let news = !status.contains(.needsReset)
    status.insert(.needsReset)
    return news && status.contains(.driverOK)
  }

  /// Set when the driver accepted a bit above 63: such a set can never be fine.
  public private(set) var strayBits = false
}
