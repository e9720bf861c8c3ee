/// Opens an image of a Ceph cluster on a separate thread: every step may wait forever, but the caller does not.
internal import Dispatch
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

final class RBDOpening: Sendable {
  private enum Stage {
    case connecting, opening, locking
    case over(Result<Opened, RBDFailure>)
    /// Nobody waits any more.
    case abandoned
  }

  struct Opened: Sendable {
    let handles: RBDHandles
    let facts: RBDFacts
    /// `nil` if the cluster does not report changes.
    let watch: RBDWatch?
  }

  private let options: RBDOptions
  private let patience: OpeningPatience
  private let isReadOnly: Bool
  private let isLocked: Bool
  private let library: RBDLibrary
  private let stage = Mutex(Stage.connecting)
  private let news = DispatchSemaphore(value: 0)

  /// That of the library's own threads, which is not small.
  private static let stackSize = 8 << 20

  /// - Parameter patience: the caller's; once it is over, nothing more is done to the image.
  /// - Returns: the image, locked if `isLocked` is set and it is not read-only.
  static func open(
    _ options: RBDOptions, isReadOnly: Bool, isLocked: Bool, patience: OpeningPatience
  ) throws(RBDFailure) -> Opened {
    let opening = RBDOpening(options, try RBDLibrary.find(), patience, isReadOnly: isReadOnly, isLocked: isLocked)
    patience.extend(seconds: options.longestOpening)
    do throws(Errno) { _ = try SystemThread(name: "rbd open", stackSize: stackSize) { opening.run() } } catch {
      throw .noThread(error)
    }
    return try opening.wait()
  }

  private init(
    _ options: RBDOptions, _ library: RBDLibrary, _ patience: OpeningPatience, isReadOnly: Bool, isLocked: Bool
  ) {
    (self.options, self.library, self.patience) = (options, library, patience)
    (self.isReadOnly, self.isLocked) = (isReadOnly, isLocked)
  }

  private func wait() throws(RBDFailure) -> Opened {
    while true {
      let seconds = stage.withLock { limit(of: $0) }
      let end = DispatchTime.now() + .seconds(seconds)
      var hasNews = false
      while !hasNews, !patience.isOver, DispatchTime.now() < end {
        hasNews = news.wait(timeout: .now() + Self.pause) == .success
      }
      let result = stage.withLock { stage -> Result<Opened, RBDFailure>? in
        if case .over(let result) = stage { return result }
        guard !hasNews else { return nil }
        stage = .abandoned
        let uri = options.location.text
        return .failure(patience.isOver ? .givenUp(uri: uri) : .noAnswer(uri: uri, seconds: seconds))
      }
      if let result { return try result.get() }
    }
  }

  /// Time between checks of whether somebody still waits.
  private static let pause = DispatchTimeInterval.milliseconds(50)

  /// Seconds.
  private func limit(of stage: Stage) -> Int {
    switch stage {
    case .connecting: options.connectLimit
    case .opening: options.openTimeout
    case .locking: options.lockLimit
    case .over, .abandoned: 0
    }
  }

  /// The body of the thread. All threads of the library are made by it, or by one of them, and have its rights.
  private func run() {
    ThreadRole.cluster.begin()
    var handles = RBDHandles(library)
    let result: Result<Opened, RBDFailure>
    do throws(RBDFailure) {
      try handles.connect(options)
      try advance(to: .opening)
      try handles.open(options, isReadOnly: isReadOnly)
      if isLocked, !isReadOnly {
        try advance(to: .locking)
        try handles.lock(options) { isWanted }
      }
      // The watch comes first, so that no change after the facts is missed.
      let watch = RBDWatch(handles)
      do throws(RBDFailure) {
        result = .success(Opened(handles: handles, facts: try handles.facts(options.location), watch: watch))
      } catch {
        watch?.end()
        throw error
      }
    } catch { result = .failure(error) }
    // Counted before the result is reported, so that a process that ends then waits for this.
    RBDSupport.closing.wrappingAdd(1, ordering: .relaxed)
    let isTaken = proceed(to: .over(result))
    if case .success(let opened) = result, !isTaken { opened.watch?.end() }
    if case .success = result, isTaken {} else { handles.close() }
    RBDSupport.closing.wrappingSubtract(1, ordering: .releasing)
  }

  /// Somebody still waits.
  private var isWanted: Bool {
    guard !patience.isOver else { return false }
    return stage.withLock { if case .abandoned = $0 { false } else { true } }
  }

  /// - Throws: `givenUp`.
  private func advance(to next: Stage) throws(RBDFailure) {
    guard proceed(to: next) else { throw .givenUp(uri: options.location.text) }
  }

  /// - Returns: false if nobody waits any more.
  private func proceed(to next: Stage) -> Bool {
    let isWanted = stage.withLock { stage in
      if case .abandoned = stage { return false }
      stage = next
      return true
    }
    news.signal()
    return isWanted
  }
}
