/// The conditions of a measurement: what has to be equal, or is the question, when two results are compared.
internal import CLinux
internal import CVersion
internal import Glibc
public import VirtioBlkDevice

/// Saved with every result. What is unknown is `nil`: a back-end behind a socket does not report its options.
public struct Conditions: Codable, Sendable, Equatable {
  /// The engine that was used, never `auto`.
  public var engine: String?
  /// The words of `--uring`; `nil` if the engine has no ring.
  public var setup: String?
  /// The word of `--waiting`.
  public var waiting: String?
  public var direct: Bool?
  /// The image's path, or the socket's or memory file's.
  public var image: String?
  /// Bytes.
  public var imageSize: UInt64?
  /// Bytes of the image that were never written, or were given back: reading them costs no I/O.
  public var holes: UInt64?
  public var kernel: String
  public var processor: String
  public var processors: Int
  /// The commit that this program was built from, if the build knew it.
  public var commit: String?
  /// The load of the machine before the first measurement, averaged over a minute.
  public var load: String

  /// The conditions of this machine and this program, without those of a disk.
  public init() {
    let model = ProcessFiles.text("/proc/cpuinfo")?.split(separator: "\n").first { $0.hasPrefix("model name") }
    processor = model?.split(separator: ":").last.map { String($0.drop { $0 == " " }) } ?? "unknown"
    processors = max(Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))), 1)
    kernel = ProcessFiles.text("/proc/sys/kernel/osrelease").map(Self.firstLine) ?? "unknown"
    let commit = unsafe String(cString: cversion_commit())
    self.commit = commit.isEmpty ? nil : commit
    load = ProcessFiles.text("/proc/loadavg")?.split(separator: " ").first.map(String.init) ?? "unknown"
  }

  /// The conditions of a device in this process.
  public init(_ device: BlockDevice, setup: UringSetup, waiting: Waiting) {
    self.init()
    engine = device.engine.rawValue
    self.setup = device.engine == .uring || device.engine == .cached ? setup.words : nil
    self.waiting = waiting.words
    describe(device.image)
  }

  mutating func describe(_ image: ImageFile) {
    direct = image.isDirect
    self.image = image.path
    imageSize = image.size
    holes = image.isBlockDevice ? nil : Self.holes(of: image.path)
  }

  /// One line with what distinguishes two results best.
  public var label: String {
    let words: [String?] = [
      engine, setup.flatMap { $0 == UringSetup().words ? nil : $0 }, direct.map { $0 ? "direct" : "page cache" }, waiting,
      image,
      "Linux \(kernel)", "\(processors) x \(processor)", commit.map { "commit \($0)" },
    ]
    return words.compactMap { $0 }.joined(separator: ", ")
  }

  /// How the conditions of two results differ: "engine: uring / aio".
  static func differences(_ first: Conditions, _ second: Conditions) -> [String] {
    func said(_ value: String?) -> String { value ?? "-" }
    let pairs: [(String, String, String)] = [
      ("engine", said(first.engine), said(second.engine)), ("set-up", said(first.setup), said(second.setup)),
      ("direct", said(first.direct.map { "\($0)" }), said(second.direct.map { "\($0)" })),
      ("waiting", said(first.waiting), said(second.waiting)), ("image", said(first.image), said(second.image)),
      ("kernel", first.kernel, second.kernel), ("processor", first.processor, second.processor),
      ("processors", "\(first.processors)", "\(second.processors)"), ("commit", said(first.commit), said(second.commit)),
    ]
    return pairs.filter { $0.1 != $0.2 }.map { "\($0.0): \($0.1) / \($0.2)" }
  }

  /// The warning for reads from an image with holes; `nil` if there is none.
  var holesWarning: String? {
    guard let holes, let imageSize, holes > 0 else { return nil }
    let share = Double(holes) / Double(max(imageSize, 1)) * 100
    return "\(share < 1 ? "less than 1" : Format.fixed(share, 0)) % of the image are holes, and reading a hole costs no I/O: "
      + "fill it first, for example with 'head -c SIZE /dev/urandom'"
  }

  private static func holes(of path: String) -> UInt64? {
    var status = stat()
    guard unsafe stat(path, &status) == 0, status.st_mode & S_IFMT == S_IFREG else { return nil }
    let (size, occupied) = (UInt64(clamping: status.st_size), UInt64(clamping: status.st_blocks) * 512)
    return size > occupied ? size - occupied : 0
  }

  private static func firstLine(_ text: String) -> String {
    text.split(separator: "\n", omittingEmptySubsequences: false).first.map(String.init) ?? ""
  }
}

extension Waiting {
  /// As `--waiting` takes it.
  public var words: String {
    switch self {
    case .sleep: "sleep"
    case .busy: "busy"
    case .poll(let window): "poll:\(window)"
    case .adaptive(let window): "adaptive:\(window)"
    }
  }
}

extension UringSetup {
  /// As `--uring` takes it.
  public var words: String {
    let usual = UringSetup()
    var words: [String] = []
    switch completion {
    case .deferred: words.append("deferred")
    case .cooperative: words.append("cooperative")
    case .plain: words.append("plain")
    case .submissionThread(let cpu): words.append(cpu.map { "sqpoll=\($0)" } ?? "sqpoll")
    }
    switch poll {
    case .on: words.append("iopoll")
    case .hybrid: words.append("iopoll-hybrid")
    default: break
    }
    if registersBuffers { words.append("buffers") }
    if !registersFile { words.append("no-file") }
    if !registersRing { words.append("no-ring") }
    if !usesIndexArray { words.append("no-sqarray") }
    if kicksThroughEpoll { words.append("epoll") }
    if minimumWait != usual.minimumWait { words.append("wait=\(minimumWait)") }
    switch handover {
    case .whole: words.append("whole")
    case .every(let count): words.append("batch=\(count)")
    default: break
    }
    return words.joined(separator: ",")
  }
}
