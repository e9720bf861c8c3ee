/// What can go wrong between a driver and its device, each in one sentence for people.
public import SystemPackage
public import VirtioCore

public enum DriverError: Error, Sendable, CustomStringConvertible {
  // The system and the memory.
  case system(String, Errno)
  case badRegion(GuestAddress, size: Int)
  case memoryFull(wanted: Int)
  // The bus.
  /// The other side is gone, or never was there.
  case noDevice(String)
  case refused(String)
  case timeout(String)
  // Bring-up.
  case wrongDevice(UInt32, wanted: UInt32)
  /// FEATURES_OK did not stick (virtio 3.1.1, step 6).
  case featuresRefused(FeatureSet)
  /// RING_PACKED is not offered.
  case noPackedRing
  case badQueueSize(queue: Int, UInt16, maximum: UInt16, RingFormat)
  case tooManyQueues(Int, available: Int)
  // Afterwards.
  /// The device broke a rule.
  case fault(DriverFault)
  /// The device reports that the queue, or the whole device, is broken.
  case queueFailed(Int)
  /// A request was answered with an error.
  case requestFailed(String)
  /// The driver was asked for something that makes no sense on this device.
  case badRequest(String)

  public var description: String {
    switch self {
    case .system(let what, let errno): "\(what) failed: \(errno)"
    case .badRegion(let start, let size):
      "\(size) bytes of guest memory at \(start) are not a valid region: give whole, non-overlapping pages below 2^64"
    case .memoryFull(let wanted):
      "guest memory is too small: no \(wanted) bytes are free in one piece; use fewer or smaller requests"
    case .noDevice(let what), .refused(let what), .timeout(let what), .requestFailed(let what), .badRequest(let what): what
    case .wrongDevice(let id, let wanted): "the device has virtio ID \(id), not \(wanted)"
    case .featuresRefused(let features): "the device refused the features \(features): FEATURES_OK did not stick"
    case .noPackedRing: "the device offers no packed rings (VIRTIO_F_RING_PACKED): use split ones"
    case .badQueueSize(let queue, let size, let maximum, let format):
      "queue \(queue) cannot have \(size) entries: give \(format == .split ? "a power of two" : "a number") up to \(maximum)"
    case .tooManyQueues(let wanted, let available): "the device has \(available) queues, not \(wanted): ask for fewer"
    case .queueFailed(let queue):
      "the device has stopped queue \(queue) until it is reset: see the log of its server for the reason"
    case .fault(let fault): "the device broke a rule: \(fault)"
    }
  }
}

/// Runs ring code, whose errors are the device's faults.
func faults<Result>(_ body: () throws(DriverFault) -> Result) throws(DriverError) -> Result {
  do { return try body() } catch { throw .fault(error) }
}
