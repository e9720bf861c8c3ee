/// Opens an image and its backing files. It only opens files that the user named, or that are below a folder that the user
/// named; the names in images are compared with these.
internal import CLinux
internal import Glibc
internal import Qcow2
internal import SystemPackage
internal import VirtioCore

struct Qcow2Chain {
  private let location: Qcow2Location
  private let isLocked: Bool
  private let isReadOnly: Bool
  /// The keeper of the topmost image, if it is written to.
  private var keeper: ImageKeeper?
  /// The topmost image has internal snapshots, if it is written to.
  private var hasSnapshots = false
  private var layers: [Qcow2Layer] = []
  private var isInMemory = true
  /// Device and inode of every open file.
  private var seen: Set<[UInt64]> = []

  /// - Parameter top: the image itself, open and locked.
  /// - Parameters:
  ///   - isReadOnly: otherwise the image is written to, and its file is open for writing; those below it are only read.
  ///   - witness: observes writes.
  /// - Throws: why it cannot be used as a disk.
  static func open(
    _ location: Qcow2Location, _ format: ImageFormat = .qcow2, top: OwnedDescriptor, isLocked: Bool, isReadOnly: Bool = true,
    witness: (any Qcow2Witness)? = nil
  ) throws(Qcow2Failure) -> Qcow2Disk {
    var chain = Self(location: location, isLocked: isLocked, isReadOnly: isReadOnly)
    try chain.add(top, format)
    // A witness sees every store.
    let mappings = witness == nil ? chain.mappings() : []
    guard let keeper = chain.keeper else {
      return Qcow2Disk(chain.layers, isInMemory: chain.isInMemory, mappings: mappings)
    }
    do throws(Qcow2Fault) {
      let writer = try Qcow2Writer(keeper, chain.layers[0], witness: witness, windows: mappings.first??.windows)
      return Qcow2Disk(
        chain.layers, isInMemory: chain.isInMemory, mappings: mappings, writer: writer, hasSnapshots: chain.hasSnapshots)
    } catch { throw .notWritable(path: location.path, error) }
  }

  /// The data files of the chain, mapped: those that can be.
  private func mappings() -> [Qcow2Mapping?] {
    layers.enumerated().map { index, layer in
      // An image that is written to becomes as long as its disk and the tables for it, and more if clusters have to be left
      // unused. What is beyond that is not mapped.
      let most = min(layer.size, Self.mostGrowth)
      let growth = index == 0 && keeper != nil ? most + most / 8 + Self.leastGrowth : 0
      return Qcow2Mapping(layer.dataFile, end: layer.dataEnd, growth: growth)
    }
  }

  /// Bytes.
  private static let (leastGrowth, mostGrowth): (UInt64, UInt64) = (64 << 20, 1 << 50)

  private init(location: Qcow2Location, isLocked: Bool, isReadOnly: Bool) {
    self.location = location
    self.isLocked = isLocked
    self.isReadOnly = isReadOnly
  }

  /// Opens an image that a user named, and those backing files that are below a folder, for reading.
  static func open(_ path: String, _ format: ImageFormat, folder: String?) throws(Qcow2Failure) -> Qcow2Disk {
    var location = Qcow2Location(path: path)
    location.folder = folder
    var chain = Self(location: location, isLocked: true, isReadOnly: true)
    return try open(location, format, top: try chain.open(path, isGiven: true), isLocked: true)
  }

  /// An image without its backing files, for reading.
  ///
  /// - Parameter file: open, and locked.
  static func top(_ file: OwnedDescriptor, _ header: Qcow2Header, _ path: String) throws(Qcow2Failure) -> Qcow2Layer {
    let source = try source(file, path)
    do throws(Qcow2Fault) {
      return try Qcow2Layer(header, file, path: path, source: source, data: nil, snapshot: nil)
    } catch { throw .fault(path: path, error) }
  }

