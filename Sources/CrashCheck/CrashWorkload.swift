/// The driver of a run: random requests on all queues, each recorded before the device can see it, and its answer after the
/// driver has seen it.
internal import GuestDriver
internal import VirtioCore

/// How a driver asks for its writes to be stable (virtio 5.2.5).
public enum CrashMode: String, CaseIterable, Sendable {
  /// FLUSH commits them.
  case writeback
  /// CONFIG_WCE, and writeback is 0: each is stable when it is answered.
  case writethrough
  /// CONFIG_WCE, and the driver switches writeback again and again, with requests in flight.
  case toggled
  /// Neither FLUSH nor CONFIG_WCE was accepted: each is stable when it is answered.
  case noFlush = "no-flush"

  /// The features that the driver accepts.
  var features: FeatureSet {
    switch self {
    case .writeback, .writethrough, .toggled: BlockFeature.understood
    case .noFlush: BlockFeature.understood.subtracting([BlockFeature.flush, BlockFeature.configWCE])
    }
  }
}

struct CrashWorkload {
  /// Where `writeback` is in the configuration space (virtio 5.2.4).
  private static let writebackOffset = 32

  private let client: BlockClient
  private let journal: CrashJournal
  private let stamp: SectorStamp
  private let mode: CrashMode
  private let sectors: Int
  private let requests: Int
  private var random: SeededRandom
  private var isDurable: Bool
  private var inFlight: [Int: Range<Int>] = [:]

  /// - Parameters:
  ///   - sectors: the size of the disk.
  ///   - requests: how many to make.
  init(
    _ client: BlockClient, _ journal: CrashJournal, _ stamp: SectorStamp, mode: CrashMode, sectors: Int, requests: Int
  ) {
    self.client = client
    self.journal = journal
    self.stamp = stamp
    self.mode = mode
    self.sectors = sectors
    self.requests = requests
    random = SeededRandom(seed: stamp.seed)
    isDurable = mode == .noFlush
  }

  mutating func run() throws(DriverError) {
    if mode == .writethrough { try setWriteback(false) }
    var made = 0
    // A copy for the closures, which both need it.
    var this = self
    try client.run { _, number throws(DriverError) in
      guard made < this.requests else { return nil }
      if this.mode == .toggled, this.random.next() % 16 == 0 { try this.setWriteback(this.isDurable) }
      guard let submission = this.choose(number) else { return nil }
      made += 1
      return submission
    } completed: { _, number, _ throws(DriverError) in
      this.inFlight[number] = nil
      this.journal.add(.answered(number))
    }
    self = this
  }

  private mutating func setWriteback(_ isOn: Bool) throws(DriverError) {
    if isOn { journal.add(.cacheTurnedOn) }
    isDurable = false
    try client.session.transport.writeConfiguration(at: Self.writebackOffset, [isOn ? 1 : 0])
    isDurable = !isOn
  }

  /// - Returns: `nil` if no range was found that overlaps none in flight.
  private mutating func choose(_ number: Int) -> Submission? {
    let chance = random.next() % 100
    if chance < 9, mode != .noFlush {
      journal.add(.asked(number, GuestRequest(kind: .flush, sectors: 0..<0, isDurable: false)))
      return Submission(.flush)
    }
    for _ in 0..<16 {
      let most = random.next() % 8 == 0 ? 64 : 12
      let count = 1 + Int(random.next() % UInt64(most))
      let first = Int(random.next() % UInt64(sectors - count + 1))
      let range = first..<first + count
      guard !inFlight.values.contains(where: { $0.overlaps(range) }) else { continue }
      inFlight[number] = range
      return request(number, range, chance)
    }
    return nil
  }

  private mutating func request(_ number: Int, _ range: Range<Int>, _ chance: UInt64) -> Submission {
    let place = BlockRange(sector: UInt64(range.lowerBound), sectors: UInt32(range.count))
    let kind: GuestRequest.Kind
    let request: BlockRequest
    switch chance {
    case 0..<15: return Submission(.read(sector: place.sector, bytes: range.count * SectorContent.bytes))
    case 15..<19: (kind, request) = (.discard, .discard([place]))
    case 19..<26:
      let unmap: UInt32 = random.next() % 2 == 0 ? 1 : 0
      (kind, request) = (
        .zero, .writeZeroes([BlockRange(sector: place.sector, sectors: place.sectors, flags: unmap)])
      )
    default:
      (kind, request) = (.write, .write(sector: place.sector, stamp.payload(range, write: UInt32(number))))
    }
    journal.add(.asked(number, GuestRequest(kind: kind, sectors: range, isDurable: isDurable)))
    return Submission(request)
  }
}
