/// The file in which the states of a disk's zones survive the process and the machine.
///
/// The file has three parts, because a disk can end in two ways:
///
/// - The process ends, perhaps by a signal, and the page cache survives. The **live words**, one per zone, and the **notes**
///   of requests that were executed but not yet published are a mapping of the file: what was stored is there, in program
///   order.
/// - The machine goes down, and any part of that may have reached stable storage, in any order. Then the live words are
///   ignored (the file says which boot of the machine they belong to), and the newer intact one of two **records** of all
///   zones counts. A record is written after the data it refers to has reached stable storage (FLUSH), and before data is
///   overwritten that the previous record refers to (a reset is recorded before it is answered).
internal import CLinux
internal import Glibc
internal import Qcow2
internal import SystemPackage
internal import VirtioCore

/// Offsets in the file, bytes.
struct ZoneFileLayout: Equatable {
  static let page = 4096
  static let magic: UInt64 = 0x3153_454e_4f5a_4b4c  // "LKZONES1"
  // The header, which is written once.
  static let capacity = 8
  static let zoneSectors = 16
  static let zoneCapacity = 24
  static let conventional = 32
  static let identity = 40
  static let headSum = 48
  // Which boot, and which process, the live words belong to.
  static let boot = 2048
  static let session = 2056
  static let queues = 2064
  static let notesOfQueue = 2072
  // A record: its number, the number of zones, a checksum, then a word for each zone.
  static let recordHead = 32

  let zones: Int
  let queues: Int
  /// Notes of each queue.
  let notes: Int

  var recordBytes: Int { (Self.recordHead + zones * 8 + Self.page - 1) / Self.page * Self.page }
  func record(_ number: Int) -> Int { Self.page + number * recordBytes }
  var live: Int { Self.page + 2 * recordBytes }
  var liveBytes: Int { (zones * 8 + Self.page - 1) / Self.page * Self.page }
  var firstNote: Int { live + liveBytes }
  func note(queue: Int, _ index: Int) -> Int { firstNote + (queue * notes + index) * ZoneNote.size }
  var size: Int { firstNote + (queues * notes * ZoneNote.size + Self.page - 1) / Self.page * Self.page }

  /// A checksum that tells a torn record from an intact one.
  static func sum(_ words: some Sequence<UInt64>) -> UInt64 {
    var sum: UInt64 = 0xcbf2_9ce4_8422_2325
    for word in words {
      sum = (sum ^ word) &* 0x100_0000_01b3
      sum ^= sum >> 29
    }
    return sum
  }
}

/// What was done for a request that has not been answered yet: a later process that resubmits it must not execute it twice.
struct ZoneNote: Equatable, Sendable {
  static let size = 16
  enum Kind: UInt64 {
    /// A write, which counts as done once the zone's live word has reached it.
    case prepared = 1
    case done = 2
  }

  var kind: Kind
  /// The head of the request, and the position of the queue after it was popped.
  var head: UInt16
  var position: UInt16
  /// The low byte of its type.
  var type: UInt8
  /// Where a write went, a sector of the disk.
  var sector: UInt64
  /// The written sectors of its zone, this write included.
  var written: UInt32

  /// As stored; a second word of 0 is no note. The unused high bits of both take the written sectors (`keep`).
  var words: (UInt64, UInt64) {
    (sector, kind.rawValue | UInt64(head) << 8 | UInt64(position) << 24 | UInt64(type) << 40)
  }
}

@safe
final class ZoneFile: @unchecked Sendable {
  let path: String
  let geometry: ZoneGeometry
  private let descriptor: OwnedDescriptor
  private let mapping: Mapping
  private let layout: ZoneFileLayout
  /// Identifies this process's use of the live words; 0: they are not in use by it.
  private var session: UInt64 = 0
  /// The number of the newest record.
  private var recordNumber: UInt64 = 0
  private var newestRecord = 0

