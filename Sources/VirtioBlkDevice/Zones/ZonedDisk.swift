/// The zones of a disk, for all its queues: one table under a lock, which only requests of zoned disks take.
///
/// Writes to a zone are ordered by when the table accepted them, whichever queue they came from. They are submitted to the
/// medium at once and answered in that order: when a write is answered, everything before it in its zone has been written.
/// So a zone never claims to be written where it is not, and what a process leaves unanswered at its end counts as never
/// submitted.
internal import Synchronization
internal import SystemPackage
internal import VirtioCore

/// A request to a zone, as the table of zones needs to know it.
struct ZoneRequest: Sendable {
  /// How a request may turn out to be one that an earlier process executed but did not answer.
  enum Origin: Sendable {
    /// It cannot.
    case fresh
    /// It was in flight when that process ended.
    case retaken
    /// Answers are published in order, and this is the position of the queue.
    case inOrder
  }
  var queue: Int
  var head: UInt16
  var position: UInt16
  /// The low byte of its type.
  var type: UInt8
  var origin: Origin
  /// Whether what was done for it is noted.
  var isKept: Bool
}

/// Where to report the completion.
struct ZoneWaiter: Sendable {
  var board: CompletionBoard
  var tag: UInt32
}

enum ZoneVerdict: Equatable, Sendable {
  /// Submit it to the medium, at this sector; `zone`: a zone with a write pointer.
  case go(sector: UInt64, zone: Int?)
  /// An earlier process executed it: only answer it.
  case wasDone(sector: UInt64)
  case refused(BlockStatus)
}

enum ZoneAnswer: Equatable, Sendable {
  case status(BlockStatus)
  /// The status will be posted to the waiter's board.
  case later
}

/// ZONE_OPEN and the others without data.
enum ZoneCommand: UInt8, CaseIterable, Sendable {
  case open = 18
  case close = 20
  case finish = 22
  case reset = 24
  case resetAll = 26
}

/// The zones of one disk. The image owns it, and all queues use it.
public final class ZonedDisk: Sendable {
  /// A write in flight.
  struct Flight {
    var request: ZoneRequest
    /// In the zone, sectors.
    var start: UInt32
    var end: UInt32
    var isOver = false
    /// The medium says that its data is on stable storage.
    var isDurable = false
    /// An earlier one failed, so this one fails as well, and others may write to its place.
    var isDoomed = false
    /// The status of one that has completed and waits for earlier ones.
    var waiter: ZoneWaiter?
  }

  /// A command that waits until no write is in flight in its zone.
  struct Waiting {
    var command: ZoneCommand
    var sector: UInt64
    var request: ZoneRequest
    var waiter: ZoneWaiter
  }

  /// What a record should say about some zones, unless they are reset before it is written.
  struct Snapshot: Sendable {
    var zones: [(index: Int, zone: Zone, resets: UInt32)] = []
    /// Later tickets have higher numbers. 0: it only says that zones were reset, as does any other record after the reset.
    var order: UInt64 = 0
  }

  struct State {
    var table: ZoneTable
    /// As in the newest record.
    var recorded: [Zone] = []
    /// As in the record that is being written, or whose writing failed: it is the newest one as soon as it is intact.
    var recording: [Zone]?
    /// For each zone, how many sectors from its beginning are known to be on stable storage.
    var stable: [UInt32] = []
    /// For each zone, the highest ticket recorded: tickets are not recorded in the order in which they were issued.
    var recordedOrder: [UInt64] = []
    var lastOrder: UInt64 = 0
    /// How often each zone was reset, and how often it had been when it was last recorded.
    var resets: [UInt32] = []
    var recordedResets: [UInt32] = []
    /// For each zone, in order.
    var flights: [Int: [Flight]] = [:]
    var waiting: [Waiting] = []
    /// What an earlier process executed but did not answer, by queue and head.
    var notes: [Int: [UInt16: ZoneNote]] = [:]
    /// How many requests of a queue with answers in order may still be one of them.
    var budgets: [Int: Int] = [:]
    var snapshots: [UInt32: Snapshot] = [:]
    var nextTicket: UInt32 = 1
    var isLoaded = false
    /// Zones with abandoned writes that the medium may still execute: nothing else may be written there.
    var lost: Set<Int> = []
    var failure: ZoneFailure?

