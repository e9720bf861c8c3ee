/// Keeps the queues of a block device filled, from one thread: asks for requests, submits in batches with one kick each,
/// reaps, sleeps until it is called.
internal import VirtioCore

/// One request and how to send it.
public struct Submission: Sendable {
  public var request: BlockRequest
  /// `nil`: classic.
  public var framing: Framing?
  /// `nil`: indirect where possible.
  public var placement: ChainPlacement?

  public init(_ request: BlockRequest, framing: Framing? = nil, placement: ChainPlacement? = nil) {
    self.request = request
    self.framing = framing
    self.placement = placement
  }
}

/// How the driver learns that something is done.
public enum Waiting: Hashable, Sendable {
  /// It asks to be called, and sleeps.
  case calls
  /// It asks not to be called, and polls.
  case polling
}

/// The loop over all queues of a client. Requests are numbered from 0 in the order in which they were submitted.
struct RequestPump {
  let queues: [BlockQueue]
  /// Reconnects to a device that has gone, if it can.
  let transport: any DriverTransport
  /// Requests in flight on each queue.
  var depth: Int
  var waiting = Waiting.calls
  /// How long to wait without any answer.
  var patience = Patience.limit

  private var numbers: [[UInt32: Int]]
  /// After how long without an answer the device is asked whether it failed.
  private var nextLook = Self.lookInterval
  private static let lookInterval = Duration.seconds(1)
  private(set) var submitted = 0

  init(queues: [BlockQueue], on transport: any DriverTransport, depth: Int, waiting: Waiting = .calls) {
    self.queues = queues
    self.transport = transport
    self.depth = max(depth, 1)
    self.waiting = waiting
    numbers = queues.map { _ in [:] }
  }

  /// Runs until `next` returns nothing and everything is answered.
  ///
  /// - Parameters:
  ///   - next: the next request for a queue, by the number it will have; `nil`: none now. It is asked again after an answer.
  ///   - completed: an answer, with the queue and the number of its request.
  mutating func run(
    next: (_ queue: Int, _ number: Int) throws(DriverError) -> Submission?,
    completed: (_ queue: Int, _ number: Int, BlockOutcome) throws(DriverError) -> Void
  ) throws(DriverError) {
    var lastProgress = ContinuousClock.now
    nextLook = Self.lookInterval
    var held: [(number: Int, submission: Submission)?] = queues.map { _ in nil }
    if waiting == .polling { for queue in queues { queue.ring.disableCalls() } }
    while true {
      var moved = false
      for (place, queue) in queues.enumerated() {
        while queue.outstanding < depth {
          if held[place] == nil, let fresh = try next(place, submitted) {
            held[place] = (submitted, fresh)
            submitted += 1
          }
          guard let (number, submission) = held[place] else { break }
          guard let tag = try submit(submission, to: queue) else {
            guard queue.outstanding > 0 else { throw tooLarge(submission, queue) }
            break
          }
          held[place] = nil
          numbers[place][tag] = number
          moved = true
        }
        queue.publish()
      }
      var hasAnswers = false
      for (place, queue) in queues.enumerated() {
        while let outcome = try queue.reap() {
          hasAnswers = true
          guard let number = numbers[place].removeValue(forKey: outcome.tag) else {
            preconditionFailure("an answer to a request that the pump did not send")
          }
          try completed(place, number, outcome)
        }
      }
      if hasAnswers { transport.noteAnswers() }
      let busy = queues.filter { $0.outstanding > 0 }
      if moved || hasAnswers {
        lastProgress = .now
        continue
      }
      guard !busy.isEmpty else { return }
      let devices = try transport.recover { queues[$0].ring.standing }
      if devices > 0 {
        for queue in queues { queue.ring.deviceReturned(devices) }
        lastProgress = .now
        continue
      }
      try lookForFailure(of: busy, idle: .now - lastProgress)
      guard .now - lastProgress < patience else {
        throw .fault(busy[0].ring.noAnswer(milliseconds: (.now - lastProgress).milliseconds))
      }
      try wait(for: busy)
    }
  }

  /// `nil` when the ring or the memory has no room for it now.
  private func submit(_ submission: Submission, to queue: BlockQueue) throws(DriverError) -> UInt32? {
    do {
      if let tag = try queue.submit(submission.request, framing: submission.framing, placement: submission.placement) {
        return tag
      }
      // No table is free, or it is too small: the chain can still go into the ring's own table.
      guard submission.placement != .direct else { return nil }
      return try queue.submit(submission.request, framing: submission.framing, placement: .direct)
    } catch .memoryFull where queues.contains(where: { $0.outstanding > 0 }) {
      return nil
    }
  }

  private func tooLarge(_ submission: Submission, _ queue: BlockQueue) -> DriverError {
    .badRequest(
      "\(submission.request) does not fit into the \(queue.ring.size) descriptors of queue \(queue.index)")
  }

  /// Stops waiting for a device that reports that it is broken.
  private mutating func lookForFailure(of busy: [BlockQueue], idle: Duration) throws(DriverError) {
    guard idle >= nextLook else {
      if idle < Self.lookInterval { nextLook = Self.lookInterval }
      return
    }
    nextLook = idle + Self.lookInterval
    for queue in busy where try transport.waitForFailure(queue: queue.index, milliseconds: 0) {
      throw .queueFailed(queue.index)
    }
  }

  private func wait(for busy: [BlockQueue]) throws(DriverError) {
    guard waiting == .calls else {
      for queue in busy { try faults { () throws(DriverFault) in try queue.ring.noteCalls() } }
      return
    }
    for queue in busy where !queue.ring.enableCalls() { return }
    CallLine.waitForAny(
      busy.map { $0.ring.notifications.call }, or: transport.connectionDescriptor, milliseconds: 100)
    for queue in busy {
      try faults { () throws(DriverFault) in try queue.ring.noteCalls() }
      queue.ring.disableCalls()
    }
  }
}
