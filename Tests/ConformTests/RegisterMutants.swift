/// Registers that are wrong in one place: this project's own, behind a layer that falsifies them.
import GuestDriver
import Testing
import VirtioCore
import VirtioRegisters

@testable import Conform

/// A register that reads wrong or ignores writes, or a device that does not survive an access.
struct RegisterMutant: Sendable, CustomTestStringConvertible {
  enum Access: Sendable {
    case read
    case write(UInt64)
  }

  var check: String
  var interface: RegisterInterface
  var prefersLegacy = false
  /// The result of a read; `nil`: unchanged.
  var read: @Sendable (_ offset: UInt32, _ width: Int, _ found: UInt64) -> UInt64 = { $2 }
  /// Whether a write arrives.
  var takes: @Sendable (_ offset: UInt32, _ value: UInt64) -> Bool = { _, _ in true }
  /// Whether the device does not survive an access.
  var isDeadly: @Sendable (_ offset: UInt32, _ width: Int, _ access: Access) -> Bool = { _, _, _ in false }
  /// Features that the device does not offer.
  var hides = FeatureSet()
  /// Whether kicks with data are lost.
  var losesData = false
  /// Whether the fault shows as a missing answer. Otherwise a wrong one is seen.
  var hangs = false

  var testDescription: String { "\(check), \(interface.name)\(prefersLegacy ? " by its legacy interface" : "")" }

  /// The same device behind the same layer, without the fault. The features it does not offer decide whether a check applies.
  var control: RegisterMutant {
    RegisterMutant(check: check, interface: interface, prefersLegacy: prefersLegacy, hides: hides)
  }

  static func reads(
    _ check: String, _ interface: RegisterInterface, _ place: UInt32, as value: UInt64, prefersLegacy: Bool = false
  ) -> RegisterMutant {
    RegisterMutant(
      check: check, interface: interface, prefersLegacy: prefersLegacy,
      read: { offset, _, found in offset == place ? value : found })
  }
}

/// The falsifying layer.
struct LyingPort: RegisterPort {
  let port: any RegisterPort
  let transport: LyingTransport
  var mutant: RegisterMutant { transport.mutant }

  func read(_ offset: UInt32, _ width: Int) throws -> UInt64 {
    if mutant.isDeadly(offset, width, .read) { transport.isDead = true }
    return mutant.read(offset, width, try port.read(offset, width))
  }
  func write(_ offset: UInt32, _ width: Int, _ value: UInt64) throws {
    if mutant.isDeadly(offset, width, .write(value)) { transport.isDead = true }
    if mutant.takes(offset, value) { try port.write(offset, width, value) }
  }
}

final class LyingSubject: Subject {
  let name = "own device, behind falsified registers"
  var bus: Bus { inner.bus }
  private let inner: OwnSubject
  private let mutant: RegisterMutant
  private var isDead = false

  init(_ mutant: RegisterMutant) throws {
    self.mutant = mutant
    inner = try OwnSubject(OwnSetup(mutant.interface, prefersLegacy: mutant.prefersLegacy))
  }

  func connect(_ settings: Settings) throws -> any DriverTransport {
    guard !isDead else { throw DriverError.noDevice("it is dead") }
    let inner = try inner.connect(settings)
    return try LyingTransport(#require(inner as? MemoryFileTransport), mutant) { [weak self] in self?.isDead = true }
  }
  func registers(of transport: any DriverTransport) -> (any RegisterPort)? {
    guard let lying = transport as? LyingTransport, let port = inner.registers(of: lying.inner) else { return nil }
    return LyingPort(port: port, transport: lying)
  }
  var resize: ((UInt64) throws -> Void)? { inner.resize }
}

enum RegisterMutants {
  /// Offsets in this project's function: the common configuration (BAR 4), and the legacy block (BAR 0).
  private static let common: UInt32 = 5 << 28
  private static let legacy: UInt32 = 1 << 28

  static let all: [RegisterMutant] =
    mmio + pci(.pci) + pci(.pciTransitional) + [.reads("modern-identity", .pci, 8, as: 0)]
    + legacyFunction(.pciLegacy) + legacyFunction(.pciTransitional) + legacyFunction(.pciTransitional, prefersLegacy: true)
    + RegisterInterface.allCases.map { oddAccess($0) } + [oddAccess(.pciTransitional, prefersLegacy: true)]

  /// A device that does not survive an access of eight bytes: no register is that wide.
  private static func oddAccess(_ interface: RegisterInterface, prefersLegacy: Bool = false) -> RegisterMutant {
    RegisterMutant(
      check: "odd-accesses", interface: interface, prefersLegacy: prefersLegacy, isDeadly: { _, width, _ in width == 8 },
      hangs: true)
  }

