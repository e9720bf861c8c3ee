/// Drivers with one deliberate fault each, in their register accesses.
import Testing
import VirtioCore
import VirtioRegisters

@testable import DriverCheck

struct RegisterMutant: Sendable, CustomTestStringConvertible {
  var rule: String
  var interface: RegisterInterface
  var offered: FeatureSet
  var drive: @Sendable (RegisterRig) -> Void

  var testDescription: String { "\(rule), \(interface.name)" }

  init(
    _ rule: String, _ interface: RegisterInterface, offered: FeatureSet = RegisterRig.features,
    _ drive: @escaping @Sendable (RegisterRig) -> Void
  ) {
    (self.rule, self.interface, self.offered, self.drive) = (rule, interface, offered, drive)
  }

  static let all = common + mmio + pci + legacy

  /// The same fault over both modern buses.
  private static func both(
    _ rule: String, offered: FeatureSet = RegisterRig.features, _ drive: @escaping @Sendable (RegisterRig) -> Void
  ) -> [RegisterMutant] {
    [RegisterInterface.mmio, .pci].map { RegisterMutant(rule, $0, offered: offered, drive) }
  }

  private static let common: [RegisterMutant] = [
    both("d.init.1") { $0.drive(without: [.driver]) },
    both("d.status.1") { $0.drive(without: [.acknowledge], instead: [.driver: { $0.setStatus(2) }]) },
    both("d.status.2") { $0.drive(instead: [.driverOK: { $0.setStatus(7) }]) },
    both("d.status.3") {
      $0.drive(instead: [.driverOK: { rig in for value in [0x8b, 15] as [UInt64] { rig.setStatus(value) } }])
    },
    both("d.init.6") {
      $0.drive(
        without: [.queue],
        instead: [
          .driverOK: { rig in
            rig.setStatus(0x8b)
            rig.setUp(0)
          }
        ])
    },
    both("d.feat.1") { $0.drive(instead: [.writeFeatures: { $0.writeFeatures($0.offered.union(FeatureSet(bit: 12))) }]) },
    both("d.feat.7") { $0.drive(instead: [.writeFeatures: { $0.writeFeatures($0.offered.union(FeatureSet(bit: 50))) }]) },
    both("d.reset.1") { $0.drive(without: [.readReset]) },
    both("d.cfg.2") {
      $0.drive(instead: [
        .configure: { rig in
          rig.read(rig.configuration(0), 4)
          rig.read(rig.configuration(4), 4)
          rig.status()
        }
      ])
    },
    both("d.cfg.3") { $0.drive(instead: [.configure: { $0.read($0.configuration(20), 4) }]) },
    both("d.vqreset.1") {
      $0.drive()
      $0.resetQueue(reads: false)
      $0.setUp(0)
    },
    both("d.vqreset.3") {
      $0.drive()
      $0.resetQueue()
      if $0.interface == .mmio { $0.write(0x044, 4, 1) } else { $0.write($0.structure(.common, 0x1c), 2, 1) }
    },
    both("d.init.1") { $0.drive(without: [.reset, .readReset]) },
    both("d.init.1") { $0.drive(without: [.readFeatures]) },
    both("d.init.1") { $0.drive(without: [.readStatus, .configure]) },
    both("d.init.1") { $0.drive(without: [.featuresOK]) },
    both("d.init.1") {
      $0.drive(instead: [
        .driver: { rig in
          rig.setStatus(3)
          rig.setUp(0)
        }
      ])
    },
    both("d.init.3") {
      $0.drive(instead: [
        .readFeatures: { rig in
          rig.write(rig.configuration(32), 1, 0)
          rig.readFeatures()
        }
      ])
    },
    both("d.init.4") {
      $0.drive(instead: [
        .readStatus: { rig in
          rig.status()
          rig.writeFeatures(.version1)
        }
      ])
    },
    both("d.init.7") {
      $0.drive(instead: [
        .queue: { rig in
          rig.setUp(0)
          rig.notify(0)
        }
      ])
    },
    both("d.suspend.1") { $0.drive(instead: [.notify: { $0.setStatus(31) }]) },
    suspends("d.suspend.1") {
      $0.drive(instead: [.driverOK: { rig in for value in [27, 31] as [UInt64] { rig.setStatus(value) } }])
    },
    suspends("d.suspend.2") { rig in
      rig.drive()
      for value in [31, 15] as [UInt64] { rig.setStatus(value) }
    },
    suspends("d.suspend.4") { rig in
      rig.drive()
      rig.suspend()
      rig.notify(0)
    },
    suspends("d.suspend.5") { rig in
      rig.drive()
      rig.suspend()
      rig.write(rig.configuration(32), 1, 0)
    },
    suspends("d.suspend.6") { rig in
      rig.drive()
      rig.suspend()
      rig.setStatus(15)
      rig.notify(0)
    },
    both("d.blk.init.4") {
      $0.drive(instead: [
        .readFeatures: { rig in
          rig.readFeatures()
          rig.read(rig.configuration(32), 1)
        }
      ])
    },
    declines("d.blk.op.3", FeatureSet(bit: 5)), declines("d.rfb.1", .version1), declines("d.rfb.3", .accessPlatform),
    declines("d.rfb.6", .packedRing), declines("d.rfb.7", .orderPlatform),
  ].flatMap(\.self)

