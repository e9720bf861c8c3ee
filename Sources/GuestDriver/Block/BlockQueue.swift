/// Block requests over one queue, any framing, each answer checked. It allocates as it goes: it is made to be thorough, not
/// fast (that is `PreparedQueue`).
public import VirtioCore

/// How a request ended.
public struct BlockOutcome: Sendable {
  public let tag: UInt32
  public let request: BlockRequest
  public let status: BlockStatusCode
  /// The number of bytes that the device reports as written.
  public let length: UInt32
  /// The writable bytes before the status, as they are now.
  public let answer: [UInt8]
  /// A byte that `length` counts but the device did not write.
  public let unwrittenByte: Int?
}

/// One queue of a block device and the requests that are on it. It belongs to one thread.
public final class BlockQueue {
  public let index: Int
  public var ring: DriverQueue
  private let memory: DriverMemory
  private var requests: [UInt32: FramedRequest] = [:]
  private var nextTag: UInt32 = 0

  public init(_ setup: QueueSetup) {
    index = setup.index
    memory = setup.memory
    ring = DriverQueue(setup)
  }

  /// Continues with another ring. - Returns: tags of requests that were on the old one; whether they were executed is unknown.
  func restart(_ setup: QueueSetup) -> [UInt32] {
    let lost = requests.keys.sorted()
    for framed in requests.values { framed.release(to: memory) }
    requests = [:]
    ring = DriverQueue(setup)
    return lost
  }

  /// Requests submitted and not yet answered.
  public var outstanding: Int { ring.outstanding }

  /// Puts a request into the ring; the device sees it after `publish`.
  ///
  /// - Parameters:
  ///   - framing: `nil`: classic, or merged if the ring is too small for that.
  ///   - placement: `nil`: an indirect table if one is free, as in Linux.
  /// - Returns: a tag that comes back with the outcome; `nil` when the ring is full.
  public func submit(
    _ request: BlockRequest, framing: Framing? = nil, placement: ChainPlacement? = nil
  ) throws(DriverError) -> UInt32? {
    let placement = placement ?? (ring.freeTables > 0 ? .indirect() : .direct)
    let fitsClassic = placement != .direct || ring.size >= 4
    let framed = try FramedRequest(request, framing ?? (fitsClassic ? .classic(request) : .merged), in: memory)
    let tag = nextTag
    guard ring.add(framed.pieces.span, placement: placement, token: tag) != nil else {
      framed.release(to: memory)
      return nil
    }
    nextTag &+= 1
    requests[tag] = framed
    return tag
  }

  @discardableResult public func publish() -> Bool { ring.publish() }

  /// Takes an answer, if there is one, and checks it.
  public func reap() throws(DriverError) -> BlockOutcome? {
    let used: UsedChain?
    do { used = try ring.reap() } catch { throw .fault(error) }
    guard let used else { return nil }
    guard let framed = requests.removeValue(forKey: used.token) else {
      preconditionFailure("a chain without a request is in the block queue's ring")
    }
    do {
      try framed.check(queue: index, head: used.head, length: used.length, in: memory)
    } catch { throw .fault(error) }
    let outcome = BlockOutcome(
      tag: used.token, request: framed.request, status: framed.status, length: used.length, answer: framed.answer,
      unwrittenByte: framed.unwrittenByte(within: used.length))
    framed.release(to: memory)
    return outcome
  }

  /// Submits, publishes and waits for the answer. - Precondition: nothing else is outstanding.
  public func perform(
    _ request: BlockRequest, framing: Framing? = nil, placement: ChainPlacement? = nil,
    milliseconds: Int = Int(Patience.limit / .milliseconds(1))
  ) throws(DriverError) -> BlockOutcome {
    precondition(outstanding == 0, "perform does one request at a time")
    guard try submit(request, framing: framing, placement: placement) != nil else {
      throw .badRequest("the request does not fit into the \(ring.size) descriptors of queue \(index)")
    }
    publish()
    let end = ContinuousClock.now + .milliseconds(milliseconds)
    while true {
      if let outcome = try reap() { return outcome }
      let left = (end - .now).milliseconds
      guard left > 0 else { throw .fault(ring.noAnswer(milliseconds: milliseconds)) }
      do { _ = try ring.waitForUsed(milliseconds: left) } catch { throw .fault(error) }
    }
  }
}
