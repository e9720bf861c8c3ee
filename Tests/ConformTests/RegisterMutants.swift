/// Registers that are wrong in one place: our own behind a window that lies.
import GuestDriver
import Testing
import VirtioCore
import VirtioRegisters

@testable import Conform

/// A register that reads otherwise than it is, or takes no writes.
struct RegisterMutant: Sendable, CustomTestStringConvertible {
  var check: String
  var interface: RegisterInterface
  var prefersLegacy = false
  /// What a read gives; `nil`: what there is.
  var read: @Sendable (_ offset: UInt32, _ width: Int, _ found: UInt64) -> UInt64 = { $2 }
  /// Whether a write arrives.
  var takes: @Sendable (_ offset: UInt32, _ value: UInt64) -> Bool = { _, _ in true }

  var testDescription: String { "\(check), \(interface.name)" }

  static func reads(_ check: String, _ interface: RegisterInterface, _ place: UInt32, as value: UInt64) -> RegisterMutant {
    RegisterMutant(check: check, interface: interface, read: { offset, _, found in offset == place ? value : found })
  }
}

/// The window.
struct LyingPort: RegisterPort {
  let port: any RegisterPort
  let mutant: RegisterMutant
  func read(_ offset: UInt32, _ width: Int) throws -> UInt64 { mutant.read(offset, width, try port.read(offset, width)) }
  func write(_ offset: UInt32, _ width: Int, _ value: UInt64) throws {
    if mutant.takes(offset, value) { try port.write(offset, width, value) }
  }
}

final class LyingSubject: Subject {
  let name = "ours, behind a window that lies"
  var bus: Bus { inner.bus }
  private let inner: OwnSubject
  private let mutant: RegisterMutant

  init(_ mutant: RegisterMutant) throws {
    self.mutant = mutant
    inner = try OwnSubject(OwnSetup(mutant.interface, prefersLegacy: mutant.prefersLegacy))
  }

  func connect(_ settings: Settings) throws -> any DriverTransport { try inner.connect(settings) }
  func registers(of transport: any DriverTransport) -> (any RegisterPort)? {
    inner.registers(of: transport).map { LyingPort(port: $0, mutant: mutant) }
  }
  var resize: ((UInt64) throws -> Void)? { inner.resize }
}

enum RegisterMutants {
  /// Of our own layout of a function: where the common configuration is (BAR 4), and the legacy block (BAR 0).
  private static let common: UInt32 = 5 << 28
  private static let legacy: UInt32 = 1 << 28

  static let all: [RegisterMutant] = mmio + pci

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
    RegisterMutant(check: "reset-by-status", interface: .mmio, takes: { offset, _ in offset != 0x070 }),
  ]

  private static let pci: [RegisterMutant] = [
    .reads("vendor", .pci, 0, as: 0x1af5), .reads("modern-identity", .pci, 8, as: 0),
    .reads("transitional-identity", .pciTransitional, 8, as: 1), .reads("legacy-bar", .pciTransitional, 0x10, as: 4),
    .reads("legacy-configuration", .pciTransitional, legacy + 20, as: 1),
    // Without a list of capabilities none of them is there.
    .reads("common-structure", .pci, 6, as: 0), .reads("notify-structure", .pci, 6, as: 0),
    .reads("isr-structure", .pci, 6, as: 0), .reads("device-structure", .pci, 6, as: 0),
    .reads("window-structure", .pci, 6, as: 0),
    RegisterMutant(
      check: "capability-lengths", interface: .pci,
      read: { offset, width, found in width == 1 && offset % 4 == 2 && (0x40..<0x100).contains(offset) ? 8 : found }),
    capability("no-shared-regions", of: 4, at: 3, as: 8),
    capability("notify-geometry-with-data", of: 2, at: 16, as: 6),
    .reads("feature-words-of-pci", .pci, common + 4, as: 3), .reads("driver-features", .pci, common + 0x0c, as: 3),
    .reads("pci-generation", .pci, common + 0x15, as: 3), .reads("pci-reset", .pci, common + 0x1c, as: 1),
    .reads("pci-queue-reset", .pci, common + 0x1c, as: 1), .reads("pci-no-such-queue", .pci, common + 0x18, as: 8),
    .reads("pci-queue-size", .pci, common + 0x18, as: 24), .reads("halves-of-64-bits", .pci, common + 0x20, as: 24),
    RegisterMutant(
      check: "window-reads", interface: .pci, read: { offset, _, found in offset == common + 0x12 ? found + 1 : found }),
    .reads("window-writes", .pci, common + 0x14, as: 0),
    RegisterMutant(
      check: "vector-count", interface: .pci,
      // The table's size, wherever its capability is: its ID is what the list says first.
      read: { offset, width, found in width == 2 && offset >= 0x40 && offset < 0x100 && found & 0x7fff < 16 ? 0 : found }),
    .reads("vectors-read-back", .pci, common + 0x1a, as: 0), .reads("no-such-vector", .pci, common + 0x10, as: 2),
    RegisterMutant(
      check: "isr-of-queues", interface: .pci, read: { offset, _, found in offset == common + 0x1000 ? 0 : found }),
    RegisterMutant(
      check: "isr-of-configuration", interface: .pci, read: { offset, _, found in offset == common + 0x1000 ? 0 : found }),
    RegisterMutant(
      check: "kick-by-register", interface: .pci, takes: { offset, _ in offset < common + 0x4000 || offset >= common + 0x5000 }),
  ]

  /// A field of the first virtio capability of a type, which our own function has in the order of the types.
  private static func capability(_ check: String, of type: UInt32, at field: UInt32, as value: UInt64) -> RegisterMutant {
    // Where it is, is asked of the function itself.
    let seen = CapabilityPlace(type: type)
    return RegisterMutant(
      check: check, interface: .pci,
      read: { offset, _, found in
        seen.note(offset, found)
        return offset == seen.place.map { $0 + field } ? value : found
      })
  }
}

/// Learns from what a check reads where a capability of a type is.
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
  @Test("a register that lies is found out", arguments: RegisterMutants.all)
  func lies(_ mutant: RegisterMutant) throws {
    let check = try #require(Check.all.first { $0.name == mutant.check })
    var settings = Settings()
    settings.limit = .milliseconds(300)
    settings.settle = .milliseconds(1)
    let runner = Runner(settings: settings)
    let subject = try LyingSubject(mutant)
    // What the device says of itself may take as long as it likes.
    let facts = try Runner(settings: Settings()).facts(subject)
    let finding = runner.make(check, .split, subject, facts)
    #expect(finding.outcome == .broken || finding.outcome == .wedged, "\(finding.outcome): \(finding.seen)")
  }
}
