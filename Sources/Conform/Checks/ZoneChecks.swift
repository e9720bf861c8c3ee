/// Disks with zones that require sequential writes (virtio 5.2.6, since 1.3).
internal import GuestDriver
internal import VirtioCore

extension Check {
  static let zones: [Check] = [
    Check(
      "zoned-cannot-be-declined", "zoned.init.4", "A host-managed disk refuses a driver without ZONED.", rings: .once,
      needs: [.hostManaged]
    ) { bench in
      let wanted = bench.choice(Plan(without: BlockFeature.zoned))
      try expect(try !bench.negotiate(wanted), "the features \(bench.names(wanted)) were accepted")
      return .kept()
    },
    Check(
      "zoned-configuration", "zoned.init.6 zoned.init.16 zoned.init.13",
      "The model is host-managed, the padding is zero, and no append is larger than a request.", rings: .once,
      needs: [.hostManaged]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let bytes = bench.facts.configuration
      try expect(bytes[92] == 1, "the model is \(bytes[92])")
      try expect(bytes[93..<96].allSatisfy { $0 == 0 }, "the padding is \(Array(bytes[93..<96]))")
      let config = bench.facts.config
      let append = try bench.zoned().maximumAppend
      if let segments = config.segMax, let size = config.sizeMax {
        try expect(
          UInt64(append) * 512 <= UInt64(segments) * UInt64(size),
          "max_append_sectors is \(append), and a request has \(segments) segments of \(size) bytes")
      }
      return .kept()
    },
    Check(
      "zone-report", "zoned.init.8 zoned.init.9 i.zoned.report.1 i.zoned.report.2 i.zoned.report.3",
      "A report begins with the zone that its sector is in and has as many as there is room for; zones are of one size, but the last.",
      needs: [.hostManaged]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let size = try bench.zoneSize()
      let all = try bench.allZones()
      try expect(UInt64(all.count) == (bench.capacity + size - 1) / size, "\(all.count) zones of \(size) sectors")
      for (number, zone) in all.enumerated() {
        let length = min(size, bench.capacity - UInt64(number) * size)
        try expect(zone.start == UInt64(number) * size, "zone \(number) starts at \(zone.start)")
        try expect(zone.capacity <= length, "zone \(number) has \(length) sectors, and room for \(zone.capacity)")
        try expect((1...3).contains(zone.type), "zone \(number) is of type \(zone.type)")
        try expect(
          (zone.type == 1) == (zone.state == .notWritePointer), "zone \(number) is of type \(zone.type), and \(zone.state)")
      }
      let first = min(1, all.count - 1)
      for room in [64, 127, 128, 64 + 64 + 10] {
        let answer = try bench.good(
          BlockRequest(type: .zoneReport, sector: UInt64(first) * size + size / 2, answerBytes: room))
        let zones = try ReportedZone.list(answer.data)
        try expect(zones.count == (room - 64) / 64, "\(room) bytes: \(zones.count) zones")
        if let zone = zones.first { try expect(zone.start == all[first].start, "\(room) bytes: from \(zone.start) on") }
      }
      return .kept("\(all.count) zones")
    },
    Check(
      "zone-states", "i.zoned.sm.1 i.zoned.sm.2 i.zoned.sm.3 i.zoned.sm.4 i.zoned.sm.5",
      "Each state is left by the events that leave it, and by no others.", needs: [.hostManaged]
    ) { bench in
      try bench.startEmpty()
      let zone = try bench.sequential()
      func after(_ events: [BlockRequestType], _ state: ReportedZone.State) throws {
        try bench.good(.zone(.zoneReset, zone))
        for type in events {
          if type == .write { try bench.writeAtPointer(zone) } else { try bench.good(.zone(type, zone)) }
        }
        let found = try bench.zone(zone).state
        try expect(found == state, "after \(events.map(\.description).joined(separator: ", ")) it is \(found)")
      }
      try after([], .empty)
      try after([.zoneReset], .empty)
      try after([.write], .implicitlyOpen)
      try after([.zoneOpen], .explicitlyOpen)
      try after([.write, .write], .implicitlyOpen)
      try after([.write, .zoneOpen], .explicitlyOpen)
      try after([.write, .zoneClose], .closed)
      try after([.write, .zoneFinish], .full)
      try after([.zoneOpen, .zoneOpen], .explicitlyOpen)
      try after([.zoneOpen, .write], .explicitlyOpen)
      try after([.zoneOpen, .zoneClose], .empty)
      try after([.zoneOpen, .write, .zoneClose], .closed)
      try after([.zoneOpen, .write, .zoneFinish], .full)
      try after([.write, .zoneClose, .write], .implicitlyOpen)
      try after([.write, .zoneClose, .zoneOpen], .explicitlyOpen)
      try after([.write, .zoneClose, .zoneClose], .closed)
      try after([.write, .zoneClose, .zoneReset], .empty)
      try after([.write, .zoneFinish, .zoneFinish], .full)
      try after([.write, .zoneFinish, .zoneReset], .empty)
      try after([.write, .zoneResetAll], .empty)
      return .kept()
    },
    Check(
      "zone-is-filled", "i.zoned.sm.2 i.zoned.sm.5 zoned.op.4 zoned.op.6 zoned.op.11",
      "A zone that was written to its end is full: it takes no more, and is neither opened nor closed.", needs: [.hostManaged]
    ) { bench in
      try bench.startEmpty()
      let zone = try bench.sequential()
      try bench.expect(.zone(.zoneClose, zone), [3], "CLOSE of an empty zone")
      let room = try bench.zone(zone).capacity
      // As much as a few requests can write; a larger zone is finished.
      let step = min(UInt64(bench.largestWrite / 512), room)
      var written: UInt64 = 0
      while written < room, written < 64 * step {
        let count = min(step, room - written)
        try bench.good(bench.write(zone + written, bench.pattern(Int(count) * 512)))
        written += count
      }
      if written < room {
        let rest = room - written
        let count = Int(min(rest * 512 + UInt64(try bench.grain()), UInt64(bench.largestWrite)))
        if UInt64(count) > rest * 512 { try bench.expect(bench.write(zone + written, bench.pattern(count)), [3], "too much") }
        try bench.good(.zone(.zoneFinish, zone))
      }
      let state = try bench.zone(zone).state
      try expect(state == .full, "it is \(state)")
      try bench.expect(bench.write(zone + room - UInt64(try bench.grain() / 512), bench.pattern(try bench.grain())), [3], "OUT")
      try bench.expect(.zone(.zoneOpen, zone), [3], "OPEN")
      try bench.expect(.zone(.zoneClose, zone), [3], "CLOSE")
      try expect(try bench.zone(zone).state == .full, "what was refused changed it")
      return .kept("\(written) of \(room) sectors written")
    },
    Check(
      "zone-overfilled", "zoned.op.11", "A write or an append of more than is left in a zone is ZONE_INVALID_CMD.",
      needs: [.hostManaged]
    ) { bench in
      try bench.startEmpty()
      let zone = try bench.sequential()
      let (room, grain) = (try bench.zone(zone).capacity, try bench.grain())
      guard Int(room) * 512 <= 64 * bench.largestWrite else {
        throw Trouble.notApplicable("a zone of \(room) sectors is too large to be filled here")
      }
      var written: UInt64 = 0
      while room - written > UInt64(grain / 512) {
        let count = min(UInt64(bench.largestWrite / 512), room - written - UInt64(grain / 512))
        try bench.good(bench.write(zone + written, bench.pattern(Int(count) * 512)))
        written += count
      }
      try bench.expect(bench.write(zone + written, bench.pattern(2 * grain)), [3], "OUT")
      if try bench.zoned().maximumAppend > 0 {
        try bench.expect(.append(zone: zone, bench.pattern(2 * grain)), [3], "APPEND")
      }
      try expect(try bench.zone(zone).pointer == zone + written, "what was refused moved the pointer")
      return .kept()
    },
    Check(
      "write-at-the-pointer", "zoned.op.16 zoned.init.15 i.zoned.wp.1",
      "A write that does not begin at the write pointer, or does not end at a multiple of the granularity, is ZONE_UNALIGNED_WP.",
      needs: [.hostManaged]
    ) { bench in
      try bench.startEmpty()
      let (zone, grain) = (try bench.sequential(), try bench.grain())
      let step = UInt64(grain / 512)
      let data = bench.pattern(grain)
      try bench.expect(bench.write(zone + step, data), [4], "OUT beyond the pointer of an empty zone")
      try bench.good(bench.write(zone, data))
      try bench.expect(bench.write(zone, data), [4], "OUT before the pointer")
      try bench.expect(bench.write(zone + 2 * step, data), [4], "OUT beyond the pointer")
      if grain > bench.block {
        try bench.expect(bench.write(zone + step, bench.pattern(grain - bench.block)), [4], "OUT of a part of a granule")
      }
      try bench.good(bench.write(zone + step, data))
      let found = try bench.zone(zone).pointer
      try expect(
        found == zone + 2 * step, "the pointer is \(found - zone) sectors from the beginning after two writes of \(step)")
      return .kept()
    },
    Check(
      "over-the-border", "zoned.op.15", "What goes over the end of a zone is ZONE_INVALID_CMD.", needs: [.hostManaged]
    ) { bench in
      try bench.startEmpty()
      let (zone, size, grain) = (try bench.sequential(), try bench.zoneSize(), try bench.grain())
      guard zone + size < bench.capacity else { throw Trouble.notApplicable("there is no zone after it") }
      let step = UInt64(grain / 512)
      try bench.expect(.read(sector: zone + size - step, bytes: 2 * grain), [3], "IN")
      try bench.expect(bench.write(zone + size - step, bench.pattern(2 * grain)), [3], "OUT")
      return .kept()
    },
    Check(
      "append", "zoned.op.12 zoned.op.10 zoned.op.14 zoned.init.12 i.zoned.append.1",
      "An append goes where the pointer was and says so; it begins at a zone, and is as large as max_append_sectors at most.",
      needs: [.hostManaged]
    ) { bench in
      try bench.startEmpty()
      let (zone, grain) = (try bench.sequential(), try bench.grain())
      let most = Int(try bench.zoned().maximumAppend) * 512
      guard most > 0 else { throw Trouble.notApplicable("max_append_sectors is 0") }
      let data = bench.pattern(grain)
      var next = zone
      for into in [[8, 1], [9], [1, 7, 1], [3, 6]] {
        let answer = try bench.perform(.append(zone: zone, data), into: into)
        try bench.expectOK(answer, "APPEND")
        let place = Self.sector(answer.data)
        try expect(place == next, "it says \(place), and the pointer was \(next)")
        try expect(try bench.good(.read(sector: next, bytes: grain)).data == data, "what was appended is not there")
        next += UInt64(grain / 512)
      }
      try bench.expect(.append(zone: zone + UInt64(grain / 512), data), [3], "APPEND to a sector inside a zone")
      try bench.good(.zone(.zoneReset, zone))
      try bench.expect(.append(zone: zone, bench.pattern(most + grain)), [3], "APPEND of more than max_append_sectors")
      if UInt64(most) <= (try bench.zone(zone).capacity) * 512 { try bench.good(.append(zone: zone, bench.pattern(most))) }
      return .kept()
    },
    Check("no-append", "zoned.op.13", "With max_append_sectors 0 an append is UNSUPP.", needs: [.hostManaged]) { bench in
      try bench.startEmpty()
      guard try bench.zoned().maximumAppend == 0 else { throw Trouble.notApplicable("max_append_sectors is not 0") }
      try bench.expect(.append(zone: try bench.sequential(), bench.pattern(try bench.grain())), [2], "APPEND")
      return .kept()
    },
    Check(
      "open-zones", "zoned.init.10 zoned.op.5 zoned.op.9 i.zoned.res.1",
      "As many zones as max_open_zones can be opened; one more, or a write to another one, finds no resource and changes nothing.",
      needs: [.hostManaged]
    ) { bench in
      try bench.startEmpty()
      let most = Int(try bench.zoned().maximumOpen)
      guard most > 0 else { throw Trouble.notApplicable("max_open_zones is 0: any number") }
      let zones = try bench.sequentialZones()
      guard zones.count > most, most <= 1024 else { throw Trouble.notApplicable("there are \(zones.count) zones") }
      for zone in zones.prefix(most) { try bench.good(.zone(.zoneOpen, zone)) }
      let next = zones[most]
      try bench.expect(.zone(.zoneOpen, next), [5, 6], "OPEN of one more than max_open_zones")
      try bench.expect(bench.write(next, bench.pattern(try bench.grain())), [5, 6], "OUT that would open one more")
      if try bench.zoned().maximumAppend > 0 {
        try bench.expect(.append(zone: next, bench.pattern(try bench.grain())), [5, 6], "APPEND that would open one more")
      }
      let state = try bench.zone(next).state
      try expect(state == .empty, "what was refused left it \(state)")
      try bench.good(.zone(.zoneReset, zones[0]))
      try bench.good(.zone(.zoneOpen, next))
      return .kept("\(most) zones")
    },
    Check(
      "active-zones", "zoned.init.11 zoned.op.5 i.zoned.res.1",
      "As many zones as max_active_zones can be open or closed; one more is ZONE_ACTIVE_RESOURCE.", needs: [.hostManaged]
    ) { bench in
      try bench.startEmpty()
      let most = Int(try bench.zoned().maximumActive)
      guard most > 0 else { throw Trouble.notApplicable("max_active_zones is 0: any number") }
      let zones = try bench.sequentialZones()
      guard zones.count > most, most <= 1024 else { throw Trouble.notApplicable("there are \(zones.count) zones") }
      for zone in zones.prefix(most) {
        try bench.writeAtPointer(zone)
        try bench.good(.zone(.zoneClose, zone))
      }
      let next = zones[most]
      try bench.expect(.zone(.zoneOpen, next), [6], "OPEN of one more than max_active_zones")
      try bench.expect(bench.write(next, bench.pattern(try bench.grain())), [6], "OUT that would make one more active")
      try expect(try bench.zone(next).state == .empty, "what was refused changed it")
      // A closed zone is active already.
      try bench.good(.zone(.zoneOpen, zones[0]))
      return .kept("\(most) zones")
    },
    Check(
      "implicit-close", "zoned.op.17 i.zoned.sm.2", "At the limit an implicitly open zone may be closed by the device.",
      needs: [.hostManaged]
    ) { bench in
      try bench.startEmpty()
      let (most, active) = (Int(try bench.zoned().maximumOpen), Int(try bench.zoned().maximumActive))
      let zones = try bench.sequentialZones()
      guard most > 0, most <= 1024, zones.count > most, active == 0 || active > most else {
        throw Trouble.notApplicable("max_open_zones is \(most), max_active_zones \(active), and there are \(zones.count) zones")
      }
      for zone in zones.prefix(most) { try bench.writeAtPointer(zone) }
      let answer = try bench.perform(bench.write(zones[most], bench.pattern(try bench.grain())))
      try expect([0, 5].contains(answer.status), "OUT was answered with \(answer.zoneWords)")
      let all = try zones.prefix(most + 1).map { try bench.zone($0).state }
      try expect(
        all.count { $0 == .implicitlyOpen || $0 == .explicitlyOpen } <= most, "more zones are open than there may be: \(all)")
      if answer.isOK { try expect(all.contains(.closed), "one more zone is open, and none is closed: \(all)") }
      return .kept(answer.isOK ? "it closes one" : "it closes none")
    },
    Check(
      "unwritten-is-not-stale", "zoned.op.20 zoned.op.21",
      "What is beyond the write pointer is a fill pattern or an error, never old data.", needs: [.hostManaged]
    ) { bench in
      try bench.startEmpty()
      let (zone, grain) = (try bench.sequential(), try bench.grain())
      let old = bench.pattern(4 * grain)
      try bench.good(bench.write(zone, old))
      try bench.good(.zone(.zoneReset, zone))
      try bench.good(bench.write(zone, bench.pattern(grain)))
      for (sector, count) in [(zone + UInt64(grain / 512), 2 * grain), (zone, 4 * grain)] {
        let answer = try bench.perform(.read(sector: sector, bytes: count))
        guard answer.isOK else { continue }
        let part = answer.data.suffix(grain)
        let end = Int(sector - zone) * 512 + count
        try expect(Array(part) != Array(old[end - grain..<end]), "old data is read")
        try expect(part.allSatisfy { $0 == part.first }, "what is read is not a fill pattern")
      }
      return .kept()
    },
    Check(
      "conventional-zones", "zoned.op.2 zoned.op.3", "Commands and appends to a conventional zone are ZONE_INVALID_CMD.",
      needs: [.hostManaged]
    ) { bench in
      try bench.start(Plan(queues: 1))
      guard let zone = try bench.allZones().first(where: { $0.type == 1 })?.start else {
        throw Trouble.notApplicable("there is no conventional zone")
      }
      for type: BlockRequestType in [.zoneOpen, .zoneClose, .zoneFinish, .zoneReset] {
        try bench.expect(.zone(type, zone), [3], "\(type)")
      }
      if try bench.zoned().maximumAppend > 0 {
        try bench.expect(.append(zone: zone, bench.pattern(try bench.grain())), [3], "APPEND")
      }
      let data = bench.pattern(bench.block)
      try bench.good(bench.write(zone + bench.step, data))
      try expect(
        try bench.good(bench.read(zone + bench.step)).data == data, "a conventional zone does not hold what was written")
      return .kept()
    },
    Check(
      "failed-zones", "zoned.op.7 zoned.op.8 zoned.op.18 zoned.op.19 i.zoned.sm.6",
      "A read-only zone takes no writes, an offline one nothing at all, and neither becomes anything else.",
      needs: [.hostManaged]
    ) { bench in
      try bench.start(Plan(queues: 1))
      let found = try bench.allZones().filter { $0.state == .readOnly || $0.state == .offline }
      guard !found.isEmpty else { throw Trouble.notApplicable("no zone is read-only or offline") }
      for zone in found {
        let name = "\(zone.state)"
        for type: BlockRequestType in [.zoneOpen, .zoneClose, .zoneFinish, .zoneReset] {
          try bench.expect(.zone(type, zone.start), [3], "\(type) of a zone that is \(name)")
        }
        try bench.expect(bench.write(zone.start, bench.pattern(try bench.grain())), [3], "OUT to a zone that is \(name)")
        if try bench.zoned().maximumAppend > 0 {
          try bench.expect(.append(zone: zone.start, bench.pattern(try bench.grain())), [3], "APPEND to a zone that is \(name)")
        }
        if zone.state == .offline { try bench.expect(bench.read(zone.start), [3], "IN of an offline zone") }
        try bench.good(.zone(.zoneResetAll, 0))
        try expect(try bench.zone(zone.start).state == zone.state, "a zone that was \(name) is no longer that")
      }
      return .kept()
    },
    Check(
      "reset-all", "i.zoned.resetall.1", "RESET_ALL empties every zone, whatever its sector says.", needs: [.hostManaged]
    ) { bench in
      try bench.startEmpty()
      let zones = try bench.sequentialZones()
      for sector: UInt64 in [0, 7] {
        for zone in zones.prefix(2) { try bench.writeAtPointer(zone) }
        let answer = try bench.perform(.zone(.zoneResetAll, sector))
        guard answer.isOK else {
          try expect(sector != 0, "RESET_ALL was answered with \(answer.zoneWords)")
          continue
        }
        for zone in zones.prefix(2) {
          let state = try bench.zone(zone).state
          try expect(state == .empty, "a zone is \(state) afterwards")
        }
      }
      return .kept()
    },
    Check(
      "zone-faults", "i.zoned.err.1", "Commands to no zone are ZONE_INVALID_CMD.", needs: [.hostManaged]
    ) { bench in
      try bench.startEmpty()
      let zone = try bench.sequential()
      let beyond = (bench.capacity / (try bench.zoneSize()) + 1) * (try bench.zoneSize())
      for type: BlockRequestType in [.zoneOpen, .zoneClose, .zoneFinish, .zoneReset] {
        try bench.expect(.zone(type, zone + 8), [3], "\(type) of a sector inside a zone")
        try bench.expect(.zone(type, beyond), [3], "\(type) beyond the end")
      }
      try bench.expect(.zoneReport(from: bench.capacity, zones: 1), [3], "REPORT beyond the end")
      try bench.expect(.append(zone: UInt64.max / 512, bench.pattern(try bench.grain())), [2, 3], "APPEND beyond the end")
      return .kept()
    },
  ]
}