  /// Opens the file, or creates it.
  ///
  /// - Parameters:
  ///   - identity: of the image; does not change when it is renamed or written to.
  ///   - queues, notes: the disk's queues, and how many requests of each can be in flight.
  init(
    path: String, _ geometry: ZoneGeometry, identity: UInt64, adopts: Bool, queues: Int, notes: Int
  ) throws(ZoneFailure) {
    self.path = path
    self.geometry = geometry
    layout = ZoneFileLayout(zones: geometry.count, queues: queues, notes: notes)
    var opened = try Self.open(path)
    if opened == nil {
      try Self.make(path, layout, geometry, identity: identity)
      opened = try Self.open(path)
    }
    guard let descriptor = opened else { throw .cannotOpen(path: path, "it is gone again") }
    self.descriptor = descriptor
    let kept = try Self.check(descriptor.rawValue, path, geometry, layout, identity: identity, adopts: adopts)
    // It is only ever extended: another process may have it mapped.
    if kept < layout.size {
      guard ftruncate(descriptor.rawValue, off_t(layout.size)) == 0 else { throw .cannotOpen(path: path, Self.lastError) }
    }
    // Stores to the mapping must not fail for lack of space on the medium.
    let error = fallocate(descriptor.rawValue, 0, 0, off_t(layout.size))
    guard error == 0 || errno == EOPNOTSUPP else { throw .cannotOpen(path: path, Self.lastError) }
    do throws(Errno) { mapping = try Mapping(descriptor: descriptor.rawValue, count: layout.size) } catch {
      throw .cannotOpen(path: path, "\(error)")
    }
    if adopts { cell(ZoneFileLayout.identity).storeRelaxed(identity) }
    if adopts { cell(ZoneFileLayout.headSum).storeRelaxed(Self.headSum(geometry, identity: identity)) }
  }

  private func cell(_ offset: Int) -> SharedCell<UInt64> { unsafe SharedCell(mapping.base + offset) }

  /// The file was truncated while it was mapped: stores are lost.
  var isLost: Bool { mapping.faults != 0 }

  // MARK: Opening

  private static var lastError: String { "\(Errno(rawValue: errno))" }

