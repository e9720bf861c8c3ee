/// The new server of a takeover: what it asks on the old server's control socket.
internal import Control
internal import Glibc
internal import OperatorWords
internal import Sockets
internal import VhostUser
internal import VirtioBlkDevice
internal import VirtioCore

/// A disk that is about to be served here: the steps that its transport takes.
protocol TakenDisk {
  /// Its name at the other server.
  var name: String { get }
  /// Its name in the log.
  var place: String { get }
  var device: BlockDevice { get }
  /// Closes the descriptors that come with its state.
  var errands: ErrandQueue { get }
  /// Prepares what is possible while the other server still serves.
  ///
  /// - Parameter then: called once, with the reason if it failed.
  func prepare(_ part: Takeover.Part, _ list: DescriptorList, then: @escaping (String?) -> Void)
  /// Continues from the state at which the other server stopped, as far as possible before that one has released it.
  ///
  /// - Parameter then: called once, with the reason if it failed. After a failure only `giveBack` may follow, otherwise
  ///   `release`.
  func adopt(_ part: Takeover.Part, _ list: DescriptorList, then: @escaping (String?) -> Void)
  /// The other server has released it: it starts here.
  func release()
  /// The other server keeps it.
  func giveBack()
}

/// Everything that is slow or can fail is done while the other server still serves; then the disks are handed over one after
/// the other.
final class TakeoverTaker {
  /// Makes a disk from the state that the other server describes.
  typealias Maker = (_ state: Takeover.Disk, _ list: DescriptorList, _ errands: ErrandQueue) throws -> any TakenDisk

  /// The time limit for answers that do not depend on a medium.
  private static let patience = Duration.seconds(30)

  private let path: String
  private let transport: Takeover.Transport
  private let loop: EventLoop
  private let log: ServeLog
  private let client: ControlClient
  private let wantsControl: Bool
  private var disks: [any TakenDisk] = []
  /// Disks that are served here.
  private var taken: Set<Int> = []
  /// The other server's control socket, if it was requested.
  private(set) var control: OwnedDescriptor?
  private var isWaiting = false
  /// What prevented the handover of a disk.
  private(set) var failures: [TakeoverFailure] = []

  /// - Parameters:
  ///   - path: of the other server's control socket.
  ///   - wantsControl: to continue with that socket, too.
  init(
    _ path: String, on transport: Takeover.Transport, wantsControl: Bool, in loop: EventLoop, log: ServeLog
  ) throws {
    self.path = path
    self.transport = transport
    self.loop = loop
    self.log = log
    self.wantsControl = wantsControl
    client = try ControlClient(path: path, in: loop)
  }

  // MARK: While the other server serves

  /// The names of the disks that it serves.
  func greet() throws -> [String] {
    let line = try ask(
      Takeover.Request(request: .takeOver, version: Takeover.version, wantsControl: wantsControl), errands: nil)
    let greeting = try line.decode(Takeover.Greeting.self)
    guard greeting.version == Takeover.version else { throw TakeoverFailure.version(path, greeting.version) }
    guard greeting.transport == transport.rawValue else { throw TakeoverFailure.transport(path, greeting.transport) }
    log.note("taking over from \(greeting.program)")
    return greeting.disks.map(\.disk)
  }

  /// Prepares a disk, one of those from `greet`.
  func prepare(_ name: String, make: Maker) throws {
    let errands = ErrandQueue()
    let line = try ask(Takeover.Request(request: .describe, disk: name), errands: errands)
    let state = try line.decode(Takeover.Disk.self)
    guard let part = state.part else { throw TakeoverFailure.disk(name, Self.noPart) }
    let list = DescriptorList(line.descriptors)
    let disk = try make(state, list, errands)
    let image = disk.device.image
    if let difference = Takeover.difference(state.image, image) { throw TakeoverFailure.disk(name, "\(difference)") }
    if let reason = Takeover.obstacle(image) { throw TakeoverFailure.disk(name, reason) }
    image.inheritExport()
    var answer: String??
    disk.prepare(part, list) { [self] reason in
      answer = .some(reason)
      stopWaiting()
    }
    try wait { answer != nil }
    if let reason = answer ?? nil { throw TakeoverFailure.disk(name, reason) }
    disks.append(disk)
  }

  private static let noPart = "the running server does not say how it is served"

