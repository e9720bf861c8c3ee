/// Lines for readers, through a thread of their own: a reader that is slow, or gone, holds up nothing.
internal import CLinux
internal import Glibc
internal import Synchronization
internal import SystemPackage

/// Writes lines to a descriptor in their order. `write` never waits; what does not fit into the queue is counted and the count
/// is told as soon as somebody reads again. A reader that is gone costs its lines and nothing else.
public final class LineWriter: Sendable {
  /// Bytes of lines that may wait to be written.
  public static let room = 256 << 10

  private struct State {
    var lines: [String] = []
    /// Of `lines`.
    var bytes = 0
    var dropped = 0
    /// The thread is there, and looks at `lines` again before it goes.
    var isWriting = false
  }

  private let descriptor: Int32
  private let room: Int
  private let wordsForDropped: @Sendable (Int) -> String
  private let state = Mutex(State())

  /// - Parameters:
  ///   - descriptor: stays the caller's, and open for as long as this object is used. Its flags are left alone.
  ///   - room: bytes that may wait.
  ///   - dropped: the line that says how many were left out.
  public init(
    descriptor: Int32, room: Int = LineWriter.room,
    dropped: @escaping @Sendable (Int) -> String = { "\($0) lines were dropped because nobody read them" }
  ) {
    self.descriptor = descriptor
    self.room = room
    wordsForDropped = dropped
  }

  /// Writes one line soon.
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
    // A thread for as long as there is something to write, so that a program with nothing to say has none.
    do { _ = try SystemThread(name: "lines") { self.run() } } catch {
      // Without a thread, as much is written as fits without waiting; the rest stays until the next line.
      writeWithoutWaiting()
    }
  }

  /// Waits until everything is written. Only a reader that does not read makes it give up after `limit`; where there is room,
  /// the thread has merely not had its turn on a busy machine, and gets ten seconds more.
  ///
  /// - Returns: false when something is left.
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

  /// A write would not wait.
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
        guard written >= 0 else { break }  // nobody will ever read
        bytes = bytes.dropFirst(written)
        if written == 0 { waitForRoom() }
      }
    }
  }

  /// All that waits, as one text; `nil` when there is nothing, and then the thread is to end.
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

  /// - Returns: bytes written, 0 when there is no room at present, and a negative number when there will never be any.
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