extension Check {
  /// The sector that an append reports.
  fileprivate static func sector(_ bytes: [UInt8]) -> UInt64 {
    var sector: UInt64 = 0
    for byte in bytes.prefix(8).reversed() { sector = sector << 8 | UInt64(byte) }
    return sector
  }
}

extension Answer {
  fileprivate var zoneWords: String {
    switch status {
    case 3: "ZONE_INVALID_CMD"
    case 4: "ZONE_UNALIGNED_WP"
    case 5: "ZONE_OPEN_RESOURCE"
    case 6: "ZONE_ACTIVE_RESOURCE"
    default: words
    }
  }
}

extension Bench {
  fileprivate func zoned() throws -> BlockConfig.Zoned {
    guard let zoned = facts.config.zoned, zoned.zoneSectors > 0 else { throw Trouble.broken("zone_sectors is 0") }
    return zoned
  }

  fileprivate func zoneSize() throws -> UInt64 { UInt64(try zoned().zoneSectors) }
  /// Bytes.
  fileprivate func grain() throws -> Int { max(block, Int(try zoned().granularity)) }
  /// The most bytes that one request writes here.
  fileprivate var largestWrite: Int {
    let grain = (try? grain()) ?? block
    return max(grain, min(64 << 10, Int(facts.config.sizeMax ?? 65536)) / grain * grain)
  }

