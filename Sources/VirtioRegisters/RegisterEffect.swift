/// What register accesses ask of the owner of the registers, the same on every bus.
public import VirtioCore

/// One thing to carry out. The owner does so in order, and before it answers the driver's access, so that a value read back
/// afterwards (QueueReady, Status) tells that the work is done.
public enum RegisterEffect: Hashable, Sendable {
  /// The driver's choice of features is fixed now. Bits that are the register face's own business are left out.
  case featuresFixed(FeatureSet)
  /// Notifications may be sent, queues are served. One `startQueue` for each ready queue follows.
  case live
  /// Serve the queue. The numbers are the driver's and unchecked but for the size.
  case startQueue(Int, QueueConfiguration)
  /// Finish what is in flight and release the queue's memory.
  case stopQueue(Int)
  /// As `stopQueue`, but the queue will be started again where it stands: the function may not access memory (PCI's bus master
  /// enable), or the driver suspends the device.
  case pauseQueue(Int)
  /// As `stopQueue`; then call `queueResetFinished` (virtio 2.6.1).
  case resetQueue(Int)
  /// Available buffer notification for a queue that is being served.
  case notify(Int)
  /// Clear these bits of the pending interrupts.
  case acknowledgeInterrupt(UInt32)
  /// The driver writes to the device's configuration space.
  case configWrite(offset: Int, bytes: [UInt8])
  /// Notify the driver of a configuration change that it was not told of while the device was suspended.
  case configurationChanged
  /// Where notifications go to may have changed: ask `route(of:)` again, and send what was held back and need not be any more.
  case interruptRoutesChanged
  /// Stop every queue, forget the driver and clear the pending interrupts.
  case reset
}

/// What a notification is about.
public enum InterruptSource: Hashable, Sendable {
  /// A buffer of this queue was used.
  case queue(Int)
  /// The configuration changed, or the device needs a reset.
  case configuration
}

/// The memory write that is a message signalled interrupt.
public struct MSIMessage: Hashable, Sendable {
  public var address: UInt64
  public var data: UInt32

  public init(address: UInt64, data: UInt32) {
    self.address = address
    self.data = data
  }
}

/// Where a notification goes to at this moment.
public enum InterruptRoute: Hashable, Sendable {
  /// The source's bit is set in the pending interrupts, which asserts the level-triggered line.
  case line
  /// The bit is set, and the line stays as it is (PCI's interrupt disable).
  case lineDisabled
  /// A message is sent.
  case message(vector: Int, MSIMessage)
  /// The vector is masked: the source is held back, and shown as a pending bit, until it can be sent.
  case masked(vector: Int)
  /// Nowhere: messages are on, and the source has no vector (virtio 4.1.5.3.1).
  case none

  /// The driver, if it waits for the source, is to be woken now.
  public var isDelivered: Bool {
    switch self {
    case .line, .message: true
    case .lineDisabled, .masked, .none: false
    }
  }
}
