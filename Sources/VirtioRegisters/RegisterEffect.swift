/// The effects of register accesses, which the owner of the registers executes; the same on every bus.
public import VirtioCore

/// One effect. The owner executes effects in order, and before it answers the driver's access, so that a value read back
/// afterwards (QueueReady, Status) shows that the work is done.
public enum RegisterEffect: Hashable, Sendable {
  /// The driver's choice of features is fixed now. Bits that the register face handles itself are left out.
  case featuresFixed(FeatureSet)
  /// Notifications may be sent and queues are served from now on. One `startQueue` for each ready queue follows.
  case live
  /// Serve the queue. The numbers are the driver's, and except for the size they are unchecked.
  case startQueue(Int, QueueConfiguration)
  /// Finish what is in flight and release the queue's memory.
  case stopQueue(Int)
  /// As `stopQueue`, but the queue will be started again from its position: the function may not access memory for now (PCI's
  /// bus master enable), or the driver suspends the device.
  case pauseQueue(Int)
  /// As `stopQueue`; then call `queueResetFinished` (virtio 2.6.1).
  case resetQueue(Int)
  /// Available buffer notification for a queue that is being served.
  case notify(Int)
  /// Clear these bits of the pending interrupts.
  case acknowledgeInterrupt(UInt32)
  /// The driver writes to the device's configuration space.
  case configWrite(offset: Int, bytes: [UInt8])
  /// Notify the driver of a configuration change that was held back while the device was suspended.
  case configurationChanged
  /// The routes of notifications may have changed: call `route(of:)` again, and send those that were held back and no longer
  /// have to be.
  case interruptRoutesChanged
  /// Stop every queue, forget the driver and clear the pending interrupts.
  case reset
}

/// The source of a notification.
public enum InterruptSource: Hashable, Sendable {
  /// A buffer of this queue was used.
  case queue(Int)
  /// The configuration changed, or the device needs a reset.
  case configuration
}

/// A message-signalled interrupt: a write to memory.
public struct MSIMessage: Hashable, Sendable {
  public var address: UInt64
  public var data: UInt32

  public init(address: UInt64, data: UInt32) {
    self.address = address
    self.data = data
  }
}

/// Where a notification goes at this moment.
public enum InterruptRoute: Hashable, Sendable {
  /// The source's bit is set in the pending interrupts, which asserts the level-triggered line.
  case line
  /// The bit is set, and the line is not asserted (PCI's interrupt disable).
  case lineDisabled
  /// A message is sent.
  case message(vector: Int, MSIMessage)
  /// The vector is masked: the message is held back, and shown as a pending bit, until it can be sent.
  case masked(vector: Int)
  /// Nowhere: MSI-X is enabled, and the source has no vector (virtio 4.1.5.3.1).
  case none

  /// The notification reaches the driver now.
  public var isDelivered: Bool {
    switch self {
    case .line, .message: true
    case .lineDisabled, .masked, .none: false
    }
  }
}
