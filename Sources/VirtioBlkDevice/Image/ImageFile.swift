/// The disk's medium: a raw file or a block device, opened, measured and locked; or an image on a server or in a cluster.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage
public import VirtioCore

/// An open image. Immutable after `init`, except for its state; its descriptor is closed and its lock released with the last
/// owner.
public final class ImageFile: Sendable {
  /// The name for messages: a path, or a URI.
  public let path: String
  /// −1 if it has no file: an export, or an image of a cluster.
  public let descriptor: Int32
  private let owned: OwnedDescriptor?
  /// The export, if it is on an NBD server.
  let export: NBDExport?
  /// The image, if it is in a Ceph cluster.
  let rbd: RBDImage?
  /// The chain of qcow2 images, if it is not raw.
  let chain: Qcow2Disk?
  /// What it is and supports, as it was when it was opened; `size` is the present size.
  public let description: ImageDescription
  /// What has happened to it since it was opened.
  public let state: ImageState
  /// The open description that holds the lock, or the device: a process that takes over the image needs it; `nil` if there is
  /// no lock.
  public let lock: OwnedDescriptor?
  /// Whether the lock is released with this image. It is not while another process continues with it.
  private let ownsLock: Atomic<Bool>
  /// Where a device reports how much of its life it has used; `nil`: it does not.
  let lifetime: LifetimeFiles?
  /// The zones of a zoned disk.
  let zones: ZonedDisk?

  /// Opens an image. The file decides how: one that looks like an image of another format is refused, and direct I/O is used if
  /// the file supports it, which is tested rather than believed.
  ///
  /// - Throws: why it cannot be used, and what to do.
  public convenience init(_ options: ImageOptions) throws(ImageError) {
    if let nbd = options.nbd {
      self.init(try Self.connect(options, nbd))
    } else if let rbd = options.rbd {
      self.init(try Self.connect(options, rbd))
    } else if let location = options.qcow2 ?? (options.format == .qcow2 ? Qcow2Location(path: options.path) : nil) {
      self.init(try Self.open(options, location))
    } else {
      self.init(try Self.open(file: options))
    }
    OwnImages.add(self, user: options.user)
  }

  /// The parts of an open image. Most have a file; an export, or an image of a cluster, has only its connection.
  private struct Parts {
    let path: String
    let description: ImageDescription
    var owned: OwnedDescriptor?
    var export: NBDExport?
    var rbd: RBDImage?
    var chain: Qcow2Disk?
    var lock: OwnedDescriptor?
    var ownsLock = false
    var lifetime: LifetimeFiles?
    var zones: ZonedDisk?
  }

  private init(_ parts: Parts) {
    path = parts.path
    description = parts.description
    descriptor = parts.owned?.rawValue ?? -1
    owned = parts.owned
    export = parts.export
    rbd = parts.rbd
    chain = parts.chain
    lock = parts.lock
    ownsLock = Atomic(parts.ownsLock)
    lifetime = parts.lifetime
    zones = parts.zones
    state = ImageState(size: description.size)
  }

  /// Connects to the server, and waits for that.
  private static func connect(_ options: ImageOptions, _ nbd: NBDOptions) throws(ImageError) -> Parts {
    guard ImageOptions.isBlockSize(options.logicalBlockSize) else { throw .badBlockSize(options.logicalBlockSize) }
    guard options.zoned == nil else { throw .zones(.notOnThis(path: nbd.location.text, what: "an export of a server")) }
    do throws(NBDFailure) {
      let export = try NBDExport(nbd)
      return Parts(path: nbd.location.text, description: try description(of: export, options), export: export)
    } catch { throw .nbd(error) }
  }

  /// Connects to the cluster, and waits for that and for the image's lock.
  private static func connect(_ options: ImageOptions, _ rbd: RBDOptions) throws(ImageError) -> Parts {
    let uri = rbd.location.text
    guard ImageOptions.isBlockSize(options.logicalBlockSize) else { throw .badBlockSize(options.logicalBlockSize) }
    guard options.zoned == nil else { throw .zones(.notOnThis(path: uri, what: "an image of a Ceph cluster")) }
    do throws(RBDFailure) {
      guard options.isReadOnly || rbd.location.snapshot == nil else { throw .snapshotsAreOnlyRead(uri: uri) }
      let image = try RBDImage(
        rbd, isReadOnly: options.isReadOnly, isLocked: options.isLocked, patience: options.patience)
      return Parts(path: uri, description: try description(of: image, options), rbd: image)
    } catch { throw .rbd(error) }
  }

