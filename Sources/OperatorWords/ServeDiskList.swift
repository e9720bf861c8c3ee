/// The file that `serve --disks` reads: a JSON array with an entry for each disk.
internal import CLinux
package import FoundationEssentials
internal import Glibc
package import SystemPackage
internal import VirtioBlkDevice
internal import VirtioCore

/// All disks of one server, read, and checked as far as possible without opening one.
package struct ServeDiskList {
  package let file: String
  package let disks: [ServeDisk]

  /// - Parameters:
  ///   - defaults: the options of a disk that sets no others.
  ///   - mayBeEmpty: disks can be added later.
  package init(file: String, defaults: DeviceOptions, mayBeEmpty: Bool) throws(ServeDiskListError) {
    let text: Data
    do { text = try Self.read(file) } catch { throw .cannotRead(file, error) }
    try self.init(text, file: file, defaults: defaults, mayBeEmpty: mayBeEmpty)
  }

  /// - Parameters:
  ///   - text: the file's contents.
  ///   - file: its path, for messages.
  package init(_ text: Data, file: String, defaults: DeviceOptions, mayBeEmpty: Bool) throws(ServeDiskListError) {
    self.file = file
    // The decoder would only say that a value is not a string.
    guard String(validating: text, as: UTF8.self) != nil else { throw .notJSON(file, "it is not UTF-8") }
    do {
      disks = try JSONDecoder().decode(Entries.self, from: text, configuration: defaults).disks
    } catch let error as EntryError {
      throw .entry(error.number, file: file, name: nil, "\(error.cause)", .usage)
    } catch {
      throw .notJSON(file, Self.reason(error))
    }
    guard mayBeEmpty || !disks.isEmpty else { throw .noDisks(file) }
    if let double = JSONKeys.double(in: text) {
      throw error(min(double.element, disks.count - 1), "\"\(printable(double.key))\" is given twice: give it once")
    }
    try refuseDoubles()
  }

  /// Refuses two entries with the same socket or image, before the second one fails at the socket or the lock of the first.
  private func refuseDoubles() throws(ServeDiskListError) {
    var sockets: [String: Int] = [:]
    var images: [Place: (number: Int, isReadOnly: Bool)] = [:]
    for (index, disk) in disks.enumerated() {
      let number = index + 1
      if let other = sockets.updateValue(number, forKey: disk.socketPath) {
        throw error(index, "it has the socket of entry \(other): give each disk its own socket")
      }
      guard !disk.options.noLock, let place = Place(disk.options) else { continue }
      if let other = images[place], !(other.isReadOnly && disk.options.readOnly) {
        throw error(index, "it has the image of entry \(other.number): only disks that are all read-only can share one")
      }
      images[place] = (number, disk.options.readOnly)
    }
  }

  /// A sentence about one of the disks.
  ///
  /// - Parameters:
  ///   - index: 0 for the first.
  ///   - status: what kind of mistake it is.
  package func error(_ index: Int, _ sentence: String, _ status: ExitStatus = .usage) -> ServeDiskListError {
    .entry(index + 1, file: file, name: disks[index].options.imageWords, sentence, status)
  }

  /// Identifies an image, whatever it is called.
  private enum Place: Hashable {
    case file(Inode)
    case cluster(RBDLocation)

    /// - Returns: `nil` if there is none, or if it cannot be told from others.
    init?(_ options: DeviceOptions) {
      if var location = options.imageInCluster {
        location.user = nil
        self = .cluster(location)
      } else if let path = options.imageFile, let inode = Inode(path) {
        self = .file(inode)
      } else {
        return nil
      }
    }
  }

  private struct Inode: Hashable {
    let device: UInt64
    let number: UInt64

    init?(_ path: String) {
      var information = stat()
      guard unsafe stat(path, &information) == 0 else { return nil }
      device = UInt64(information.st_dev)
      number = UInt64(information.st_ino)
    }
  }

  /// The largest list, in bytes: enough for thousands of disks. Some files have no end.
  private static let largest = 1 << 20

  private static func read(_ file: String) throws(Errno) -> Data {
    do {
      let descriptor = try FileDescriptor.open(FilePath(file), .readOnly, options: .closeOnExec)
      return try descriptor.closeAfter {
        var text = Data()
        var room = [UInt8](repeating: 0, count: 1 << 16)
        while true {
          let count = unsafe try room.withUnsafeMutableBytes { unsafe try descriptor.read(into: $0) }
          guard count > 0 else { return text }
          text.append(contentsOf: room[..<count])
          guard text.count <= largest else { throw Errno.fileTooLarge }
        }
      }
    } catch {
      throw error as? Errno ?? .ioError
    }
  }

  /// The decoder's words for where the text stops being JSON.
  private static func reason(_ error: any Error) -> String {
    guard case DecodingError.dataCorrupted(let context) = error else { return "it has to be an array of objects" }
    guard let cause = context.underlyingError else { return context.debugDescription }
    return "\(cause)"
  }
}

/// The array, decoded entry by entry, so that a mistake knows the number of its entry.
private struct Entries: DecodableWithConfiguration {
  var disks: [ServeDisk] = []

  init(from decoder: any Decoder, configuration defaults: DeviceOptions) throws {
    var list = try decoder.unkeyedContainer()
    while !list.isAtEnd {
      do { disks.append(try list.decode(ServeDisk.self, configuration: defaults)) } catch {
        throw EntryError(number: disks.count + 1, cause: error)
      }
    }
  }
}

private struct EntryError: Error {
  let number: Int
  let cause: any Error
}

/// Why a list of disks cannot be served: one sentence.
package enum ServeDiskListError: Error, CustomStringConvertible {
  case cannotRead(String, Errno)
  case notJSON(String, String)
  case noDisks(String)
  /// - name: the image's path, where it is known.
  case entry(Int, file: String, name: String?, String, ExitStatus)

  package var description: String {
    switch self {
    case .cannotRead(let file, .fileTooLarge):
      "\(printable(file)) is not a list of disks: it is larger than 1 MiB, which is enough for thousands of disks"
    case .cannotRead(let file, let error): "the list of disks \(printable(file)) cannot be read: \(error)"
    case .notJSON(let file, let reason): "\(printable(file)) is not a JSON array of disks: \(printable(reason))"
    case .noDisks(let file):
      "\(printable(file)) lists no disk: give it an entry for each, or --control a path where disks can be added later"
    case .entry(let number, let file, let name, let sentence, _):
      "\(printable(file)), entry \(number)" + (name.map { " (\(printable($0)))" } ?? "") + ": \(sentence)"
    }
  }
}