  /// Asks and waits; nobody is served here yet.
  private func ask(_ request: Takeover.Request, errands: ErrandQueue?) throws -> ControlLine {
    var answer: Result<ControlLine, ControlError>?
    client.disposer = errands
    client.ask(ControlLine(request)) { [self] result in
      answer = result
      stopWaiting()
    }
    try wait { answer != nil }
    guard let answer else { throw TakeoverFailure.silent(path) }
    do {
      let line = try answer.get()
      if let reason = try? line.decode(Takeover.Answer.self).error { throw TakeoverFailure.refused(path, reason) }
      return line
    } catch let error as ControlError { throw TakeoverFailure.control(path, error) }
  }

  private func wait(until isDone: () -> Bool) throws {
    let end = ContinuousClock.now + Self.patience
    loop.after(Self.patience) { [weak self] in self?.stopWaiting() }
    while !isDone() {
      guard ContinuousClock.now < end else { throw TakeoverFailure.silent(path) }
      isWaiting = true
      defer { isWaiting = false }
      try loop.run()
    }
  }

  /// The loop is stopped for this wait only, not for its later users.
  private func stopWaiting() { if isWaiting { loop.stop() } }

  // MARK: One disk after the other

  /// Takes every disk that was prepared. What cannot be taken stays with the other server.
  ///
  /// - Parameter then: called once when none is left to take.
  func takeAll(then: @escaping () -> Void) { take(0, then) }

  private func take(_ index: Int, _ then: @escaping () -> Void) {
    guard disks.indices.contains(index) else {
      client.close()
      return then()
    }
    let disk = disks[index]
    client.disposer = disk.errands
    ask(.pause, disk) { line throws in
      let state = try line.decode(Takeover.Disk.self)
      guard let part = state.part else { return self.giveBack(index, Self.noPart, then) }
      disk.adopt(part, DescriptorList(line.descriptors)) { [self] reason in
        if let reason { return giveBack(index, reason, then) }
        commit(index, state, then)
      }
    } otherwise: { [self] reason in
      failed(index, reason)
      take(index + 1, then)
    }
  }

  private func commit(_ index: Int, _ state: Takeover.Disk, _ then: @escaping () -> Void) {
    let disk = disks[index]
    ask(.commit, disk) { [self] _ in
      disk.device.image.ownLock()
      // The operator's limits, if this process was given none.
      if disk.device.limits.isEmpty, let words = state.limits, let change = LimitChange(argument: words) {
        disk.device.setLimits(change.limits)
      }
      disk.device.continueExport(isStable: state.image.isStable == true, owing: state.image.owing)
      if state.image.flushFailed { disk.device.image.state.flushFailed.storeRelaxed(1) }
      disk.release()
      taken.insert(index)
      if let since = state.stillSince { tell(disk, since) }
      ask(.served, disk) { line throws in
        let answer = try line.decode(Takeover.Answer.self)
        disk.errands.run { [image = disk.device.image] in image.endTaking() }
        if let place = answer.control { self.control = try DescriptorList(line.descriptors).descriptor(place) }
        self.take(index + 1, then)
      } otherwise: { reason in
        self.log.warn("\(disk.place) is served here, but the old server cannot be notified: \(reason)")
        self.take(index + 1, then)
      }
    } otherwise: { [self] reason in
      disk.giveBack()
      failed(index, reason)
      take(index + 1, then)
    }
  }

  private func tell(_ disk: any TakenDisk, _ since: UInt64) {
    let microseconds = (Clock.now &- since) / 1000
    log.note("took over \(disk.place); its queues were stopped for \(microseconds / 1000).\(microseconds % 1000 / 100) ms")
  }

  private func giveBack(_ index: Int, _ reason: String, _ then: @escaping () -> Void) {
    let disk = disks[index]
    disk.giveBack()
    failed(index, reason)
    client.ask(ControlLine(Takeover.Request(request: .resume, disk: disk.name, reason: reason))) { [self] _ in
      take(index + 1, then)
    }
  }

  private func failed(_ index: Int, _ reason: String) {
    failures.append(.disk(disks[index].name, reason))
    log.warn("\(disks[index].place) stays with the old server: \(reason)")
  }

  private func ask(
    _ verb: Takeover.Request.Verb, _ disk: any TakenDisk, then answered: @escaping (ControlLine) throws -> Void,
    otherwise failed: @escaping (String) -> Void
  ) {
    client.ask(ControlLine(Takeover.Request(request: verb, disk: disk.name))) { result in
      do {
        let line = try result.get()
        if let reason = try? line.decode(Takeover.Answer.self).error { return failed(reason) }
        try answered(line)
      } catch { failed("\(error)") }
    }
  }

  /// Whether a disk, one of those from `greet`, is served here.
  func hasTaken(_ name: String) -> Bool { taken.contains { disks[$0].name == name } }

  /// Some disk is served here.
  var hasAny: Bool { !taken.isEmpty }
}