  /// Opens the image, and its backing files for reading.
  private static func open(_ options: ImageOptions, _ location: Qcow2Location) throws(ImageError) -> Parts {
    let path = options.path
    guard ImageOptions.isBlockSize(options.logicalBlockSize) else { throw .badBlockSize(options.logicalBlockSize) }
    guard options.zoned == nil else { throw .zones(.notOnThis(path: path, what: "a qcow2 image")) }
    guard options.isReadOnly || location.snapshot == nil else { throw .qcow2(.snapshotsAreOnlyRead(path: path)) }
    guard options.direct != .on else { throw .qcow2(.notDirect(path: path)) }
    guard !location.paths.contains(where: { $0.utf8.contains(0) }) else { throw .notAPath(path: path) }
    let owned: OwnedDescriptor
    do throws(ImageError) { owned = OwnedDescriptor(try Self.open(options).release()) } catch {
      if case .cannotOpen(_, .noSuchFileOrDirectory) = error { throw .qcow2(.noImage(path: path)) }
      throw error
    }
    var info = stat()
    guard unsafe fstat(owned.rawValue, &info) == 0 else { throw .cannotOpen(path: path, Errno(rawValue: errno)) }
    guard info.st_mode & S_IFMT == S_IFREG || info.st_mode & S_IFMT == S_IFBLK else { throw .notAFile(path: path) }
    guard options.isReadOnly || info.st_mode & S_IFMT == S_IFREG else { throw .qcow2(.devicesAreOnlyRead(path: path)) }
    // Only to open a FIFO without hanging.
    _ = clinux_fcntl_int(owned.rawValue, F_SETFL, Self.access(options))
    var isLocked = false
    if let lock = options.lock {
      guard Self.isSame(lock.rawValue, info) else { throw .notTheSame(path: path) }
      ImageLock.markTaker(owned.rawValue, isReadOnly: options.isReadOnly)
    } else if options.isLocked {
      // Before a table is read, so that what is read does not change.
      isLocked = try ImageLock.take(owned.rawValue, path: path, isReadOnly: options.isReadOnly)
    }
    do throws(Qcow2Failure) {
      let disk = try Qcow2Chain.open(
        location, top: owned, isLocked: options.isLocked, isReadOnly: options.isReadOnly, witness: options.qcow2Witness)
      return Parts(
        path: path, description: try description(of: disk, options, owned.rawValue), owned: owned, chain: disk,
        lock: options.lock ?? (isLocked ? owned : nil), ownsLock: options.lock == nil)
    } catch { throw .qcow2(error) }
  }