    /// A zone was reset: nothing of it is on stable storage any more, and no record of it counts.
    mutating func forget(_ zone: Int) {
      resets[zone] &+= 1
      stable[zone] = 0
    }
  }

  let geometry: ZoneGeometry
  let file: ZoneFile
  private let boot: UInt64
  private let failing: (readOnly: [Int], offline: [Int])
  let state: Mutex<State>
  /// Set by the control thread, which must not wait for the lock: its holder may be waiting for the medium.
  private let dropsNotes = Atomic(false)
  private let reloads = Atomic(false)
  /// One record is written at a time.
  let recorder = Mutex<Void>(())
  /// The largest ring, entries.
  private let ringEntries: Int

  /// - Parameters:
  ///   - boot: the boot of the machine; for tests of what a later boot finds.
  init(_ file: ZoneFile, _ options: ZonedOptions, ringEntries: Int, boot: UInt64 = ZoneFile.bootNumber()) {
    self.file = file
    self.boot = boot
    self.ringEntries = ringEntries
    geometry = file.geometry
    failing = (options.readOnlyZones, options.offlineZones)
    state = Mutex(State(table: ZoneTable(file.geometry)))
  }

  // MARK: The state

  /// The file is read at the first request: until then the zones may belong to another server, from which this one takes
  /// over.
  func with<Result: Sendable>(_ body: (inout State) -> Result) -> Result {
    state.withLock { state in
      // Relaxed: queues that start after one of them was set see it through the order to start.
      if reloads.load(ordering: .relaxed), reloads.exchange(false, ordering: .relaxed) { state.isLoaded = false }
      if !state.isLoaded { load(&state) }
      if dropsNotes.load(ordering: .relaxed), dropsNotes.exchange(false, ordering: .relaxed) {
        state.notes = [:]
        state.budgets = [:]
        if state.failure == nil { file.forgetAllNotes() }
      }
      return body(&state)
    }
  }

  private func load(_ state: inout State) {
    state.isLoaded = true
    state.failure = nil
    (state.flights, state.waiting, state.notes, state.budgets, state.snapshots) = ([:], [], [:], [:], [:])
    do throws(ZoneFailure) {
      let found = try file.load(boot: boot)
      state.table = ZoneTable(geometry, zones: found.zones)
      state.recorded = found.recorded
      state.recording = nil
      state.recordedOrder = Array(repeating: 0, count: found.zones.count)
      state.recordedResets = Array(repeating: 0, count: found.zones.count)
      // If a zone has less than its record says, it was reset by a process that ended before it could record that: it is
      // recorded before the reset is answered, by whichever process.
      state.resets = zip(found.zones, found.recorded).map { zone, recorded in
        zone.written < recorded.written || zone.state == .empty && recorded.state != .empty ? 1 : 0
      }
      // What another process wrote may be in the page cache only, and a zone as long as its record may have been reset and
      // written again: the first flush tells.
      state.stable = Array(repeating: 0, count: found.zones.count)
      for (queue, notes) in found.notes.enumerated() where !notes.isEmpty {
        state.notes[queue] = Dictionary(notes.map { ($0.head, $0) }, uniquingKeysWith: { one, _ in one })
      }
      for zone in failing.readOnly { state.table.fail(zone, .readOnly) }
      for zone in failing.offline { state.table.fail(zone, .offline) }
      keepChanged(&state)
    } catch {
      state.failure = error
    }
  }

  /// Why the zones cannot be used; `nil`: they can.
  var failure: ZoneFailure? { with { $0.failure } }

  private func keepChanged(_ state: inout State) {
    // The table cannot be read while it hands out its changes.
    var changed: [Int] = []
    state.table.takeChanged { changed.append($0) }
    for zone in changed { file.keep(zone, state.table.zones[zone]) }
  }