  /// - Returns: `nil` when there is none.
  private static func open(_ path: String) throws(ZoneFailure) -> OwnedDescriptor? {
    let descriptor = unsafe clinux_open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK, 0)
    guard descriptor < 0 else { return OwnedDescriptor(descriptor) }
    guard errno == ENOENT else { throw .cannotOpen(path: path, lastError) }
    return nil
  }

  private static func headWords(_ geometry: ZoneGeometry, identity: UInt64) -> [UInt64] {
    [
      ZoneFileLayout.magic, geometry.capacity, geometry.zoneSectors, geometry.zoneCapacity, UInt64(geometry.conventional),
      identity,
    ]
  }

  private static func headSum(_ geometry: ZoneGeometry, identity: UInt64) -> UInt64 {
    ZoneFileLayout.sum(headWords(geometry, identity: identity))
  }

  /// Under another name first, so that its own name never refers to half a file.
  private static func make(
    _ path: String, _ layout: ZoneFileLayout, _ geometry: ZoneGeometry, identity: UInt64
  ) throws(ZoneFailure) {
    let draft = path + ".new"
    // Left behind by a process that ended half-way. A new file is created, so that neither a link nor somebody else's file
    // is written to.
    _ = unsafe unlink(draft)
    let number = unsafe clinux_open(draft, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o644)
    guard number >= 0 else { throw .cannotMake(path: path, lastError) }
    let descriptor = OwnedDescriptor(number)
    let table = ZoneTable(geometry)
    let head = headWords(geometry, identity: identity) + [headSum(geometry, identity: identity)]
    let record = recordWords(1, table.zones.map(\.word))
    let isMade =
      ftruncate(number, off_t(layout.size)) == 0 && write(head, to: number, at: 0)
      && write(record, to: number, at: layout.record(0)) && fsync(number) == 0
    guard isMade, unsafe rename(draft, path) == 0 else {
      let error = lastError
      _ = unsafe unlink(draft)
      throw .cannotMake(path: path, error)
    }
    withExtendedLifetime(descriptor) {}
    let folder = FilePath(path).removingLastComponent().string
    let parent = unsafe clinux_open(folder.isEmpty ? "." : folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0)
    if parent >= 0 {
      fsync(parent)
      close(parent)
    }
  }

  private static func recordWords(_ number: UInt64, _ zones: [UInt64]) -> [UInt64] {
    let sum = ZoneFileLayout.sum([number, UInt64(zones.count)] + zones)
    return [number, UInt64(zones.count), sum, 0] + zones
  }

  private static func write(_ words: [UInt64], to descriptor: Int32, at offset: Int) -> Bool {
    unsafe words.map(\.littleEndian).withUnsafeBytes { bytes in
      (try? unsafe FileDescriptor(rawValue: descriptor).writeAll(toAbsoluteOffset: Int64(offset), bytes)) != nil
    }
  }

  private static func read(_ count: Int, from descriptor: Int32, at offset: Int) -> [UInt64]? {
    guard let bytes = try? FileSource(descriptor).read(at: UInt64(offset), count: count * 8), bytes.count == count * 8 else {
      return nil
    }
    return unsafe bytes.withUnsafeBytes { bytes in
      (0..<count).map { unsafe UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: $0 * 8, as: UInt64.self)) }
    }
  }

  /// - Returns: bytes of the file.
  private static func check(
    _ descriptor: Int32, _ path: String, _ geometry: ZoneGeometry, _ layout: ZoneFileLayout, identity: UInt64, adopts: Bool
  ) throws(ZoneFailure) -> Int {
    var info = stat()
    guard unsafe fstat(descriptor, &info) == 0 else { throw .cannotOpen(path: path, lastError) }
    guard info.st_mode & S_IFMT == S_IFREG, info.st_size >= ZoneFileLayout.page, let head = read(7, from: descriptor, at: 0),
      head[0] == ZoneFileLayout.magic
    else { throw .notZones(path: path) }
    guard head[6] == ZoneFileLayout.sum(head[..<6]) else { throw .damaged(path: path, what: "its head") }
    let wanted = headWords(geometry, identity: identity)
    let names = ["", "number of sectors", "zone size in sectors", "zone capacity in sectors", "number of conventional zones"]
    for place in 1..<names.count where head[place] != wanted[place] {
      throw .otherGeometry(path: path, what: names[place], kept: head[place], wanted: wanted[place])
    }
    guard head[5] == identity || adopts else { throw .otherImage(path: path) }
    guard info.st_size >= layout.live + layout.liveBytes else { throw .damaged(path: path, what: "it is too short") }
    return Int(info.st_size)
  }

  // MARK: What was recorded

  /// Identifies this boot of the machine; 0: unknown. From the kernel, or from a test.
  static func bootNumber(_ name: String = "/proc/sys/kernel/random/boot_id") -> UInt64 {
    let descriptor = unsafe clinux_open(name, O_RDONLY | O_CLOEXEC, 0)
    guard descriptor >= 0 else { return 0 }
    defer { close(descriptor) }
    var bytes = [UInt8](repeating: 0, count: 64)
    let count = unsafe bytes.withUnsafeMutableBytes { unsafe Glibc.read(descriptor, $0.baseAddress, $0.count) }
    guard count >= 32 else { return 0 }
    return ZoneFileLayout.sum(bytes.prefix(count).map { UInt64($0) }) | 1
  }

  /// Takes over the live words from the previous process.
  ///
  /// - Returns: the zones, and for each queue what was executed but never published.
  /// - Throws: `ZoneFailure.damaged`.
  func load(boot: UInt64) throws(ZoneFailure) -> (zones: [Zone], recorded: [Zone], notes: [[ZoneNote]]) {
    let recorded = try newest()
    var zones: [Zone]?
    var notes = [[ZoneNote]](repeating: [], count: layout.queues)
    if boot != 0, cell(ZoneFileLayout.boot).loadRelaxed() == boot {
      // Of this boot: everything that was stored is there.
      zones = liveZones()
      if let zones, cell(ZoneFileLayout.queues).loadRelaxed() == UInt64(layout.queues),
        cell(ZoneFileLayout.notesOfQueue).loadRelaxed() == UInt64(layout.notes)
      {
        for queue in 0..<layout.queues { notes[queue] = readNotes(queue, zones) }
      }
    }
    let found = zones ?? recorded.map(Self.afterPowerLoss)
    // The live words must not be mistaken for intact while they are being replaced.
    if zones == nil {
      cell(ZoneFileLayout.boot).storeRelease(0)
      for (index, zone) in found.enumerated() { cell(layout.live + index * 8).storeRelease(zone.word.littleEndian) }
    }
    let keepsNotes = notes.contains { !$0.isEmpty }
    if !keepsNotes { forgetAllNotes() }
    cell(ZoneFileLayout.queues).storeRelease(UInt64(layout.queues))
    cell(ZoneFileLayout.notesOfQueue).storeRelease(UInt64(layout.notes))
    session = UInt64.random(in: 1...(.max))
    cell(ZoneFileLayout.session).storeRelease(session)
    cell(ZoneFileLayout.boot).storeRelease(boot)
    return (found, recorded, notes)
  }

  /// As on a drive after a power failure: no zone is open.
  private static func afterPowerLoss(_ zone: Zone) -> Zone {
    guard zone.state.isOpen else { return zone }
    return Zone(state: zone.written > 0 ? .closed : .empty, pointer: zone.written, written: zone.written)
  }

  private func liveZones() -> [Zone]? {
    var zones: [Zone] = []
    zones.reserveCapacity(layout.zones)
    for index in 0..<layout.zones {
      let word = UInt64(littleEndian: cell(layout.live + index * 8).loadRelaxed())
      guard let zone = Zone(word: word, zone: index, geometry) else { return nil }
      zones.append(zone)
    }
    return zones
  }

  /// The newer intact record.
  private func newest() throws(ZoneFailure) -> [Zone] {
    var best: [Zone]?
    for number in 0..<2 {
      guard let words = Self.read(4 + layout.zones, from: descriptor.rawValue, at: layout.record(number)), words[0] > 0,
        words[1] == UInt64(layout.zones),
        words[2] == ZoneFileLayout.sum([words[0], words[1]] + words[4...]), best == nil || words[0] > recordNumber
      else { continue }
      var zones: [Zone] = []
      for (index, word) in words[4...].enumerated() {
        guard let zone = Zone(word: word, zone: index, geometry) else { break }
        zones.append(zone)
      }
      guard zones.count == layout.zones else { continue }
      best = zones
      recordNumber = words[0]
      newestRecord = number
    }
    guard let best else { throw .damaged(path: path, what: "neither of its two records is whole") }
    return best
  }

  // MARK: Live

  /// Stores the state of a zone.
  func keep(_ index: Int, _ zone: Zone) { cell(layout.live + index * 8).storeRelease(zone.word.littleEndian) }

  private func place(_ note: ZoneNote, _ queue: Int) -> Int { layout.note(queue: queue, Int(note.head) % layout.notes) }

  /// Notes what was done for a request. Stores happen in program order, which is all that matters when a process ends.
  func keep(_ note: ZoneNote, queue: Int) {
    guard queue < layout.queues else { return }
    let place = place(note, queue)
    let (first, second) = note.words
    cell(place + 8).storeRelease(0)
    cell(place).storeRelease((first | UInt64(note.written) << 40).littleEndian)
    cell(place + 8).storeRelease((second | UInt64(note.written >> 16) << 48).littleEndian)
  }

  /// The answer has been published.
  func forget(head: UInt16, queue: Int) {
    guard queue < layout.queues else { return }
    cell(layout.note(queue: queue, Int(head) % layout.notes) + 8).storeRelease(0)
  }

  func forgetAllNotes() {
    for queue in 0..<layout.queues {
      for index in 0..<layout.notes {
        let word = cell(layout.note(queue: queue, index) + 8)
        if word.loadRelaxed() != 0 { word.storeRelease(0) }
      }
    }
  }

  private func readNotes(_ queue: Int, _ zones: [Zone]) -> [ZoneNote] {
    (0..<layout.notes).compactMap { index in
      let place = layout.note(queue: queue, index)
      let second = UInt64(littleEndian: cell(place + 8).loadRelaxed())
      let first = UInt64(littleEndian: cell(place).loadRelaxed())
      guard second != 0, let kind = ZoneNote.Kind(rawValue: second & 0xff) else { return nil }
      let note = ZoneNote(
        kind: kind, head: UInt16(truncatingIfNeeded: second >> 8), position: UInt16(truncatingIfNeeded: second >> 24),
        type: UInt8(truncatingIfNeeded: second >> 40), sector: first & (1 << 40 - 1),
        written: UInt32(truncatingIfNeeded: first >> 40) & 0xffff | UInt32(truncatingIfNeeded: second >> 48) << 16)
      guard note.sector < geometry.capacity else { return nil }
      guard kind == .prepared else { return note }
      // It counts once the zone has got as far: nothing else has happened to the zone in between.
      return zones[geometry.zone(of: note.sector)].written == note.written ? note : nil
    }
  }

  // MARK: Records

  /// Records all zones; they are on stable storage when it returns. It waits for the medium, so it is for a helper thread;
  /// one at a time.
  /// - Returns: false when that failed.
  func record(_ zones: [Zone]) -> Bool {
    // Not if another process has taken over the zones.
    guard session != 0, cell(ZoneFileLayout.session).loadRelaxed() == session, !isLost else { return false }
    let number = recordNumber + 1
    let place = 1 - newestRecord
    guard Self.write(Self.recordWords(number, zones.map(\.word)), to: descriptor.rawValue, at: layout.record(place)) else {
      return false
    }
    while fdatasync(descriptor.rawValue) < 0 {
      guard errno == EINTR else { return false }
    }
    recordNumber = number
    newestRecord = place
    return true
  }

  /// The live words still belong to this process.
  var isMine: Bool { session != 0 && cell(ZoneFileLayout.session).loadRelaxed() == session }
}
