/// Opens an image of a Ceph cluster on a thread of its own: every step may wait forever, and whoever opens does not.
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
    /// `nil` where the cluster does not tell of changes.
    let watch: RBDWatch?
  }

  private let options: RBDOptions
  private let isReadOnly: Bool
  private let isLocked: Bool
  private let library: RBDLibrary
  private let stage = Mutex(Stage.connecting)
  private let news = DispatchSemaphore(value: 0)

  /// The library's own, which are not small.
  private static let stackSize = 8 << 20

  /// - Returns: the image, and locked if it is to be.
  static func open(_ options: RBDOptions, isReadOnly: Bool, isLocked: Bool) throws(RBDFailure) -> Opened {
    let opening = RBDOpening(options, try RBDLibrary.find(), isReadOnly: isReadOnly, isLocked: isLocked)
    do throws(Errno) { _ = try SystemThread(name: "rbd open", stackSize: stackSize) { opening.run() } } catch {
      throw .noThread(error)
    }
    return try opening.wait()
  }

  private init(_ options: RBDOptions, _ library: RBDLibrary, isReadOnly: Bool, isLocked: Bool) {
    (self.options, self.library) = (options, library)
    (self.isReadOnly, self.isLocked) = (isReadOnly, isLocked)
  }

  private func wait() throws(RBDFailure) -> Opened {
    while true {
      let seconds = stage.withLock { limit(of: $0) }
      let hasNews = news.wait(timeout: .now() + .seconds(seconds)) == .success
      let result = stage.withLock { stage -> Result<Opened, RBDFailure>? in
        if case .over(let result) = stage { return result }
        guard !hasNews else { return nil }
        stage = .abandoned
        return .failure(.noAnswer(uri: options.location.text, seconds: seconds))
      }
      if let result { return try result.get() }
    }
  }

  /// Seconds.
  private func limit(of stage: Stage) -> Int {
    switch stage {
    // The library knows that limit, too.
    case .connecting: options.connectTimeout + 5
    case .opening: options.openTimeout
    case .locking: options.ownerTimeout + options.openTimeout
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
      advance(to: .opening)
      try handles.open(options, isReadOnly: isReadOnly)
      if isLocked, !isReadOnly {
        advance(to: .locking)
        try handles.lock(options)
      }
      let facts = try handles.facts(options.location)
      result = .success(Opened(handles: handles, facts: facts, watch: RBDWatch(handles)))
    } catch { result = .failure(error) }
    // Before it is said that it is over: whoever ends the process then waits for this.
    RBDSupport.closing.wrappingAdd(1, ordering: .relaxed)
    advance(to: .over(result))
    switch result {
    case .success(let opened) where isAbandoned:
      opened.watch?.end()
      handles.close()
    case .success: break
    case .failure: handles.close()
    }
    RBDSupport.closing.wrappingSubtract(1, ordering: .releasing)
  }

  private var isAbandoned: Bool { stage.withLock { if case .abandoned = $0 { true } else { false } } }

  private func advance(to next: Stage) {
    stage.withLock { stage in
      if case .abandoned = stage { return }
      stage = next
    }
    news.signal()
  }
}