  /// A driver starts over: what was in flight before is forgotten. Does not wait; it takes effect at the next request.
  func dropNotes() { dropsNotes.store(true, ordering: .relaxed) }

  /// Another process may have used the zones in the meantime: the next request reads the file again. No queue runs, and
  /// nothing is in flight. Does not wait.
  func reload() { reloads.store(true, ordering: .relaxed) }

  /// Whether an earlier process executed this and did not answer it.
  private func recall(_ request: ZoneRequest, sector: UInt64?, _ state: inout State) -> ZoneNote? {
    guard var notes = state.notes[request.queue] else { return nil }
    switch request.origin {
    case .fresh: break
    case .retaken, .inOrder:
      if let note = notes[request.head], note.type == request.type, sector == nil || sector == note.sector,
        request.origin == .retaken || note.position == request.position
      {
        notes[request.head] = nil
        state.notes[request.queue] = notes.isEmpty ? nil : notes
        return note
      }
      if request.origin == .retaken { return nil }
      let left = (state.budgets[request.queue] ?? ringEntries) - 1
      state.budgets[request.queue] = left
      if left > 0 { return nil }
    }
    // Nobody will resubmit the rest.
    for head in notes.keys { file.forget(head: head, queue: request.queue) }
    state.notes[request.queue] = nil
    return nil
  }

  private func keep(_ note: ZoneNote, _ request: ZoneRequest, _ state: inout State) {
    guard request.isKept else { return }
    // The slot now belongs to this request.
    state.notes[request.queue]?[request.head] = nil
    file.keep(note, queue: request.queue)
  }

  /// The answers have been published.
  func published(_ heads: [UInt16], queue: Int) {
    for head in heads { file.forget(head: head, queue: queue) }
  }

  // MARK: Data

  func read(at sector: UInt64, count: UInt64) -> ZoneTable.Readable {
    with { state in
      guard state.failure == nil else { return .refused(.ioError) }
      return state.table.read(at: sector, count: count)
    }
  }

  /// A write, or one of zeroes.
  func write(_ request: ZoneRequest, at sector: UInt64, count: UInt64) -> ZoneVerdict {
    begin(request, at: sector, inZoneOf: sector, count: count) { $0.write(at: sector, count: count) }
  }

  func append(_ request: ZoneRequest, to sector: UInt64, count: UInt64) -> ZoneVerdict {
    begin(request, at: nil, inZoneOf: sector, count: count) { $0.append(to: sector, count: count) }
  }

  private func begin(
    _ request: ZoneRequest, at sector: UInt64?, inZoneOf place: UInt64, count: UInt64,
    _ ask: (inout ZoneTable) -> ZoneTable.Place
  ) -> ZoneVerdict {
    with { state in
      guard state.failure == nil, !file.isLost else { return .refused(.ioError) }
      if let note = recall(request, sector: sector, &state) { return .wasDone(sector: note.sector) }
      // After a failed write, later ones may still be in flight to the same place. Checked first, so that a refused request
      // changes nothing.
      if place < geometry.capacity, hasDoomed(geometry.zone(of: place), state) { return .refused(.ioError) }
      switch ask(&state.table) {
      case .refused(let status):
        keepChanged(&state)
        return .refused(status)
      case .accepted(let sector, nil): return .go(sector: sector, zone: nil)
      case .accepted(let sector, let zone?):
        let start = UInt32(sector - geometry.start(of: zone))
        keepChanged(&state)
        state.flights[zone, default: []].append(Flight(request: request, start: start, end: start + UInt32(count)))
        return .go(sector: sector, zone: zone)
      }
    }
  }

  private func hasDoomed(_ zone: Int, _ state: State) -> Bool {
    state.lost.contains(zone) || state.flights[zone]?.contains { $0.isDoomed } ?? false
  }

