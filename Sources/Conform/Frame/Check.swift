/// One check: which clauses it covers, what it needs, and what it does.
internal import GuestDriver
internal import VhostUser
internal import VirtioCore

/// What a check needs of a device or its transport.
enum Need: Sendable {
  case offered(FeatureSet)
  /// Anywhere.
  case writable
  case readOnly
  /// Its zones require sequential writes.
  case hostManaged
  /// It accepts drivers that choose any features.
  case notHostManaged
  /// VERSION_1.
  case modern
  /// The status belongs to the device, not to the front-end.
  case status
  case queues(Int)
  /// A way to change the size of the disk.
  case resize
  case vhostUser
  case protocolFeature(ProtocolFeatures)
  /// Registers of any kind.
  case registers
  case mmio
  case mmioLegacy
  /// Any virtio-pci function, and one with the modern or the legacy interface.
  case pci
  case pciModern
  case pciLegacy

  /// Why the need is not met; `nil` if it is.
  func missing(in facts: Facts) -> String? {
    func unless(_ has: Bool, _ reason: String) -> String? { has ? nil : reason }
    switch self {
    case .offered(let features):
      let missing = features.subtracting(facts.offered)
      let names = missing.bits.map { BlockFeature.name(ofBit: $0) ?? "bit \($0)" }.joined(separator: " and ")
      return unless(missing.isEmpty, "the device does not offer \(names)")
    case .writable:
      return facts.isHostManaged
        ? "the disk requires sequential writes: the checks of zones cover that"
        : unless(!facts.isReadOnly, "the disk is read-only")
    case .hostManaged: return unless(facts.isHostManaged, "the disk has no zones that require sequential writes")
    case .notHostManaged: return unless(!facts.isHostManaged, "a host-managed disk refuses drivers without ZONED")
    case .readOnly: return unless(facts.isReadOnly, "the disk can be written: check a read-only one as well")
    case .modern: return unless(facts.isModern, "this is the legacy interface")
    case .status: return unless(facts.hasStatus, "the back-end has no STATUS: the front-end keeps the status")
    case .queues(let count): return unless(facts.queueCount >= count, "the device has \(facts.queueCount) queue")
    case .resize: return unless(facts.canResize, "the size of this disk cannot be changed here")
    case .vhostUser: return unless(facts.bus == .vhostUser, "only over vhost-user")
    case .protocolFeature(let features):
      let missing = features.subtracting(facts.protocolFeatures)
      return unless(
        facts.bus == .vhostUser && missing.isEmpty,
        facts.bus == .vhostUser
          ? "the back-end does not offer \(missing.nameList.joined(separator: " and "))" : "only over vhost-user")
    case .registers: return unless(facts.bus != .vhostUser, "a vhost-user back-end has no registers: the front-end has them")
    case .mmio: return unless(facts.bus == .mmio, "only over virtio-mmio version 2")
    case .mmioLegacy: return unless(facts.bus == .mmioLegacy, "only over virtio-mmio version 1")
    case .pci: return unless(facts.bus.isPCI, "only over virtio-pci")
    case .pciModern: return unless(facts.bus == .pci || facts.bus == .pciTransitional, "only over modern virtio-pci")
    case .pciLegacy: return unless(facts.bus == .pciLegacy || facts.bus == .pciTransitional, "only over legacy virtio-pci")
    }
  }
}

public struct Check: Sendable {
  /// With which ring formats it runs.
  enum Rings: Sendable { case both, split, packed, once }

  public let name: String
  /// What is done, and what has to follow.
  public let title: String
  private let common: [String]
  private let ofSplit: [String]
  private let ofPacked: [String]
  let rings: Rings
  let needs: [Need]
  let body: @Sendable (Bench) throws -> Seen

  init(
    _ name: String, _ clauses: String, split: String = "", packed: String = "", _ title: String, rings: Rings = .both,
    needs: [Need] = [], _ body: @escaping @Sendable (Bench) throws -> Seen
  ) {
    func list(_ words: String) -> [String] { words.split(separator: " ").map(String.init) }
    self.name = name
    self.title = title
    common = list(clauses)
    ofSplit = list(split)
    ofPacked = list(packed)
    self.rings = rings
    self.needs = needs
    self.body = body
  }

  /// The clauses for both ring formats.
  public var clauses: [String] { common + ofSplit + ofPacked }

  func clauses(_ format: RingFormat) -> [String] { common + (format == .split ? ofSplit : ofPacked) }

  /// The ring formats with which to run it on a device.
  func formats(_ facts: Facts) -> [RingFormat] {
    let packed = facts.offered.contains(.packedRing) && facts.isModern
    switch rings {
    case .both: return packed ? [.split, .packed] : [.split]
    case .split, .once: return [.split]
    case .packed: return [.packed]
    }
  }

  /// Whether a word of `--only` selects it: its name, one of its clauses, or the beginning of one.
  public func matches(_ word: String) -> Bool {
    name == word || clauses.contains { $0 == word || $0.hasPrefix(word + ".") }
  }
}

extension Check {
  /// All checks, in the order in which they run.
  public static let all: [Check] =
    life + features + configuration + queueReset + suspension + framing + order + split + packed + notification + block + ranges
    + zones
    + odd
    + input + rare
    + vhostUser + translation + wire + mmio + pci
}
