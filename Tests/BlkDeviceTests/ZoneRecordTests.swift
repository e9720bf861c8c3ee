/// Zone records interleaved in any order with changes to the zones, and zones that another process had, or may still have.
import Foundation
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct ZoneRecordTests {
  private typealias Files = ZoneFileTests

  private static func path(_ scratch: Scratch) -> String { scratch.path + "/zones" }

  // MARK: Order

  /// Tickets of two queues are recorded in reverse order: what the later one recorded and acknowledged stays.
  @Test func anOlderFlushDoesNotUndoANewerOne() throws {
    let scratch = try Scratch()
    let path = Self.path(scratch)
    do {
      let disk = try Files.open(path)
      try Files.write(disk, 1, 8)
      try Files.write(disk, 2, 8)
      let first = disk.ticket()
      try Files.write(disk, 1, 8)
      let second = disk.ticket()
      #expect(first > 0 && second > 0)
      #expect(disk.record(ticket: second))
      #expect(disk.record(ticket: first))
    }
    let disk = try Files.open(path, boot: 2)
    #expect(disk.zones[1].written == 16 && disk.zones[2].written == 8)
  }

  /// Data written and flushed after a reset stays, even if the reset's own record is the last one.
  @Test func aResetRecordedLateDoesNotUndoAFlush() throws {
    let scratch = try Scratch()
    let path = Self.path(scratch)
    do {
      let disk = try Files.open(path)
      try Files.write(disk, 1, 10)
      Files.flush(disk)
      #expect(Files.command(disk, .reset, 1) == .status(.ok))
      try Files.write(disk, 1, 4)
      let flush = disk.ticket()
      let reset = disk.ticketOfResets()
      #expect(reset > 0)
      #expect(disk.record(ticket: flush) && disk.record(ticket: reset))
    }
    #expect(try Files.open(path, boot: 2).zones[1].written == 4)
  }

  /// The zone has the same state again as in its record from before the reset: a flush records it all the same.
  @Test func aFlushOfAZoneThatIsAsBeforeItsReset() throws {
    let scratch = try Scratch()
    let path = Self.path(scratch)
    do {
      let disk = try Files.open(path)
      try Files.write(disk, 1, 10)
      Files.flush(disk)
      #expect(Files.command(disk, .reset, 1) == .status(.ok))
      try Files.write(disk, 1, 10)
      let reset = disk.ticketOfResets()
      let flush = disk.ticket()
      #expect(flush > 0 && disk.record(ticket: flush) && disk.record(ticket: reset))
    }
    #expect(try Files.open(path, boot: 2).zones[1].written == 10)
  }

  /// A record that includes data is being written: a reset that comes now has to be recorded after it.
  @Test func aResetWhileARecordIsWritten() throws {
    let scratch = try Scratch()
    let path = Self.path(scratch)
    do {
      let disk = try Files.open(path)
      try Files.write(disk, 1, 10)
      var reset: UInt32 = 0
      let isRecorded = disk.record(ticket: disk.ticket()) {
        #expect(Files.command(disk, .reset, 1) == .status(.ok))
        reset = disk.ticketOfResets()
      }
      #expect(isRecorded && reset > 0 && disk.record(ticket: reset))
      #expect(disk.ticketOfResets() == 0)
    }
    #expect(try Files.open(path, boot: 2).zones[1] == Zone(state: .empty))
  }

  /// The zone has the same state again as in the newest record, but not as in the record that is being written.
  @Test func aFlushWhileARecordIsWritten() throws {
    let scratch = try Scratch()
    let disk = try Files.open(Self.path(scratch))
    #expect(Files.command(disk, .open, 3) == .status(.ok))
    var tickets: (all: UInt32, one: UInt32) = (0, 0)
    let isRecorded = disk.record(ticket: disk.ticket()) {
      #expect(Files.command(disk, .close, 3) == .status(.ok))
      tickets = (disk.ticket(), disk.ticket(zone: 3).ticket)
    }
    #expect(isRecorded && tickets.all > 0 && tickets.one > 0)
    #expect(disk.record(ticket: tickets.all) && disk.record(ticket: tickets.one))
    #expect(disk.ticket() == 0 && disk.ticket(zone: 3).ticket == 0)
  }

  /// A record whose write failed does not count.
  @Test func aRecordThatFails() throws {
    let scratch = try Scratch()
    let path = Self.path(scratch)
    let disk = try Files.open(path)
    try Files.write(disk, 1, 10)
    let ticket = disk.ticket()
    let other = try Files.open(path)
    #expect(other.zones[1].written == 10)
    #expect(!disk.record(ticket: ticket))
    #expect(!disk.ticket(zone: 1).isStable)
  }

  /// Conventional zones are never recorded as empty: such a record would be invalid.
  @Test func aResetOfAllZonesLeavesConventionalOnes() throws {
    let scratch = try Scratch()
    let path = Self.path(scratch)
    var geometry = Files.geometry
    geometry.conventional = 2
    do {
      let disk = try Files.open(path, geometry)
      for _ in 0..<3 {
        try Files.write(disk, 4, 10)
        Files.flush(disk)
        #expect(Files.command(disk, .resetAll, 0) == .status(.ok))
        let ticket = disk.ticketOfResets()
        #expect(ticket > 0 && disk.record(ticket: ticket))
      }
    }
    let disk = try Files.open(path, geometry, boot: 2)
    #expect(disk.failure == nil)
    #expect(disk.zones[0] == Zone(state: .notWritePointer) && disk.zones[4] == Zone(state: .empty))
  }

  /// Whether a durable write may be recorded without a flush: everything written to its zone must be stable.
  @Test func whatIsAroundADurableWrite() throws {
    let scratch = try Scratch()
    let disk = try Files.open(Self.path(scratch))
    func write(durable isDurable: Bool) throws { try Files.write(disk, 1, 8, durable: isDurable) }
    #expect(disk.ticket(zone: 1).isStable)
    try write(durable: true)
    try write(durable: true)
    #expect(disk.ticket(zone: 1).isStable)
    // A write that is not durable, after it or before it.
    try write(durable: false)
    #expect(!disk.ticket(zone: 1).isStable)
    try write(durable: true)
    #expect(!disk.ticket(zone: 1).isStable)
    Files.flush(disk)
    #expect(disk.ticket(zone: 1).isStable)
    try write(durable: true)
    #expect(disk.ticket(zone: 1).isStable)
    #expect(Files.command(disk, .reset, 1) == .status(.ok))
    try write(durable: false)
    // The record covers what was there before.
    #expect(!disk.ticket(zone: 1).isStable)
  }

  /// A record of what a durable write found is older than what was written since.
  @Test func aRecordThatIsWrittenMeanwhile() throws {
    let scratch = try Scratch()
    let disk = try Files.open(Self.path(scratch))
    try Files.write(disk, 1, 8, durable: true)
    let first = disk.ticket(zone: 1)
    try Files.write(disk, 1, 8)
    #expect(first.isStable && disk.record(ticket: first.ticket))
    #expect(!disk.ticket(zone: 1).isStable)
    #expect(try Files.open(Self.path(scratch), boot: 2).zones[1].written == 8)
  }

  /// Data that an earlier process wrote after the last record may be only in the page cache.
  @Test func whatAnotherProcessWroteIsNotKnownToBeStable() throws {
    let scratch = try Scratch()
    do {
      let disk = try Files.open(Self.path(scratch))
      try Files.write(disk, 1, 8)
      Files.flush(disk)
      try Files.write(disk, 1, 8, durable: true)
      try Files.write(disk, 2, 8)
      Files.flush(disk)
      #expect(Files.command(disk, .reset, 2) == .status(.ok))
      try Files.write(disk, 2, 4)
      try Files.write(disk, 3, 8)
      // The process ends before the last of them are recorded.
    }
    let disk = try Files.open(Self.path(scratch))
    // Zone 1 is as its record says, but may have been reset and written again.
    for zone in 1...3 { #expect(!disk.ticket(zone: zone).isStable, "zone \(zone)") }
  }

  // MARK: Other processes

  /// A process ends after a reset was done and before it was recorded: the process that answers it records it first.
  @Test func aResetThatIsAnsweredByAnotherProcessIsRecorded() throws {
    let scratch = try Scratch()
    let path = Self.path(scratch)
    do {
      let disk = try Files.open(path)
      try Files.write(disk, 3, 10)
      try Files.write(disk, 4, 10)
      Files.flush(disk)
      #expect(Files.command(disk, .reset, 3, Files.request(6, type: 24, isKept: true)) == .status(.ok))
    }
    do {
      let disk = try Files.open(path)
      let again = Files.request(6, type: 24, origin: .retaken, isKept: true)
      #expect(Files.command(disk, .reset, 3, again) == .status(.ok))
      let ticket = disk.ticketOfResets()
      #expect(ticket > 0 && disk.record(ticket: ticket))
      #expect(disk.ticketOfResets() == 0)
    }
    let disk = try Files.open(path, boot: 2)
    #expect(disk.zones[3] == Zone(state: .empty) && disk.zones[4].written == 10)
  }

  /// A server takes over, serves, and ends: the previous one continues with the zones' current state.
  @Test func zonesThatAnotherServerHadAreLookedAtAgain() throws {
    let scratch = try Scratch()
    let path = Self.path(scratch)
    do {
      let disk = try Files.open(path)
      try Files.write(disk, 1, 10)
      try Files.write(try Files.open(path), 1, 20)
      disk.reload()
      #expect(disk.zones[1].written == 30)
      try Files.write(disk, 1, 1)
      Files.flush(disk)
    }
    #expect(try Files.open(path, boot: 2).zones[1].written == 31)
  }

  /// A damaged file has a note that is impossible for its request: it is ignored.
  @Test func notesOfSectorsBeyondTheDiskAreNone() throws {
    let scratch = try Scratch()
    let path = Self.path(scratch)
    do {
      let disk = try Files.open(path)
      try Files.write(disk, 1, 10, Files.request(3, type: 15, isKept: true))
      try Files.write(disk, 2, 10, Files.request(4, type: 15, isKept: true))
    }
    let layout = ZoneFileLayout(zones: Files.geometry.count, queues: 2, notes: 64)
    var bytes = try Data(contentsOf: URL(fileURLWithPath: path))
    for byte in 0..<5 { bytes[layout.note(queue: 0, 3) + byte] = 0xff }
    try bytes.write(to: URL(fileURLWithPath: path))
    let disk = try Files.open(path)
    let origin = ZoneRequest.Origin.retaken
    let (damaged, whole) = (
      Files.request(3, type: 15, origin: origin, isKept: true), Files.request(4, type: 15, origin: origin, isKept: true)
    )
    #expect(disk.append(damaged, to: 512, count: 10) == .go(sector: 522, zone: 1))
    #expect(disk.append(whole, to: 1024, count: 10) == .wasDone(sector: 1024))
  }

  @Test func imagesThatAreTooLargeForNotes() throws {
    var options = ZonedOptions()
    options.zoneSize = 1 << 40
    let largest: UInt64 = 1 << 49
    #expect(try options.geometry(size: largest, block: 512, request: 1 << 20).count == 512)
    for size: UInt64 in [0, 511, largest + 512, .max] {
      #expect(throws: ZoneFailure.self) { try options.geometry(size: size, block: 512, request: 1 << 20) }
    }
  }

  /// A stale temporary file is replaced, whatever it is, and a link in its place is not followed.
  @Test func aDraftIsAlwaysNew() throws {
    let scratch = try Scratch()
    let path = Self.path(scratch)
    let precious = scratch.path + "/precious"
    try Data([1, 2, 3]).write(to: URL(fileURLWithPath: precious))
    try FileManager.default.createSymbolicLink(atPath: path + ".new", withDestinationPath: precious)
    #expect(try Files.open(path).failure == nil)
    #expect(try Data(contentsOf: URL(fileURLWithPath: precious)) == Data([1, 2, 3]))
    #expect(throws: (any Error).self) { try FileManager.default.destinationOfSymbolicLink(atPath: path) }
  }

  // MARK: Failures

  /// While writes behind a failed one are in flight, nothing changes in their zone.
  @Test func anAppendBehindAFailureChangesNothing() throws {
    let scratch = try Scratch()
    let disk = try Files.open(Self.path(scratch))
    #expect(disk.write(Files.request(0), at: 512, count: 256) == .go(sector: 512, zone: 1))
    #expect(disk.write(Files.request(1), at: 768, count: 256) == .go(sector: 768, zone: 1))
    #expect(disk.zones[1].state == .full)
    #expect(disk.finish(at: 512, zone: 1, isDone: false, nil) == .status(.ioError))
    let before = disk.zones
    #expect(before[1] == Zone(state: .empty))
    #expect(disk.append(Files.request(2, type: 15), to: 512, count: 8) == .refused(.ioError))
    #expect(disk.zones == before)
    #expect(disk.finish(at: 768, zone: 1, isDone: true, nil) == .status(.ioError))
    #expect(disk.append(Files.request(2, type: 15), to: 512, count: 8) == .go(sector: 512, zone: 1))
  }

  /// A queue's medium is lost, and may still carry out its requests: nobody may write to its zones or reset them.
  @Test func zonesOfALostMediumAreLeftAlone() throws {
    let scratch = try Scratch()
    let disk = try Files.open(Self.path(scratch))
    #expect(disk.write(Files.request(0), at: 512, count: 8) == .go(sector: 512, zone: 1))
    #expect(disk.write(Files.request(0, queue: 1), at: 520, count: 8) == .go(sector: 520, zone: 1))
    let boards = (0..<2).map { _ in CompletionBoard(wake: {}) }
    func reset(_ queue: Int) -> ZoneAnswer {
      disk.command(
        .reset, 512, Files.request(9, type: 24, queue: queue), ZoneWaiter(board: boards[queue], tag: UInt32(queue)))
    }
    #expect(reset(0) == .later && reset(1) == .later)
    disk.abandon(queue: 0, writes: [(512, 1)])
    var results: [(tag: UInt32, result: Int32)] = []
    boards[1].take(into: &results)
    #expect(results.count == 1 && results.first?.tag == 1 && results.first?.result == Int32(BlockStatus.ioError.rawValue))
    results = []
    boards[0].take(into: &results)
    #expect(results.isEmpty)
    #expect(disk.finish(at: 520, zone: 1, isDone: true, nil) == .status(.ioError))
    #expect(disk.write(Files.request(1), at: 512, count: 8) == .refused(.ioError))
    #expect(disk.append(Files.request(1, type: 15), to: 512, count: 8) == .refused(.ioError))
    #expect(reset(1) == .status(.ioError))
    #expect(Files.command(disk, .resetAll, 0) == .status(.ioError))
    try Files.write(disk, 2, 8)
    #expect(Files.command(disk, .reset, 2) == .status(.ok))
  }
}