  /// The medium has completed a write.
  ///
  /// - Parameters:
  ///   - sector: where it went.
  ///   - zone: as it was accepted.
  ///   - isDurable: its data is on stable storage.
  func finish(at sector: UInt64, zone: Int, isDone: Bool, isDurable: Bool = false, _ waiter: ZoneWaiter?) -> ZoneAnswer {
    with { state in
      let start = UInt32(sector - geometry.start(of: zone))
      guard var flights = state.flights[zone], let place = flights.firstIndex(where: { $0.start == start }) else {
        return .status(.ioError)
      }
      defer {
        state.flights[zone] = flights.isEmpty ? nil : flights
        goOn(zone, &state)
      }
      if flights[place].isDoomed {
        flights.remove(at: place)
        return .status(.ioError)
      }
      guard isDone else {
        fail(place, of: &flights, zone, &state)
        return .status(.ioError)
      }
      flights[place].isOver = true
      flights[place].isDurable = isDurable
      flights[place].waiter = waiter
      var isAnswered = false
      while let first = flights.first, first.isOver {
        flights.removeFirst()
        let isLast = flights.isEmpty
        settle(zone, first, isLast: isLast, &state)
        if first.start == start {
          isAnswered = true
        } else {
          first.waiter?.board.post(tag: first.waiter!.tag, result: 0)
        }
      }
      return isAnswered ? .status(file.isLost ? .ioError : .ok) : .later
    }
  }

  /// A write failed, and so do the later ones in flight: there is a gap before them.
  private func fail(_ place: Int, of flights: inout [Flight], _ zone: Int, _ state: inout State) {
    let start = flights[place].start
    flights.remove(at: place)
    for other in place..<flights.count { flights[other].isDoomed = true }
    for flight in flights[place...] where flight.isOver {
      flight.waiter?.board.post(tag: flight.waiter!.tag, result: Int32(BlockStatus.ioError.rawValue))
    }
    flights.removeAll { $0.isDoomed && $0.isOver }
    state.table.retract(zone, to: start)
    keepChanged(&state)
  }

  /// The medium of a queue is lost with everything in flight on it, which it may still execute: nobody may write to those
  /// zones or reset them for as long as this process lives.
  ///
  /// - Parameter writes: those in flight on the medium: their sectors, and their zones.
  func abandon(queue: Int, writes: [(sector: UInt64, zone: Int)]) {
    with { state in
      // Nobody waits for it any more, and a command that was reported as failed must not be executed later.
      state.waiting.removeAll { $0.request.queue == queue }
      for (sector, zone) in writes {
        state.lost.insert(zone)
        let start = UInt32(sector - geometry.start(of: zone))
        guard var flights = state.flights[zone], let place = flights.firstIndex(where: { $0.start == start }) else { continue }
        // A write that is already doomed came after another failed one.
        if flights[place].isDoomed { flights.remove(at: place) } else { fail(place, of: &flights, zone, &state) }
        state.flights[zone] = flights.isEmpty ? nil : flights
      }
      var left: [Waiting] = []
      for waiting in state.waiting {
        if isLost(waiting.command, waiting.sector, state) {
          waiting.waiter.board.post(tag: waiting.waiter.tag, result: Int32(BlockStatus.ioError.rawValue))
        } else {
          left.append(waiting)
        }
      }
      state.waiting = left
    }
  }

  /// The command would reset or finish a zone to which lost writes may still go.
  private func isLost(_ command: ZoneCommand, _ sector: UInt64, _ state: State) -> Bool {
    switch command {
    case .open, .close: false
    case .finish, .reset: geometry.zone(startingAt: sector).map { state.lost.contains($0) } ?? false
    case .resetAll: !state.lost.isEmpty
    }
  }

  private func settle(_ zone: Int, _ flight: Flight, isLast: Bool, _ state: inout State) {
    var note = ZoneNote(
      kind: .prepared, head: flight.request.head, position: flight.request.position, type: flight.request.type,
      sector: geometry.start(of: zone) + UInt64(flight.start), written: flight.end)
    keep(note, flight.request, &state)
    state.table.settle(zone, written: flight.end)
    if flight.isDurable, state.stable[zone] == flight.start { state.stable[zone] = flight.end }
    keepChanged(&state)
    note.kind = .done
    keep(note, flight.request, &state)
  }