  private static func suspends(_ rule: String, _ drive: @escaping @Sendable (RegisterRig) -> Void) -> [RegisterMutant] {
    both(rule, offered: RegisterRig.features.union(.suspend), drive)
  }

  private static func declines(_ rule: String, _ feature: FeatureSet) -> [RegisterMutant] {
    both(rule) { $0.drive(instead: [.writeFeatures: { $0.writeFeatures($0.offered.subtracting(feature)) }]) }
  }

  /// After an initialization without a fault.
  private static func after(
    _ rule: String, _ interface: RegisterInterface, offered: FeatureSet = RegisterRig.features,
    _ fault: @escaping @Sendable (RegisterRig) -> Void
  ) -> RegisterMutant {
    RegisterMutant(rule, interface, offered: offered) { rig in
      rig.drive()
      fault(rig)
    }
  }

  private static let mmio: [RegisterMutant] = [
    after("d.mmio.1", .mmio) { $0.read(0x018, 4) },
    after("d.mmio.2", .mmio) { $0.write(0x034, 4, 1) },
    after("d.mmio.3", .mmio) { $0.read(0x030, 4) },
    after("d.mmio.4", .mmio) { $0.read(0x070, 1) },
    after("d.mmio.4", .mmio) { $0.read(0x072, 4) },
    after("d.mmio.5", .mmio) { $0.read(0x120, 4) },
    RegisterMutant("d.mmio.12", .mmio) { $0.drive(instead: [.readFeatures: { $0.read(0x010, 4) }]) },
    RegisterMutant("d.mmio.13", .mmio) { $0.drive(instead: [.writeFeatures: { $0.write(0x020, 4, 0) }]) },
    RegisterMutant("d.mmio.14", .mmio) { $0.drive(instead: [.queue: { $0.setUp(0, size: 512) }]) },
    after("d.mmio.15", .mmio) { $0.write(0x080, 4, 0x2000) },
    after("d.mmio.17", .mmio) {
      $0.write(0x044, 4, 0)
      $0.setUp(0)
    },
    after("d.mmio.20", .mmio) { $0.write(0x064, 4, 5) },
    after("d.mmio.21", .mmio) {
      $0.resetQueue(reads: false)
      $0.setUp(0)
    },
    RegisterMutant("d.mmio.init.1", .mmio) { $0.drive(without: [.probe]) },
    RegisterMutant("d.mmio.init.2", .mmio) {
      $0.drive(instead: [.probe: { rig in for offset in [0, 4] as [UInt32] { rig.read(offset, 4) } }])
    },
    after("d.mmio.init.6", .mmio) { $0.write(0x0ac, 4, 0) },
    after("d.mmio.intr.1", .mmio) { $0.write(0x064, 4, 1) },
  ]

  private static let both39: FeatureSet = RegisterRig.features.union(.notificationData)

