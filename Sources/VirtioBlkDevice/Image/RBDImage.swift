/// An image of a Ceph cluster, for all queues of a disk: one handle, and its state.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// The image, and how it is opened.
public struct RBDOptions: Sendable, Hashable {
  /// The image, and how its cluster is found.
  public var location: RBDLocation
  /// Break another client's lock; the cluster then rejects all requests of that client.
  public var breaksLock = false
  /// Seconds that the cluster's monitors may take to answer, and each step after that.
  var connectTimeout = 10
  var openTimeout = 20
  /// Seconds to wait for a client that has the lock: a dead client counts as alive until its watch times out in the cluster,
  /// which takes half a minute by default.
  var ownerTimeout = 35

  /// Seconds, each. The library has the first limit, too.
  var connectLimit: Int { connectTimeout + 5 }
  var lockLimit: Int { ownerTimeout + openTimeout }
  var longestOpening: Int { connectLimit + openTimeout + lockLimit }

  /// With the default time limits, and without breaking a lock.
  public init(_ location: RBDLocation) { self.location = location }
}

@safe
final class RBDImage: @unchecked Sendable {
  let options: RBDOptions
  /// As they were when it was opened.
  let facts: RBDFacts
  private let handles: RBDHandles
  private let watch: RBDWatch?
  private let resized = Mutex<Callback<UInt64>?>(nil)
  private let fenced = Atomic<Bool>(false)
  private let state = Mutex(State())

  private struct State {
    /// Engines that may request something.
    var users = 0
    var isClosed = false
    /// A thread is querying its size.
    var isLooking = false
    /// It has changed since its size was last queried.
    var hasChanged = false
  }

  var uri: String { options.location.text }
  var functions: UnsafeMutablePointer<clinux_rbd> { unsafe handles.library.functions }
  var image: UnsafeMutableRawPointer? { unsafe handles.image }

  /// Opens the image. Waits for the cluster, but not forever. - Throws: why it cannot be opened.
  init(
    _ options: RBDOptions, isReadOnly: Bool, isLocked: Bool, patience: OpeningPatience = OpeningPatience()
  ) throws(RBDFailure) {
    self.options = options
    let opened = try RBDOpening.open(options, isReadOnly: isReadOnly, isLocked: isLocked, patience: patience)
    (handles, facts, watch) = (opened.handles, opened.facts, opened.watch)
    watch?.tell(self)
  }

  deinit {
    guard !state.withLock(\.isClosed) else { return }
    // Closing may wait for the cluster, and the caller must not.
    RBDSupport.closing.wrappingAdd(1, ordering: .relaxed)
    let body: @Sendable () -> Void = { [handles, watch] in
      watch?.end()
      handles.close()
      RBDSupport.closing.wrappingSubtract(1, ordering: .releasing)
    }
    // Without a thread it stays open, and the process ends without the libraries' exit handlers.
    do throws(Errno) { _ = try SystemThread(name: "rbd close", stackSize: Self.stackSize, body) } catch {
      RBDSupport.closing.wrappingSubtract(1, ordering: .releasing)
    }
  }

  private static let stackSize = 8 << 20
  /// Microseconds between checks for engines that still use it.
  private static let pause: UInt32 = 1000

  // MARK: Use

  /// Registers an engine, which may make requests from now on. - Returns: false if the image is closed.
  func enter() -> Bool {
    state.withLock { state in
      guard !state.isClosed else { return false }
      state.users += 1
      return true
    }
  }

  func leave() { state.withLock { $0.users -= 1 } }

  /// Closes the image once, when no engine uses it any more. Waits for that and for the cluster.
  func close() {
    while true {
      let (isClosed, mayClose) = state.withLock { state in
        let before = state.isClosed
        if state.users == 0 { state.isClosed = true }
        return (before, state.isClosed)
      }
      guard !isClosed else { return }
      guard !mayClose else { break }
      usleep(Self.pause)
    }
    RBDSupport.closing.wrappingAdd(1, ordering: .relaxed)
    watch?.end()
    handles.close()
    RBDSupport.closing.wrappingSubtract(1, ordering: .releasing)
  }

  /// - Parameter body: is told the size in bytes when the image has changed, even if it changed before this call; on another
  ///   thread, one change after the other.
  func whenResized(_ body: @escaping @Sendable (UInt64) -> Void) {
    resized.withLock { $0 = Callback(body) }
    look()
  }

  /// Something about the image has changed. Called on a thread of the library, which must not wait.
  func hasChanged() {
    state.withLock { $0.hasChanged = true }
    look()
  }

  /// Queries the size if the image has changed, on a thread that waits for the cluster. There is only one at a time, so what is
  /// reported last is what was seen last.
  private func look() {
    guard let told = resized.withLock(\.self) else { return }
    let isMine = state.withLock { state in
      guard state.hasChanged, !state.isLooking, !state.isClosed else { return false }
      state.isLooking = true
      state.users += 1
      return true
    }
    guard isMine else { return }
    let work: @Sendable () -> Void = { [self] in
      while mayLook() { if let size = handles.settledSize { told.call(size) } }
    }
    do throws(Errno) { _ = try SystemThread(name: "rbd size", stackSize: Self.stackSize, work) } catch {
      // The size is queried at the next change, or on request.
      state.withLock { state in
        state.isLooking = false
        state.users -= 1
      }
    }
  }

  /// - Returns: false if nothing has changed since the last query; the thread then ends.
  private func mayLook() -> Bool {
    state.withLock { state in
      if state.hasChanged {
        state.hasChanged = false
        return true
      }
      state.isLooking = false
      state.users -= 1
      return false
    }
  }

  /// The present size, bytes. Waits for the cluster.
  func measure() throws(RBDFailure) -> UInt64 {
    guard enter() else { throw .closed(uri: uri) }
    defer { leave() }
    guard let size = handles.size else { throw .noImage(uri: uri, name: options.location.name, .ioError) }
    return size
  }

  /// Makes everything stable that was written before. Waits for the cluster. - Returns: an errno; 0 if it succeeded.
  func flush() -> Int32 {
    guard enter() else { return EBADF }
    defer { leave() }
    return -min(unsafe functions.pointee.flush(image), 0)
  }

  // MARK: Fenced

  /// The cluster no longer accepts requests from this client.
  var isFenced: Bool { fenced.load(ordering: .relaxed) }

  /// - Returns: what to log, once for all queues.
  func fence() -> String? {
    guard !fenced.exchange(true, ordering: .relaxed) else { return nil }
    return
      "the Ceph cluster has fenced this client of \(uri), because its lock was broken or it was put on the "
      + "blocklist: its queues stop, and requests that were not answered are not executed; start the server again when nobody else has the image"
  }
}
