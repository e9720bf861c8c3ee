/// Runs a synthetic guest on a device in this process, and checks images that a power failure could have left.
internal import Foundation
internal import Glibc
internal import GuestDriver
public import VirtioBlkDevice
internal import VirtioCore

public struct CrashCheckOptions: Sendable {
  /// Determines everything except the order in which threads run and the medium completes.
  public var seed: UInt64
  /// The least number of images to check.
  public var images: Int
  public var modes = CrashMode.allCases
  /// Engines that are not available here are left out.
  public var engines: [EngineKind] = [.uring, .aio, .sync, .threads, .cached, .mapped]
  /// Where the scratch images are made.
  public var folder = "/var/tmp"
  /// A fault to plant in the device.
  public var plant: PlantedMistake?
  /// End at the first violation.
  public var endsAtFirst = false

  public init(seed: UInt64, images: Int) {
    self.seed = seed
    self.images = images
  }
}

public struct CrashCheck {
  /// The size of a scratch disk in sectors: small, so that much is overwritten.
  private static let sectors = 512
  private static let requests = 240
  private static let queues = 2
  /// Moments of a run at which the power fails.
  private static let points = 24

  private let options: CrashCheckOptions
  private var random: SeededRandom

  /// - Throws: the options contradict each other.
  public init(_ options: CrashCheckOptions) throws(CrashCheckError) {
    self.options = options
    random = SeededRandom(seed: options.seed)
    guard options.plant == nil || options.engines == [.sync] else { throw .plantNeedsSync }
  }

  /// - Parameter progress: called after each run.
  public mutating func run(progress: (CrashReport) -> Void = { _ in }) throws -> CrashReport {
    var report = CrashReport()
    let pairs = options.engines.flatMap { engine in options.modes.map { ($0, engine) } }
    var missing: Set<EngineKind> = []
    var round = 0
    while report.total.images < options.images, !options.endsAtFirst || report.violations.isEmpty {
      let (mode, engine) = pairs[round % max(pairs.count, 1)]
      round += 1
      guard !missing.contains(engine) else { continue }
      do { try runOnce(mode, engine, into: &report) } catch is EngineError {
        missing.insert(engine)
        guard missing.count < Set(options.engines).count else { throw CrashCheckError.noEngine }
      }
      progress(report)
    }
    return report
  }

  private mutating func runOnce(_ mode: CrashMode, _ engine: EngineKind, into report: inout CrashReport) throws {
    let seed = random.next()
    let stamp = SectorStamp(seed: seed)
    let journal = CrashJournal(stamp)
    let found = try drive(mode, engine, stamp, journal)
    var checker = CrashChecker(mode: mode, engine: engine, seed: seed, sectors: Self.sectors)
    let recorded = checker.check(journal.events, points: Self.points)
    if let sector = (0..<Self.sectors).first(where: { found[$0] != recorded[$0] }) {
      throw CrashCheckError.incompleteRecord(
        sector: sector, recorded: recorded[sector].description, found: found[sector].description, seed: seed)
    }
    var figures = checker.figures
    figures.runs = 1
    report.add(figures, mode, engine)
    report.violations += checker.violations.prefix(CrashReport.violationLimit - report.violations.count)
  }

  /// - Returns: what the image holds afterwards.
  private mutating func drive(
    _ mode: CrashMode, _ engine: EngineKind, _ stamp: SectorStamp, _ journal: CrashJournal
  ) throws -> [SectorContent] {
    let path = try scratch()
    // No file remains, however this ends.
    defer { unsafe unlink(path) }
    let isCached = engine == .cached || engine == .mapped || random.next() % 2 == 0
    let image = try ImageFile(ImageOptions(path: path, direct: isCached ? .off : .auto, format: .raw))
    var device = BlockDeviceOptions()
    device.queueCount = Self.queues
    // Half of the runs have all queues on one thread. A planted fault acts late, and must not race with another thread's
    // writes.
    device.threads = random.next() % 2 == 0 || options.plant != nil ? 1 : Self.queues
    device.engine = engine
    device.waiting = .sleep
    device.witness = journal
    device.plant = options.plant
    let disk = try BlockDevice(image: image, options: device)
    let client = try BlockClient(
      InProcessTransport(device: disk, memory: DriverMemory(size: 8 << 20)), options: DriverOptions(features: mode.features))
    client.depth = 8
    var workload = CrashWorkload(
      client, journal, stamp, mode: mode, sectors: Self.sectors, requests: Self.requests)
    let result = Result { try workload.run() }
    try client.shutDown()
    try result.get()
    return stamp.contents(of: try read(path), at: 0)
  }

  private func scratch() throws(CrashCheckError) -> String {
    var name = Array((options.folder + "/vmm-blk-crash-XXXXXX").utf8CString)
    let descriptor = unsafe name.withUnsafeMutableBufferPointer { name in
      unsafe name.baseAddress.map { unsafe mkstemp($0) } ?? -1
    }
    guard descriptor >= 0 else { throw .noScratch(path: options.folder, reason: unsafe String(cString: strerror(errno))) }
    defer { close(descriptor) }
    let path = String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    guard ftruncate(descriptor, off_t(Self.sectors * SectorContent.bytes)) == 0 else {
      let reason = unsafe String(cString: strerror(errno))
      unsafe unlink(path)
      throw .noScratch(path: options.folder, reason: reason)
    }
    return path
  }

  /// Not through the image's own descriptor, which may require aligned buffers.
  private func read(_ path: String) throws -> [UInt8] {
    try Array(Data(contentsOf: URL(fileURLWithPath: path)))
  }
}
