/// What `--image` takes: where an image is, by a URI.
package import VirtioBlkDevice
internal import VirtioCore

package enum ImageName: Equatable {
  /// A raw file or a block device.
  case file(String)
  case nbd(NBDLocation)

  package init(_ text: String) throws(ImageNameMistake) {
    guard let colon = text.firstIndex(of: ":"), colon > text.startIndex, !text[..<colon].contains("/") else {
      throw .noScheme(text)
    }
    let rest = text[text.index(after: colon)...]
    switch text[..<colon].lowercased() {
    case "file":
      // file:///PATH is file:/PATH; no other host has files here.
      let path = rest.hasPrefix("///") ? rest.dropFirst(2) : rest
      guard !path.isEmpty, !path.hasPrefix("//") else { throw .noPath(text) }
      self = .file(String(path))
    case "nbd", "nbd+unix", "nbds", "nbds+unix":
      do throws(NBDFailure) { self = .nbd(try NBDLocation(text)) } catch { throw .nbd(error) }
    case "qcow2":
      throw .notInThisBuild(text, "qcow2 images", "convert it with 'qemu-img convert -O raw', or serve it with 'qemu-nbd'")
    case "rbd": throw .notInThisBuild(text, "images of Ceph", "map it with 'rbd map', or serve it with 'qemu-nbd'")
    default: throw .unknown(text)
    }
  }
}

/// Why a URI names no image: one sentence each.
package enum ImageNameMistake: Error, Equatable, CustomStringConvertible {
  case noScheme(String)
  case noPath(String)
  case unknown(String)
  case notInThisBuild(String, _ what: String, _ remedy: String)
  case nbd(NBDFailure)

  private static let forms = "file:PATH, nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH"

  package var description: String {
    switch self {
    case .noScheme(let text): "--image does not take '\(printable(text))': use \(Self.forms), or name a file with --blk-file"
    case .noPath(let text): "--image has no path of this machine in '\(printable(text))': use file:PATH"
    case .unknown(let text): "--image does not know '\(printable(text))': use \(Self.forms)"
    case .notInThisBuild(let text, let what, let remedy):
      "'\(printable(text))' is for \(what), which this build does not have: \(remedy), and name that server with nbd+unix:…"
    case .nbd(let failure): "\(failure)"
    }
  }
}

extension DeviceOptions {
  /// Some image is named.
  package var namesImage: Bool { blkFile != nil || image != nil }

  /// As a person named it.
  package var imageWords: String? { blkFile ?? image }

  /// - Returns: `nil` where none is named. - Throws: what is named is none.
  package func imageName() throws(ImageNameMistake) -> ImageName? {
    if let image { return try ImageName(image) }
    return blkFile.map { .file($0) }
  }

  /// The image's path, if it is a file.
  package var imagePath: String? {
    guard case .file(let path)? = try? imageName() else { return nil }
    return path
  }

  /// The image's server, if it has one.
  package var imageServer: NBDLocation? {
    guard case .nbd(let location)? = try? imageName() else { return nil }
    return location
  }

  /// How the server is to be taken.
  package func nbdOptions(_ location: NBDLocation, isConfined: Bool) -> NBDOptions {
    var options = NBDOptions(location)
    options.reconnectTimeout = reconnectTimeout
    options.keepsWrites = serverKeepsWrites
    options.isConfined = isConfined
    return options
  }

  package func validateImage() throws(ImageNameMistake) { _ = try imageName() }
}
