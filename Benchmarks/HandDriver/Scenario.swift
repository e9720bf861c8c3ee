internal import VirtioBlkDevice
/// What is measured: one kind of request on one kind of ring with one kind of driver, as text that a script can write.
public import VirtioCore

/// A kind, and what differs from the defaults, separated by commas: `read,segments=4,indirect`, `flush,batch=1,asks`.
public struct Scenario: Sendable {
  public enum Kind: String, Sendable {
    case read, write, flush, discard
    case getID = "get-id"
    case writeZeroes = "write-zeroes"
    /// A read beyond the end of the disk.
    case outside
    /// A type that no device knows.
    case unknown
    /// Not a request, only a byte for the answer: for a ring without a device.
    case single
  }

  public let text: String
  public let kind: Kind
  /// Data descriptors of one request.
  public private(set) var segments = 1
  /// The bytes of each data descriptor.
  public private(set) var bytes = 4096
  public private(set) var isIndirect = false
  public private(set) var ringSize = 256
  /// Requests that become available at once; the driver waits until all of them are used and the device sleeps.
  public private(set) var batch = 64
  public private(set) var batches = 4
  /// Memory regions; the pieces of a request lie in different ones.
  public private(set) var regions = 1
  /// The pieces of a request lie in one region, the next request's in another.
  public private(set) var isTogether = false
  public private(set) var hasEventIndex = true
  /// The driver asks for a call at the next used element, like one that sleeps; otherwise it polls.
  public private(set) var asksForCalls = false
  public private(set) var publishesInOrder = false
  /// The ring is packed.
  public private(set) var isPacked = false
  /// The device keeps an in-flight record.
  public private(set) var isRecorded = false
  /// The device logs the pages to which it writes.
  public private(set) var isLogged = false
  /// The device calls after each request.
  public private(set) var callsForEach = false
  /// The device records how long requests take.
  public private(set) var isMetered = false

  /// `nil`: not a scenario.
  public init?(_ text: String) {
    let words = text.split(separator: ",").map(String.init)
    guard let kind = words.first.flatMap(Kind.init(rawValue:)) else { return nil }
    self.text = text
    self.kind = kind
    for word in words.dropFirst() {
      let parts = word.split(separator: "=").map(String.init)
      let number = parts.count == 2 ? Int(parts[1]) ?? 0 : 0
      switch parts.first {
      case "segments": segments = number
      case "bytes": bytes = number
      case "ring": ringSize = number
      case "batch": batch = number
      case "batches": batches = number
      case "regions": regions = number
      case "indirect": isIndirect = true
      case "together": isTogether = true
      case "no-event-index": hasEventIndex = false
      case "asks": asksForCalls = true
      case "in-order": publishesInOrder = true
      case "packed": isPacked = true
      case "recorded": isRecorded = true
      case "logged": isLogged = true
      case "each": callsForEach = true
      case "metered": isMetered = true
      default: return nil
      }
    }
    guard (1...32).contains(segments), (512...4096).contains(bytes), bytes % 512 == 0, (1...509).contains(regions),
      ringSize.nonzeroBitCount == 1, ringSize <= 32768, batch.nonzeroBitCount == 1, batch <= 64, batches > 0,
      batch * tableEntries <= ringSize
    else { return nil }
  }

  /// Descriptors of one request.
  public var descriptors: Int {
    switch kind {
    case .single: 1
    case .flush, .unknown: 2
    case .read, .write, .outside: segments + 2
    case .getID, .discard, .writeZeroes: 3
    }
  }

  /// How many of them are in the ring's own table.
  public var tableEntries: Int { isIndirect ? 1 : descriptors }

  public var features: FeatureSet {
    var features: FeatureSet = [.version1, .blockFlush, .blockDiscard, .blockWriteZeroes]
    if hasEventIndex { features.insert(.eventIndex) }
    if isIndirect { features.insert(.indirectDescriptors) }
    if isPacked { features.insert(.packedRing) }
    return features
  }

  /// The type field of the header (virtio 5.2.6).
  var requestType: UInt32 {
    switch kind {
    case .read, .outside: 0
    case .write: 1
    case .flush: 4
    case .getID: 8
    case .discard: 11
    case .writeZeroes: 13
    case .unknown, .single: 99
    }
  }
}
