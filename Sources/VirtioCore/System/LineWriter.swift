/// Lines of output, written by a separate thread: a reader that is slow, or gone, holds up nothing.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage

/// Writes lines to a descriptor in order. `write` never blocks; lines that do not fit into the queue are dropped and counted,
/// and the count is reported as soon as the reader reads again. A reader that is gone loses its lines and nothing else happens.
public final class LineWriter: Sendable {
  /// Bytes of lines that may wait to be written.
  public static let room = 256 << 10

  private struct State {
    var lines: [String] = []
    /// Bytes of `lines`.
    var bytes = 0
    var dropped = 0
    /// The thread exists, and looks at `lines` again before it ends.
    var isWriting = false
  }

  private let descriptor: Int32
  private let room: Int
  private let wordsForDropped: @Sendable (Int) -> String
  private let state = Mutex(State())

  /// - Parameters:
  ///   - descriptor: owned by the caller, and open for as long as this object is used. Its flags are not changed.
  ///   - room: bytes that may wait to be written.
  ///   - dropped: the line that tells how many lines were dropped.
  public init(
    descriptor: Int32, room: Int = LineWriter.room,
    dropped: @escaping @Sendable (Int) -> String = { "\($0) lines were dropped because nobody read them" }
  ) {
    self.descriptor = descriptor
    self.room = room
    wordsForDropped = dropped
  }

  /// Enqueues one line.
  ///
  /// - Parameter line: without a line feed, and printable: nothing is escaped here.
  public func write(_ line: String) {
    let isFirst = state.withLock { state in
      let count = line.utf8.count + 1
      guard state.dropped == 0, count <= room - state.bytes else {
        state.dropped += 1
        return false
      }
      state.lines.append(line)
      state.bytes += count
      guard !state.isWriting else { return false }
      state.isWriting = true
      return true
    }
    guard isFirst else { return }
    // The thread exists only while there is something to write, so that a quiet program has none.
    do { _ = try SystemThread(name: "lines") { self.run() } } catch {
      // Without a thread, as much is written as fits without blocking; the rest stays until the next line.
      writeWithoutWaiting()
    }
  }

  /// Waits until everything is written. It gives up after `limit` only if the reader does not read; while the descriptor takes
  /// more, the thread has merely not been scheduled on a busy machine, and gets ten more seconds.
  ///
  /// - Returns: false if something is left.
  @discardableResult
  public func flush(within limit: Duration) -> Bool {
    let end = ContinuousClock.now + limit
    while state.withLock({ $0.isWriting || !$0.lines.isEmpty }) {
      let now = ContinuousClock.now
      guard now < end || (hasRoom && now < end + .seconds(10)) else { return false }
      usleep(500)
    }
    return true
  }

  /// Whether a write would not block.
  private var hasRoom: Bool {
    var entry = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
    return unsafe poll(&entry, 1, 0) == 1
  }

  // MARK: The thread

  private func run() {
    ThreadRole.lines.begin()
    while let text = take() {
      var bytes = Array(text.utf8)[...]
      while !bytes.isEmpty {
        let written = put(bytes)
        guard written >= 0 else { break }  // the reader is gone
        bytes = bytes.dropFirst(written)
        if written == 0 { waitForRoom() }
      }
    }
  }

  /// All waiting lines, as one text; `nil` if there are none, and then the thread must end.
  private func take() -> String? {
    state.withLock { state in
      var lines = state.lines
      if state.dropped > 0 { lines.append(wordsForDropped(state.dropped)) }
      (state.lines, state.bytes, state.dropped) = ([], 0, 0)
      state.isWriting = !lines.isEmpty
      return lines.isEmpty ? nil : lines.joined(separator: "\n") + "\n"
    }
  }

  private func writeWithoutWaiting() {
    if hasRoom, let text = take() { _ = put(Array(text.utf8)[...]) }
    state.withLock { $0.isWriting = false }
  }

  /// - Returns: bytes written, 0 if there is no room at present, or a negative number if the reader is gone.
  private func put(_ bytes: ArraySlice<UInt8>) -> Int {
    while true {
      let count = unsafe bytes.withUnsafeBytes { unsafe Glibc.write(descriptor, $0.baseAddress, $0.count) }
      if count >= 0 { return count }
      switch errno {
      case EINTR: continue
      case EAGAIN: return 0
      default: return -1
      }
    }
  }

  private func waitForRoom() {
    var entry = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
    _ = unsafe poll(&entry, 1, -1)
  }
}
