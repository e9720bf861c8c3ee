/// What a check works on: a driver's transport to the device, and rings to which anything can be done.
internal import Glibc
internal import GuestDriver
internal import VirtioCore

/// How a check wants the device brought up.
struct Plan {
  /// What is accepted in addition to the usual features, if offered.
  var adding = FeatureSet()
  var without = FeatureSet()
  var queues = 2
  /// Entries; `nil`: 16, or the maximum.
  var size: UInt16?
  /// Stop before DRIVER_OK.
  var waits = false
}

/// One device, one driver, one kind of ring. It lives for one check.
final class Bench {
  let subject: any Subject
  let facts: Facts
  let format: RingFormat
  let settings: Settings
  var random: SeededRandom
  private(set) var hands: [Hand] = [] {
    didSet { if oldValue.contains(where: \.isOverfull) { wasOverfull = true } }
  }
  private var wasOverfull = false
  /// A request found no room, so the results of the others mean nothing.
  var isOverfull: Bool { wasOverfull || hands.contains(where: \.isOverfull) }
  private(set) var features = FeatureSet()
  private var attached: (any DriverTransport)?

  init(_ subject: any Subject, _ facts: Facts, _ format: RingFormat, _ settings: Settings, name: String) {
    self.subject = subject
    self.facts = facts
    self.format = format
    self.settings = settings
    // Each check has its own random numbers, whichever checks run before it.
    random = SeededRandom(seed: name.utf8.reduce(settings.seed) { $0 &* 31 &+ UInt64($1) })
  }

  /// Ends what the check began; if the device does not cooperate, the next check will find out.
  func close() {
    if let attached {
      try? attached.reset()
      try? attached.deleteQueues()
    }
    hands = []
    attached = nil
  }

  /// Drops the device without notice, like a driver that dies.
  func drop() {
    hands = []
    attached = nil
  }

  /// Runs the body and then drops the device, like a driver that dies. What the body retains has been released by then: a
  /// back-end may serve one connection at a time, and a memory file has one driver.
  func dropAfter(_ body: () throws -> Void) rethrows {
    defer { drop() }
    try body()
  }

  // MARK: Bring-up

  func transport() throws -> any DriverTransport {
    if let attached { return attached }
    let made = try subject.connect(settings)
    attached = made
    return made
  }

  func memory() throws -> DriverMemory { try transport().memory }

  func registers() throws -> any RegisterPort {
    guard let port = subject.registers(of: try transport()) else { throw Trouble.notApplicable("there are no registers") }
    return port
  }

  static let usual: FeatureSet = [
    BlockFeature.sizeMax, BlockFeature.segMax, BlockFeature.geometry, BlockFeature.readOnly, BlockFeature.blockSize,
    BlockFeature.flush, BlockFeature.topology, BlockFeature.multiQueue, BlockFeature.discard, BlockFeature.writeZeroes,
    BlockFeature.secureErase, BlockFeature.zoned, FeatureSet(bit: 15), .indirectDescriptors, .version1,
  ]

  /// The features to accept for a plan.
  func choice(_ plan: Plan) -> FeatureSet {
    var wanted = Self.usual.union(plan.adding)
    if format == .packed { wanted.insert(.packedRing) }
    if !facts.isModern { wanted.insert(.anyLayout) }
    return wanted.subtracting(plan.without).intersection(facts.offered)
  }

  /// Reset, ACKNOWLEDGE, DRIVER, features, FEATURES_OK.
  ///
  /// - Returns: whether the device accepted the features, as far as it can report that.
  func negotiate(_ features: FeatureSet) throws -> Bool {
    let transport = try transport()
    try transport.reset()
    self.features = features
    hands = []
    do {
      try transport.setStatus(.acknowledge)
      try transport.setStatus([.acknowledge, .driver])
      try transport.acceptFeatures(features)
      guard features.contains(.version1) else { return true }
      try transport.setStatus([.acknowledge, .driver, .featuresOK])
      return try transport.status().contains(.featuresOK)
    } catch DriverError.refused {
      return false
    } catch DriverError.noDevice where subject.bus == .vhostUser {
      // A back-end can refuse a choice by ending the connection.
      drop()
      return false
    }
  }

