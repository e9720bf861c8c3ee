/// Features by their names: which a disk offers, and which it does not.
internal import GuestDriver
package import VhostUser
package import VirtioBlkDevice
package import VirtioCore

/// Comma-separated names of features, as in the specification: `ring_packed,event_idx,discard`. Capitals, dashes instead of
/// underscores, and the prefixes `VIRTIO_F_`, `VIRTIO_BLK_F_` and `RING_` make no difference.
package struct FeatureList: Equatable {
  /// Features of the device.
  package private(set) var features = FeatureSet()
  /// Features of the protocol between a front-end and this back-end.
  package private(set) var protocolFeatures = ProtocolFeatures()
  /// The list includes what is offered by default.
  package private(set) var hasDefaults = false
  /// The list includes everything that can be offered.
  package private(set) var hasAll = false
  /// The bits were given as a number.
  package private(set) var isNumber = false
  /// As it was typed.
  package let text: String

  package init(_ text: String) throws(FeatureMistake) {
    self.text = text
    if let number = Self.number(text) {
      features = FeatureSet(rawValue: number)
      isNumber = true
      return
    }
    for part in text.split(separator: ",", omittingEmptySubsequences: false) {
      let word = Self.plain(part)
      if word == "default" {
        hasDefaults = true
      } else if word == "all" {
        hasAll = true
      } else if let bit = Self.deviceBits[word] {
        features.insert(FeatureSet(bit: bit))
      } else if let bit = Self.protocolBits[word] {
        protocolFeatures.insert(ProtocolFeatures(bit: bit))
      } else {
        throw .unknown(String(part), close: CloseWord.find(to: word, among: Self.words))
      }
    }
  }

  private static func number(_ text: String) -> UInt64? {
    text.hasPrefix("0x") ? UInt64(text.dropFirst(2), radix: 16) : UInt64(text)
  }

  private static func plain(_ word: some StringProtocol) -> String {
    var word = word.lowercased().map { $0 == "-" ? "_" : $0 }.reduce(into: "") { $0.append($1) }
    for prefix in ["virtio_blk_f_", "virtio_f_", "vhost_user_protocol_f_"] where word.hasPrefix(prefix) {
      word = String(word.dropFirst(prefix.count))
    }
    // Two features of virtio 1.0 and the packed ring have `ring_` in their names, and are as often named without it.
    if let bit = deviceBits["ring_" + word] { word = deviceNames[bit] ?? word }
    return word
  }

  private static let deviceNames: [Int: String] = Dictionary(
    (0..<64).compactMap { bit in BlockFeature.name(ofBit: bit).map { (bit, $0.lowercased()) } },
    uniquingKeysWith: { one, _ in one })
  private static let deviceBits = Dictionary(
    deviceNames.map { ($0.value, $0.key) }, uniquingKeysWith: { one, _ in one })
  /// The protocol features that a back-end can do without. `mq` names the device's feature, which also decides the protocol's.
  private static let protocolBits: [String: Int] = Dictionary(
    ProtocolFeatures.names.filter { ProtocolFeatures.served.contains(ProtocolFeatures(bit: $0.bit)) }
      .map { ($0.name.lowercased(), $0.bit) }.filter { deviceBits[$0.0] == nil }, uniquingKeysWith: { one, _ in one })
  private static let words = Array(deviceBits.keys) + Array(protocolBits.keys) + ["default", "all"]

  package static let forms =
    "names of features as in ring_packed,event_idx,discard ('default' and 'all' stand for several), or a number of bits"

  package static func == (one: Self, other: Self) -> Bool {
    (one.features, one.protocolFeatures, one.hasDefaults, one.hasAll)
      == (other.features, other.protocolFeatures, other.hasDefaults, other.hasAll)
  }
}

/// Why features cannot be as the user wants them: one sentence.
package enum FeatureMistake: Error, CustomStringConvertible {
  case unknown(String, close: String?)
  case required(FeatureSet, String)
  case impossible(FeatureSet, String)
  case notFromList(String)

  package var description: String {
    switch self {
    case .unknown(let word, let close):
      "there is no feature '\(printable(word))'" + (close.map { "; did you mean '\($0)'?" } ?? ": use \(FeatureList.forms)")
    case .required(let features, let reason):
      "\(Operator.names(of: features).joined(separator: " ")) cannot be switched off: \(reason)"
    case .impossible(let features, let reason):
      "\(Operator.names(of: features).joined(separator: " ")) cannot be offered: \(reason)"
    case .notFromList(let word): "'\(word)' is for --features: name the features to switch off"
    }
  }
}