  private static let pci: [RegisterMutant] = [
    after("d.pci.cap.8", .pci) { $0.write(0x44, 1, 0) },
    after("d.pci.common.1", .pci) { $0.write($0.structure(.common, 0x12), 2, 1) },
    after("d.pci.common.2", .pci) { $0.write($0.structure(.common, 0x18), 2, 0) },
    after("d.pci.common.3", .pci, offered: RegisterRig.features.subtracting(.packedRing)) {
      $0.write($0.structure(.common, 0x18), 2, 100)
    },
    RegisterMutant("d.pci.common.4", .pci) {
      $0.drive(instead: [.queue: { $0.write($0.structure(.common, 0x1c), 2, 1) }])
    },
    after("d.pci.common.4", .pci) { $0.write($0.structure(.common, 0x20), 4, 0x2000) },
    RegisterMutant("d.pci.common.5", .pci) { $0.drive(without: [.readReset]) },
    after("d.pci.common.6", .pci) { $0.write($0.structure(.common, 0x1c), 2, 0) },
    after("d.pci.common.7", .pci) {
      $0.resetQueue(reads: false)
      $0.setUp(0)
    },
    RegisterMutant("d.pci.kick.1", .pci) { $0.drive(instead: [.notify: { $0.write($0.structure(.notify, 0), 4, 0) }]) },
    RegisterMutant("d.pci.kick.2", .pci, offered: both39) { $0.drive() },
    kick("d.pci.kick.3", .version1, width: 2), kick("d.pci.kick.4", [.version1, .notificationData], width: 4),
    kick("d.pci.kick.5", [.version1, FeatureSet(bit: 39)], width: 2),
    kick("d.pci.kick.6", [.version1, .notificationData, FeatureSet(bit: 39)], width: 4),
    after("d.pci.layout.1", .pci) { $0.read($0.structure(.common, 0x12), 4) },
    after("d.pci.layout.1", .pci) { $0.read($0.structure(.device, 32), 4) },
    after("d.pci.cfgacc.1", .pci) { $0.window(bar: 4, offset: 0x02, length: 4) },
    after("d.pci.cfgacc.2", .pci) { $0.window(bar: 4, offset: 0x01, length: 2) },
    after("d.pci.cfgacc.3", .pci) { $0.window(bar: 1, offset: 0, length: 4) },
    after("d.pci.isr.1", .pci) {
      guard let msix = $0.map.msix else { return }
      $0.write(msix + 2, 2, 0x8000)
      $0.read($0.structure(.isr, 0), 1)
    },
    after("d.pci.msix.4", .pci) { $0.mapVector(77) },
    RegisterMutant("d.pci.msix.5", .pci) {
      $0.drive(instead: [
        .queue: { rig in
          rig.setUp(0)
          rig.mapVector(1)
        }
      ])
    },
    RegisterMutant("d.rfb.13", .pci) {
      $0.drive(instead: [.writeFeatures: { $0.writeFeatures($0.offered) }])
    },
  ]

  /// A notification at queue 0's address with another queue's number.
  private static func kick(_ rule: String, _ features: FeatureSet, width: Int) -> RegisterMutant {
    RegisterMutant(rule, .pci, offered: both39) {
      $0.drive(instead: [
        .writeFeatures: { $0.writeFeatures(features) }, .notify: { $0.write($0.structure(.notify, 0), width, 1) },
      ])
    }
  }

  private static let legacy: [RegisterMutant] = [RegisterInterface.mmioLegacy, .pciLegacy].flatMap { interface in
    [
      RegisterMutant("legacy.d.cfg.1", interface) {
        $0.drive(instead: [
          .configure: { rig in
            rig.read(rig.configuration(0), 4)
            rig.read(rig.configuration(4), 4)
            rig.status()
          }
        ])
      },
      RegisterMutant("legacy.d.vq.1", interface) {
        $0.drive(instead: [
          .queue: { rig in
            if rig.interface == .mmioLegacy {
              rig.write(0x030, 4, 0)
              rig.write(0x040, 4, 1)
            } else {
              rig.write(1 << 28 | 0x08, 4, 1)
            }
          }
        ])
      },
      RegisterMutant("legacy.d.init.1", interface) { $0.drive(instead: [.featuresOK: { $0.setStatus(11) }]) },
      RegisterMutant("legacy.d.rfb.1", interface) { $0.drive(instead: [.writeFeatures: { $0.writeFeatures([]) }]) },
    ]
  }
}

extension RegisterRig {
  /// Sets the window up and reads through it.
  fileprivate func window(bar: UInt64, offset: UInt64, length: UInt64) {
    guard let start = map.window else { return }
    write(start + 4, 1, bar)
    write(start + 8, 4, offset)
    write(start + 12, 4, length)
    read(start + 16, 4)
  }
}

@Suite struct RegisterMutantTests {
  @Test("a fault in register accesses is found", arguments: RegisterMutant.all)
  func fault(_ mutant: RegisterMutant) throws {
    let rig = RegisterRig(mutant.interface, offered: mutant.offered)
    mutant.drive(rig)
    #expect(rig.findings.account(mutant.rule).broken > 0, "\(rig.broken)")
  }

  @Test("a driver without a fault breaks nothing", arguments: RegisterInterface.allCases)
  func sound(_ interface: RegisterInterface) {
    let rig = RegisterRig(interface)
    for _ in 0..<3 { rig.drive(without: []) }
    if !rig.isLegacy {
      rig.resetQueue()
      rig.setUp(0)
    }
    #expect(rig.broken.isEmpty, "\(rig.broken)")
  }

  @Test(
    "registers in use already: a driver need not begin at the beginning",
    arguments: [RegisterInterface.mmio, .pci])
  func served(_ interface: RegisterInterface) {
    let rig = RegisterRig(interface, isNew: false)
    rig.drive(without: [.probe, .reset, .readReset])
    #expect(rig.broken.isEmpty, "\(rig.broken)")
  }

