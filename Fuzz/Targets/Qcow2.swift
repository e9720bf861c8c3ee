/// Images of the format qcow2 of unknown origin: described, checked, read, written to, and changed as a whole.
internal import CLinux
internal import Glibc

@testable internal import Qcow2
@testable internal import VirtioBlkDevice
@testable internal import VirtioCore

func attackQcow2(_ shaper: inout Shaper) {
  _ = Medium.image
  _ = Medium.backing
  let before = (Descriptors.open, AddressSpace.shared.reserved)
  attackImage(&shaper)
  check(Descriptors.open == before.0, "descriptors of an image were left open")
  check(AddressSpace.shared.reserved == before.1, "mappings of an image were leaked")
}

/// Two files in memory for all runs: the image, and its raw backing file.
private enum Medium {
  static let image = OwnedDescriptor(unsafe memfd_create("image", UInt32(MFD_CLOEXEC)))
  static let backing = {
    let file = OwnedDescriptor(unsafe memfd_create("backing", UInt32(MFD_CLOEXEC)))
    let bytes = (0..<100_000).map { UInt8(truncatingIfNeeded: $0 &* 5 + 3) }
    guard pwrite(file.rawValue, bytes, bytes.count, 0) == bytes.count else { fail("a file in memory cannot be written") }
    return file
  }()
  /// The name by which an image refers to it.
  static let name = "\(backing.rawValue)"
  static let place = "/proc/self/fd/\(name)"

  static func fill(_ bytes: [UInt8]) {
    guard ftruncate(image.rawValue, 0) == 0, pwrite(image.rawValue, bytes, bytes.count, 0) == bytes.count else {
      fail("a file in memory cannot be written")
    }
  }

  static var bytes: [UInt8] {
    guard let source = try? FileSource(image.rawValue), let bytes = try? source.read(at: 0, count: Int(source.byteCount)) else {
      fail("a file in memory cannot be read")
    }
    return bytes
  }

  /// Longer files are not read as a whole: a file that is long because of its header is sparse.
  static let most: UInt64 = 16 << 20
}

/// The limit of work for a check.
private let budget: UInt64 = 1 << 16

private func report(_ bytes: [UInt8]) -> Qcow2Report? {
  let source = MemorySource(bytes)
  guard let header = try? Qcow2Header(source) else { return nil }
  return try? Qcow2Check.run(source, header, budget: budget)
}

/// Whether the disk's own tables refer to a cluster more than once. No correct writer does that, and a check does not see it if
/// the count agrees; but the flag of the other entry is wrong as soon as one of them is changed.
private func sharesWithin(_ bytes: [UInt8], _ header: Qcow2Header) -> Bool {
  guard let level1 = try? header.level1(MemorySource(bytes)) else { return true }
  let size = Int(header.clusterSize)
  var seen: Set<UInt64> = []
  for table in level1 where table != 0 {
    let step = header.geometry.entryBytes
    for start in stride(from: Int(table), to: Int(table) + size, by: step) where start + step <= bytes.count {
      let entry = bytes.word64(start)
      let offset = entry & Qcow2Entries.offsetMask & ~(header.clusterSize - 1)
      if entry & Qcow2Entries.compressed == 0, offset != 0, !seen.insert(offset).inserted { return true }
    }
  }
  return false
}

private func attackImage(_ shaper: inout Shaper) {
  let sample = Qcow2Sample(&shaper, backing: Medium.name)
  let source = MemorySource(sample.bytes)
  let header: Qcow2Header
  do throws(Qcow2Fault) { header = try Qcow2Header(source) } catch {
    check(!"\(error)".isEmpty, "a fault without a message")
    return
  }
  let found = report(sample.bytes)
  tell("clusters of 2^\(header.geometry.clusterBits), \(header.size) bytes, found \(found?.findings.first ?? "nothing")")
  _ = try? header.snapshots(source)
  switch shaper.choice(4) {
  case 1: attackRevision(&shaper, header, sample.bytes, found)
  case 2: attackName(&shaper, header, sample.bytes)
  default:
    Medium.fill(sample.bytes)
    attackDisk(&shaper, header, sharesWithin(sample.bytes, header) ? nil : found, isReadOnly: shaper.flag())
  }
}

// MARK: A disk

private func attackDisk(_ shaper: inout Shaper, _ header: Qcow2Header, _ before: Qcow2Report?, isReadOnly: Bool) {
  do {
    var location = Qcow2Location(path: "image")
    if header.backingName != nil { location.backing = [.init(format: .raw, path: Medium.place)] }
    if isReadOnly, shaper.choice(4) == 1 { location.snapshot = shaper.pick(["own", "shared", "1"]) }
    let file = OwnedDescriptor(fcntl(Medium.image.rawValue, F_DUPFD_CLOEXEC, 0))
    guard
      let disk = try? Qcow2Chain.open(location, top: file, isLocked: false, isReadOnly: isReadOnly)
    else { return }
    if disk.size > 0 { for _ in 0..<4 { step(&shaper, disk, isReadOnly: isReadOnly) } }
    disk.writer?.finish(mayCut: true)
  }
  guard let source = try? FileSource(Medium.image.rawValue), source.byteCount <= Medium.most else { return }
  guard let before, before.corruptions == 0, before.failures == 0 else { return }
  guard let after = report(Medium.bytes) else { fail("an image is no longer an image") }
  check(after.corruptions == 0, "a good image was damaged: \(after.findings.first ?? "")")
}