  fileprivate func allZones() throws -> [ReportedZone] {
    var zones: [ReportedZone] = []
    while UInt64(zones.count) * (try zoneSize()) < capacity, zones.count < 1 << 16 {
      let answer = try good(.zoneReport(from: UInt64(zones.count) * (try zoneSize()), zones: 64))
      let some = try ReportedZone.list(answer.data)
      guard !some.isEmpty else { throw Trouble.broken("ZONE_REPORT returns no zone from \(zones.count) on") }
      zones += some
    }
    return zones
  }

  /// The report of the zone that starts at a sector.
  fileprivate func zone(_ sector: UInt64) throws -> ReportedZone {
    guard let zone = try ReportedZone.list(try good(.zoneReport(from: sector, zones: 1)).data).first else {
      throw Trouble.broken("ZONE_REPORT with room for a zone returns none")
    }
    return zone
  }

  /// Brings the device up, with every zone empty that can be emptied.
  fileprivate func startEmpty() throws {
    try start(Plan(queues: 1))
    try good(.zone(.zoneResetAll, 0))
  }

  /// The first sectors of empty zones that require sequential writes.
  fileprivate func sequentialZones() throws -> [UInt64] {
    try allZones().filter { $0.type == 2 && $0.state == .empty }.map(\.start)
  }

  fileprivate func sequential() throws -> UInt64 {
    guard let zone = try sequentialZones().first else { throw Trouble.notApplicable("no zone requires sequential writes") }
    return zone
  }

  fileprivate func writeAtPointer(_ start: UInt64) throws {
    try good(write(try zone(start).pointer, pattern(try grain())))
  }

  fileprivate func expect(_ request: BlockRequest, _ statuses: [UInt8], _ what: String) throws {
    let answer = try perform(request)
    guard statuses.contains(answer.status) else { throw Trouble.broken("\(what) was answered with \(answer.zoneWords)") }
  }

  fileprivate func expectOK(_ answer: Answer, _ what: String) throws {
    guard answer.isOK else { throw Trouble.broken("\(what) was answered with \(answer.zoneWords)") }
  }
}