  @Test("a driver that suspends the device and resumes it", arguments: [RegisterInterface.mmio, .pci])
  func suspension(_ interface: RegisterInterface) {
    let rig = RegisterRig(interface, offered: RegisterRig.features.union(.suspend))
    rig.drive()
    for _ in 0..<3 {
      rig.suspend()
      rig.setStatus(15)
      rig.status()
      rig.notify(0)
    }
    // A suspended device may be reset like any other.
    rig.suspend()
    rig.drive(without: [.probe])
    #expect(rig.broken.isEmpty, "\(rig.broken)")
    #expect(rig.findings.account("d.suspend.2").kept == 3 && rig.findings.account("d.suspend.6").kept == 5)
  }

  @Test("SUSPEND need not stay set", arguments: [RegisterInterface.mmio, .pci])
  func suspendGoes(_ interface: RegisterInterface) {
    // Not negotiated: written once, and one violation.
    let other = RegisterRig(interface)
    other.drive()
    for value in [31, 15] as [UInt64] { other.setStatus(value) }
    #expect(other.findings.account("d.suspend.1").broken == 1)
    #expect(other.broken.count == 1, "\(other.broken)")
    // Requested twice.
    let rig = RegisterRig(interface, offered: RegisterRig.features.union(.suspend))
    rig.drive()
    rig.suspend()
    for value in [27, 15, 15] as [UInt64] { rig.setStatus(value) }
    #expect(rig.broken.isEmpty, "\(rig.broken)")
    // Read from here on.
    rig.status()
    rig.suspend()
    rig.beginAgain()
    rig.setStatus(15)
    rig.status()
    rig.notify(0)
    #expect(rig.broken.isEmpty, "\(rig.broken)")
    rig.suspend()
    rig.beginAgain()
    rig.notify(0)
    #expect(rig.findings.account("d.suspend.4").broken == 1)
  }

  @Test("events are read twice before they are acknowledged, and one after the other")
  func events() {
    let rig = RegisterRig(.mmio)
    rig.drive()
    rig.interrupt(1)
    rig.read(0x060, 4)
    rig.interrupt(3)
    rig.read(0x060, 4)
    for bit in [1, 2] as [UInt64] { rig.write(0x064, 4, bit) }
    #expect(rig.broken.isEmpty, "\(rig.broken)")
    // All of them are acknowledged now: to acknowledge more, it has to be read again.
    rig.write(0x064, 4, 1)
    #expect(rig.findings.account("d.mmio.intr.1").broken == 1)
  }

  @Test("a queue's size is compared with its own maximum, whichever was read last")
  func maximum() {
    let rig = RegisterRig(.mmio)
    rig.drive(instead: [
      .queue: { rig in
        rig.write(0x030, 4, 0)
        rig.read(0x034, 4)
        // This queue does not exist, and its maximum is 0.
        rig.write(0x030, 4, 2)
        #expect(rig.read(0x034, 4) == 0)
        rig.write(0x030, 4, 0)
        rig.write(0x038, 4, 16)
      }
    ])
    #expect(rig.broken.isEmpty, "\(rig.broken)")
    #expect(rig.findings.account("d.mmio.14").kept == 1)
  }

  @Test("other fields are read between the generation and the capacity", arguments: [RegisterInterface.mmio, .pci])
  func generation(_ interface: RegisterInterface) {
    let rig = RegisterRig(interface)
    rig.drive(instead: [
      .configure: { rig in
        rig.readGeneration()
        rig.read(rig.configuration(8), 4)
        rig.read(rig.configuration(0), 4)
        rig.read(rig.configuration(4), 4)
        rig.read(rig.configuration(8), 4)
        rig.readGeneration()
        rig.status()
      }
    ])
    #expect(rig.broken.isEmpty, "\(rig.broken)")
    #expect(rig.findings.account("d.cfg.2").kept == 1)
  }

  @Test("accesses through the window count like any other")
  func window() {
    let rig = RegisterRig(.pci)
    rig.drive()
    guard let region = rig.map.regions.first(where: { $0.kind == .common }), let start = rig.map.window else {
      Issue.record("no window")
      return
    }
    rig.write(start + 4, 1, UInt64(region.bar))
    rig.write(start + 8, 4, UInt64(region.offset + 0x14))
    rig.write(start + 12, 4, 1)
    rig.read(start + 16, 1)
    #expect(rig.broken.isEmpty, "\(rig.broken)")
    // A write through it counts: status bits are cleared without a reset.
    rig.write(start + 16, 1, 1)
    #expect(rig.findings.account("d.status.2").broken == 1)
  }
}