private func step(_ shaper: inout Shaper, _ disk: Qcow2Disk, isReadOnly: Bool) {
  let unit = disk.layers[0].geometry.clusterSize
  // The clusters of the samples, the borders between them, and the end.
  var offset = UInt64(shaper.choice(8)) * unit + shaper.pick([0, 512, unit / 2, unit - 512])
  if shaper.choice(4) == 1 { offset = disk.size - min(disk.size, UInt64(shaper.byte()) * 512) }
  if shaper.choice(8) == 1 { offset = disk.layers[0].geometry.level2Span }
  offset = min(offset, disk.size - min(disk.size, 512)) & ~511
  let count = min(UInt64(1 + shaper.choice(64)) * 512, disk.size - offset, unit * 3)
  guard count > 0 else { return }
  var bytes = [UInt8](repeating: 0xa5, count: Int(count))
  let kind: IOOperation.Kind = isReadOnly ? .read : shaper.pick([.read, .write, .punchHole, .zeroRange, .blockDiscard, .flush])
  let result = perform(kind, disk, at: offset, &bytes)
  tell("\(kind) of \(count) at \(offset): \(result)")
  check(result <= Int32(count), "more was done than requested")
  guard kind == .read || result == Int32(count) || kind != .write && result == 0 else { return }
  var again = [UInt8](repeating: 0x5a, count: Int(count))
  let reread = perform(.read, disk, at: offset, &again)
  switch kind {
  case .read: check(reread == result && (result < Int32(count) || bytes == again), "two reads differ")
  case .write: check(reread == Int32(count) && again == bytes, "a read does not return what was written")
  case .punchHole, .zeroRange:
    check(reread < 0 || again.allSatisfy { $0 == 0 }, "zeroed bytes are not zero")
  case .blockDiscard, .flush, .allocate: break
  }
}

private func perform(_ kind: IOOperation.Kind, _ disk: Qcow2Disk, at offset: UInt64, _ bytes: inout [UInt8]) -> Int32 {
  let count = bytes.count
  return unsafe bytes.withUnsafeMutableBytes { buffer in
    // In two pieces, so that a cluster may be in both.
    let half = count / 2
    var segments = [
      unsafe MemorySegment(base: buffer.baseAddress!, count: half),
      unsafe MemorySegment(base: buffer.baseAddress! + half, count: count - half),
    ]
    return unsafe segments.withUnsafeMutableBufferPointer { segments in
      var operation = unsafe IOOperation(kind: kind)
      (operation.offset, operation.length) = (offset, kind == .flush ? 0 : UInt64(count))
      if kind == .read || kind == .write { unsafe operation.segments = segments.baseAddress }
      operation.segmentCount = kind == .read || kind == .write ? 2 : 0
      return disk.perform(operation)
    }
  }
}

// MARK: Changes as a whole

private func attackRevision(_ shaper: inout Shaper, _ header: Qcow2Header, _ bytes: [UInt8], _ before: Qcow2Report?) {
  let source = MemorySource(bytes)
  guard var revision = try? ImageRevision(header, source) else { return }
  var image = bytes
  let last: ImageStore
  do throws(Qcow2Fault) {
    switch shaper.choice(5) {
    case 0: try revision.createSnapshot("new", date: (1, 2))
    case 1: try revision.deleteSnapshot(shaper.pick(["own", "shared"]))
    case 2: try revision.applySnapshot(shaper.pick(["own", "shared"]))
    case 3: try revision.empty()
    default: try revision.grow(to: header.size + (shaper.flag() ? header.geometry.level2Span : 512), over: 0)
    }
    last = try revision.store { store throws(Qcow2Fault) in
      check(store.offset >= bytes.count, "\(store.part.rawValue) overwrites something that is in use")
      guard store.offset + UInt64(store.bytes.count) <= Medium.most else { throw .isFull }
      apply(store, &image)
    }
    for range in try revision.freed() {
      check(range.lowerBound >= header.clusterSize, "the header's cluster is freed")
    }
  } catch {
    tell("\(error)")
    return
  }
  check(last.offset + UInt64(last.bytes.count) <= 512, "a header is not stored in one write")
  check(report(image)?.corruptions == 0, "an image is corrupt before its header is stored")
  apply(last, &image)
  guard let after = report(image) else { fail("an image is no longer an image") }
  check(after.corruptions == 0, "a changed image is corrupt: \(after.findings.first ?? "")")
  check(after.leaks <= before?.leaks ?? 0, "a changed image has new leaks: \(after.findings.first ?? "")")
}

private func apply(_ store: ImageStore, _ image: inout [UInt8]) {
  let end = Int(store.offset) + store.bytes.count
  if image.count < end { image += [UInt8](repeating: 0, count: end - image.count) }
  image.replaceSubrange(Int(store.offset)..<end, with: store.bytes)
}

private func attackName(_ shaper: inout Shaper, _ header: Qcow2Header, _ bytes: [UInt8]) {
  var image = bytes
  let name = shaper.choice(4) == 1 ? nil : [UInt8](repeating: 97, count: shaper.pick([1, 30, 200, 1023]))
  let format = name == nil ? nil : shaper.pick(["raw", "qcow2", nil])
  do throws(Qcow2Fault) {
    let plan = try BackingChange(header, MemorySource(bytes)).plan(name, format: format)
    for store in plan.groups.joined() {
      apply(store, &image)
      check((try? Qcow2Header(MemorySource(image))) != nil, "the header is invalid during the change of the name")
    }
  } catch {
    tell("\(error)")
    return
  }
  let after = try? Qcow2Header(MemorySource(image))
  check(after?.backingName == name && after?.backingFormat == format, "the name is not as requested")
}