  private static func open(file options: ImageOptions) throws(ImageError) -> Parts {
    let path = options.path
    let blockSize = options.logicalBlockSize
    guard ImageOptions.isBlockSize(blockSize) else { throw .badBlockSize(blockSize) }
    guard options.pathBytes != nil || !path.utf8.contains(0) else { throw .notAPath(path: path) }

    var owner = try Self.open(options)
    var info = stat()
    guard unsafe fstat(owner.descriptor, &info) == 0 else { throw .cannotOpen(path: path, Errno(rawValue: errno)) }
    let isBlockDevice = info.st_mode & S_IFMT == S_IFBLK
    guard isBlockDevice || info.st_mode & S_IFMT == S_IFREG else { throw .notAFile(path: path) }
    let size = try Self.size(owner.descriptor, info, options, isBlockDevice: isBlockDevice)
    if options.format == .auto, let format = ForeignFormat.of(owner.descriptor, size: size) {
      throw .foreign(path: path, format: format)
    }
    // Checked only now: an image of another format may have any length, and must not be extended.
    guard size % UInt64(blockSize) == 0 else { throw .oddSize(path: path, size: size, blockSize: blockSize) }
    if let lock = options.lock {
      guard Self.isSame(lock.rawValue, info) else { throw .notTheSame(path: path) }
    } else if options.isLocked, ImageLock.isBusy(owner.descriptor, isReadOnly: options.isReadOnly) {
      // Checked before a device is opened exclusively, so that the message can name another server of ours.
      throw .locked(path: path)
    }
    let system = isBlockDevice ? nil : MediumSystem(owner.descriptor)
    let device = SystemDevice(isBlockDevice ? info.st_rdev : info.st_dev)

    // A writer opens a device exclusively, as a file system on it would, or swap, or a RAID of which it is a part. A
    // description that is taken over is exclusive already.
    let isToBeLocked = options.isLocked && options.lock == nil
    let exclusive = isBlockDevice && !options.isReadOnly && isToBeLocked ? device : nil
    // Direct I/O: try it on a second descriptor, and keep that if the file accepts what a guest may send.
    var direct: DirectAlignment? = nil
    if options.direct != .off {
      do throws(ImageError) {
        let candidate = try Self.open(options, clinux_o_direct, exclusive)
        guard
          let claim = DirectAlignment.of(
            candidate.descriptor, options.directAnswer, isBlockDevice: isBlockDevice, isInMemory: system?.isInMemory ?? false)
        else { throw .noDirect(path: path) }
        guard claim.offset <= blockSize else {
          throw .directNeedsLargerBlocks(path: path, alignment: claim.offset, blockSize: blockSize)
        }
        direct = DirectTrial.tried(claim, candidate.descriptor, size: size)
        owner = candidate
      } catch {
        switch error {
        case .held: throw error
        case .directNeedsLargerBlocks where options.direct == .on: throw error
        default: if options.direct == .on { throw .noDirect(path: path) }
        }
      }
    }
    if direct == nil, let exclusive { owner = try Self.open(options, 0, exclusive) }
    // Only to open a FIFO or a busy device without hanging.
    _ = clinux_fcntl_int(owner.descriptor, F_SETFL, Self.access(options) | (direct == nil ? 0 : clinux_o_direct))
    var isLocked = false
    if isToBeLocked { isLocked = try ImageLock.take(owner.descriptor, path: path, isReadOnly: options.isReadOnly) }
    if options.lock != nil { ImageLock.markTaker(owner.descriptor, isReadOnly: options.isReadOnly) }

    var description = ImageDescription(
      size: size, logicalBlockSize: blockSize,
      physicalBlockSize: max(blockSize, Self.physicalBlockSize(owner.descriptor, info, isBlockDevice: isBlockDevice)))
    description.topology = BlockTopology(
      logicalBlock: blockSize, physicalBlock: description.physicalBlockSize, device: isBlockDevice ? device : nil)
    description.discardAlignment = description.physicalBlockSize
    if isBlockDevice {
      let granularity = device.queueNumber("discard_granularity")
      if granularity <= 1 << 30, granularity > 0, granularity % UInt64(blockSize) == 0 {
        description.discardAlignment = Int(granularity)
      }
    }
    description.isReadOnly = options.isReadOnly
    description.isBlockDevice = isBlockDevice
    description.isDirect = direct != nil
    description.memoryAlignment = direct?.memory ?? 1
    description.offsetAlignment = direct?.offset ?? 1
    description.isInMemory = system?.isInMemory ?? device.isMemory
    description.fillsHolesWhenTouched = system?.isOfPages ?? false
    description.isCached = direct == nil && system?.isLocal ?? false
    description.canDiscard =
      !options.isReadOnly
      && (system?.canPunch(owner.descriptor, size: size) ?? (device.queueNumber("discard_max_bytes") > 0))
    description.canPoll = direct != nil && device.queueNumber("io_poll") > 0
    description.serial = ImageIdentity.serial(path: path, owner.descriptor, info, isBlockDevice: isBlockDevice)
    let zones: ZonedDisk?
    do throws(ZoneFailure) {
      zones = try options.zoned.map { zoned throws(ZoneFailure) in try ZonedDisk(of: description, path: path, zoned) }
    } catch { throw .zones(error) }
    let owned = OwnedDescriptor(owner.release())
    return Parts(
      path: path, description: description, owned: owned,
      lock: options.lock ?? (isLocked || exclusive != nil ? owned : nil),
      // A lock that came from the old server belongs to it until it releases it.
      ownsLock: options.lock == nil,
      lifetime: (options.systemFolder ?? (isBlockDevice ? device.folder : nil)).flatMap(LifetimeFiles.init), zones: zones)
  }

