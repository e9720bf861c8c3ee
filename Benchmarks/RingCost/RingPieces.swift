/// The ring alone: taking and returning chains, with a driver whose part is not measured.
internal import HandDriver
internal import VirtioCore

/// Takes every chain of a batch, returns each, and publishes.
@safe
struct RingPiece<Ring: Virtqueue & ~Copyable>: Piece, ~Copyable {
  private let driver: HandDriver
  private var queue: Ring
  private let segments: UnsafeMutablePointer<MemorySegment>
  private static var capacity: Int { 64 }
  /// Publish and decide whether to call after each chain, not only after the batch.
  private let decides: Bool
  private var calls = 0

  /// - Parameter text: a scenario; the contents of its requests are not read.
  init(_ text: String, decides: Bool = false) throws {
    guard let scenario = Scenario(text) else { preconditionFailure("'\(text)' is not a scenario") }
    let driver = try HandDriver(scenario)
    let record =
      Ring.isRecorded
      ? try InflightMemory.create(queueCount: 1, queueSize: driver.configuration.size, isPacked: scenario.isPacked) : nil
    let queue = try Ring(
      driver.configuration, memory: driver.memory, features: scenario.features, position: .start(scenario.features),
      record: record.map { InflightRecord($0, queue: 0) })
    self.driver = driver
    self.queue = queue
    unsafe segments = .allocate(capacity: Self.capacity)
    self.decides = decides
  }

  deinit { unsafe segments.deallocate() }

  var operations: Int { driver.scenario.batch }

  mutating func prepare() { driver.makeAvailable() }

  mutating func run() {
    do throws(QueueError) {
      while true {
        var shape = unsafe ChainShape(at: segments)
        guard let chain = unsafe try queue.pop(into: segments, capacity: Self.capacity, shape: &shape) else { break }
        queue.push(chain, written: 1)
        guard decides else { continue }
        queue.publish()
        if queue.needsCall() { calls &+= 1 }
      }
    } catch { preconditionFailure("the ring is broken: \(error)") }
    queue.publish()
  }
}

/// Looks up guest addresses.
struct LookupPiece: Piece {
  /// Which region an address is in, compared with the previous one.
  enum Place {
    case sameRegion
    case otherRegion
    case nowhere
  }

  let operations = 64
  private let memory: GuestMemory
  private var view: GuestMemoryView
  private var addresses: [GuestAddress] = []
  private var found = 0

  /// Regions of 1 MiB, 1 MiB apart.
  init(regions: Int, _ place: Place) throws {
    let size: UInt64 = 1 << 20
    let mapping = try Mapping(anonymous: Int(size))
    memory = try GuestMemory(
      (0..<regions).map { GuestRegion(start: GuestAddress(UInt64($0) * 2 * size), size: size, mapping: mapping) })
    view = memory.view()
    for number in 0..<operations {
      // Consecutive addresses are far apart, and every region has its turn.
      let region = UInt64(place == .sameRegion ? regions / 2 : number * 37 % regions) * 2 * size
      addresses.append(GuestAddress(region + (place == .nowhere ? size : 0) + UInt64(number * 64)))
    }
  }

  func prepare() {}

  mutating func run() {
    for address in addresses where view.contiguous(address, count: 64) != nil { found &+= 1 }
  }
}
