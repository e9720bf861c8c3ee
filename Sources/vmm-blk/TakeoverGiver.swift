/// The old server of a takeover: what it answers on its control socket.
internal import Control
internal import Glibc
internal import OperatorWords
internal import Sockets
internal import VhostUser
internal import VirtioBlkDevice
internal import VirtioCore

/// A disk that a running server can hand over: the steps that its transport takes.
protocol GivenDisk {
  /// Where it is served, as the taker names it.
  var name: String { get }
  var device: BlockDevice { get }
  /// The state as it is now.
  func describe() -> (Takeover.Part, DescriptorList)
  /// Stops it.
  ///
  /// - Parameter then: called once, with the reason if it failed; never after `goOn`.
  func pause(then: @escaping (String?) -> Void)
  /// Continues where it was, even if it has not stopped completely.
  ///
  /// - Parameter fromMemory: the taker may have served it, and is gone.
  func goOn(fromMemory: Bool)
  /// The taker may begin: whatever happens to this process, everything that shows others that the disk is served stays in
  /// place.
  func leave()
  /// Takes back what `leave` left, because the taker is gone.
  func own()
  /// Lets go of the disk, because the taker has begun.
  func handOver()
}

/// Hands over one disk after the other, to one taker at a time. Until the taker reports that it serves a disk, the disk can
/// continue here, and does so if the taker refuses, is gone or is too slow.
final class TakeoverGiver {
  private enum Phase {
    /// Its queues are stopping.
    case pausing
    case paused
    /// The taker may begin, or has begun.
    case committed
    /// The taker went away after the commit, and its requests at the medium may not have completed.
    case abandoned
  }

  /// How often to check whether a taker that is gone still has requests in flight, and when to report that it has.
  private static let look: UInt32 = 5_000
  private static let notice = Duration.seconds(5)

  private let service: any OperatedService
  private let loop: EventLoop
  private let log: ServeLog
  private let control: Listener
  private var taker: ControlConnection?
  /// The disks that the taker was told about. None is added or removed during the takeover.
  private var disks: [any OperatedDisk] = []
  private var wantsControl = false
  private var current: (disk: Int, phase: Phase)?
  /// Distinguishes the time limit of one attempt from that of the next.
  private var attempt = 0
  private var handedOver: Set<Int> = []
  private var isEnding = false
  /// Asks the kernel about locks, which a medium on a network may delay.
  private let errands = ErrandQueue()

  init(of service: any OperatedService, control: Listener, in loop: EventLoop, log: ServeLog) {
    self.service = service
    self.control = control
    self.loop = loop
    self.log = log
  }

  /// A taker is connected: the disks must not be changed.
  var isBusy: Bool { taker != nil || current != nil }
  func isTaker(_ connection: ControlConnection) -> Bool { connection === taker }

  /// This process is about to end: no disk may be handed over any more.
  func end() { isEnding = true }

  /// A line that came over the control socket.
  func take(_ line: ControlLine, from connection: ControlConnection) {
    let request: Takeover.Request
    do throws(ControlError) { request = try line.decode(Takeover.Request.self) } catch { return refuse(connection, "\(error)") }
    guard request.request == .takeOver || connection === taker else {
      return refuse(connection, "send \"take-over\" with a version first")
    }
    switch request.request {
    case .takeOver: begin(request, connection)
    case .describe: with(request, connection) { connection.answer(describe($0, stillSince: nil)) }
    case .pause: with(request, connection) { pause($0, connection) }
    case .commit: with(request, connection, in: .paused) { commit($0, connection) }
    case .served: with(request, connection, in: .committed) { served($0, connection) }
    case .resume:
      with(request, connection, in: .paused) { disk in
        let reason = printable(request.reason ?? "no")
        log.warn("\(disks[disk].name) stays here, because the server that takes over says: \(reason)")
        resume()
        connection.answer(ControlLine(Takeover.Answer()))
      }
    }
  }

  private func begin(_ request: Takeover.Request, _ connection: ControlConnection) {
    guard request.version == Takeover.version else {
      return refuse(
        connection,
        "version \(request.version.map { "\($0)" } ?? "none") of the takeover protocol is not supported here, only \(Takeover.version)"
      )
    }
    guard !isEnding else { return refuse(connection, Self.ending) }
    guard taker == nil else { return refuse(connection, "another process is taking over already") }
    if let paused = service.disks.first(where: \.device.isPaused) {
      return refuse(connection, "\(paused.name) is paused: resume it with 'vmm-blk ctl resume' first")
    }
    for disk in service.disks {
      if let reason = Takeover.obstacle(disk.device.image) {
        return refuse(connection, "\(disk.name) cannot be handed over, because \(reason)")
      }
    }
    if let current {
      let name = printable(disks[current.disk].name)
      return refuse(connection, "\(name) waits for requests that another server has left at the medium; try again")
    }
    taker = connection
    (disks, handedOver) = (service.disks, [])
    wantsControl = request.wantsControl ?? false
    connection.whenEnded = { [weak self] in self?.takerIsGone() }
    log.note("\(connection.peer) is about to take over")
    let names = disks.map { Takeover.Greeting.Name(disk: $0.name, image: $0.device.image.path) }
    connection.answer(
      ControlLine(
        Takeover.Greeting(version: Takeover.version, program: Version.text, transport: service.transport.rawValue, disks: names)
      ))
  }

