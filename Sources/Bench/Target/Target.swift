/// A disk to measure, initialized up to the setup of its queues, and the meter of its cost.
public import GuestDriver
internal import VirtioCore

/// A device and a driver session on it. It belongs to one thread.
public final class Target {
  /// For display and reports.
  public let name: String
  public let session: DriverSession
  /// Bytes of the disk.
  public let capacity: UInt64
  /// Bytes.
  public let logicalBlock: Int
  let meter: any BackendMeter
  public var isReadOnly: Bool { session.offered.contains(BlockFeature.readOnly) }

  /// Negotiates.
  ///
  /// - Parameters:
  ///   - jobs: queues to use.
  ///   - ringSize: entries; `nil`: as many as the depth needs, at least 128 if the device has that many.
  init(
    _ transport: any DriverTransport, name: String, workload: Workload, ringSize: Int?, ring: RingFormat = .split,
    avoiding features: FeatureSet, meter: any BackendMeter
  ) throws(BenchError) {
    self.name = name
    self.meter = meter
    do throws(DriverError) {
      let maximum = Int(try transport.maximumQueueSize(0))
      let offered = try transport.offeredFeatures().subtracting(features)
      let needed = offered.contains(.indirectDescriptors) ? workload.depth : 3 * workload.depth
      let size = ringSize ?? min(max(Self.powerOfTwo(atLeast: needed), 128), max(maximum, 1))
      guard size >= needed, size <= 32768 else {
        throw .badRequest("\(BenchError.depthExceedsRing(depth: workload.depth, ring: needed, maximum: ringSize ?? maximum))")
      }
      let understood = ring == .packed ? BlockFeature.understood.union(.packedRing) : BlockFeature.understood
      var options = DriverOptions(
        features: understood.subtracting(features), queues: workload.jobs, queueSize: UInt16(size),
        shape: .legacy(), indirectTables: 0)
      options.needsPacked = ring == .packed
      session = try DriverSession(transport, deviceID: 2, options: options)
      let bytes = try transport.readConfiguration(at: 0, count: 60)
      let config = BlockConfig(bytes, offered: session.offered)
      let (capacity, overflow) = config.capacity.multipliedReportingOverflow(by: 512)
      guard !overflow else { throw .badRequest("the disk reports \(config.capacity) sectors, which is impossible") }
      self.capacity = capacity
      logicalBlock = config.logicalBlock
      available = session.offered.contains(BlockFeature.multiQueue) ? Int(config.queues ?? 1) : 1
    } catch { throw .target("\(error)") }
    guard workload.blockSize % logicalBlock == 0, workload.blockSize > 0 else {
      throw .badBlockSize(workload.blockSize, logicalBlock: logicalBlock)
    }
    guard !workload.pattern.writes || !isReadOnly else { throw .readOnlyDisk(workload.pattern) }
  }

  /// The number of queues of the device.
  private let available: Int

  /// Sets the queues up; the device serves them from now on.
  func start() throws(BenchError) {
    do { try session.start(available: available) } catch { throw .target("\(error)") }
  }

  /// Resets the device.
  func shutDown() throws(BenchError) {
    do { try session.shutDown() } catch { throw .target("\(error)") }
  }

  static func powerOfTwo(atLeast value: Int) -> Int {
    var size = 1
    while size < value { size *= 2 }
    return size
  }

  /// Guest memory that a workload needs, bytes, for each of `regions` regions.
  static func memorySize(_ workload: Workload, ringSize: Int?, regions: Int) -> Int {
    let ring = max(ringSize ?? 0, powerOfTwo(atLeast: 3 * workload.depth), 128)
    let rings = 26 * ring + (3 << 12) + 8192
    // Page-aligned with guards around: two more pages for each slot.
    let slots = workload.depth * (workload.blockSize + 8192 + 128)
    let bytes = workload.jobs * (rings + slots) + (1 << 20)
    // A region must hold the largest piece, and its share when pieces are distributed in turn.
    let largest = max(rings, workload.blockSize + 8192, 128 * workload.depth + 4096)
    return ((bytes + regions - 1) / regions + 2 * largest + 4095) / 4096 * 4096
  }

  /// Fresh guest memory for a workload.
  static func memory(_ workload: Workload, ringSize: Int?, regions: Int) throws(BenchError) -> DriverMemory {
    let size = memorySize(workload, ringSize: ringSize, regions: regions)
    do {
      // A hole of a page between regions, so that they stay apart.
      return try DriverMemory(
        anonymous: (0..<regions).map { (GuestAddress(UInt64($0) * UInt64(size + 4096)), size) })
    } catch { throw .target("\(error)") }
  }
}
