/// Registers of a simulated disk, a watch beside them, and a driver that can do anything.
import Conform
import Synchronization
import VirtioCore
import VirtioRegisters

@testable import DriverCheck

/// One device's registers. Effects are executed at once.
final class RegisterRig {
  /// Offered features: everything that this bus and a disk can have, so that each rule can be checked.
  static let features: FeatureSet = [
    FeatureSet(bit: 1), FeatureSet(bit: 5), FeatureSet(bit: 9), FeatureSet(bit: 11), .indirectDescriptors, .version1,
    .ringReset,
    .packedRing, .orderPlatform, .accessPlatform,
  ]

  let interface: RegisterInterface
  let offered: FeatureSet
  let findings = DriverFindings()
  private(set) var registers: RegisterModel
  private let rules: RegisterRules
  let map: PCIFunctionMap
  private let pending = PendingBits()

  final class PendingBits: Sendable { let bits = Mutex<UInt32>(0) }

  init(_ interface: RegisterInterface, offered: FeatureSet = RegisterRig.features, isNew: Bool = true) {
    self.interface = interface
    self.offered = offered
    let pending = pending
    let face = RegisterFace(
      deviceID: 2, features: offered, queueCount: 2, maximumQueueSize: 256,
      interruptStatus: { pending.bits.withLock { $0 } }, configurationGeneration: { 1 },
      readConfiguration: { _, count in [UInt8](repeating: 0, count: count) }, accepts: { _ in true })
    registers = RegisterModel(interface, face: face)
    map = PCIFunctionMap(registers)
    rules = RegisterRules(findings, isNew: isNew) { _, _ in }
    rules.begins(with: registers)
    if interface.isPCI { enable() }
  }

  /// Sets the device's interrupts: bits of InterruptStatus.
  func interrupt(_ bits: UInt32) { pending.bits.withLock { $0 = bits } }

  @discardableResult func read(_ offset: UInt32, _ width: Int) -> UInt64 {
    let (value, effects) = registers.read(offset: offset, width: width)
    rules.accessed(RegisterAccess(offset: offset, width: width, isWrite: false, value: value))
    carryOut(effects)
    return value
  }

  func write(_ offset: UInt32, _ width: Int, _ value: UInt64) {
    let effects = registers.write(offset: offset, width: width, value: value)
    rules.accessed(RegisterAccess(offset: offset, width: width, isWrite: true, value: value))
    carryOut(effects)
  }

  private func carryOut(_ effects: [RegisterEffect]) {
    for effect in effects {
      if case .resetQueue(let queue) = effect { registers.queueResetFinished(queue) }
    }
  }

  var broken: [String] {
    zip(DriverRules.all, findings.all).filter { $1.broken > 0 }.map { rule, account in
      "\(rule.clause.id): \(account.violations.first?.description ?? "")"
    }
  }

  /// Enables the function's structures, or its I/O space.
  private func enable() {
    write(0x04, 2, 7)
    if interface == .pciLegacy { write(0x10, 4, 0xc000) } else { write(0x20, 4, 0xf000_0000) }
  }

  /// A structure of the function. - Parameter offset: the offset in it.
  func structure(_ kind: PCIFunctionMap.Kind, _ offset: UInt32) -> UInt32 {
    guard let region = map.regions.first(where: { $0.kind == kind }) else { preconditionFailure("no such structure") }
    return UInt32(region.bar + 1) << 28 | (region.offset + offset)
  }

  // MARK: A driver

  /// The steps of an initialization, each of which a mutant can replace.
  enum Step: Hashable, CaseIterable {
    case probe, reset, readReset, acknowledge, driver, readFeatures, writeFeatures, featuresOK, readStatus, configure, queue
    case driverOK, notify, interrupt
  }

  /// A driver without a fault, except for the steps that it replaces.
  func drive(without left: Set<Step> = [], instead other: [Step: (RegisterRig) -> Void] = [:]) {
    for step in Step.allCases where !left.contains(step) {
      if let other = other[step] { other(self) } else { perform(step) }
    }
  }

  func perform(_ step: Step) {
    switch step {
    case .probe:
      guard interface == .mmio || interface == .mmioLegacy else { return }
      for offset in [0, 4, 8] as [UInt32] { read(offset, 4) }
    case .reset: setStatus(0)
    case .readReset, .readStatus: status()
    case .acknowledge: setStatus(1)
    case .driver: setStatus(3)
    case .readFeatures: readFeatures()
    case .writeFeatures: writeFeatures(registers.offered.subtracting(isLegacy ? [] : .anyLayout))
    case .featuresOK: if !isLegacy { setStatus(11) }
    case .configure: readCapacity()
    case .queue: setUp(0)
    case .driverOK: setStatus(isLegacy ? 7 : 15)
    case .notify: notify(0)
    case .interrupt: takeInterrupt()
    }
  }

  var isLegacy: Bool { interface == .mmioLegacy || interface == .pciLegacy }

