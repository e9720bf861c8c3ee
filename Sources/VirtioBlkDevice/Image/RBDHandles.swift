/// An image of a Ceph cluster in librbd: three pointers, opened one after the other and closed in reverse order.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// What is known about an image when it is opened.
struct RBDFacts: Sendable, Equatable {
  /// Bytes.
  var size: UInt64
  /// The unit in which a discard deallocates space, bytes; smaller ranges are left as they are.
  var discardGranularity: UInt64
  /// What distinguishes it from every other image anywhere.
  var identity: String
}

/// A connection, a pool in it, and an image in that. Everything here may wait for the cluster, possibly forever.
@safe
struct RBDHandles: @unchecked Sendable {
  let library: RBDLibrary
  private(set) var cluster: UnsafeMutableRawPointer?
  private(set) var context: UnsafeMutableRawPointer?
  private(set) var image: UnsafeMutableRawPointer?
  private var isLocked = false

  init(_ library: RBDLibrary) { self.library = library }

  private var functions: clinux_rbd { unsafe library.functions.pointee }

  /// RBD_LOCK_MODE_EXCLUSIVE.
  private static let exclusive: Int32 = 0
  /// RBD_FEATURE_EXCLUSIVE_LOCK.
  private static let lockFeature: UInt64 = 1 << 2

  // MARK: Opening

  mutating func connect(_ options: RBDOptions) throws(RBDFailure) {
    let location = options.location
    var cluster: UnsafeMutableRawPointer?
    let created = unsafe functions.rados_create(&cluster, location.user ?? "admin")
    guard created >= 0, let cluster = unsafe cluster else { throw .noConnection(uri: location.text, Errno(of: created)) }
    unsafe self.cluster = cluster
    RBDSupport.open.wrappingAdd(1, ordering: .relaxed)
    let read =
      if let path = location.configuration { unsafe functions.rados_conf_read_file(cluster, path) } else {
        unsafe functions.rados_conf_read_file(cluster, nil)
      }
    guard read >= 0 else { throw .noConfiguration(path: location.configuration, Errno(of: read)) }
    let settings = [
      // This program reports failures itself.
      ("log_to_stderr", "false"), ("err_to_stderr", "false"), ("client_mount_timeout", "\(options.connectTimeout)"),
    ]
    for (name, value) in settings + RBDSettings.wanted { _ = unsafe functions.rados_conf_set(cluster, name, value) }
    let connected = unsafe functions.rados_connect(cluster)
    guard connected >= 0 else { throw .noConnection(uri: location.text, Errno(of: connected)) }
  }

  mutating func open(_ options: RBDOptions, isReadOnly: Bool) throws(RBDFailure) {
    let location = options.location
    let uri = location.text
    var context: UnsafeMutableRawPointer?
    let pool = unsafe functions.rados_ioctx_create(cluster, location.pool, &context)
    guard pool >= 0, let context = unsafe context else { throw .noPool(uri: uri, pool: location.pool, Errno(of: pool)) }
    unsafe self.context = context
    if !location.namespace.isEmpty { unsafe functions.rados_ioctx_set_namespace(context, location.namespace) }
    var image: UnsafeMutableRawPointer?
    let opened: Int32
    if let snapshot = location.snapshot {
      opened = unsafe functions.open_read_only(context, location.image, &image, snapshot)
    } else {
      opened =
        unsafe isReadOnly
        ? functions.open_read_only(context, location.image, &image, nil) : functions.open(context, location.image, &image, nil)
    }
    guard opened >= 0, let image = unsafe image else {
      throw .noImage(uri: uri, name: location.name, Errno(of: opened))
    }
    unsafe self.image = image
    // The settings of the image or the pool override those of a client.
    let settings: RBDSettings
    do throws(Errno) { settings = try self.settings() } catch { throw .noImage(uri: uri, name: location.name, error) }
    if let other = settings.others(isReadOnly: isReadOnly || location.snapshot != nil).first {
      throw .setOtherwise(uri: uri, setting: other.name, value: other.value, remedy: other.remedy(for: location))
    }
  }

