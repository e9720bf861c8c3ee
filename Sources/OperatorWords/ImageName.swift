/// The value of `--image`: a URI that says where an image is.
package import VirtioBlkDevice
internal import VirtioCore

package enum ImageName: Equatable {
  /// A raw file or a block device.
  case file(String)
  case nbd(NBDLocation)
  case qcow2(Qcow2Location)
  case rbd(RBDLocation)

  package init(_ text: String) throws(ImageNameMistake) {
    guard let colon = text.firstIndex(of: ":"), colon > text.startIndex, !text[..<colon].contains("/") else {
      throw .noScheme(text)
    }
    let rest = text[text.index(after: colon)...]
    switch text[..<colon].lowercased() {
    case "file":
      // file:///PATH is file:/PATH; files on other hosts are not supported.
      let path = rest.hasPrefix("///") ? rest.dropFirst(2) : rest
      guard !path.isEmpty, !path.hasPrefix("//") else { throw .noPath(text) }
      self = .file(String(path))
    case "nbd", "nbd+unix", "nbds", "nbds+unix":
      do throws(NBDFailure) { self = .nbd(try NBDLocation(text)) } catch { throw .nbd(error) }
    case "qcow2":
      do throws(Qcow2Failure) { self = .qcow2(try Qcow2Location(text)) } catch { throw .qcow2(error) }
    case "rbd":
      do throws(RBDFailure) { self = .rbd(try RBDLocation(text)) } catch { throw .rbd(error) }
    default: throw .unknown(text)
    }
  }
}

/// Why a URI does not name an image: one sentence each.
package enum ImageNameMistake: Error, Equatable, CustomStringConvertible {
  case noScheme(String)
  case noPath(String)
  case unknown(String)
  case nbd(NBDFailure)
  case qcow2(Qcow2Failure)
  case rbd(RBDFailure)
  case breaksNoLock(String)
  /// - reason: why it takes none.
  case takesNoLock(String, String)
  case twoFormats(String)

  private static let forms =
    "file:PATH, qcow2:PATH, nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH (with TLS nbds:// and nbds+unix://) or "
    + "rbd:POOL/IMAGE"

  package var description: String {
    switch self {
    case .noScheme(let text): "--image does not take '\(printable(text))': use \(Self.forms), or name a file with --blk-file"
    case .noPath(let text): "--image '\(printable(text))' names no path on this machine: use file:PATH"
    case .unknown(let text): "--image does not know '\(printable(text))': use \(Self.forms)"
    case .nbd(let failure): "\(failure)"
    case .qcow2(let failure): "\(failure)"
    case .rbd(let failure): "\(failure)"
    case .breaksNoLock(let words):
      "--break-lock is for images of Ceph clusters, and \(printable(words)) is not one: leave it out"
    case .takesNoLock(let words, let reason):
      "--break-lock is for disks that take the lock, and \(printable(words)) takes none, because of \(reason): leave one of them out"
    case .twoFormats(let text):
      "'\(printable(text))' states the format of the image, and --format contradicts it: leave --format out"
    }
  }
}

extension DeviceOptions {
  /// Some image is named.
  package var namesImage: Bool { blkFile != nil || image != nil }

  /// As the user named it.
  package var imageWords: String? { blkFile ?? image }

  /// - Returns: `nil` if none is named. - Throws: why the name is invalid.
  package func imageName() throws(ImageNameMistake) -> ImageName? {
    if let image {
      let name = try ImageName(image)
      if case .qcow2 = name, format == .raw { throw .twoFormats(image) }
      if case .file(let path) = name, format == .qcow2 { return .qcow2(Qcow2Location(path: path)) }
      if case .nbd = name, format == .qcow2 { throw .twoFormats(image) }
      if case .rbd = name, format == .qcow2 { throw .twoFormats(image) }
      return name
    }
    return blkFile.map { format == .qcow2 ? .qcow2(Qcow2Location(path: $0)) : .file($0) }
  }

  /// The image's path, if it is a file.
  package var imagePath: String? {
    guard case .file(let path)? = try? imageName() else { return nil }
    return path
  }

  /// The image's chain, if it is one.
  package var imageChain: Qcow2Location? {
    guard case .qcow2(let location)? = try? imageName() else { return nil }
    return location
  }

  /// The file that is opened first, if it is a file.
  package var imageFile: String? { imagePath ?? imageChain?.path }

  /// The image's server, if it has one.
  package var imageServer: NBDLocation? {
    guard case .nbd(let location)? = try? imageName() else { return nil }
    return location
  }

  /// Files and folders with the credentials for connections to the image's server.
  package var credentials: [String] { imageServer?.security?.places ?? [] }

  /// The image in a cluster, if it is one.
  package var imageInCluster: RBDLocation? {
    guard case .rbd(let location)? = try? imageName() else { return nil }
    return location
  }

  /// The image is locked in its cluster when it is opened.
  package var takesClusterLock: Bool {
    imageInCluster.map { $0.snapshot == nil && !readOnly && !noLock } ?? false
  }

  /// How the image is to be opened in its cluster.
  package func rbdOptions(_ location: RBDLocation) -> RBDOptions {
    var options = RBDOptions(location)
    options.breaksLock = breakLock
    return options
  }

  /// How to use the image's server.
  package func nbdOptions(_ location: NBDLocation, isConfined: Bool) -> NBDOptions {
    var options = NBDOptions(location)
    options.reconnectTimeout = reconnectTimeout
    options.keepsWrites = serverKeepsWrites
    options.isConfined = isConfined
    return options
  }

  package func validateImage() throws(ImageNameMistake) {
    let name = try imageName()
    guard breakLock, let name, let words = imageWords else { return }
    guard case .rbd(let location) = name else { throw .breaksNoLock(words) }
    if readOnly { throw .takesNoLock(words, "--read-only") }
    if location.snapshot != nil { throw .takesNoLock(words, "its snapshot") }
    if noLock { throw .takesNoLock(words, "--no-lock") }
  }
}
