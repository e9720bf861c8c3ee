/// A log of what reached a medium, in the format of the kernel's dm-log-writes, so that tools for that format can read it.
internal import CLinux
internal import Glibc
internal import Synchronization
public import SystemPackage
internal import VirtioCore

/// A log of what reached a medium, in the format of the kernel's dm-log-writes.
///
/// Entries are in the order in which operations were done. What was done before a flush began comes before the flush, and what
/// was done since comes after it. So everything before a flush is stable after it, and so is an entry that is marked FUA.
public final class MediumLog: MediumWitness {
  /// The size of the log's own sectors, bytes.
  private static let sector = 512
  private static let magic: UInt64 = 0x6a_7366_7768_7372
  /// Flags of an entry.
  private enum Flag {
    static let flush: UInt64 = 1
    static let fua: UInt64 = 2
    static let discard: UInt64 = 4
  }

  private struct Entry {
    var offset: UInt64 = 0
    var length: UInt64 = 0
    var flags: UInt64
    var data: [UInt8] = []
  }
  private struct State {
    var end = off_t(MediumLog.sector)
    var entries: UInt64 = 0
    var isBroken = false
    var inFlight: [Int: MediumAction] = [:]
    var next = 0
    /// What was done since the first flush in flight began.
    var held: [Entry] = []
    /// Flushes in flight, oldest first, and how many entries of `held` each covers.
    var flushes: [(number: Int, covers: Int)] = []
  }

  private let file: OwnedDescriptor
  private let state = Mutex(State())
  private let failed: @Sendable (Errno) -> Void

  /// Begins a new log; the file's previous contents are lost.
  ///
  /// - Parameter failed: called once, on a queue's thread, if the log cannot be written any more: it ends there.
  public init(path: String, failed: @escaping @Sendable (Errno) -> Void) throws(Errno) {
    let descriptor = unsafe clinux_open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else { throw Errno(rawValue: errno) }
    file = OwnedDescriptor(descriptor)
    self.failed = failed
    var head = [UInt8](repeating: 0, count: Self.sector)
    Self.store([Self.magic, 1, 0, UInt64(Self.sector)], in: &head)
    guard Self.write(head, at: 0, to: descriptor) else { throw Errno(rawValue: errno) }
  }

  package func started(_ action: MediumAction) -> Int {
    state.withLock { state in
      let number = state.next
      state.next += 1
      state.inFlight[number] = action
      if action.kind == .flush, !action.isElsewhere { state.flushes.append((number, state.held.count)) }
      return number
    }
  }

  package func finished(_ number: Int, result: Int32) {
    state.withLock { state in
      guard let action = state.inFlight.removeValue(forKey: number) else { return }
      if let place = state.flushes.firstIndex(where: { $0.number == number }) {
        finishFlush(&state, place, isDone: result >= 0)
      } else if let entry = Self.entry(action, result) {
        if state.flushes.isEmpty { append(entry, &state) } else { state.held.append(entry) }
      }
    }
  }

  private func finishFlush(_ state: inout State, _ place: Int, isDone: Bool) {
    let covers = state.flushes.remove(at: place).covers
    if isDone {
      for entry in state.held.prefix(covers) { append(entry, &state) }
      state.held.removeFirst(covers)
      // Flushes that began before this one cover nothing that is left.
      for index in state.flushes.indices { state.flushes[index].covers = max(0, state.flushes[index].covers - covers) }
      append(Entry(flags: Flag.flush), &state)
    }
    guard state.flushes.isEmpty else { return }
    for entry in state.held { append(entry, &state) }
    state.held.removeAll()
  }

  /// - Returns: `nil` for what changed nothing, or may not have changed anything.
  private static func entry(_ action: MediumAction, _ result: Int32) -> Entry? {
    guard result >= 0 else { return nil }
    switch action.kind {
    case .write:
      let data = Array(action.data.prefix(Int(result) / sector * sector))
      guard !data.isEmpty else { return nil }
      return Entry(
        offset: action.offset, length: UInt64(data.count), flags: action.isDurable ? Flag.fua : 0, data: data)
    case .zero, .forget: return Entry(offset: action.offset, length: action.length, flags: Flag.discard)
    case .allocate, .flush: return nil
    }
  }

  private func append(_ entry: Entry, _ state: inout State) {
    guard !state.isBroken else { return }
    let unit = UInt64(Self.sector)
    var bytes = [UInt8](repeating: 0, count: Self.sector)
    Self.store([entry.offset / unit, entry.length / unit, entry.flags, 0], in: &bytes)
    bytes += entry.data
    var count = [UInt8](repeating: 0, count: 8)
    Self.store([state.entries + 1], in: &count)
    // The number of entries is written last, so that the log is intact at any moment.
    guard Self.write(bytes, at: state.end, to: file.rawValue), Self.write(count, at: 16, to: file.rawValue) else {
      state.isBroken = true
      return failed(Errno(rawValue: errno))
    }
    state.entries += 1
    state.end += off_t(bytes.count)
  }

  private static func store(_ words: [UInt64], in bytes: inout [UInt8]) {
    for (index, word) in words.enumerated() {
      for byte in 0..<8 { bytes[index * 8 + byte] = UInt8(truncatingIfNeeded: word >> UInt64(byte * 8)) }
    }
  }

  private static func write(_ bytes: [UInt8], at offset: off_t, to descriptor: Int32) -> Bool {
    var done = 0
    while done < bytes.count {
      let count = unsafe bytes.withUnsafeBytes { bytes in
        unsafe bytes.baseAddress.map { unsafe pwrite(descriptor, $0 + done, bytes.count - done, offset + off_t(done)) } ?? 0
      }
      if count < 0, errno == EINTR { continue }
      guard count > 0 else { return false }
      done += count
    }
    return true
  }
}
