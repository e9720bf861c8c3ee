/// `vmm-blk image`: shows, checks, creates and changes images, with qemu-img's words where it has them.
internal import ArgumentParser
internal import CLinux
internal import FoundationEssentials
internal import Glibc
internal import OperatorWords
internal import Qcow2
internal import SystemPackage
internal import VirtioBlkDevice
internal import VirtioCore

struct ImageCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "image",
    abstract: "Show, check, create, convert and change qcow2 images.",
    discussion: """
        vmm-blk image create overlay.qcow2 --backing golden.raw --backing-format raw
        vmm-blk image info overlay.qcow2
        vmm-blk image check overlay.qcow2

      info, check, create and snapshot open only files that are named here; convert, commit and rebase open files that an image names only \
      as far as its URI allows.
      """,
    subcommands: [
      ImageInfoCommand.self, ImageCheckCommand.self, ImageCreateCommand.self, ImageConvertCommand.self,
      ImageSnapshotCommand.self, ImageCommitCommand.self, ImageRebaseCommand.self,
    ])
}

/// Why a command about an image fails.
enum ImageCommandError: Error, CustomStringConvertible, ErrorWithStatus {
  case system(String, path: String, Errno)
  case unusable(path: String, Qcow2Fault)
  case exists(path: String)
  case noBackingFormat
  case tool(ImageToolFailure)
  case usage(String)

  /// - Parameter text: a URI, or a path.
  static func location(_ text: String) throws(Qcow2Failure) -> Qcow2Location {
    text.lowercased().hasPrefix("qcow2:") ? try Qcow2Location(text) : Qcow2Location(path: text)
  }

  var description: String {
    switch self {
    case .system(let what, let path, let error): "\(printable(path)) cannot be \(what): \(error)"
    case .unusable(let path, let fault): "\(printable(path)) cannot be used: \(fault)"
    case .exists(let path): "\(printable(path)) exists already: name a new file, or remove it"
    case .noBackingFormat:
      "give the format of the backing file, with --backing-format raw or qcow2: it is never guessed from the contents"
    case .tool(let failure): "\(failure)"
    case .usage(let text): text
    }
  }

  var status: ExitStatus {
    switch self {
    case .system, .unusable, .exists, .tool: .image
    case .noBackingFormat, .usage: .usage
    }
  }
}

/// An image file, open for reading while a command runs.
struct OpenImage: ~Copyable {
  let path: String
  let source: FileSource

  init(_ path: String) throws {
    self.path = path
    // Do not wait for the writer of a FIFO.
    let descriptor = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0)
    guard descriptor >= 0 else { throw ImageCommandError.system("opened", path: path, Errno(rawValue: errno)) }
    var info = stat()
    guard unsafe fstat(descriptor, &info) == 0, info.st_mode & S_IFMT == S_IFREG || info.st_mode & S_IFMT == S_IFBLK else {
      close(descriptor)
      throw ImageCommandError.usage("\(printable(path)) is neither a regular file nor a block device: name an image")
    }
    do { source = try FileSource(descriptor) } catch {
      close(descriptor)
      throw ImageCommandError.system("read", path: path, error)
    }
  }

  deinit { close(source.descriptor) }

  /// The space that it occupies on its file system, bytes.
  var actualSize: UInt64 {
    var info = stat()
    guard unsafe fstat(source.descriptor, &info) == 0 else { return 0 }
    return UInt64(max(info.st_blocks, 0)) * 512
  }

  func header() throws -> Qcow2Header {
    do throws(Qcow2Fault) { return try Qcow2Header(source) } catch { throw ImageCommandError.unusable(path: path, error) }
  }
}

// MARK: check

struct ImageCheckCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "check",
    abstract: "Check the consistency of a qcow2 image.",
    discussion: """
      Nothing is written. As with qemu-img, the status is 0 without errors, 2 with errors, 3 if there are only leaked clusters, which \
      waste space but harm no data, and 1 if something could not be examined. 'qemu-img check -r leaks' frees leaked clusters.
      """)

  @Argument(help: .init("The image.", valueName: "path")) var path: String
  @Flag(help: "Print JSON, with qemu-img's keys.") var json = false

  func run() throws {
    let image = try OpenImage(path)
    let header = try image.header()
    let report: Qcow2Report
    do throws(Qcow2Fault) { report = try Qcow2Check.run(image.source, header) } catch {
      throw ImageCommandError.unusable(path: path, error)
    }
    if json { print(try Summary(path, report).json) } else { print(Self.text(report)) }
    if report.corruptions > 0 { throw ExitCode(2) }
    if report.failures > 0 { throw ExitCode(1) }
    if report.leaks > 0 { throw ExitCode(3) }
  }

  static func text(_ report: Qcow2Report) -> String {
    var text = report.findings.map { printable($0) + "\n" }.joined()
    let all = report.corruptions + report.leaks + report.failures
    if all > report.findings.count { text += "… and \(all - report.findings.count) more\n" }
    if report.isClean { text += "No errors were found on the image.\n" }
    if report.corruptions > 0 {
      text += "\n\(report.corruptions) errors were found on the image.\n"
      text += "Data may be corrupted, or further writes to the image may corrupt it.\n"
    }
    if report.leaks > 0 {
      text +=
        "\n\(report.leaks) leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n"
    }
    if report.failures > 0 { text += "\n\(report.failures) internal errors have occurred during the check.\n" }
    if report.totalClusters > 0 {
      text += "\(report.allocatedClusters)/\(report.totalClusters) = "
      text += "\(Self.percent(report.allocatedClusters, of: report.totalClusters)) allocated, "
      text += "\(Self.percent(report.compressedClusters, of: max(report.allocatedClusters, 1))) compressed clusters\n"
    }
    return text + "Image end offset: \(report.imageEnd)"
  }

  private static func percent(_ part: UInt64, of whole: UInt64) -> String {
    let hundredths = UInt64((Double(part) / Double(whole) * 10000).rounded(.down))
    let rest = hundredths % 100
    return "\(hundredths / 100).\(rest < 10 ? "0" : "")\(rest)%"
  }

  private struct Summary: Encodable {
    enum CodingKeys: String, CodingKey {
      case filename, format, corruptions, leaks
      case checkErrors = "check-errors"
      case imageEnd = "image-end-offset"
      case total = "total-clusters"
      case allocated = "allocated-clusters"
      case compressed = "compressed-clusters"
    }

    var filename: String
    var format = "qcow2"
    var checkErrors: Int
    var corruptions: Int
    var leaks: Int
    var imageEnd: UInt64
    var total: UInt64
    var allocated: UInt64
    var compressed: UInt64

    init(_ path: String, _ report: Qcow2Report) {
      filename = path
      (checkErrors, corruptions, leaks) = (report.failures, report.corruptions, report.leaks)
      (imageEnd, total) = (report.imageEnd, report.totalClusters)
      (allocated, compressed) = (report.allocatedClusters, report.compressedClusters)
    }

    var json: String { get throws { try JSONText.of(self) } }
  }
}

enum JSONText {
  static func of(_ value: some Encodable) throws -> String {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
    return String(decoding: try encoder.encode(value), as: UTF8.self)
  }
}
