/// The options that describe the disk, shared by every command that has one.
public import ArgumentParser
public import VirtioBlkDevice
internal import VirtioCore

extension EngineKind: ExpressibleByArgument {
  /// Also by the names that fio and QEMU have for it.
  public init?(argument: String) { self.init(rawValue: Self.aliases[argument] ?? argument) }

  private static let aliases = [
    "io_uring": "uring", "io-uring": "uring", "libaio": "aio", "native": "aio", "mmap": "mapped", "psync": "sync",
    "pvsync": "sync",
  ]
}

extension ErrorPolicy: ExpressibleByArgument {}

extension FaultRule: ExpressibleByArgument {
  public init?(argument: String) { self.init(argument) }
}

extension ImageOptions.Format: ExpressibleByArgument {}
extension ImageOptions.Direct: ExpressibleByArgument {
  /// Also as fio says it: 1 and 0.
  public init?(argument: String) { self.init(rawValue: ["1": "on", "0": "off"][argument] ?? argument) }
}

/// A list of CPU numbers: `0,2,4-6`.
package struct ProcessorList: ExpressibleByArgument, Equatable {
  package let processors: [Int]

  package init?(argument: String) {
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
package struct DeviceOptions: ParsableArguments {
  /// Optional to the parser only because `serve --print-capabilities` needs no disk; `makeDevice` insists on it.
  @Option(name: .customLong("blk-file"), help: .init("The disk image: a raw file or a block device.", valueName: "path"))
  package var blkFile: String?

  @Option(
    help: .init(
      "The disk image as a URI: file:PATH, qcow2:PATH, nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH or "
        + "rbd:POOL/IMAGE[@SNAPSHOT][?conf=PATH&id=NAME] of a Ceph cluster; replaces --blk-file. The other files of a qcow2 image "
        + "follow it: ?backing=FORMAT:PATH, backing-folder=PATH, data-file=PATH, snapshot=NAME. NBD over TLS is nbds:// or "
        + "nbds+unix://, with ?tls-certificates=FOLDER or ?tls-psk-file=FILE and tls-username=USER.",
      valueName: "uri"))
  package var image: String?

  @Option(
    help: .init(
      "How many seconds requests wait for an NBD server that has gone away, before they fail.",
      valueName: "seconds"))
  package var reconnectTimeout = NBDOptions.usualReconnectTimeout

  @Flag(
    help: .init(
      "The NBD server never loses writes that it has acknowledged. Without this flag, the guest's next flush fails after the "
        + "server has gone away with unflushed writes."))
  package var serverKeepsWrites = false

  @Option(help: "The image's format; auto refuses files that look like another format than raw.")
  package var format = ImageOptions.Format.auto

  @Flag(help: "Allow the guest only to read.")
  package var readOnly = false

  @Option(
    name: [.customLong("num-queues"), .customLong("queues")],
    help: .init(
      "Queues to offer, 1 to 256. (default: 16 on a socket; on a file 1, or as many as it has room for)", valueName: "n"))
  package var numQueues: Int?

  @Option(
    name: .customLong("logical-block-size"),
    help: .init("Logical block size: a power of two, 512 to 65536.", valueName: "bytes"))
  package var blockSize = ByteCount(512)

  @Option(
    help: .init(
      "The largest ring size to offer: a power of two, 4 to 32768. A request may have 2 segments fewer than this, and at most 126.",
      valueName: "entries"))
  package var queueSizeMax = 1024

  @Option(
    help: .init(
      "The disk's answer to GET_ID: up to 20 bytes. (default: the image's name and a hash of its inode and creation time, or of its "
        + "path)", valueName: "text"))
  package var serial: String?

  @Option(help: "How requests reach the image; io_uring, libaio, mmap and psync are aliases.")
  package var engine = EngineKind.auto

  @Option(help: "Bypass the page cache.")
  package var direct = ImageOptions.Direct.auto

  @Option(
    help: .init(
      "Number of threads that serve the queues; by default one per queue, or shared (--shared-workers).", valueName: "n"))
  package var threads: Int?

  @Option(
    name: .customLong("pin-cpus"),
    help: .init("Pin the threads to these CPUs in turn, for example 0,2,4-6.", valueName: "list"))
  package var pinCPUs: ProcessorList?

  @Option(
    help: .init(
      "Offer only these virtio features, by their names in the specification: 'default' stands for the default features, 'all' for "
        + "everything that the disk supports. VERSION_1 is always offered.", valueName: "list"),
    transform: { try FeatureList($0) })
  package var features: FeatureList?

  @Option(
    help: .init(
      "Do not offer these features, of virtio or of the vhost-user protocol: ring_packed, event_idx, discard, "
        + "inflight_shmfd, …. May be repeated.", valueName: "list"),
    transform: { try FeatureList($0) })
  package var noFeature: [FeatureList] = []

  @Option(
    help: .init(
      "Override fields of the configuration space, by their names in the specification, for example "
        + "seg_max=62,max_discard_sectors=8192.", valueName: "field=number,..."))
  package var config: ConfigurationWords?

  @Option(
    help: .init(
      "Serve a zoned disk, whose zones are written sequentially (virtio's ZONED): \(ZonedWords.help)",
      valueName: "host-managed[,word=value,...]"))
  package var zoned: ZonedWords?

  @OptionGroup package var tuning: DeviceTuning

  @Option(
    help: .init(
      "When the image fails a request: report it to the guest, or stop the queue without answering and retry after 'ctl resume' or "
        + "SIGUSR1."))
  package var onError = ErrorPolicy.report

  @Option(help: .init("Inject faults: \(FaultRule.help)", valueName: "rule"))
  package var inject: [FaultRule] = []

  @Option(
    help: .init(
      "Limits per second: \(LimitWord.allCases.map(\.rawValue).joined(separator: ", ")), each with a rate and, after a slash, an optional "
        + "burst (default: a tenth of the rate).", valueName: "word=rate[/burst],..."))
  package var limit: LimitChange?

  @Option(
    help: .init(
      "Log everything that reaches the image to a new file, in the format of dm-log-writes, for 'verify-crash --log'.",
      valueName: "file"))
  package var record: String?

  @Flag(
    help: .init(
      "Break another client's lock on an image of a Ceph cluster; the cluster then rejects all requests of that client."))
  package var breakLock = false

  @Flag(help: "Open the image even if another program holds its lock, or has the device open exclusively.")
  package var noLock = false

  package init() {}

  package func validate() throws {
    guard blkFile == nil || image == nil else {
      throw ValidationError("--blk-file and --image both name the image: give one of them")
    }
    do throws(ImageNameMistake) { try validateImage() } catch { throw ValidationError("\(error)") }
    guard (0...86400).contains(reconnectTimeout) else {
      throw ValidationError("--reconnect-timeout \(reconnectTimeout) is not from 0 to 86400 seconds")
    }
    if let serial, serial.utf8.count > BlockDeviceOptions.serialSize {
      throw ValidationError(
        "the serial '\(printable(serial))' has \(serial.utf8.count) bytes: give it \(BlockDeviceOptions.serialSize) at most")
    }
    if tuning.uring != nil, ![.auto, .uring, .cached].contains(engine) {
      throw ValidationError("--uring is for io_uring: leave it out, or leave out --engine \(engine.rawValue)")
    }
    if direct == .on, let reason = Self.withoutDirect[engine] {
      throw ValidationError("--engine \(engine.rawValue) \(reason), and --direct on bypasses the page cache: give one of them")
    }
    if zoned != nil, readOnly {
      throw ValidationError("--zoned needs a disk that can be written: give either --zoned or --read-only")
    }
    if zoned != nil, onError == .stop {
      throw ValidationError("--on-error stop is not possible with --zoned, where writes of one queue wait for those of others")
    }
    do { try featureWords.validate() } catch { throw ValidationError("\(error)") }
  }
}

extension DeviceOptions {
  /// Bytes.
  package var logicalBlockSize: Int { Int(clamping: blockSize.bytes) }

  /// What the engines do that cannot bypass the page cache.
  private static let withoutDirect: [EngineKind: String] = [
    .cached: "copies out of the page cache", .mapped: "copies between the guest and the page cache",
    .null: "reads and writes nothing",
  ]

  package var featureWords: FeatureWords { FeatureWords(only: features, without: noFeature) }

  /// The device options that were given, as far as they differ from their defaults.
  package var given: [String] {
    let given: [(String, Bool)] = [
      ("--read-only", readOnly), ("--format", format != .auto), ("--num-queues", numQueues != nil),
      ("--logical-block-size", blockSize != ByteCount(512)), ("--queue-size-max", queueSizeMax != 1024),
      ("--serial", serial != nil), ("--engine", engine != .auto), ("--direct", direct != .auto), ("--threads", threads != nil),
      ("--waiting", tuning.waiting != nil), ("--poll-us", tuning.pollUs != nil), ("--notify", tuning.notify != .batch),
      ("--uring", tuning.uring != nil), ("--record", record != nil), ("--on-error", onError != .report),
      ("--inject", !inject.isEmpty), ("--features", features != nil), ("--no-feature", !noFeature.isEmpty),
      ("--no-lock", noLock), ("--break-lock", breakLock), ("--limit", limit != nil), ("--config", config != nil),
      ("--zoned", zoned != nil),
      ("--latencies", tuning.latencies != .on),
      ("--reconnect-timeout", reconnectTimeout != NBDOptions.usualReconnectTimeout),
      ("--server-keeps-writes", serverKeepsWrites), ("--shared-workers", tuning.sharedWorkers.words != "auto"),
    ]
    return given.filter(\.1).map(\.0)
  }
}
