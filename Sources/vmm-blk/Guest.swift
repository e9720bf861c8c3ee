/// `vmm-blk guest`: a synthetic guest's driver on any disk that is served over vhost-user or on a memory file.
internal import ArgumentParser
internal import GuestDriver
internal import OperatorWords
internal import VirtioCore

struct Guest: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Drive a disk as a guest would, without a virtual machine.",
    usage: GuestTarget.usage("<verb> [<options>]"),
    discussion: """
      The disk is served by 'vmm-blk serve', 'vmm-blk run' or any other vhost-user-blk back-end. Offsets and lengths are in bytes, \
      with an optional suffix: 4096, 4k, 1M, 2GiB, 10GB (powers of 1000), 0x200, 8s (sectors).

        vmm-blk guest info --socket-path /tmp/disk.sock
        vmm-blk guest verify --memory guest.mem --bytes 64M
      """,
    subcommands: [
      GuestInfo.self, GuestRead.self, GuestWrite.self, GuestCopyIn.self, GuestCopyOut.self, GuestFlush.self,
      GuestDiscard.self, GuestZero.self, GuestErase.self, GuestZones.self, GuestZone.self, GuestAppend.self, GuestLifetime.self,
      GuestID.self, GuestVerify.self,
    ])

  @OptionGroup var target: GuestTarget
}

/// The format of the rings, as a user chooses it.
enum RingChoice: String, CaseIterable, ExpressibleByArgument {
  case split
  case packed
  /// Packed where the device offers it.
  case any
}

/// Which disk, and how to drive it. Given before or after the verb.
struct GuestTarget: ParsableArguments {
  /// The usage lines of a verb on a disk.
  static func usage(_ verb: String) -> String {
    "vmm-blk guest --socket-path <path> \(verb)\nvmm-blk guest --memory <file> \(verb)"
  }

  @Option(help: .init("The socket of a vhost-user-blk back-end.", valueName: "path"))
  var socketPath: String?

  @Option(help: .init("A memory file that 'vmm-blk run' serves.", valueName: "file"))
  var memory: String?

  @Option(
    name: [.customLong("num-queues"), .customLong("queues")],
    help: .init("Number of queues to use; all queues of the device by default.", valueName: "n"))
  var queues: Int?

  @Option(
    help: .init(
      """
      Entries in each ring: a power of two, or any number for packed rings. (default: 128 or the device's largest)
      """, valueName: "entries"))
  var queueSize: UInt16?

  @Option(
    help: .init(
      """
      Split rings, packed rings, or any: packed if the device offers them. (default: split, so that a run with a given seed is the \
      same on every device)
      """, valueName: "format"))
  var ring: RingChoice?

  @Option(
    help: .init(
      "Accept only these features, if they are offered, and VERSION_1: a comma-separated list; 'default' stands for the default "
        + "features, 'all' for everything that this driver knows, including access_platform, in_order, ring_reset and notification_data.",
      valueName: "list"),
    transform: { try FeatureList($0) })
  var features: FeatureList?

  @Option(
    help: .init("Do not accept these features. May be repeated.", valueName: "list"), transform: { try FeatureList($0) })
  var noFeature: [FeatureList] = []

  @Option(
    name: [.customLong("iodepth"), .customLong("depth")],
    help: .init("Requests in flight on each queue. (default: 16)", valueName: "n"))
  var depth: Int?

  func validate() throws {
    if let depth, !(1...4096).contains(depth) { throw ValidationError("--iodepth \(depth) is not from 1 to 4096.") }
    if let queues, queues < 1 { throw ValidationError("--num-queues \(queues) is less than 1.") }
    if let queueSize, queueSize == 0 || queueSize > 32768 {
      throw ValidationError("--queue-size \(queueSize) is not from 1 to 32768.")
    }
    if let unknown = features?.features.subtracting(BlockFeature.understood.union(BlockFeature.onRequest)), !unknown.isEmpty {
      throw ValidationError("this driver does not know \(Operator.names(of: unknown).joined(separator: " ")): leave it out")
    }
  }
}

/// A verb on a disk.
protocol GuestVerb: ParsableCommand {
  var guest: Guest { get }
  var target: GuestTarget { get }
}

extension GuestVerb {
  /// Bytes of guest memory for a back-end. Pages that are not used are never touched.
  private static var memorySize: Int { 64 << 20 }

  /// For a driver that accepts ACCESS_PLATFORM: translations of single pages, all of which are invalidated now and then.
  private static var translation: TranslationPolicy {
    var policy = TranslationPolicy()
    policy.answersBetweenInvalidations = 100
    return policy
  }

  /// vhost-user does not say how large a ring may be: a back-end refuses one that is too large, and smaller ones are tried
  /// until it accepts one, unless a size was requested.
  private static func connect(_ path: String, _ options: DriverOptions, _ reconnection: Reconnection?) throws -> BlockClient {
    func attempt(_ size: UInt16?) throws -> BlockClient {
      var options = options
      options.queueSize = size
      let transport = try VhostUserTransport(
        path: path, memory: DriverMemory(size: memorySize), reconnection: reconnection, translation: translation)
      return try BlockClient(transport, options: options)
    }
    let refusal: DriverError
    do { return try attempt(options.queueSize) } catch let error as DriverError { refusal = error }
    guard options.queueSize == nil, case .refused = refusal else { throw refusal }
    for size: UInt16 in [64, 32, 16, 8, 4] {
      do { return try attempt(size) } catch DriverError.refused {}
    }
    throw refusal
  }

  /// Brings the device up, runs `body`, and takes it down again.
  ///
  /// - Parameters:
  ///   - reconnection: what to do if the back-end goes away in the meantime.
  ///   - avoided: features not to accept.
  func withDisk(
    reconnection: Reconnection? = nil, avoiding avoided: FeatureSet = [], _ body: (BlockClient) throws -> Void
  ) throws {
    let parent = guest.target
    let ring = target.ring ?? parent.ring ?? .split
    let understood = ring == .split ? BlockFeature.understood : BlockFeature.understood.union(.packedRing)
    var wanted = understood
    if let only = target.features ?? parent.features {
      wanted = only.features.union(.version1)
      if only.hasDefaults { wanted.formUnion(understood) }
      if only.hasAll { wanted.formUnion(BlockFeature.understood.union(BlockFeature.onRequest)) }
      if ring == .split, target.ring ?? parent.ring != nil { wanted.remove(.packedRing) }
      if ring != .split { wanted.insert(.packedRing) }
    }
    for list in target.noFeature + parent.noFeature { wanted.subtract(list.features) }
    var options = DriverOptions(
      features: wanted.subtracting(avoided), queues: target.queues ?? parent.queues,
      queueSize: target.queueSize ?? parent.queueSize)
    options.needsPacked = ring == .packed
    let client: BlockClient
    switch (target.socketPath ?? parent.socketPath, target.memory ?? parent.memory) {
    case (let path?, nil): client = try Self.connect(path, options, reconnection)
    case (nil, let path?):
      guard reconnection == nil else { throw DriverError.badRequest("--reconnect is for a socket") }
      client = try BlockClient(try MemoryFileTransport(path: path), options: options)
    case (nil, nil): throw DriverError.badRequest("no disk: name one with --socket-path or --memory")
    case (_?, _?): throw DriverError.badRequest("two disks: give --socket-path or --memory, not both")
    }
    client.depth = target.depth ?? parent.depth ?? client.depth
    do { try body(client) } catch {
      // The first error is the one to report.
      try? client.shutDown()
      throw error
    }
    try client.shutDown()
  }
}
