/// An observer of what a driver does with a ring, beside the device that serves it.

/// An observer of what a driver does with a ring.
///
/// It is notified of each step of the device on one queue, on the thread that serves the queue. It reads the ring itself,
/// separately from the device. It may allocate and lock; a queue without a watch pays nothing for it.
public protocol RingWatch: AnyObject, Sendable {
  /// The device has started with the ring, at this position.
  func begins(at position: QueuePosition)
  /// The device is about to look for the next chain.
  func looks()
  /// The device took a chain. - Parameter name: its head, or its buffer ID.
  func took(_ name: UInt16)
  /// The device took a chain again that a previous run had taken.
  func retook(_ name: UInt16)
  /// The device is about to write a chain's used element, which the driver cannot have seen yet.
  func answers(_ name: UInt16)
  /// The used elements written so far are about to be published.
  func willPublish()
  /// They have been published, and their chains belong to the driver again.
  func didPublish()
  /// The device has asked the driver to kick for chains after this position.
  func sleeps(at position: QueuePosition)
}

/// A ring with a watch: every operation is passed on to the ring inside.
public struct WatchedQueue<Base: Virtqueue & ~Copyable>: Virtqueue, ~Copyable {
  public static var isRecorded: Bool { Base.isRecorded }

  private var base: Base
  private var watch: (any RingWatch)?
  private var publishesAtPush = false

  public init(
    _ configuration: QueueConfiguration, memory: GuestMemory, features: FeatureSet, position: QueuePosition,
    record: InflightRecord?
  ) throws(QueueError) {
    base = try Base(configuration, memory: memory, features: features, position: position, record: record)
  }

  public mutating func attach(_ watch: any RingWatch) {
    self.watch = watch
    watch.begins(at: base.position)
  }

  public mutating func pop(
    into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) throws(QueueError) -> Chain? {
    watch?.looks()
    let chain = unsafe try base.pop(into: segments, capacity: capacity, shape: &shape)
    guard let chain else { return nil }
    watch?.took(chain.head)
    return chain
  }

  public var interrupted: Int { base.interrupted }

  public mutating func retake(
    into segments: UnsafeMutablePointer<MemorySegment>, capacity: Int, shape: inout ChainShape
  ) throws(QueueError) -> Chain? {
    let chain = unsafe try base.retake(into: segments, capacity: capacity, shape: &shape)
    guard let chain else { return nil }
    watch?.retook(chain.head)
    return chain
  }

  public mutating func push(_ chain: consuming Chain, written: UInt32) {
    willPush(chain.head)
    base.push(chain, written: written)
    if publishesAtPush { watch?.didPublish() }
  }

  public mutating func pushInOrder(_ chain: consuming Chain, written: UInt32, isWhole: Bool) {
    willPush(chain.head)
    base.pushInOrder(chain, written: written, isWhole: isWhole)
    if publishesAtPush { watch?.didPublish() }
  }

  private func willPush(_ name: UInt16) {
    watch?.answers(name)
    if publishesAtPush { watch?.willPublish() }
  }

  public static var canPublishAtPush: Bool { Base.canPublishAtPush }

  public mutating func publishAtPush() {
    base.publishAtPush()
    publishesAtPush = true
  }

  public var unpublished: Int { base.unpublished }
  public var pushes: UInt16 { base.pushes }

  public mutating func publish() {
    guard base.unpublished > 0 else { return }
    if !publishesAtPush { watch?.willPublish() }
    base.publish()
    if !publishesAtPush { watch?.didPublish() }
  }

  public mutating func needsCall() -> Bool { base.needsCall() }

  public mutating func enableKicks() -> Bool {
    let hasMore = base.enableKicks()
    watch?.sleeps(at: base.position)
    // It asked for kicks for a moment, so a kick in that moment is allowed; none is needed, because it continues polling.
    if hasMore { watch?.looks() }
    return hasMore
  }

  public mutating func hasAvailable() -> Bool { base.hasAvailable() }

  public mutating func takeWritten(_ each: (_ area: WrittenArea, _ offset: Int, _ count: Int) -> Void) {
    base.takeWritten(each)
  }

  public var position: QueuePosition { base.position }
  public func position(handingBack count: UInt16) -> QueuePosition { base.position(handingBack: count) }
  /// The size of the ring inside.
  public var size: UInt16 { base.size }
}