  func setStatus(_ value: UInt64) {
    switch interface {
    case .mmio, .mmioLegacy: write(0x070, 4, value)
    case .pciLegacy: write(1 << 28 | 0x12, 1, value)
    case .pci, .pciTransitional: write(structure(.common, 0x14), 1, value)
    }
  }

  /// Suspends the device, and waits until it is.
  func suspend() {
    setStatus(31)
    status()
  }

  /// Begins a new watch at the registers' present state.
  func beginAgain() { rules.begins(with: registers) }

  func status() {
    switch interface {
    case .mmio, .mmioLegacy: read(0x070, 4)
    case .pciLegacy: read(1 << 28 | 0x12, 1)
    case .pci, .pciTransitional: read(structure(.common, 0x14), 1)
    }
  }

  func readFeatures() {
    for word in 0..<(isLegacy ? 1 : 2) as Range<UInt64> {
      switch interface {
      case .mmio, .mmioLegacy:
        write(0x014, 4, word)
        read(0x010, 4)
      case .pciLegacy: read(1 << 28, 4)
      case .pci, .pciTransitional:
        write(structure(.common, 0), 4, word)
        read(structure(.common, 4), 4)
      }
    }
  }

  func writeFeatures(_ features: FeatureSet) {
    for word in 0..<(isLegacy ? 1 : 2) as Range<UInt64> {
      let bits = features.rawValue >> (32 * word) & 0xffff_ffff
      switch interface {
      case .mmio, .mmioLegacy:
        write(0x024, 4, word)
        write(0x020, 4, bits)
      case .pciLegacy: write(1 << 28 | 4, 4, bits)
      case .pci, .pciTransitional:
        write(structure(.common, 8), 4, word)
        write(structure(.common, 12), 4, bits)
      }
    }
  }

  /// Bytes of the configuration space.
  func configuration(_ offset: UInt32) -> UInt32 {
    switch interface {
    case .mmio, .mmioLegacy: 0x100 + offset
    case .pciLegacy: 1 << 28 | (0x14 + offset)
    case .pci, .pciTransitional: structure(.device, offset)
    }
  }

  func readGeneration() {
    switch interface {
    case .mmio: read(0x0fc, 4)
    case .pci, .pciTransitional: read(structure(.common, 0x15), 1)
    case .mmioLegacy, .pciLegacy: break
    }
  }

  func readCapacity() {
    readGeneration()
    for _ in 0..<(isLegacy ? 2 : 1) {
      read(configuration(0), 4)
      read(configuration(4), 4)
    }
    readGeneration()
    status()
  }

  func setUp(_ queue: UInt64, size: UInt64 = 16) {
    switch interface {
    case .mmio:
      write(0x030, 4, queue)
      read(0x034, 4)
      write(0x038, 4, size)
      for offset in [0x080, 0x084, 0x090, 0x094, 0x0a0, 0x0a4] as [UInt32] { write(offset, 4, offset % 16 == 0 ? 0x1000 : 0) }
      write(0x044, 4, 1)
    case .mmioLegacy:
      write(0x028, 4, 4096)
      write(0x030, 4, queue)
      read(0x034, 4)
      write(0x038, 4, size)
      write(0x040, 4, 1)
    case .pciLegacy:
      write(1 << 28 | 0x0e, 2, queue)
      read(1 << 28 | 0x0c, 2)
      write(1 << 28 | 0x08, 4, 1)
    case .pci, .pciTransitional:
      write(structure(.common, 0x16), 2, queue)
      read(structure(.common, 0x18), 2)
      write(structure(.common, 0x18), 2, size)
      mapVector(0)
      read(structure(.common, 0x1a), 2)
      for offset in stride(from: 0x20 as UInt32, to: 0x38, by: 4) { write(structure(.common, offset), 4, 0x1000) }
      write(structure(.common, 0x1c), 2, 1)
    }
  }

  func mapVector(_ vector: UInt64) { write(structure(.common, 0x1a), 2, vector) }

  func notify(_ queue: UInt64) {
    switch interface {
    case .mmio, .mmioLegacy: write(0x050, 4, queue)
    case .pciLegacy: write(1 << 28 | 0x10, 2, queue)
    case .pci, .pciTransitional: write(structure(.notify, UInt32(queue) * map.notifyMultiplier), 2, queue)
    }
  }

  func takeInterrupt() {
    guard interface == .mmio else { return }
    interrupt(1)
    read(0x060, 4)
    interrupt(0)
    write(0x064, 4, 1)
  }

  /// Resets queue 0 through its reset register.
  func resetQueue(reads: Bool = true) {
    switch interface {
    case .mmio:
      write(0x030, 4, 0)
      write(0x0c0, 4, 1)
      if reads { read(0x0c0, 4) }
    case .pci, .pciTransitional:
      write(structure(.common, 0x16), 2, 0)
      write(structure(.common, 0x3a), 2, 1)
      if reads { read(structure(.common, 0x3a), 2) }
    case .mmioLegacy, .pciLegacy: break
    }
  }
}
