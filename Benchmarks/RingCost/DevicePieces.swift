/// What only a whole device has: requests that a worker parses and answers, and its configuration space.
internal import HandDriver
internal import VirtioBlkDevice
internal import VirtioCore

/// A batch of requests on a device without a medium, from the index that makes them available to the last used element. The
/// worker never sleeps, so this measures the ring, the parser and the way between two CPUs.
final class RequestPiece: Piece {
  private let driver: HandDriver
  private let attended: AttendedDevice

  /// - Parameter text: a scenario.
  init(_ text: String, image: ImageFile) throws {
    guard let scenario = Scenario(text) else { preconditionFailure("'\(text)' is not a scenario") }
    driver = try HandDriver(scenario)
    var options = BlockDeviceOptions()
    options.engine = .null
    options.waiting = .busy
    options.processors = [0]
    let device = try BlockDevice(image: image, options: options)
    device.negotiated(scenario.features)
    attended = AttendedDevice(device)
    try attended.startAndWait(driver.activation(call: .none))
  }

  deinit { _ = attended.stopAndWait(queue: 0) }

  var operations: Int { driver.scenario.batch }

  func prepare() {}

  func run() {
    driver.makeAvailable()
    while !driver.isAnswered {}
  }
}

/// A read of the whole configuration space.
struct ConfigurationPiece: Piece {
  let operations = 64
  private let device: BlockDevice
  private var bytes = 0

  init(image: ImageFile) throws {
    var options = BlockDeviceOptions()
    options.engine = .null
    device = try BlockDevice(image: image, options: options)
  }

  func prepare() {}

  mutating func run() {
    for _ in 0..<operations { bytes &+= device.readConfiguration(at: 0, count: device.configurationSize).count }
  }
}
