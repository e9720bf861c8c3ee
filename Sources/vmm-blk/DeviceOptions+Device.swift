/// Makes the disk that a command line or a list describes. Nothing else does.
internal import ArgumentParser
internal import Glibc
internal import OperatorWords
internal import VhostUser
internal import VirtioBlkDevice
internal import VirtioCore

extension DeviceOptions {
  /// How the image is to be opened.
  func imageOptions(_ path: String, direct: ImageOptions.Direct) -> ImageOptions {
    var options = ImageOptions(
      path: path, isReadOnly: readOnly, direct: direct, format: format, logicalBlockSize: logicalBlockSize, isLocked: !noLock)
    options.pathBytes = PathArgument.bytes(of: "--blk-file", path, in: Startup.words)
    return options
  }

  /// The disk, opened, locked and ready for a transport. Errors are sentences for the user.
  ///
  /// - Parameters:
  ///   - transport: how it is reached.
  ///   - queues: the number of queues if the user gave none.
  ///   - lock: the image's lock, from the server that is taken over; `nil` to acquire it.
  ///   - serial: the serial number that the driver knows from that server.
  ///   - offersAll: offer all features, whatever the options say.
  ///   - isConfined: this process is in its sandbox already.
  ///   - place: where it is served, for messages about other disks that want the same image; `nil` if it is the only disk.
  ///   - patience: how long the caller waits for the disk.
  func makeDevice(
    on transport: FeatureTransport, queues: Int = 1, lock: OwnedDescriptor? = nil, serial before: String? = nil,
    offersAll: Bool = false, isConfined: Bool = false, place: String? = nil, patience: OpeningPatience = OpeningPatience()
  ) throws -> BlockDevice {
    guard let name = try imageName() else {
      throw ValidationError("there is no disk: name its image with --blk-file or --image")
    }
    var options = BlockDeviceOptions()
    options.queueCount = numQueues ?? queues
    guard let size = UInt16(exactly: queueSizeMax) else { throw EngineError.badQueueSize(queueSizeMax) }
    options.maximumQueueSize = size
    options.serial = serial ?? before
    if let before, let serial, serial != before {
      throw TakeoverError.notTheSame("serial", theirs: "'\(printable(before))'", ours: "'\(printable(serial))'")
    }
    options.engine = engine
    options.threads = threads
    options.processors = pinCPUs?.processors ?? []
    options.onError = onError
    options.faults = inject
    options.limits = limit?.limits ?? RateLimits()
    options.configuration = config?.choice ?? ConfigurationChoice()
    tuning.apply(to: &options)
    // These engines imply the page cache.
    let direct = [.cached, .mapped].contains(engine) && direct == .auto ? .off : direct
    var imageOptions = imageOptions(imageFile ?? "", direct: direct)
    if case .nbd(let location) = name { imageOptions.nbd = nbdOptions(location, isConfined: isConfined) }
    if case .qcow2(let location) = name { imageOptions.qcow2 = location }
    if case .rbd(let location) = name { imageOptions.rbd = rbdOptions(location) }
    imageOptions.lock = lock
    imageOptions.user = place
    imageOptions.patience = patience
    imageOptions.zoned = zoned?.options
    imageOptions.zoned?.queues = options.queueCount
    imageOptions.zoned?.ringEntries = queueSizeMax
    let image = try Self.openPatiently(imageOptions)
    let features = offersAll ? FeatureWords(only: try FeatureList("all")) : featureWords
    try features.apply(to: &options, image, transport)
    if let record {
      options.witness = try MediumLog(path: record) { error in
        People.error.write("the record \(printable(record)) ends here, because it cannot be written: \(error)")
      }
    }
    return try BlockDevice(image: image, options: options)
  }

  /// A killed process holds its locks until the kernel has completed what its io_uring submitted, shortly after its end. Its
  /// successor must not be rejected for that, and must not start earlier: a late write of the dead process would bring old data
  /// back.
  private static func openPatiently(_ options: ImageOptions) throws -> ImageFile {
    for _ in 0..<20 {
      do { return try ImageFile(options) } catch ImageError.locked { usleep(50_000) }
    }
    return try ImageFile(options)
  }
}