  private mutating func add(_ top: OwnedDescriptor, _ first: ImageFormat) throws(Qcow2Failure) {
    var (file, path, format) = (top, location.path, first)
    var given = location.backing[...]
    while true {
      guard layers.count < Qcow2Location.depth else { throw .tooDeep(path: location.path, limit: Qcow2Location.depth) }
      guard try note(file, path) else { throw .loop(path: path) }
      let source = try Self.source(file, path)
      guard format == .qcow2 else {
        layers.append(Qcow2Layer(raw: file, path: path, source: source))
        if let more = given.first { throw .nothingUnder(path: path, given: more.path) }
        return
      }
      let header: Qcow2Header
      do throws(Qcow2Fault) {
        header = try Qcow2Header(source)
      } catch { throw .fault(path: path, error) }
      let isTop = layers.isEmpty
      if isTop, !isReadOnly {
        do throws(Qcow2Fault) { keeper = try ImageKeeper(header, source) } catch { throw .notWritable(path: path, error) }
        hasSnapshots = header.snapshotCount > 0
      }
      let data = try dataFile(of: header, path, isTop: isTop)
      do throws(Qcow2Fault) {
        layers.append(
          try Qcow2Layer(
            header, file, path: path, source: source, data: data, snapshot: isTop ? location.snapshot : nil,
            keeper: isTop ? keeper : nil))
      } catch { throw .fault(path: path, error) }

      guard header.backingName != nil else {
        if let more = given.first { throw .nothingUnder(path: path, given: more.path) }
        return
      }
      let name = try Self.text(header.backingName, path)
      if let next = given.popFirst() {
        try Self.compare(name, with: next.path, path)
        (file, path, format) = (try open(next.path, isGiven: true), next.path, next.format)
      } else if let folder = location.folder {
        guard let word = header.backingFormat else { throw .noFormat(path: path, name: name) }
        guard let named = ImageFormat(rawValue: word) else { throw .otherFormat(path: path, name: name, format: word) }
        let (next, place) = try openNamed(name, by: path, below: folder)
        (file, path, format) = (next, place, named)
      } else {
        throw .notAllowed(path: path, name: name)
      }
    }
  }

  /// - Parameter isTop: the user can name the data file of the topmost image only.
  private mutating func dataFile(
    of header: Qcow2Header, _ path: String, isTop: Bool
  ) throws(Qcow2Failure) -> (OwnedDescriptor, FileSource)? {
    guard header.hasDataFile else {
      if isTop, location.dataFile != nil { throw .noDataFile(path: path) }
      return nil
    }
    let name = header.dataFileName == nil ? nil : try Self.text(header.dataFileName, path)
    let file: OwnedDescriptor
    let place: String
    if isTop, let given = location.dataFile {
      if let name { try Self.compare(name, with: given, path) }
      (file, place) = (try open(given, isGiven: true), given)
    } else if let name, let folder = location.folder {
      (file, place) = try openNamed(name, by: path, below: folder)
    } else {
      throw .dataNotAllowed(path: path, name: name ?? "")
    }
    guard try note(file, place) else { throw .loop(path: place) }
    return (file, try Self.source(file, place))
  }

  // MARK: Names

  /// A name in an image, as text that can be a path.
  private static func text(_ bytes: [UInt8]?, _ path: String) throws(Qcow2Failure) -> String {
    let bytes = bytes ?? []
    guard let name = String(validating: bytes, as: UTF8.self) else {
      throw .noPath(path: path, name: String(decoding: bytes, as: UTF8.self))
    }
    return name
  }

  /// The image may have been made elsewhere: only the last component of the path is compared, and the user says where the
  /// file is.
  static func compare(_ name: String, with given: String, _ path: String) throws(Qcow2Failure) {
    guard name.split(separator: "/").last == given.split(separator: "/").last else {
      throw .otherName(path: path, name: name, given: given)
    }
  }