  /// Registers that a legacy driver uses.
  private static func legacyFunction(_ interface: RegisterInterface, prefersLegacy: Bool = false) -> [RegisterMutant] {
    func reads(_ check: String, _ place: UInt32, as value: UInt64) -> RegisterMutant {
      .reads(check, interface, place, as: value, prefersLegacy: prefersLegacy)
    }
    return [
      reads("transitional-identity", 8, as: 1), reads("legacy-bar", 0x10, as: 4),
      reads("legacy-configuration", legacy + 20, as: 1),
    ] + (prefersLegacy || interface == .pciLegacy ? anyFunction(interface, prefersLegacy: prefersLegacy) : [])
  }

  /// Registers that every driver uses.
  private static func anyFunction(_ interface: RegisterInterface, prefersLegacy: Bool = false) -> [RegisterMutant] {
    [
      .reads("vendor", interface, 0, as: 0x1af5, prefersLegacy: prefersLegacy),
      RegisterMutant(
        check: "vector-count", interface: interface, prefersLegacy: prefersLegacy,
        // The table's size, wherever its capability is: the list shows the capability's ID first.
        read: { offset, width, found in width == 2 && offset >= 0x40 && offset < 0x100 && found & 0x7fff < 16 ? 0 : found }),
    ]
  }

  /// Interrupt Status is set for something that has no vector.
  private static func interrupts(_ check: String, _ interface: RegisterInterface, field: UInt32) -> RegisterMutant {
    // One thread reads and writes registers.
    final class Looks: @unchecked Sendable { var count: Int? }
    let looks = Looks()
    return RegisterMutant(
      check: check, interface: interface,
      read: { offset, _, found in
        guard offset == 6, let count = looks.count else { return found }
        looks.count = count + 1
        return count == 0 ? found & ~8 : found | 8
      },
      takes: { offset, value in
        if offset == common + field, value == 0xffff { looks.count = 0 }
        return true
      })
  }

  private static let mmio: [RegisterMutant] = [
    .reads("magic", .mmio, 0, as: 0x7472_6977), .reads("legacy-magic", .mmioLegacy, 4, as: 2),
    .reads("legacy-pages-after-reset", .mmioLegacy, 0x040, as: 7),
    .reads("interrupt-status", .mmio, 0x060, as: 1), .reads("interrupt-status-idle", .mmio, 0x060, as: 2),
    .reads("interrupt-status-after-reset", .mmio, 0x060, as: 1), .reads("interrupt-line", .mmio, 0x060, as: 1),
    .reads("queues-after-reset", .mmio, 0x044, as: 1), .reads("generation-register", .mmio, 0x0fc, as: 4),
    RegisterMutant(check: "not-ready-is-dead", interface: .mmio, takes: { offset, _ in offset != 0x044 }),
    .reads("ready-reads-back", .mmio, 0x044, as: 1), .reads("queue-reset-register", .mmio, 0x0c0, as: 1),
    .reads("queue-reset-finishes", .mmio, 0x044, as: 1), .reads("feature-words", .mmio, 0x010, as: 5),
    .reads("no-such-queue-register", .mmio, 0x034, as: 8), .reads("no-shared-memory", .mmio, 0x0b0, as: 0),
    .reads("configuration-bytes", .mmio, 0x103, as: 0x55),
    RegisterMutant(check: "notification-data", interface: .mmio, losesData: true, hangs: true),
    RegisterMutant(check: "reset-by-status", interface: .mmio, takes: { offset, _ in offset != 0x070 }),
  ]

