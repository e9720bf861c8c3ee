/// The verifier against the reference device: no error if the device is right, and an error for each way of being wrong.
import Testing
import VirtioCore

@testable import GuestDriver

/// A driver of the reference device, in one process.
func makeClient(
  _ device: ReferenceDevice, features: FeatureSet = BlockFeature.understood, queueSize: UInt16 = 64, queues: Int? = nil,
  shape: RingShape = .separate, ring: RingFormat = .split, memory: DriverMemory? = nil
) throws -> BlockClient {
  let memory = try memory ?? DriverMemory(size: 8 << 20)
  let transport = try InProcessTransport(device: device, memory: memory)
  let features = ring == .packed ? features.union(.packedRing) : features
  var options = DriverOptions(features: features, queues: queues, queueSize: queueSize, shape: shape)
  options.needsPacked = ring == .packed
  let client = try BlockClient(transport, options: options)
  return client
}

struct VerifierTests {
  struct Variant: Sendable, CustomTestStringConvertible {
    var features: FeatureSet
    var queueSize: UInt16
    var shape = RingShape.separate
    var waiting = Waiting.calls
    var queues = 2
    var ring = RingFormat.split
    var testDescription: String { "\(ring), \(features) size \(queueSize) \(shape) \(waiting) \(queues) queues" }
  }

  static let all = BlockFeature.understood
  static let variants: [Variant] = [
    Variant(features: all, queueSize: 64),
    Variant(features: all, queueSize: 1),
    Variant(features: all, queueSize: 2, waiting: .polling),
    Variant(features: all.subtracting(.eventIndex), queueSize: 64),
    Variant(features: all.subtracting(.eventIndex), queueSize: 64, waiting: .polling),
    Variant(features: all.subtracting(.indirectDescriptors), queueSize: 32),
    Variant(features: all.subtracting([.indirectDescriptors, .eventIndex]), queueSize: 4, queues: 1),
    Variant(features: all.subtracting(.version1), queueSize: 128, shape: .legacy()),
    Variant(features: all, queueSize: 128, shape: .legacy(alignment: 64)),
    Variant(features: all, queueSize: 32768, queues: 1),
    Variant(features: all, queueSize: 63, ring: .packed),
    Variant(features: all, queueSize: 1, ring: .packed),
    Variant(features: all, queueSize: 3, waiting: .polling, ring: .packed),
    Variant(features: all.subtracting(.eventIndex), queueSize: 64, ring: .packed),
    Variant(features: all.subtracting(.eventIndex), queueSize: 37, waiting: .polling, ring: .packed),
    Variant(features: all.subtracting(.indirectDescriptors), queueSize: 25, ring: .packed),
    Variant(features: all.subtracting([.indirectDescriptors, .eventIndex]), queueSize: 5, queues: 1, ring: .packed),
    Variant(features: all, queueSize: 32768, queues: 1, ring: .packed),
  ]

  @Test("a correct device passes", arguments: variants)
  func rightDevice(_ variant: Variant) throws {
    let device = try ReferenceDevice(bytes: 1 << 20, queues: variant.queues, offersPacked: variant.ring == .packed)
    let client = try makeClient(
      device, features: variant.features, queueSize: variant.queueSize, shape: variant.shape, ring: variant.ring)
    client.waiting = variant.waiting
    client.depth = 8
    var verifier = try Verifier(client, VerifyOptions(seed: 1, limit: .bytes(512 << 10), largest: 16384))
    let report = try verifier.run()
    #expect(report.bytes >= 512 << 10)
    #expect(report.bytesReadBack > 0)
    #expect(report.requests.count == 5)
    try client.shutDown()
  }

  @Test("memory in many regions", arguments: [2, 17, 509])
  func manyRegions(_ count: Int) throws {
    // Every other region is adjacent to its neighbour, so both kinds of edges occur.
    let size: UInt64 = count > 2 ? 16 << 10 : 128 << 10
    let layout = (0..<count).map { index in
      (start: GuestAddress(UInt64(index / 2) << 20 | UInt64(index % 2) * size), size: Int(size))
    }
    let device = try ReferenceDevice(bytes: 256 << 10)
    let client = try makeClient(device, queueSize: 16, memory: try DriverMemory(anonymous: layout))
    client.depth = count > 2 ? 4 : 1
    var verifier = try Verifier(client, VerifyOptions(seed: 2, limit: .bytes(256 << 10), largest: 2048))
    #expect(try verifier.run().bytes >= 256 << 10)
  }

  @Test("a read-only disk is read and never written")
  func readOnly() throws {
    let client = try makeClient(try ReferenceDevice(bytes: 1 << 20, readOnly: true))
    var verifier = try Verifier(client, VerifyOptions(seed: 3, limit: .bytes(256 << 10)))
    let report = try verifier.run()
    #expect(report.bytesWritten == 0)
    #expect(report.bytesRead >= 256 << 10)
  }

