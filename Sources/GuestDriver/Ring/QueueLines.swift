/// The two wires between a driver's queue and its device: kicks out, calls in.
internal import CLinux
internal import Glibc
public import VirtioCore

/// Tells the device that there is something available.
public enum KickLine: Sendable {
  case eventCounter(OwnedDescriptor)
  case doorbell(Doorbell)

  /// Never blocks.
  public func kick() {
    switch self {
    case .eventCounter(let descriptor): EventCounter.signal(descriptor.rawValue)
    case .doorbell(let doorbell): doorbell.ring()
    }
  }
}

/// Brings the device's calls, each of them counted.
public struct CallLine: Sendable {
  public enum Source: Sendable {
    case eventCounter(OwnedDescriptor)
    /// A counter in shared memory, and the InterruptStatus word whose bit 0 says that there was a call.
    case doorbell(Doorbell, interruptStatus: SharedCell<UInt32>)
  }

  public let source: Source
  /// The doorbell's count when it was looked at last.
  private var seen: UInt32 = 0

  public init(_ source: Source) {
    self.source = source
    if case .doorbell(let doorbell, _) = source { seen = doorbell.counter.loadAcquire() }
  }

  /// How many calls came since the last look.
  public mutating func take() -> Int {
    switch source {
    case .eventCounter(let descriptor): return Int(clamping: EventCounter.drain(descriptor.rawValue))
    case .doorbell(let doorbell, let interruptStatus):
      let now = doorbell.counter.loadAcquire()
      defer { seen = now }
      // Acknowledge before looking at the ring: a call that comes later sets the bit again.
      if now != seen { interruptStatus.subtract(1) }
      return Int(now &- seen)
    }
  }

  /// Waits until there is something to take or the time is over; it may return early. Takes nothing.
  public func wait(milliseconds: Int) {
    switch source {
    case .eventCounter(let descriptor):
      var one = pollfd(fd: descriptor.rawValue, events: Int16(POLLIN), revents: 0)
      _ = unsafe poll(&one, 1, Int32(clamping: milliseconds))
    case .doorbell(let doorbell, _): doorbell.wait(whileEquals: seen, nanoseconds: Int64(milliseconds) * 1_000_000)
    }
  }

  /// Waits for any of several lines. Counters in memory have no common wait here, so with those it looks at one at a time,
  /// a millisecond each.
  static func waitForAny(_ lines: [CallLine], milliseconds: Int) {
    var descriptors: [pollfd] = []
    for line in lines {
      guard case .eventCounter(let descriptor) = line.source else {
        lines.first?.wait(milliseconds: lines.count > 1 ? min(1, milliseconds) : milliseconds)
        return
      }
      descriptors.append(pollfd(fd: descriptor.rawValue, events: Int16(POLLIN), revents: 0))
    }
    _ = unsafe poll(&descriptors, nfds_t(descriptors.count), Int32(clamping: milliseconds))
  }
}

/// Both wires of one queue.
public struct QueueLines: Sendable {
  public let kick: KickLine
  public let call: CallLine.Source

  public init(kick: KickLine, call: CallLine.Source) {
    self.kick = kick
    self.call = call
  }
}