  deinit {
    OwnImages.remove(self)
    // Before somebody else can open it. The last release may happen on a thread that is not allowed to truncate a file.
    chain?.writer?.finish(mayCut: false)
    // A ring that is being torn down in the kernel may hold the file for a moment longer; the locks must not wait for that.
    // Nothing is in flight in it.
    if let lock, lock !== owned { ImageLock.release(descriptor) }
    if let lock, ownsLock.load(ordering: .relaxed) { ImageLock.release(lock.rawValue) }
    lifetime?.end()
  }

  /// Finishes an image that is no longer used: a qcow2 image releases what was allocated ahead, and an image of a cluster is
  /// closed. It waits for the medium, so it is for a helper, or for a process that is about to end; without this call, the last
  /// release of the image does that.
  public func finish() {
    chain?.writer?.finish(mayCut: true)
    rbd?.close()
  }

  /// `finish` has something to do.
  public var needsFinish: Bool { keepsTables || rbd != nil }

  /// Only this process may write to the image in its cluster, and that right cannot be handed over.
  public var isHeldAtCluster: Bool { rbd != nil && !isReadOnly }

  /// What is written to it on one connection may not be visible on others.
  public var isForOneConnection: Bool { export.map { !isReadOnly && !$0.facts.canMultiConn } ?? false }

  /// It has no file or device on this machine: it is an NBD export, or an image of a cluster.
  public var isOnServer: Bool { export != nil || rbd != nil }

  /// This process caches its tables and writes them: no other process can continue with them.
  public var keepsTables: Bool { chain?.writer != nil }

  /// Another process continues with the lock: it is not released with this image.
  public func leaveLock() { ownsLock.store(false, ordering: .relaxed) }

  /// The server that had the lock no longer needs it: from now on it is released with this image.
  public func ownLock() { ownsLock.store(true, ordering: .relaxed) }

  /// The server that had the image knows that it is served here. Until then `isBeingTaken` is true for it. Locks of a file on a
  /// network may be slow.
  public func endTaking() { ImageLock.unmarkTaker(descriptor) }

  /// A server that takes the image over from this one is running, or is gone while the kernel still executes what it had
  /// submitted. False also if there are no locks. Locks of a file on a network may be slow.
  public var isBeingTaken: Bool { ImageLock.hasTaker(descriptor) }

  // MARK: Opening

  /// A descriptor that is closed unless it is released.
  private struct Opened: ~Copyable {
    let descriptor: Int32
    init(_ descriptor: Int32) { self.descriptor = descriptor }
    consuming func release() -> Int32 {
      let descriptor = descriptor
      discard self
      return descriptor
    }
    deinit { close(descriptor) }
  }

  private static func access(_ options: ImageOptions) -> Int32 { (options.isReadOnly ? O_RDONLY : O_RDWR) | O_CLOEXEC }

  /// A ring that is being torn down, our own of a moment ago or that of a killed server, keeps its device open until the kernel
  /// has finished with it. So opening is retried this often, with this pause (microseconds), before the device is reported as
  /// in use.
  private static let attempts = 200
  private static let pause: UInt32 = 10_000

