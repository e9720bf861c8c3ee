/// The requests of a block device (virtio 5.2.6), as found in a chain.
internal import Synchronization
internal import VirtioCore

/// What the driver was told about the limits of its requests. The capacity is the largest since the driver attached, so that a
/// disk that shrinks does not make the driver's requests wrong.
final class RequestLimits: Sendable {
  private let shown: Mutex<(capacity: UInt64, configuration: [UInt8])>
  let features: FeatureSet

  /// - Parameter configuration: 96 bytes.
  init(_ features: FeatureSet, configuration: [UInt8]) {
    self.features = features
    let bytes = configuration + [UInt8](repeating: 0, count: max(0, 96 - configuration.count))
    shown = Mutex((bytes.number(0), bytes))
  }

  func update(_ configuration: [UInt8]) {
    guard configuration.count >= 96 else { return }
    shown.withLock { $0 = (max($0.capacity, configuration.number(0)), configuration) }
  }

  /// 512-byte sectors.
  var capacity: UInt64 { shown.withLock { $0.capacity } }
  /// Data segments of one request; `nil`: not specified.
  var segments: UInt32? { features.contains(FeatureSet(bit: 2)) ? number(12) : nil }
  /// - Parameter offset: in the configuration space.
  func number(_ offset: Int) -> UInt32 { shown.withLock { $0.configuration.number(offset) } }
}

/// The checks of one request.
struct RequestRules {
  private enum Kind: UInt32 {
    case read = 0
    case write = 1
    case flush = 4
    case identity = 8
    case lifetime = 10
    case discard = 11
    case zeroes = 13
    case erase = 14
    case append = 15
    case report = 16
    case open = 18
    case close = 20
    case finish = 22
    case reset = 24
    case resetAll = 26

    /// The feature bit without which there is no such request; `nil`: there always is.
    var bit: Int? {
      switch self {
      case .read, .write, .identity: nil
      case .flush: 9
      case .lifetime: 15
      case .discard: 13
      case .zeroes: 14
      case .erase: 16
      case .append, .report, .open, .close, .finish, .reset, .resetAll: 17
      }
    }
  }

  let watch: QueueWatch
  let chain: SeenChain
  private var findings: DriverFindings { watch.findings }

  /// How many segments of a request are examined.
  private static let mostSegments = 4096

  init(watch: QueueWatch, chain: SeenChain) {
    self.watch = watch
    self.chain = chain
  }

  private func judge(_ rule: String, _ isKept: Bool, _ words: @autoclosure () -> String) {
    findings.judge(rule, isKept, queue: watch.queue, chain.place, bytes: chain.header, words())
  }

  func check() {
    judge("i.driver.header", chain.readableBytes >= 16, "the device can read \(chain.readableBytes) bytes of it")
    judge("i.driver.status", chain.writableBytes >= 1, "the device can write nothing of it")
    guard chain.header.count == 16, chain.writableBytes >= 1 else { return }
    checkLegacyLayout()
    let type: UInt32 = chain.header.number(0)
    let sector: UInt64 = chain.header.number(8)
    let (out, into) = (chain.readableBytes - 16, chain.writableBytes - 1)
    let features = watch.setup.features
    let kind = Kind(rawValue: type)
    let hasFeature = kind?.bit.map { features.contains(FeatureSet(bit: $0)) } ?? true
    judge(
      "i.driver.type", kind != nil && hasFeature,
      kind == nil ? "its type is \(type)" : "its type is \(type), and feature bit \(kind?.bit ?? 0) was not accepted")
    switch kind {
    case .read: checkRange(sector, into)
    case .write: checkRange(sector, out)
    case .flush:
      judge("d.blk.op.4", sector == 0, "a flush of sector \(sector)")
      judge("d.blk.op.5", out == 0 && into == 0, "a flush with \(out + into) bytes of data")
    case .identity: judge("d.blk.op.8", into == 20, "GET_ID with room for \(into) bytes")
    case .discard: checkSegments(out, rule: "d.blk.op.9", limit: watch.setup.limits.number(40), isDiscard: true)
    case .zeroes: checkSegments(out, rule: "d.blk.op.11", limit: watch.setup.limits.number(52), isDiscard: false)
    case .erase: checkSegments(out, rule: "d.blk.op.10", limit: watch.setup.limits.number(64), isDiscard: false)
    case .append:
      checkZoneStart("d.zoned.op.6", sector)
      let grain = UInt64(watch.setup.limits.number(88))
      judge("d.zoned.op.7", grain == 0 || out % grain == 0, "\(out) bytes, and the granularity is \(grain)")
      let most = UInt64(watch.setup.limits.number(84)) * 512
      judge("d.zoned.op.8", out <= most, "\(out) bytes of at most \(most)")
    case .open, .close, .finish, .reset: checkZoneStart("d.zoned.op.4", sector)
    case .resetAll: judge("d.zoned.op.5", sector == 0, "its sector is \(sector)")
    case .report, .lifetime, nil: break
    }
    if isHostManaged {
      judge("d.zoned.init.2", !features.contains(FeatureSet(bit: 13)), "DISCARD was accepted from a host-managed disk")
    }
  }

  private var isHostManaged: Bool {
    watch.setup.features.contains(FeatureSet(bit: 17)) && watch.setup.limits.number(92) & 0xff == 1
  }

  private func checkZoneStart(_ rule: String, _ sector: UInt64) {
    let size = UInt64(watch.setup.limits.number(72))
    judge(rule, size == 0 || sector % size == 0, "its sector is \(sector), and zones have \(size) sectors")
  }

  private func checkRange(_ sector: UInt64, _ bytes: UInt64) {
    judge("d.blk.op.6", bytes % 512 == 0, "\(bytes) bytes of data")
    checkEnd(sector, bytes / 512)
  }

  private func checkEnd(_ sector: UInt64, _ count: UInt64) {
    let capacity = watch.setup.limits.capacity
    judge(
      "d.blk.op.2", sector <= capacity && count <= capacity - sector,
      "\(count) sectors from \(sector) of \(capacity)")
  }

  private func checkSegments(_ bytes: UInt64, rule: String, limit: UInt32, isDiscard: Bool) {
    judge("d.blk.op.7", bytes % 16 == 0, "\(bytes) bytes of segments")
    let count = bytes / 16
    judge(rule, count <= UInt64(limit), "\(count) segments of at most \(limit)")
    let looked = min(Int(clamping: count), Self.mostSegments)
    // In one pass over the chain, which may have as many pieces as there are segments.
    guard let all = watch.readableBytes(chain, from: 16, count: 16 * looked) else { return }
    for index in 0..<looked {
      let segment = Array(all[16 * index..<16 * index + 16])
      checkEnd(segment.number(0), UInt64(segment.number(8, as: UInt32.self)))
      guard isDiscard else { continue }
      let flags: UInt32 = segment.number(12)
      findings.judge(
        "d.blk.op.14", flags & 1 == 0, queue: watch.queue, "\(chain.place), segment \(index)", bytes: segment, "unmap is set")
    }
  }

  /// Without ANY_LAYOUT a legacy driver's header and status are separate descriptors (virtio 5.2.6.4).
  private func checkLegacyLayout() {
    guard !watch.setup.features.contains(.version1), findings.anyLayout == false else { return }
    judge(
      "legacy.d.blk.9", chain.readable.first?.length == 16 && chain.writable.last?.length == 1,
      "its first descriptor has \(chain.readable.first?.length ?? 0) bytes, its last one \(chain.writable.last?.length ?? 0)")
  }
}
