/// Which zone state survives the process, and which survives the machine.
import Foundation
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct ZoneFileTests {
  static let geometry = ZoneGeometry(
    capacity: 8192, zoneSectors: 512, zoneCapacity: 512, conventional: 0, maximumOpen: 0, maximumActive: 0, maximumAppend: 64,
    granularity: 1)

  static func open(
    _ path: String, _ geometry: ZoneGeometry = geometry, identity: UInt64 = 7, adopts: Bool = false, boot: UInt64 = 1
  ) throws -> ZonedDisk {
    let file = try ZoneFile(path: path, geometry, identity: identity, adopts: adopts, queues: 2, notes: 64)
    return ZonedDisk(file, ZonedOptions(), ringEntries: 64, boot: boot)
  }

  static func request(
    _ head: UInt16 = 0, type: UInt8 = 1, origin: ZoneRequest.Origin = .fresh, isKept: Bool = false, queue: Int = 0
  ) -> ZoneRequest {
    ZoneRequest(queue: queue, head: head, position: head &+ 1, type: type, origin: origin, isKept: isKept)
  }

  /// A completed write.
  static func write(
    _ disk: ZonedDisk, _ zone: Int, _ count: UInt64, _ request: ZoneRequest = request(), durable isDurable: Bool = false
  ) throws {
    let sector = disk.geometry.start(of: zone) + UInt64(disk.zones[zone].pointer)
    #expect(disk.write(request, at: sector, count: count) == .go(sector: sector, zone: zone))
    #expect(disk.finish(at: sector, zone: zone, isDone: true, isDurable: isDurable, nil) == .status(.ok))
  }

  static func command(
    _ disk: ZonedDisk, _ command: ZoneCommand, _ zone: Int, _ request: ZoneRequest = request(type: 24)
  ) -> ZoneAnswer {
    disk.command(command, disk.geometry.start(of: zone), request, ZoneWaiter(board: CompletionBoard(wake: {}), tag: 0))
  }

  static func flush(_ disk: ZonedDisk) {
    let ticket = disk.ticket()
    if ticket > 0 { #expect(disk.record(ticket: ticket)) }
  }

  /// The process ends, the page cache stays: everything that was answered is there, flushed or not.
  @Test func theNextProcessFindsTheZonesAsTheyWere() throws {
    let scratch = try Scratch()
    let path = scratch.path + "/zones"
    var states: [Zone] = []
    do {
      let disk = try Self.open(path)
      try Self.write(disk, 1, 10)
      try Self.write(disk, 2, 512)
      #expect(Self.command(disk, .open, 3) == .status(.ok))
      try Self.write(disk, 4, 3)
      #expect(Self.command(disk, .close, 4) == .status(.ok))
      try Self.write(disk, 5, 9)
      #expect(Self.command(disk, .finish, 5) == .status(.ok))
      // Still in flight when the process ends: as if it had never been requested.
      #expect(disk.write(Self.request(), at: 6 * 512, count: 8) == .go(sector: 6 * 512, zone: 6))
      #expect(disk.write(Self.request(), at: 1 * 512 + 10, count: 502) == .go(sector: 522, zone: 1))
      states = disk.zones
    }
    let disk = try Self.open(path)
    #expect(disk.zones[1] == Zone(state: .implicitlyOpen, pointer: 10, written: 10))
    #expect(disk.zones[6] == Zone(state: .empty))
    for zone in [0, 2, 3, 4, 5, 7] { #expect(disk.zones[zone] == states[zone]) }
    #expect(disk.zones[5] == Zone(state: .full, pointer: 9, written: 9))
  }

  /// The machine goes down: flushed state is there, whatever else is in the file, and no zone is open.
  @Test func anotherBootFindsWhatWasFlushed() throws {
    let scratch = try Scratch()
    let path = scratch.path + "/zones"
    do {
      let disk = try Self.open(path)
      try Self.write(disk, 1, 10)
      try Self.write(disk, 2, 20)
      #expect(Self.command(disk, .open, 3) == .status(.ok))
      Self.flush(disk)
      try Self.write(disk, 1, 10)
      try Self.write(disk, 4, 10)
    }
    let disk = try Self.open(path, boot: 2)
    #expect(disk.zones[1] == Zone(state: .closed, pointer: 10, written: 10))
    #expect(disk.zones[2] == Zone(state: .closed, pointer: 20, written: 20))
    #expect(disk.zones[3] == Zone(state: .empty) && disk.zones[4] == Zone(state: .empty))
    // An unknown boot identifier counts as another boot.
    try Self.write(disk, 7, 10)
    #expect(try Self.open(path, boot: 0).zones[7] == Zone(state: .empty))
  }

  /// A flush covers the writes that were complete when it arrived, however many are complete when it is recorded.
  @Test func aRecordSaysNoMoreThanWasFlushed() throws {
    let scratch = try Scratch()
    let path = scratch.path + "/zones"
    do {
      let disk = try Self.open(path)
      try Self.write(disk, 1, 10)
      #expect(disk.write(Self.request(), at: 2 * 512, count: 8) == .go(sector: 1024, zone: 2))
      let ticket = disk.ticket()
      try Self.write(disk, 1, 10)
      #expect(disk.finish(at: 1024, zone: 2, isDone: true, nil) == .status(.ok))
      #expect(disk.record(ticket: ticket))
    }
    let disk = try Self.open(path, boot: 2)
    #expect(disk.zones[1].written == 10 && disk.zones[2].written == 0)
  }

  /// A reset is recorded at once, before data that the record covers is overwritten; other queues' writes are not recorded with
  /// it, and a flush from before the reset does not bring the zone back.
  @Test func aResetIsRecordedByItself() throws {
    let scratch = try Scratch()
    let path = scratch.path + "/zones"
    do {
      let disk = try Self.open(path)
      try Self.write(disk, 1, 10)
      try Self.write(disk, 2, 10)
      Self.flush(disk)
      try Self.write(disk, 2, 10)
      let late = disk.ticket()
      #expect(Self.command(disk, .reset, 1) == .status(.ok))
      let ticket = disk.ticketOfResets()
      #expect(ticket > 0 && disk.record(ticket: ticket))
      #expect(disk.ticketOfResets() == 0)
      #expect(try Self.open(path, boot: 0).zones[1] == Zone(state: .empty))
      _ = late
    }
    let disk = try Self.open(path, boot: 2)
    #expect(disk.zones[1] == Zone(state: .empty))
    #expect(disk.zones[2].written == 10)
  }

  @Test func aFlushFromBeforeAResetDoesNotUndoIt() throws {
    let scratch = try Scratch()
    let path = scratch.path + "/zones"
    do {
      let disk = try Self.open(path)
      try Self.write(disk, 1, 10)
      let flush = disk.ticket()
      #expect(Self.command(disk, .reset, 1) == .status(.ok))
      try Self.write(disk, 1, 3)
      #expect(disk.record(ticket: flush))
    }
    #expect(try Self.open(path, boot: 2).zones[1] == Zone(state: .empty))
  }

  /// Of two records the newer complete one counts. A torn record is ignored.
  @Test func aTornRecordIsNoticed() throws {
    let scratch = try Scratch()
    let path = scratch.path + "/zones"
    do {
      let disk = try Self.open(path)
      for count: UInt64 in [1, 2, 3] {
        try Self.write(disk, 1, count)
        Self.flush(disk)
      }
    }
    let layout = ZoneFileLayout(zones: Self.geometry.count, queues: 2, notes: 64)
    let whole = try Data(contentsOf: URL(fileURLWithPath: path))
    func zone(_ change: (inout Data) -> Void) throws -> UInt32 {
      var bytes = whole
      change(&bytes)
      let other = scratch.path + "/" + UUID().uuidString
      try bytes.write(to: URL(fileURLWithPath: other))
      return try Self.open(other, boot: 2).zones[1].written
    }
    #expect(try zone { _ in } == 6)
    // The newest record is in one of the two places; the other one has the state before it.
    let newest = (0..<2).map { number in (try? zone { $0[layout.record(number) + 40] ^= 1 }) ?? 0 }
    #expect(newest.sorted() == [3, 6])
    for offset in [0, 8, 16, 32, 32 + 8 * (Self.geometry.count - 1)] {
      let found = try (0..<2).map { number in try zone { $0[layout.record(number) + offset] ^= 0x55 } }
      #expect(found.sorted() == [3, 6], "byte \(offset)")
    }
    let path2 = scratch.path + "/bad"
    var bytes = whole
    for number in 0..<2 { bytes[layout.record(number) + 33] ^= 1 }
    try bytes.write(to: URL(fileURLWithPath: path2))
    #expect(try Self.open(path2, boot: 2).failure == .damaged(path: path2, what: "neither of its two records is whole"))
  }

  @Test func wrongFilesAreRefused() throws {
    let scratch = try Scratch()
    let path = scratch.path + "/zones"
    _ = try Self.open(path)
    func failure(_ body: () throws -> ZonedDisk) -> ZoneFailure? {
      do {
        _ = try body()
        return nil
      } catch { return error as? ZoneFailure }
    }
    #expect(failure { try Self.open(path) } == nil)
    #expect(failure { try Self.open(path, identity: 8) } == .otherImage(path: path))
    var other = Self.geometry
    other.capacity = 4096
    #expect(
      failure { try Self.open(path, other) } == .otherGeometry(path: path, what: "number of sectors", kept: 8192, wanted: 4096))
    other = Self.geometry
    other.zoneSectors = 1024
    #expect(
      failure { try Self.open(path, other) }
        == .otherGeometry(path: path, what: "zone size in sectors", kept: 512, wanted: 1024))
    // A copy that is adopted belongs to the image from then on.
    #expect(failure { try Self.open(path, identity: 8, adopts: true) } == nil)
    #expect(failure { try Self.open(path, identity: 8) } == nil)
    let text = scratch.path + "/text"
    try Data(repeating: 0x41, count: 1 << 16).write(to: URL(fileURLWithPath: text))
    #expect(failure { try Self.open(text) } == .notZones(path: text))
    let short = scratch.path + "/short"
    try Data(contentsOf: URL(fileURLWithPath: path)).prefix(5000).write(to: URL(fileURLWithPath: short))
    #expect(failure { try Self.open(short, identity: 8) } == .damaged(path: short, what: "it is too short"))
    var bytes = try Data(contentsOf: URL(fileURLWithPath: path))
    bytes[17] ^= 1
    let torn = scratch.path + "/torn"
    try bytes.write(to: URL(fileURLWithPath: torn))
    #expect(failure { try Self.open(torn, identity: 8) } == .damaged(path: torn, what: "its head"))
    #expect(failure { try Self.open(scratch.path + "/none/zones") } != nil)
  }

  /// A process that has lost the zones to another one does not overwrite its records.
  @Test func onlyOneProcessHasThem() throws {
    let scratch = try Scratch()
    let path = scratch.path + "/zones"
    let first = try Self.open(path)
    try Self.write(first, 1, 10)
    let second = try Self.open(path)
    // The second process takes the zones with its first request, not earlier: the first one goes on until then.
    try Self.write(first, 1, 10)
    #expect(second.zones[1].written == 20)
    let ticket = first.ticket()
    #expect(!first.record(ticket: ticket))
    first.close()
    try Self.write(second, 1, 10)
    Self.flush(second)
    #expect(try Self.open(path, boot: 2).zones[1].written == 30)
  }

  /// The file is truncated while it is open: nothing more is acknowledged.
  @Test func aFileThatIsCut() throws {
    let scratch = try Scratch()
    let path = scratch.path + "/zones"
    let disk = try Self.open(path)
    try Self.write(disk, 1, 10)
    #expect(unsafe truncate(path, 0) == 0)
    #expect(disk.write(Self.request(), at: 522, count: 10) == .go(sector: 522, zone: 1))
    #expect(disk.finish(at: 522, zone: 1, isDone: true, nil) == .status(.ioError))
    #expect(disk.write(Self.request(), at: 532, count: 10) == .refused(.ioError))
    #expect(!disk.record(ticket: disk.ticket()))
  }

  // MARK: Requests that were done and not answered

  /// A process ends after it did a request and before its driver could see the answer: the next one answers without doing it
  /// again.
  @Test(arguments: [ZoneRequest.Origin.retaken, .inOrder]) func whatWasDoneIsNotDoneTwice(origin: ZoneRequest.Origin) throws {
    let scratch = try Scratch()
    let path = scratch.path + "/zones"
    do {
      let disk = try Self.open(path)
      try Self.write(disk, 1, 10, Self.request(3, type: 15, isKept: true))
      try Self.write(disk, 2, 10, Self.request(4, type: 1, isKept: true))
      try Self.write(disk, 3, 10, Self.request(5, type: 1, isKept: true))
      #expect(Self.command(disk, .reset, 3, Self.request(6, type: 24, isKept: true)) == .status(.ok))
      try Self.write(disk, 3, 7)
      // The driver has seen this answer.
      try Self.write(disk, 4, 10, Self.request(9, type: 15, isKept: true))
      disk.published([9], queue: 0)
      // Not complete when the process ends.
      #expect(disk.append(Self.request(8, type: 15, isKept: true), to: 5 * 512, count: 4) == .go(sector: 2560, zone: 5))
    }
    let disk = try Self.open(path)
    let before = disk.zones
    #expect(disk.append(Self.request(3, type: 15, origin: origin, isKept: true), to: 512, count: 10) == .wasDone(sector: 512))
    #expect(disk.write(Self.request(4, type: 1, origin: origin, isKept: true), at: 1024, count: 10) == .wasDone(sector: 1024))
    #expect(disk.write(Self.request(5, type: 1, origin: origin, isKept: true), at: 1536, count: 10) == .wasDone(sector: 1536))
    #expect(Self.command(disk, .reset, 3, Self.request(6, type: 24, origin: origin, isKept: true)) == .status(.ok))
    #expect(disk.zones == before)
    // The same request once more is a new one.
    #expect(
      disk.append(Self.request(8, type: 15, origin: origin, isKept: true), to: 5 * 512, count: 4) == .go(sector: 2560, zone: 5))
    #expect(
      disk.append(Self.request(9, type: 15, origin: origin, isKept: true), to: 2048, count: 1) == .go(sector: 2058, zone: 4))
  }

  /// Notes that nobody asks for do not affect later requests with the same name.
  @Test func notesAreForgotten() throws {
    let scratch = try Scratch()
    let path = scratch.path + "/zones"
    func leave() throws {
      let disk = try Self.open(path)
      try Self.write(disk, 1, 10, Self.request(3, type: 15, isKept: true))
    }
    try leave()
    do {
      // The first request was not in flight.
      let disk = try Self.open(path)
      #expect(disk.append(Self.request(0, type: 15), to: 2048, count: 1) == .go(sector: 2048, zone: 4))
      #expect(disk.append(Self.request(3, type: 15, origin: .retaken), to: 512, count: 1) == .go(sector: 522, zone: 1))
    }
    try leave()
    do {
      // A driver that starts over.
      let disk = try Self.open(path)
      disk.dropNotes()
      #expect(disk.append(Self.request(3, type: 15, origin: .retaken), to: 512, count: 1) == .go(sector: 532, zone: 1))
    }
    try leave()
    do {
      // Another place in the ring, another type, another queue.
      let disk = try Self.open(path)
      var other = Self.request(3, type: 15, origin: .inOrder)
      other.position = 77
      #expect(disk.append(other, to: 512, count: 1) == .go(sector: 542, zone: 1))
      #expect(disk.write(Self.request(3, type: 1, origin: .inOrder), at: 2048, count: 1) == .go(sector: 2048, zone: 4))
      #expect(
        disk.append(Self.request(3, type: 15, origin: .inOrder, queue: 1), to: 2560, count: 1) == .go(sector: 2560, zone: 5))
      #expect(disk.append(Self.request(3, type: 15, origin: .inOrder), to: 512, count: 1) == .wasDone(sector: 512 + 20))
    }
  }
}
