/// Registers of a simulated device, and a driver's operations on them.
import Synchronization
import VirtioCore
import VirtioRegisters

/// State that the device shows through its interface; tests change it as a device would.
final class Made: Sendable {
  let interruptStatus = Mutex<UInt32>(0)
  let generation = Mutex<UInt32>(7)
  let accepts = Mutex(true)
  let heldBack = Mutex<Set<InterruptSource>>([])
  /// 16 bytes: 0x10, 0x11, …
  let configuration: [UInt8] = (0x10..<0x20).map { $0 }

  static let features: FeatureSet = [
    FeatureSet(bit: 1), FeatureSet(bit: 9), .indirectDescriptors, .eventIndex, .version1, .ringReset, .notificationData,
  ]

  func registers(features: FeatureSet = Made.features, queues: Int = 3, size: UInt16 = 256) -> MMIORegisters {
    MMIORegisters(face: face(features: features, queues: queues, size: size))
  }

  func face(features: FeatureSet = Made.features, queues: Int = 3, size: UInt16 = 256) -> RegisterFace {
    RegisterFace(
      deviceID: 2, features: features, queueCount: queues, maximumQueueSize: size,
      interruptStatus: { self.interruptStatus.withLock { $0 } },
      configurationGeneration: { self.generation.withLock { $0 } },
      readConfiguration: { offset, count in
        (0..<count).map {
          let (at, overflow) = offset.addingReportingOverflow($0)
          return !overflow && self.configuration.indices.contains(at) ? self.configuration[at] : 0
        }
      },
      accepts: { _ in self.accepts.withLock { $0 } },
      isHeldBack: { source in self.heldBack.withLock { $0.contains(source) } })
  }
}

extension MMIORegisters {
  func read(_ register: Register) -> UInt32 { UInt32(read(offset: register.rawValue, width: 4)) }

  @discardableResult mutating func write(_ register: Register, _ value: UInt32) -> [Effect] {
    write(offset: register.rawValue, width: 4, value: UInt64(value))
  }

  /// virtio 3.1.1 steps 1 to 6.
  mutating func negotiate(_ features: FeatureSet = [.version1]) {
    write(.status, 0)
    write(.status, 1)
    write(.status, 3)
    write(.driverFeaturesSelect, 0)
    write(.driverFeatures, UInt32(truncatingIfNeeded: features.rawValue))
    write(.driverFeaturesSelect, 1)
    write(.driverFeatures, UInt32(truncatingIfNeeded: features.rawValue >> 32))
    write(.status, 11)
  }

  /// virtio 4.2.3.2.
  @discardableResult mutating func setUp(queue: Int, size: UInt32 = 64) -> [Effect] {
    write(.queueSelect, UInt32(queue))
    write(.queueSize, size)
    let wanted = QueueConfiguration.sample(queue, size: UInt16(size))
    for (low, high, address) in [
      (Register.queueDescriptorLow, Register.queueDescriptorHigh, wanted.descriptorTable),
      (.queueDriverLow, .queueDriverHigh, wanted.availableRing), (.queueDeviceLow, .queueDeviceHigh, wanted.usedRing),
    ] {
      write(low, UInt32(truncatingIfNeeded: address.rawValue))
      write(high, UInt32(truncatingIfNeeded: address.rawValue >> 32))
    }
    return write(.queueReady, 1)
  }

  /// A device after DRIVER_OK with every queue ready.
  static func live(_ made: Made, features: FeatureSet = [.version1]) -> MMIORegisters {
    var registers = made.registers()
    registers.negotiate(features)
    for queue in 0..<3 { registers.setUp(queue: queue) }
    registers.write(.status, 15)
    return registers
  }
}

extension QueueConfiguration {
  /// Addresses above 4 GiB, different for each queue.
  static func sample(_ queue: Int, size: UInt16 = 64) -> QueueConfiguration {
    let base = 0x12_0000_0000 + UInt64(queue) << 16
    return QueueConfiguration(
      size: size, descriptorTable: GuestAddress(base), availableRing: GuestAddress(base + 0x4000),
      usedRing: GuestAddress(base + 0x8000))
  }
}
