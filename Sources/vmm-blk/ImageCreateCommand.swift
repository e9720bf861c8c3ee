/// `vmm-blk image create`.
internal import ArgumentParser
internal import CLinux
internal import Glibc
internal import OperatorWords
internal import Qcow2
internal import SystemPackage
internal import VirtioCore

/// What a backing file is.
enum BackingFormat: String, ExpressibleByArgument, CaseIterable {
  case raw
  case qcow2
}

struct ImageCreateCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "create",
    abstract: "Create a qcow2 image: an empty disk, or an overlay over another image.",
    usage: """
      vmm-blk image create <path> --size <bytes> [<options>]
      vmm-blk image create <path> -b <path> -F raw|qcow2 [<options>]
      """,
    discussion: """
      The file must not exist. The image has clusters of 128 KiB with 32 subclusters of 4 KiB, so that a first write of 4 \
      KiB allocates 4 KiB and not a whole cluster; QEMU reads such images from version 5.2 on. With '--extended-l2 off' it \
      is a classic image, with clusters of 64 KiB.

      The name of the backing file is recorded as it is given; if it is relative, it is relative to the folder of the image.
      """)

  @Argument(help: .init("The image.", valueName: "path")) var path: String
  @Option(help: .init("Size of the disk. (default: that of the backing file)", valueName: "bytes")) var size: ByteCount?
  @Option(
    name: [.customShort("b"), .long],
    help: .init("The backing file: the disk's contents where nothing was written.", valueName: "path"))
  var backing: String?
  @Option(name: [.customShort("F"), .long], help: "The format of the backing file.") var backingFormat: BackingFormat?
  @Option(
    help: .init(
      "A power of two, 512 to 2M; at least 16k with subclusters. (default: 128k, without subclusters 64k)", valueName: "bytes"))
  var clusterSize: ByteCount?
  @Option(name: .customLong("extended-l2"), help: "Whether clusters have subclusters.") var extended = OnOff.on

  func validate() throws {
    guard size != nil || backing != nil else { throw ValidationError("Give the size of the disk, with --size.") }
    guard backing != nil || backingFormat == nil else { throw ValidationError("--backing-format is for --backing: give both.") }
    if let clusterSize {
      let least: UInt64 = extended == .on ? 16 << 10 : 512
      guard clusterSize.bytes >= least, clusterSize.bytes <= 2 << 20, clusterSize.bytes & (clusterSize.bytes - 1) == 0 else {
        throw ValidationError(
          "--cluster-size \(clusterSize.bytes) is not a power of two from \(least) to 2097152"
            + (extended == .on && clusterSize.bytes < least ? ": use more, or --extended-l2 off." : "."))
      }
    }
    if backing != nil, backingFormat == nil { throw ImageCommandError.noBackingFormat }
  }

  func run() throws {
    let bytes = clusterSize?.bytes ?? (extended == .on ? 128 << 10 : 64 << 10)
    let geometry = Qcow2Geometry(clusterBits: UInt32(bytes.trailingZeroBitCount), isExtended: extended == .on)
    let size = try size?.bytes ?? backingSize()
    guard size > 0, let size = size <= 1 << 62 ? (size + 511) & ~511 : nil else {
      throw ImageCommandError.usage("a disk of \(size) bytes is not possible: give another --size")
    }
    let layout: Qcow2Layout
    do throws(Qcow2Fault) {
      layout = try Qcow2Layout(
        size: size, geometry: geometry, backingName: backing.map { Array($0.utf8) }, backingFormat: backingFormat?.rawValue)
    } catch { throw ImageCommandError.unusable(path: path, error) }
    try Self.write(layout, path)
    print(
      "Created \(printable(path)): a disk of \(ByteSize.describe(size)), clusters of \(ByteSize.describe(bytes))"
        + (extended == .on ? " with subclusters of \(ByteSize.describe(geometry.subclusterSize))" : "")
        + (backing.map { ", over \(printable($0))" } ?? "") + ".")
  }

  /// The size of the disk in the backing file, in bytes.
  private func backingSize() throws -> UInt64 {
    guard let backing else { return 0 }
    let place = FilePath(backing).isAbsolute ? backing : FilePath(path).removingLastComponent().appending(backing).string
    let image = try OpenImage(place)
    switch backingFormat {
    case .qcow2: return try image.header().size
    case .raw, nil: return image.source.byteCount
    }
  }

  /// Writes the whole image to stable storage, or leaves no file behind.
  private static func write(_ layout: Qcow2Layout, _ path: String) throws {
    let descriptor = unsafe clinux_open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o644)
    guard descriptor >= 0 else {
      let error = Errno(rawValue: errno)
      if error == .fileExists { throw ImageCommandError.exists(path: path) }
      throw ImageCommandError.system("created", path: path, error)
    }
    defer { close(descriptor) }
    do throws(Errno) {
      for piece in layout.pieces { try put(piece.bytes, descriptor, at: piece.offset) }
      guard ftruncate(descriptor, off_t(layout.fileSize)) == 0, fsync(descriptor) == 0 else { throw Errno(rawValue: errno) }
    } catch {
      _ = unsafe unlink(path)
      throw ImageCommandError.system("written", path: path, error)
    }
  }

  static func put(_ bytes: [UInt8], _ descriptor: Int32, at offset: UInt64) throws(Errno) {
    var done = 0
    while done < bytes.count {
      let count = unsafe bytes.withUnsafeBytes {
        unsafe pwrite(descriptor, $0.baseAddress! + done, $0.count - done, off_t(offset) + off_t(done))
      }
      if count < 0, errno == EINTR { continue }
      guard count > 0 else { throw count == 0 ? .ioError : Errno(rawValue: errno) }
      done += count
    }
  }
}