  @Test("the same seed gives the same requests")
  func seedBringsBack() throws {
    func run() throws -> ([BlockRequestType: Int], [UInt8]) {
      let device = try ReferenceDevice(bytes: 1 << 18, queues: 1)
      let client = try makeClient(device, queues: 1)
      client.depth = 1
      var verifier = try Verifier(client, VerifyOptions(seed: 77, limit: .bytes(1 << 19)))
      let report = try verifier.run()
      return (report.requests, device.disk)
    }
    let (one, other) = (try run(), try run())
    #expect(one.0 == other.0)
    #expect(one.1 == other.1)
  }

  @Test("a disk of 4096-byte blocks")
  func largeBlocks() throws {
    let client = try makeClient(try ReferenceDevice(bytes: 1 << 20, logicalBlock: 4096))
    var verifier = try Verifier(client, VerifyOptions(seed: 4, limit: .bytes(1 << 20)))
    #expect(try verifier.run().bytes >= 1 << 20)
  }

  /// A ring format, with or without event indices.
  struct Ring: Sendable, CustomTestStringConvertible {
    var format: RingFormat
    var eventIndex: Bool
    var testDescription: String { "\(format)\(eventIndex ? " with EVENT_IDX" : "")" }
    static let all = RingFormat.allCases.flatMap { [Ring(format: $0, eventIndex: false), Ring(format: $0, eventIndex: true)] }
  }

  @Test("each flaw is caught, without EVENT_IDX and with it", arguments: Flaw.allCases, Ring.all)
  func flaw(_ flaw: Flaw, ring: Ring) throws {
    let device = try ReferenceDevice(bytes: 128 << 10, offersPacked: ring.format == .packed, flaw: flaw)
    let client = try makeClient(
      device, features: ring.eventIndex ? Self.all : Self.all.subtracting(.eventIndex), queueSize: 32, ring: ring.format,
      memory: try DriverMemory(size: 4 << 20))
    // A packed ring has no index that could jump: a used descriptor in the wrong place is never seen.
    let isSilent = flaw == .neverPublishes || flaw == .ignoresKicks || (flaw == .indexJumps && ring.format == .packed)
    // Short if silence is the flaw, and only then.
    if isSilent { client.patience = .milliseconds(300) }
    if flaw == .noCall { for queue in client.queues { queue.ring.callPatience = .milliseconds(200) } }
    client.waiting = flaw == .callsWhenUnwanted ? .polling : .calls
    // A missing call is noticed only if the driver waits for it.
    client.depth = flaw == .noCall ? 1 : 4
    var verifier = try Verifier(client, VerifyOptions(seed: 5, limit: .bytes(2 << 20), largest: 8192))
    let error = #expect(throws: VerifyError.self) { try verifier.run() }
    let text = try #require(error).description
    #expect(text.contains("seed 5"))
    let words = (ring.format == .packed ? Self.packedWords[flaw] : nil) ?? Self.words[flaw, default: []]
    #expect(words.contains { text.contains($0) }, "\(text)")
  }

  /// Words that the error must contain for a packed ring, if they differ.
  static let packedWords: [Flaw: [String]] = [
    .indexJumps: ["no answer"], .indexBackwards: ["neither available nor used"],
    .changesAvailableIndex: ["changed the driver's event suppression"], .garbageUsedFlags: ["event suppression is flags 0x3"],
  ]

  /// Words that the error must contain.
  static let words: [Flaw: [String]] = [
    .wrongID: ["does not hold"], .idOutOfRange: ["does not hold"], .idTwice: ["does not hold"],
    .lengthTooLong: ["writable ones"],
    .indexJumps: ["used.idx went from"], .indexBackwards: ["used.idx went from"], .neverPublishes: ["no answer"],
    .noCall: ["did not come"], .callsWhenUnwanted: ["calls where at most"], .ignoresKicks: ["no answer"],
    .garbageUsedFlags: ["used.flags is 4"], .changesDescriptor: ["changed descriptor"],
    .changesAvailableIndex: ["changed avail.idx", "used.idx went from"],
    .noStatus: ["without a status byte"], .wrongStatus: ["IOERR"], .writesBehindBuffer: ["never given"],
    .writesBeforeBuffer: ["never given"], .writesFarAway: ["far from every buffer"], .changesPayload: ["readable part"],
    .reportsUnwritten: ["was not"], .dropsWrite: ["found"], .dropsLastSector: ["found"], .wrongSector: ["into sector"],
    .readsStale: ["found"], .flipsBit: ["found"], .writeZeroesDoesNothing: ["expected zeroes"], .tearsSector: ["found"],
  ]
}