  /// Brings the device up as planned.
  func start(_ plan: Plan = Plan()) throws {
    let wanted = choice(plan)
    guard try negotiate(wanted) else {
      throw Trouble.broken("the device refused the features \(names(wanted)), which it offers")
    }
    let count = min(plan.queues, facts.queueCount)
    try makeQueues(count, size: plan.size)
    if !plan.waits { try go() }
  }

  /// - Parameter place: the addresses that the device is given for a queue.
  func makeQueues(
    _ count: Int, size: UInt16? = nil, place: (RingMemory) -> QueueConfiguration = { $0.layout.configuration }
  ) throws {
    let transport = try transport()
    var rings: [RingMemory] = []
    for queue in 0..<count {
      let maximum = try transport.maximumQueueSize(queue)
      guard maximum > 0 else {
        throw Trouble.broken("queue \(queue) has room for 0 entries, and the device has \(facts.queueCount)")
      }
      let entries = transport.hasFixedQueueSize ? maximum : min(size ?? 16, maximum)
      let shape = format == .packed ? .separate : transport.ringShape ?? .separate
      rings.append(try RingMemory(size: entries, format: format, shape: shape, in: transport.memory))
    }
    let lines = try transport.findQueues(rings.map(place))
    hands = zip(rings, lines).enumerated().map { index, parts in
      Hand(
        index: index, ring: parts.0, lines: parts.1, memory: transport.memory, inOrder: features.contains(.inOrder))
    }
    for hand in hands { _ = hand.takeCalls() }
  }

  /// Replaces a queue's ring after a reset of that queue.
  func replace(_ index: Int, _ ring: RingMemory) throws {
    let old = hands[index]
    hands[index] = Hand(
      index: index, ring: ring, lines: old.lines, memory: try memory(), inOrder: features.contains(.inOrder))
  }

  var status: DeviceStatus { features.contains(.version1) ? [.acknowledge, .driver, .featuresOK] : [.acknowledge, .driver] }

  /// Sets DRIVER_OK.
  func go() throws {
    let transport = try transport()
    try transport.setStatus(status.union(.driverOK))
    guard try transport.status().contains(.driverOK) else { throw Trouble.broken("DRIVER_OK does not stay set") }
  }

  func names(_ features: FeatureSet) -> String {
    features.bits.map { BlockFeature.name(ofBit: $0) ?? "bit \($0)" }.joined(separator: " ")
  }

  // MARK: Waiting

  /// Polls until it is true. - Returns: false if that did not happen within the limit.
  func eventually(_ isSo: () throws -> Bool) throws -> Bool {
    if let stepped = attached as? any SteppedTransport {
      for _ in 0..<32 {
        if try isSo() { return true }
        stepped.step()
      }
      return try isSo()
    }
    let end = ContinuousClock.now + settings.limit
    var looks = 0
    while try !isSo() {
      guard .now < end else { return false }
      looks += 1
      // Most answers are there at once; for others, polling faster does not help.
      usleep(looks < 50 ? 20 : looks < 200 ? 200 : 2000)
    }
    return true
  }

  var attachedIsStepped: Bool { attached is any SteppedTransport }
  func pause() { usleep(500) }

  /// Waits for the time in which nothing may happen.
  func settle() {
    if let stepped = attached as? any SteppedTransport {
      for _ in 0..<4 { stepped.step() }
      return
    }
    usleep(UInt32(clamping: Int(settings.settle / .microseconds(1))))
  }

  /// Waits until the queue has returned a chain.
  func awaitUsed(_ id: UInt16, on queue: Int = 0, _ what: @autoclosure () -> String = "a request") throws -> UsedElement {
    let hand = hands[queue]
    var found: UsedElement?
    let came = try eventually {
      try hand.look()
      found = hand.take(id)
      return found != nil
    }
    guard came, let found else {
      if attached is VhostUserTransport, try hasFailed(queue, milliseconds: 0) {
        throw Trouble.wedged("queue \(queue) broke on \(what())")
      }
      throw Trouble.wedged("no answer to \(what()) on queue \(queue) within \(settings.limit / .seconds(1)) s")
    }
    return found
  }

  /// Whether the device has reported that the queue, or the device, is broken.
  func hasFailed(_ queue: Int, milliseconds: Int) throws -> Bool {
    if let stepped = attached as? any SteppedTransport { for _ in 0..<4 { stepped.step() } }
    return try transport().waitForFailure(queue: queue, milliseconds: milliseconds)
  }
}
