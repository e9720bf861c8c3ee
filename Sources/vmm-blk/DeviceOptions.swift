/// The options that describe the disk, shared by every command that has one, and the one place that makes it.
public import ArgumentParser
internal import Glibc
public import VirtioBlkDevice

extension EngineKind: ExpressibleByArgument {}
extension ImageOptions.Direct: ExpressibleByArgument {
  /// Also as fio says it: 1 and 0.
  public init?(argument: String) { self.init(rawValue: ["1": "on", "0": "off"][argument] ?? argument) }
}

/// A list of processor numbers: `0,2,4-6`.
struct ProcessorList: ExpressibleByArgument, Equatable {
  let processors: [Int]

  init?(argument: String) {
    var processors: [Int] = []
    for part in argument.split(separator: ",", omittingEmptySubsequences: false) {
      let ends = part.split(separator: "-", omittingEmptySubsequences: false).map { Int($0) }
      guard let first = ends.first ?? nil, let last = ends.last ?? nil, ends.count <= 2 else { return nil }
      guard 0 <= first, first <= last, last < 1024 else { return nil }
      processors += Array(first...last)
    }
    self.processors = processors
  }
}

/// The disk as the command line describes it.
struct DeviceOptions: ParsableArguments {
  /// Optional to the parser only because `serve --print-capabilities` needs no disk; `makeDevice` insists on it.
  @Option(name: .customLong("blk-file"), help: .init("The disk image: a raw file or a block device.", valueName: "path"))
  var blkFile: String?

  @Flag(help: "Let the guest read only.")
  var readOnly = false

  @Option(
    name: [.customLong("num-queues"), .customLong("queues")],
    help: .init("Queues to offer, 1 to 256. (default: 1, or what there is room for)", valueName: "n"))
  var numQueues: Int?

  @Option(help: .init("Logical block size in bytes: a power of two, 512 to 65536.", valueName: "bytes"))
  var logicalBlockSize = 512

  @Option(help: .init("The largest ring size to offer: a power of two, 2 to 32768.", valueName: "entries"))
  var queueSizeMax = 1024

  @Option(help: .init("What the disk answers to GET_ID: up to 20 bytes.", valueName: "text"))
  var serial: String?

  @Option(help: "How requests reach the image.")
  var engine = EngineKind.auto

  @Option(help: "Bypass the page cache.")
  var direct = ImageOptions.Direct.auto

  @Option(help: .init("Threads that serve the queues; one for each queue if not given.", valueName: "n"))
  var threads: Int?

  @Option(
    name: .customLong("pin-cpus"),
    help: .init("Pin the threads to these processors in turn, as in 0,2,4-6.", valueName: "list"))
  var pinCPUs: ProcessorList?

  @OptionGroup var tuning: DeviceTuning

  @Flag(help: "Open the image even when another program holds its lock.")
  var noLock = false

  func validate() throws {
    if let serial, serial.utf8.count > BlockDeviceOptions.serialSize {
      throw ValidationError(
        "the serial '\(serial)' has \(serial.utf8.count) bytes: give it \(BlockDeviceOptions.serialSize) at most")
    }
  }
}

extension DeviceOptions {
  /// The disk, opened, locked and ready for a transport. Errors are sentences for the person.
  ///
  /// - Parameter queues: how many there are when the person has not said.
  func makeDevice(queues: Int = 1) throws -> BlockDevice {
    guard let blkFile else { throw ValidationError("there is no disk: name its image with --blk-file") }
    var options = BlockDeviceOptions()
    options.queueCount = numQueues ?? queues
    guard let size = UInt16(exactly: queueSizeMax) else { throw EngineError.badQueueSize(queueSizeMax) }
    options.maximumQueueSize = size
    options.serial = serial
    options.engine = engine
    options.threads = threads
    options.processors = pinCPUs?.processors ?? []
    tuning.apply(to: &options)
    // Whoever asks for the engine of the page cache wants the page cache.
    let direct = engine == .cached && direct == .auto ? .off : direct
    let image = try Self.openPatiently(
      ImageOptions(
        path: blkFile, isReadOnly: readOnly, direct: direct, logicalBlockSize: logicalBlockSize, isLocked: !noLock))
    return try BlockDevice(image: image, options: options)
  }

  /// A process that was killed holds its locks until the kernel has carried out what its io_uring had submitted, some
  /// moments after it is gone. Whoever starts in its place must not be sent away, and must not begin before that: a write of the
  /// dead process that lands after one of the new ones would bring old data back.
  private static func openPatiently(_ options: ImageOptions) throws -> ImageFile {
    for _ in 0..<20 {
      do { return try ImageFile(options) } catch ImageError.locked { usleep(50_000) }
    }
    return try ImageFile(options)
  }
}