  /// Opens a file that an image names, if it is below a folder, without following symbolic links from there on.
  ///
  /// - Returns: the file, and its path.
  private mutating func openNamed(
    _ name: String, by path: String, below folder: String
  ) throws(Qcow2Failure) -> (OwnedDescriptor, String) {
    // "nbd:…", "json:{…}" and the like are for QEMU; in a path, a slash comes before any colon.
    if let colon = name.firstIndex(of: ":"), !name[..<colon].contains("/") { throw .noPath(path: path, name: name) }
    guard let root = Self.real(folder) else { throw .cannotOpen(path: folder, Errno(rawValue: errno)) }
    let base = Self.real(path).map { FilePath($0).removingLastComponent() } ?? FilePath("/")
    let whole = (FilePath(name).isAbsolute ? FilePath(name) : base.pushing(FilePath(name))).lexicallyNormalized()
    let roots = [FilePath(root), FilePath(folder).lexicallyNormalized()]
    guard let start = roots.first(where: { whole.starts(with: $0) && whole != $0 }) else {
      throw .outside(path: path, name: name, folder: folder)
    }
    var rest = whole
    _ = rest.removePrefix(start)
    let place = FilePath(root).pushing(rest).string
    var descriptor = unsafe clinux_open(root, clinux_o_path | O_CLOEXEC | O_DIRECTORY, 0)
    guard descriptor >= 0 else { throw .cannotOpen(path: folder, Errno(rawValue: errno)) }
    let parts = Array(rest.components)
    for (index, part) in parts.enumerated() {
      let isLast = index == parts.count - 1
      let flags = O_CLOEXEC | O_NOFOLLOW | (isLast ? O_RDONLY | O_NONBLOCK : clinux_o_path | O_DIRECTORY)
      let next = unsafe clinux_openat(descriptor, part.string, flags)
      let error = errno
      close(descriptor)
      guard next >= 0 else {
        // A symbolic link is ELOOP as a file, and ENOTDIR as a folder.
        if error == ELOOP { throw .outside(path: path, name: name, folder: folder) }
        throw .cannotOpen(path: place, Errno(rawValue: error))
      }
      descriptor = next
    }
    return (try check(descriptor, place, isGiven: false), place)
  }

  /// - Returns: `nil`, with errno, if there is none.
  private static func real(_ path: String) -> String? {
    guard let target = unsafe realpath(path, nil) else { return nil }
    defer { unsafe free(target) }
    return unsafe String(cString: target)
  }

  // MARK: Files

  private mutating func open(_ path: String, isGiven: Bool) throws(Qcow2Failure) -> OwnedDescriptor {
    let descriptor = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0)
    guard descriptor >= 0 else { throw .cannotOpen(path: path, Errno(rawValue: errno)) }
    return try check(descriptor, path, isGiven: isGiven)
  }

  /// Takes ownership of a descriptor, and checks that it can be an image. - Parameter isGiven: the user named it, so it may be
  /// a block device.
  private mutating func check(_ descriptor: Int32, _ path: String, isGiven: Bool) throws(Qcow2Failure) -> OwnedDescriptor {
    let owned = OwnedDescriptor(descriptor)
    var info = stat()
    guard unsafe fstat(descriptor, &info) == 0 else { throw .cannotOpen(path: path, Errno(rawValue: errno)) }
    let kind = info.st_mode & S_IFMT
    guard kind == S_IFREG || isGiven && kind == S_IFBLK else { throw .notAFile(path: path) }
    _ = clinux_fcntl_int(descriptor, F_SETFL, O_RDONLY)
    if isLocked {
      do throws(ImageError) { _ = try ImageLock.take(descriptor, path: path, isReadOnly: true) } catch {
        throw .locked(path: path)
      }
    }
    return owned
  }

  /// - Returns: false if the file is in the chain already.
  private mutating func note(_ file: OwnedDescriptor, _ path: String) throws(Qcow2Failure) -> Bool {
    var info = stat()
    guard unsafe fstat(file.rawValue, &info) == 0 else { throw .cannotOpen(path: path, Errno(rawValue: errno)) }
    if info.st_mode & S_IFMT == S_IFBLK {
      isInMemory = isInMemory && SystemDevice(info.st_rdev).isMemory
    } else {
      isInMemory = isInMemory && MediumSystem(file.rawValue).isInMemory
    }
    return seen.insert([UInt64(info.st_dev), UInt64(info.st_ino)]).inserted
  }

  private static func source(_ file: OwnedDescriptor, _ path: String) throws(Qcow2Failure) -> FileSource {
    do throws(Errno) { return try FileSource(file.rawValue) } catch { throw .cannotOpen(path: path, error) }
  }
}