/// How a disk is reached, as far as its features depend on it.
package enum FeatureTransport {
  case vhostUser
  case memoryFile

  /// Features that are offered by default on this transport, although a disk offers them only on request. Over a socket, queue
  /// reset and notification data are up to the front-end, and QEMU passes on the bit of queue reset without implementing it.
  package var defaults: FeatureSet {
    switch self {
    case .vhostUser: []
    case .memoryFile: [.ringReset, .notificationData]
    }
  }

  /// Features that the registers offer, not the disk: those of virtio-pci.
  package var ofRegisters: FeatureSet {
    switch self {
    case .vhostUser: []
    case .memoryFile: .notificationConfigurationData
    }
  }

  /// Features that make no sense on this transport: over a socket, a kick is an event without a value, and the front-end keeps
  /// the status; in a file of guest memory, all addresses are guest-physical.
  package var impossible: FeatureSet {
    switch self {
    case .vhostUser: [.notificationData, .suspend]
    case .memoryFile: [.accessPlatform]
    }
  }
}

/// What the command line and an entry of a list say about features.
package struct FeatureWords: Equatable {
  /// The features to offer; `nil` for the default ones.
  package var only: FeatureList?
  /// The features not to offer.
  package var without: [FeatureList] = []

  package init(only: FeatureList? = nil, without: [FeatureList] = []) {
    self.only = only
    self.without = without
  }

  package var isEmpty: Bool { only == nil && without.isEmpty }

  /// A text that is equal for equal words.
  package var text: String { ([only?.text ?? ""] + without.map(\.text)).joined(separator: " ") }

  /// What the registers of a memory file are not to offer, although they could.
  package var withheldFromRegisters: FeatureSet {
    let own = FeatureTransport.memoryFile.ofRegisters
    if let only, !only.hasDefaults, !only.hasAll { return own.subtracting(only.features.subtracting(withheld)) }
    return own.intersection(withheld)
  }

  private var withheld: FeatureSet { without.reduce(into: FeatureSet()) { $0.formUnion($1.features) } }

  package func validate() throws(FeatureMistake) {
    for list in without {
      if list.hasDefaults { throw .notFromList("default") }
      if list.hasAll { throw .notFromList("all") }
    }
    guard !withheld.contains(.version1) else {
      throw .required(.version1, "it is always offered, and drivers that do not accept it are served as well")
    }
  }

  /// The protocol features to offer: all but those that are switched off.
  package var protocolFeatures: ProtocolFeatures {
    var offered = ProtocolFeatures.served
    for list in without { offered.subtract(list.protocolFeatures) }
    return offered
  }

  /// Sets which features a disk on this image offers beyond the defaults, and which it withholds.
  package func apply(
    to options: inout BlockDeviceOptions, _ image: ImageFile, _ transport: FeatureTransport
  ) throws(FeatureMistake) {
    let required = BlockDevice.requiredFeatures(of: image)
    let standard = BlockDevice.features(of: image)
    let onRequest = BlockDevice.featuresOnRequest(of: image)
    let possible = standard.union(onRequest).subtracting(transport.impossible)
    let defaults = standard.union(transport.defaults)
    var offered = defaults
    if let only {
      let missing = only.features.subtracting(possible).subtracting(transport.ofRegisters)
      guard missing.isEmpty else { throw .impossible(missing, "\(image.path) or the transport does not support that") }
      offered = only.features.union(required)
      if only.hasDefaults { offered.formUnion(defaults) }
      if only.hasAll { offered.formUnion(possible) }
    }
    let needed = withheld.intersection(required)
    guard needed.isEmpty else {
      throw .required(
        needed,
        needed.contains(.blockReadOnly)
          ? "the image is read-only"
          : needed.contains(.blockZoned) ? "the disk has zones (--zoned)" : "its blocks are larger than 512 bytes")
    }
    offered.subtract(withheld)
    options.requestedFeatures = offered.intersection(onRequest)
    options.withheldFeatures = standard.subtracting(offered)
  }
}