  /// - Parameter phase: the phase that the disk has to be in; `nil`: no disk may be in any.
  private func with(
    _ request: Takeover.Request, _ connection: ControlConnection, in phase: Phase? = nil, _ act: (Int) -> Void
  ) {
    guard let disk = disks.firstIndex(where: { $0.name == request.disk }), !handedOver.contains(disk) else {
      return refuse(connection, "there is no disk \(printable(request.disk ?? "")) here")
    }
    guard !isEnding || phase == .committed else { return refuse(connection, Self.ending) }
    if phase == nil, current == nil { return act(disk) }
    guard let current, current.disk == disk, current.phase == phase else {
      return refuse(connection, "the disk \(printable(disks[disk].name)) does not wait for \"\(request.request.rawValue)\"")
    }
    act(disk)
  }

  private static let ending = "this process is about to end"

  private func refuse(_ connection: ControlConnection, _ reason: String) {
    connection.answer(ControlLine(Takeover.Answer(error: reason)))
  }

  // MARK: One disk

  private func describe(_ index: Int, stillSince: UInt64?) -> ControlLine {
    let image = disks[index].device.image
    let name = image.isOnServer ? Takeover.remoteImage(image.path) ?? image.path : image.path
    var (part, list) = disks[index].describe()
    let description = Takeover.Disk(
      image: Takeover.Image(
        path: name, size: image.size, lock: image.lock.map { list.add($0) }, serial: disks[index].device.serial,
        flushFailed: image.state.flushFailed.loadRelaxed() != 0,
        isStable: disks[index].device.isExportStable ? true : nil, owing: disks[index].device.owesWordOfLoss,
        identity: image.identityInCluster),
      part: part, limits: disks[index].device.limits.isEmpty ? nil : disks[index].device.limits.words, stillSince: stillSince)
    return ControlLine(description, descriptors: list.descriptors)
  }

  private func pause(_ index: Int, _ connection: ControlConnection) {
    let since = Clock.now
    current = (index, .pausing)
    attempt += 1
    loop.after(Takeover.limit) { [weak self, attempt] in self?.isTooSlow(attempt) }
    disks[index].pause { [weak self] reason in
      guard let self, current?.disk == index else { return }
      if let reason {
        current = nil
        return refuse(connection, reason)
      }
      current = (index, .paused)
      connection.answer(describe(index, stillSince: since))
    }
  }

  private func commit(_ index: Int, _ connection: ControlConnection) {
    // From here on the taker may serve it, so whatever happens to this process: lock, and socket or role, stay.
    leave(index)
    current = (index, .committed)
    connection.answer(ControlLine(Takeover.Answer()))
  }

  private func served(_ index: Int, _ connection: ControlConnection) {
    disks[index].handOver()
    handedOver.insert(index)
    current = nil
    // An answer to a taker that is gone ends the connection, and that clears the list.
    let name = disks[index].name
    log.note("\(name) is served by \(connection.peer) from now on")
    if wantsControl, handedOver.count == disks.count {
      control.leaveFile()
      connection.answer(ControlLine(Takeover.Answer(control: 0), descriptors: [control.socket]))
    } else {
      connection.answer(ControlLine(Takeover.Answer()))
    }
    service.handedOver(name)
  }

  // MARK: When it fails

  private func takerIsGone() {
    taker = nil
    guard let current else { return settle() }
    switch current.phase {
    case .pausing, .paused:
      log.warn("\(disks[current.disk].name) stays here, because the server that was taking it over is gone")
      resume()
    case .committed: waitForMedium(current.disk)
    // Nobody is accepted until then.
    case .abandoned: break
    }
  }

  /// Clears the list, which belonged to the taker, once none is connected and no disk is held for one.
  private func settle() {
    if !isBusy { disks = [] }
  }

  /// The taker may have begun, and what it has submitted may still be executed. That must not overtake what is resubmitted
  /// here, and no buffer may be given back to the guest before a late read has written to it.
  private func waitForMedium(_ index: Int) {
    current = (index, .abandoned)
    let (image, name) = (disks[index].device.image, disks[index].name)
    loop.after(Self.notice) { [weak self] in
      guard self?.current?.phase == .abandoned else { return }
      self?.log.warn(
        "\(name) is stalled until the server that was taking it over, and its requests at the medium, are gone")
    }
    loop.perform(on: errands) {
      while image.isBeingTaken { usleep(Self.look) }
    } then: { [weak self] in
      guard let self, current?.phase == .abandoned else { return }
      log.warn(
        "\(name) stays here, and continues from guest memory, because the server that was taking it over is gone")
      resume()
    }
  }

  private func isTooSlow(_ attempt: Int) {
    // Do not race a taker that may have begun, however slow it is: only its end gives the disk back.
    guard attempt == self.attempt, let current, current.phase == .pausing || current.phase == .paused else { return }
    log.warn(
      current.phase == .pausing
        ? "\(disks[current.disk].name) stays here, because it could not be quiesced within \(Takeover.limit)"
        : "\(disks[current.disk].name) stays here, because the server that was taking it over does not continue")
    guard let taker else { return }
    // Whatever it sends from now on is out of date. Its end resumes the disk.
    taker.close()
  }

  private func resume() {
    guard let current else { return }
    self.current = nil
    let isBegun = current.phase == .abandoned
    if isBegun {
      own(current.disk)
      disks[current.disk].device.servedElsewhere()
      disks[current.disk].device.image.resumeExport()
    }
    disks[current.disk].goOn(fromMemory: isBegun)
    settle()
  }

  private func leave(_ index: Int) {
    disks[index].device.image.leaveLock()
    disks[index].leave()
  }

  private func own(_ index: Int) {
    disks[index].device.image.ownLock()
    disks[index].own()
  }
}