  /// Executes what has waited for the writes of a zone.
  private func goOn(_ zone: Int, _ state: inout State) {
    guard !state.waiting.isEmpty, state.flights[zone] == nil else { return }
    var left: [Waiting] = []
    for waiting in state.waiting {
      if isBusy(waiting.command, waiting.sector, state) {
        left.append(waiting)
      } else {
        let status = carryOut(waiting.command, waiting.sector, waiting.request, &state)
        waiting.waiter.board.post(tag: waiting.waiter.tag, result: Int32(status.rawValue))
      }
    }
    state.waiting = left
  }

  // MARK: Commands

  func command(_ command: ZoneCommand, _ sector: UInt64, _ request: ZoneRequest, _ waiter: ZoneWaiter) -> ZoneAnswer {
    with { state in
      guard state.failure == nil, !file.isLost else { return .status(.ioError) }
      if recall(request, sector: nil, &state) != nil { return .status(.ok) }
      guard !isLost(command, sector, state) else { return .status(.ioError) }
      guard !isBusy(command, sector, state) else {
        state.waiting.append(Waiting(command: command, sector: sector, request: request, waiter: waiter))
        return .later
      }
      return .status(carryOut(command, sector, request, &state))
    }
  }

  /// Writes are in flight that the command must not overtake: their data would land where others write afterwards.
  private func isBusy(_ command: ZoneCommand, _ sector: UInt64, _ state: State) -> Bool {
    switch command {
    case .open, .close: false
    case .finish, .reset: geometry.zone(startingAt: sector).map { state.flights[$0] != nil } ?? false
    case .resetAll: !state.flights.isEmpty
    }
  }

  private func carryOut(
    _ command: ZoneCommand, _ sector: UInt64, _ request: ZoneRequest, _ state: inout State
  ) -> BlockStatus {
    var status = BlockStatus.ok
    switch command {
    case .open: status = state.table.open(sector)
    case .close: status = state.table.close(sector)
    case .finish: status = state.table.finish(sector)
    case .reset:
      status = state.table.reset(sector)
      if status == .ok { state.forget(geometry.zone(of: sector)) }
    case .resetAll:
      state.table.resetAll()
      // Except zones that cannot be reset.
      for zone in state.resets.indices where state.table.zones[zone].state == .empty { state.forget(zone) }
    }
    keepChanged(&state)
    guard status == .ok else { return status }
    keep(
      ZoneNote(
        kind: .done, head: request.head, position: request.position, type: request.type,
        sector: min(sector, geometry.capacity - 1), written: 0), request, &state)
    return file.isLost ? .ioError : .ok
  }

  /// ZONE_REPORT: a header and as many zones as fit, starting with the one that contains the sector.
  ///
  /// - Parameter room: bytes.
  /// - Returns: `nil`: there is no such zone, or no room for a header.
  func report(from sector: UInt64, room: Int) -> [UInt8]? {
    guard sector < geometry.capacity, room >= 64 else { return nil }
    let first = geometry.zone(of: sector)
    let count = min(geometry.count - first, (room - 64) / 64)
    let zones = with { state in state.failure == nil ? Array(state.table.zones[first..<first + count]) : nil }
    guard let zones else { return nil }
    var bytes = [UInt8](repeating: 0, count: 64 + 64 * count)
    func put(_ value: UInt64, _ offset: Int) {
      for index in 0..<8 { bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(index * 8)) }
    }
    put(UInt64(count), 0)
    for (index, zone) in zones.enumerated() {
      let (number, offset) = (first + index, 64 + 64 * index)
      let (start, length) = (geometry.start(of: number), geometry.length(of: number))
      put(geometry.writable(in: number), offset)
      put(start, offset + 8)
      // Writes in flight count: the next write goes after them.
      put(zone.state == .full || geometry.isConventional(number) ? start + length : start + UInt64(zone.pointer), offset + 16)
      bytes[offset + 24] = geometry.isConventional(number) ? 1 : 2
      bytes[offset + 25] = zone.state.rawValue
    }
    return bytes
  }

  /// For tests and for status.
  var zones: [Zone] { with { $0.table.zones } }
}
