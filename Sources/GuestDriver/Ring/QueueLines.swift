/// The two lines between a driver's queue and its device: kicks out, calls in.
internal import CLinux
internal import Glibc
public import MemoryFile
public import VirtioCore

/// What the lines of a queue are made of.
public enum QueueLines: Sendable {
  case eventCounters(kick: OwnedDescriptor, call: OwnedDescriptor)
  /// Counters in a memory file.
  case memoryFile(MemoryFileDriver, queue: Int)

  /// Tells the device that there is something available. Never blocks.
  public func kick() {
    switch self {
    case .eventCounters(let kick, _): EventCounter.signal(kick.rawValue)
    case .memoryFile(let file, let queue): file.kick(queue: queue)
    }
  }
}

/// Receives the device's calls, and counts each of them.
struct CallLine: Sendable {
  private let lines: QueueLines
  /// The count in memory when it was last read.
  private var seen: UInt32 = 0

  init(_ lines: QueueLines) {
    self.lines = lines
    if case .memoryFile(let file, let queue) = lines { seen = file.callCount(queue: queue) }
  }

  /// How many calls arrived since the last time.
  mutating func take() -> Int {
    switch lines {
    case .eventCounters(_, let call): return Int(clamping: EventCounter.drain(call.rawValue))
    case .memoryFile(let file, let queue):
      let now = file.callCount(queue: queue)
      defer { seen = now }
      // Acknowledged before the ring is checked: a later call sets the bit again (virtio 4.2.3.4).
      if now != seen { file.acknowledgeInterrupt(1) }
      return Int(now &- seen)
    }
  }

  /// Waits until there is something to take or the time is over; it may return early. Takes nothing.
  func wait(milliseconds: Int) {
    switch lines {
    case .eventCounters(_, let call):
      var one = pollfd(fd: call.rawValue, events: Int16(POLLIN), revents: 0)
      _ = unsafe poll(&one, 1, Int32(clamping: milliseconds))
    case .memoryFile(let file, let queue):
      file.waitForCall(queue: queue, whileEquals: seen, milliseconds: milliseconds)
    }
  }

  /// Waits for any of several lines. Counters in memory cannot be waited for together here, so with those it waits for the
  /// first one, for a millisecond.
  ///
  /// - Parameter other: a descriptor whose hang-up or error ends the wait, too.
  static func waitForAny(_ lines: [CallLine], or other: Int32? = nil, milliseconds: Int) {
    var descriptors: [pollfd] = []
    for line in lines {
      guard case .eventCounters(_, let call) = line.lines else {
        lines.first?.wait(milliseconds: lines.count > 1 ? min(1, milliseconds) : milliseconds)
        return
      }
      descriptors.append(pollfd(fd: call.rawValue, events: Int16(POLLIN), revents: 0))
    }
    if let other { descriptors.append(pollfd(fd: other, events: 0, revents: 0)) }
    _ = unsafe poll(&descriptors, nfds_t(descriptors.count), Int32(clamping: milliseconds))
  }
}