  /// - Parameter exclusive: the device, to be opened exclusively.
  private static func open(
    _ options: ImageOptions, _ more: Int32 = 0, _ exclusive: SystemDevice? = nil
  ) throws(ImageError) -> Opened {
    let flags = access(options) | O_NONBLOCK | more | (exclusive == nil ? 0 : O_EXCL)
    let path = options.path
    var attempt = 1
    while true {
      let descriptor = system(options, flags)
      guard descriptor < 0 else { return Opened(descriptor) }
      let error = Errno(rawValue: errno)
      switch error {
      case .resourceBusy where exclusive != nil:
        let holder = exclusive.flatMap(BlockDeviceHolder.describe)
        guard holder == nil, attempt < attempts else {
          throw .held(path: path, holder: holder ?? "another program has it open exclusively")
        }
        attempt += 1
        usleep(pause)
      case .permissionDenied, .notPermitted, .readOnlyFileSystem, .textFileBusy:
        if options.isReadOnly { throw .cannotOpen(path: path, error) }
        throw .notWritable(path: path, error)
      case .isDirectory: throw .notAFile(path: path)
      default: throw .cannotOpen(path: path, error)
      }
    }
  }

  /// The bare system call.
  private static func system(_ options: ImageOptions, _ flags: Int32) -> Int32 {
    guard let bytes = options.pathBytes else { return unsafe clinux_open(options.path, flags, 0) }
    return unsafe bytes.withUnsafeBufferPointer { unsafe clinux_open($0.baseAddress!, flags, 0) }
  }

  /// The size, bytes; never 0.
  private static func size(
    _ descriptor: Int32, _ info: stat, _ options: ImageOptions, isBlockDevice: Bool
  ) throws(ImageError) -> UInt64 {
    let path = options.path
    var size = UInt64(max(info.st_size, 0))
    if isBlockDevice {
      guard unsafe clinux_block_size64(descriptor, &size) == 0 else { throw .cannotOpen(path: path, Errno(rawValue: errno)) }
      var readOnly: Int32 = 0
      if !options.isReadOnly, unsafe clinux_block_read_only(descriptor, &readOnly) == 0, readOnly != 0 {
        throw .notWritable(path: path, .readOnlyFileSystem)
      }
    }
    guard size > 0 else { throw .empty(path: path) }
    return size
  }

  private static func physicalBlockSize(_ descriptor: Int32, _ info: stat, isBlockDevice: Bool) -> Int {
    var size: UInt32 = 0
    if isBlockDevice, unsafe clinux_block_physical_size(descriptor, &size) == 0 { return Int(size) }
    let preferred = Int(info.st_blksize)
    return preferred >= 512 && preferred <= 65536 && preferred & (preferred - 1) == 0 ? preferred : 4096
  }

  private static func isSame(_ descriptor: Int32, _ info: stat) -> Bool {
    var other = stat()
    guard unsafe fstat(descriptor, &other) == 0, other.st_mode & S_IFMT == info.st_mode & S_IFMT else { return false }
    return info.st_mode & S_IFMT == S_IFBLK
      ? other.st_rdev == info.st_rdev : (other.st_dev, other.st_ino) == (info.st_dev, info.st_ino)
  }
}

/// The parts of its description that are used most.
extension ImageFile {
  /// The present size, bytes: a disk can be resized.
  public var size: UInt64 { state.size.loadRelaxed() }
  /// Bytes that requests are multiples of: a power of two, 512 to 65536.
  public var logicalBlockSize: Int { description.logicalBlockSize }
  /// Bytes that the medium writes efficiently at once.
  public var physicalBlockSize: Int { description.physicalBlockSize }
  /// The guest may only read.
  public var isReadOnly: Bool { description.isReadOnly }
  /// It is a block device of this machine, not a file.
  public var isBlockDevice: Bool { description.isBlockDevice }
  /// Requests bypass the page cache.
  public var isDirect: Bool { description.isDirect }
  /// What a buffer's address must be a multiple of, bytes; 1: any address will do.
  public var memoryAlignment: Int { description.memoryAlignment }
  /// The medium is memory, so that a call never blocks.
  public var isInMemory: Bool { description.isInMemory }
  /// It is served through a page cache that is authoritative: no other machine changes the file.
  public var isCached: Bool { description.isCached }
  /// Space can be deallocated.
  public var canDiscard: Bool { description.canDiscard }
  /// The underlying device has queues that are polled.
  public var canPoll: Bool { description.canPoll }
  var fillsHolesWhenTouched: Bool { description.fillsHolesWhenTouched }
}