  /// The settings in effect for the image. - Throws: why the library does not report them.
  private func settings() throws(Errno) -> RBDSettings {
    var room = 256
    while true {
      let found = unsafe withUnsafeTemporaryAllocation(of: clinux_rbd_setting.self, capacity: room) {
        list -> Result<RBDSettings, Errno> in
        var count = Int32(room)
        let result = unsafe functions.config_image_list(image, list.baseAddress, &count)
        guard result >= 0 else {
          room = max(room + 1, Int(count))
          return .failure(Errno(of: result))
        }
        defer { unsafe functions.config_image_list_cleanup(list.baseAddress, count) }
        return .success(
          RBDSettings(
            (0..<Int(count)).compactMap { index in
              guard let name = unsafe list[index].name, let value = unsafe list[index].value else { return nil }
              return unsafe RBDSettings.Setting(
                name: String(cString: name), value: String(cString: value), source: list[index].source)
            }))
      }
      switch found {
      case .success(let settings): return settings
      case .failure(.outOfRange) where room < Self.mostSettings: continue
      case .failure(let error): throw error
      }
    }
  }

  private static let mostSettings = 4096

  /// What the cluster reports about the image.
  func facts(_ location: RBDLocation) throws(RBDFailure) -> RBDFacts {
    let size = size
    guard let size else { throw .noImage(uri: location.text, name: location.name, .ioError) }
    let granularity = (try? settings())?["rbd_discard_granularity_bytes"]
    let fsid = unsafe text(64) { unsafe functions.rados_cluster_fsid(cluster, $0, $1) }
    let id = unsafe text(256) { unsafe functions.get_id(image, $0, $1) }
    return RBDFacts(
      size: size, discardGranularity: granularity.flatMap { UInt64($0) } ?? 65536,
      identity: [fsid, location.pool, id, location.snapshot].map { $0 ?? "" }.joined(separator: " "))
  }

  private func text(_ size: Int, _ body: (UnsafeMutablePointer<CChar>, Int) -> Int32) -> String? {
    unsafe withUnsafeTemporaryAllocation(of: CChar.self, capacity: size) { buffer in
      unsafe buffer.initialize(repeating: 0)
      return unsafe body(buffer.baseAddress!, size - 1) < 0 ? nil : String(cString: buffer.baseAddress!)
    }
  }

  /// The present size, bytes; `nil` if the cluster does not report it.
  var size: UInt64? {
    var size: UInt64 = 0
    return unsafe functions.get_size(image, &size) < 0 ? nil : size
  }

  /// The same, but not before its last byte can be read and written: the owner of the lock executes a resize that another
  /// client requested, and reports the new size shortly before it has finished.
  var settledSize: UInt64? {
    for _ in 0..<Self.settlingLooks {
      guard let size, size > 0 else { return size }
      var byte: CChar = 0
      if unsafe functions.read(image, size - 1, 1, &byte) == 1 { return size }
      usleep(Self.settlingPause)
    }
    return size
  }

  private static let settlingLooks = 1000
  /// Microseconds.
  private static let settlingPause: UInt32 = 5000

  // MARK: The lock

  /// Acquires the exclusive lock: nobody else can write to the image until it is closed, or the lock is broken.
  ///
  /// - Parameter isWanted: called before anything is done to other clients.
  mutating func lock(_ options: RBDOptions, isWanted: () -> Bool) throws(RBDFailure) {
    let location = options.location
    let uri = location.text
    var features: UInt64 = 0
    guard unsafe functions.get_features(image, &features) >= 0, features & Self.lockFeature != 0 else {
      throw .noExclusiveLock(uri: uri, name: location.name)
    }
    // A client that shares the lock would hand it over, and could not write any more. The cluster knows by a client's watch
    // whether the client is alive; the watch of a dead client remains for a while.
    let end = Clock.now &+ UInt64(options.ownerTimeout) &* 1_000_000_000
    var breaks = 0
    while let owner = try owners(uri).first {
      guard isWanted() else { throw .givenUp(uri: uri) }
      // Other clients may acquire it quickly after that.
      if options.breaksLock, breaks < Self.mostClients {
        breaks += 1
        let broken = unsafe functions.lock_break(image, Self.exclusive, owner)
        // Another client that also breaks the lock may have been faster.
        guard broken >= 0 || [-ENOENT, -EBUSY, -EAGAIN].contains(broken) else { throw .cannotLock(uri: uri, Errno(of: broken)) }
        continue
      }
      guard try watchers(uri).contains(owner) else { break }
      guard Clock.now < end else { throw .locked(uri: uri, owner: owner) }
      usleep(Self.pause)
    }
    guard isWanted() else { throw .givenUp(uri: uri) }
    let result = unsafe functions.lock_acquire(image, Self.exclusive)
    guard result >= 0 else {
      if result == -EROFS || result == -EBUSY, let owner = try owners(uri).first { throw .locked(uri: uri, owner: owner) }
      throw .cannotLock(uri: uri, Errno(of: result))
    }
    isLocked = true
  }