  private static func pci(_ interface: RegisterInterface) -> [RegisterMutant] {
    anyFunction(interface) + [
      // Without a capability list there are no capabilities.
      .reads("common-structure", interface, 6, as: 0), .reads("notify-structure", interface, 6, as: 0),
      .reads("isr-structure", interface, 6, as: 0), .reads("device-structure", interface, 6, as: 0),
      .reads("window-structure", interface, 6, as: 0),
      RegisterMutant(
        check: "capability-lengths", interface: interface,
        read: { offset, width, found in width == 1 && offset % 4 == 2 && (0x40..<0x100).contains(offset) ? 8 : found }),
      capability(interface, "no-shared-regions", of: 4, at: 3, as: 8),
      capability(interface, "notify-geometry-with-data", of: 2, at: 16, as: 6),
      .reads("feature-words-of-pci", interface, common + 4, as: 3), .reads("driver-features", interface, common + 0x0c, as: 3),
      .reads("pci-generation", interface, common + 0x15, as: 3), .reads("pci-reset", interface, common + 0x1c, as: 1),
      .reads("pci-queue-reset", interface, common + 0x1c, as: 1), .reads("pci-no-such-queue", interface, common + 0x18, as: 8),
      .reads("pci-queue-size", interface, common + 0x18, as: 24), .reads("halves-of-64-bits", interface, common + 0x20, as: 24),
      RegisterMutant(
        check: "window-reads", interface: interface, read: { offset, _, found in offset == common + 0x12 ? found + 1 : found }),
      .reads("window-writes", interface, common + 0x14, as: 0),
      .reads("vectors-read-back", interface, common + 0x1a, as: 0), .reads("no-such-vector", interface, common + 0x10, as: 2),
      RegisterMutant(
        check: "isr-of-queues", interface: interface, read: { offset, _, found in offset == common + 0x1000 ? 0 : found }),
      RegisterMutant(
        check: "isr-of-configuration", interface: interface, read: { offset, _, found in offset == common + 0x1000 ? 0 : found }
      ),
      capability(interface, "notify-geometry", of: 2, at: 16, as: 6, hides: .notificationData),
      RegisterMutant(check: "notification-data", interface: interface, losesData: true, hangs: true),
      interrupts("unmapped-is-silent", interface, field: 0x1a),
      interrupts("unmapped-configuration-is-silent", interface, field: 0x10),
      // This BAR does not exist.
      RegisterMutant(
        check: "window-nowhere", interface: interface,
        isDeadly: { offset, width, access in
          if case .write(7) = access { width == 1 && (0x40..<0x100).contains(offset) } else { false }
        }, hangs: true),
      RegisterMutant(
        check: "kick-by-register", interface: interface,
        takes: { offset, _ in offset < common + 0x4000 || offset >= common + 0x5000 }, hangs: true),
    ]
  }

  /// A field of the first virtio capability of a type; this project's function has them in the order of their types.
  private static func capability(
    _ interface: RegisterInterface, _ check: String, of type: UInt32, at field: UInt32, as value: UInt64,
    hides: FeatureSet = []
  ) -> RegisterMutant {
    // Its offset is learned from the function itself.
    let seen = CapabilityPlace(type: type)
    return RegisterMutant(
      check: check, interface: interface,
      read: { offset, _, found in
        seen.note(offset, found)
        return offset == seen.place.map { $0 + field } ? value : found
      }, hides: hides)
  }
}

/// Learns from a check's reads at which offset a capability of a type is.
private final class CapabilityPlace: @unchecked Sendable {
  // One thread reads registers.
  private let type: UInt32
  private(set) var place: UInt32?
  private var at: UInt32 = 0

  init(type: UInt32) { self.type = type }

  func note(_ offset: UInt32, _ found: UInt64) {
    if offset >= 0x40, offset < 0x100, found == 9, offset % 4 == 0 { at = offset }
    if place == nil, at > 0, offset == at + 3, found == UInt64(type) { place = at }
  }
}

@Suite struct RegisterMutantTests {
  @Test("a falsified register is detected", arguments: RegisterMutants.all)
  func lies(_ mutant: RegisterMutant) throws {
    let expected: Outcome = mutant.hangs ? .wedged : .broken
    // On a busy machine the device may need more time to do what it must not: then the check gets more.
    var finding: Finding?
    for factor in [1, 20, 400] where finding?.outcome != expected {
      var settings = Settings()
      settings.limit = .milliseconds(factor * (mutant.hangs ? 300 : 2000))
      // The device is asleep by then, and does not see chains without a kick.
      settings.settle = .milliseconds(factor * (mutant.hangs ? 20 : 1))
      finding = try Self.finding(mutant, settings)
    }
    #expect(finding?.outcome == expected, "\(String(describing: finding?.outcome)): \(finding?.seen ?? "")")
  }

  /// If the layer itself broke something, or a check failed anyway, every mutant would count as detected.
  @Test("without a fault the same check passes behind the same layer", arguments: RegisterMutants.all.map(\.control))
  func tellsTheTruth(_ control: RegisterMutant) throws {
    let finding = try Self.finding(control, Settings())
    #expect(finding.outcome == .kept || finding.outcome == .rejected, "\(finding.outcome): \(finding.seen)")
  }

  private static func finding(_ mutant: RegisterMutant, _ settings: Settings) throws -> Finding {
    let check = try #require(Check.all.first { $0.name == mutant.check })
    let subject = try LyingSubject(mutant)
    // Identifying the device may take as long as needed.
    let facts = try Runner(settings: Settings()).facts(subject)
    return Runner(settings: settings).make(check, .split, subject, facts)
  }
}