  /// Microseconds between checks of who has the lock.
  private static let pause: UInt32 = 200_000
  private static let mostClients = 32

  /// Addresses of clients that have the lock. - Throws: `cannotLock`: it is unknown who has the lock, which does not mean that
  /// nobody has it.
  private func owners(_ uri: String) throws(RBDFailure) -> [String] {
    try unsafe clients(uri, of: UnsafeMutablePointer<CChar>?.self, isNobody: -ENOENT) { list, count in
      var mode: Int32 = 0
      return unsafe functions.lock_get_owners(image, &mode, list.baseAddress, &count)
    } cleanUp: {
      unsafe functions.lock_get_owners_cleanup($0.baseAddress, $1)
    } address: {
      unsafe $0.map { unsafe String(cString: $0) }
    }
  }

  /// Addresses of clients that have the image open to write. - Throws: `cannotLock`.
  private func watchers(_ uri: String) throws(RBDFailure) -> [String] {
    try unsafe clients(uri, of: clinux_rbd_watcher.self) { list, count in
      unsafe functions.watchers_list(image, list.baseAddress, &count)
    } cleanUp: {
      unsafe functions.watchers_list_cleanup($0.baseAddress, $1)
    } address: {
      unsafe $0.address.map { unsafe String(cString: $0) }
    }
  }

  /// - Parameters:
  ///   - isNobody: the library's error code for an empty list; 0: it has none.
  ///   - list: fills the list, up to the count, and sets the count to how many there are.
  private func clients<Client>(
    _ uri: String, of type: Client.Type, isNobody: Int32 = 0,
    _ list: (UnsafeMutableBufferPointer<Client>, inout Int) -> Int32,
    cleanUp: (UnsafeMutableBufferPointer<Client>, Int) -> Void, address: (Client) -> String?
  ) throws(RBDFailure) -> [String] {
    var room = Self.mostClients
    while true {
      var result: Int32 = 0
      let found = unsafe withUnsafeTemporaryAllocation(of: type, capacity: room) { buffer -> [String] in
        var count = room
        result = unsafe list(buffer, &count)
        guard result >= 0 else {
          // There are more by now.
          room = max(room + Self.mostClients, min(count, Self.tooManyClients))
          return []
        }
        defer { unsafe cleanUp(buffer, count) }
        return (0..<min(count, buffer.count)).compactMap { unsafe address(buffer[$0]) }
      }
      if result >= 0 || result == isNobody { return found }
      guard result == -ERANGE, room < Self.tooManyClients else { throw .cannotLock(uri: uri, Errno(of: result)) }
    }
  }

  private static let tooManyClients = 1 << 16

  // MARK: The end

  /// Closes everything that was opened. To be called once, when nothing is in flight.
  func close() {
    if let image = unsafe image {
      if isLocked { _ = unsafe functions.lock_release(image) }
      _ = unsafe functions.close(image)
    }
    if let context = unsafe context { unsafe functions.rados_ioctx_destroy(context) }
    guard let cluster = unsafe cluster else { return }
    unsafe functions.rados_shutdown(cluster)
    RBDSupport.open.wrappingSubtract(1, ordering: .releasing)
  }
}

extension Errno {
  /// - Parameter result: a negative errno; anything else becomes an I/O error.
  init(of result: Int32) { self = result < 0 ? Errno(rawValue: 0 &- result) : .ioError }
}
