/// A disk that records what reached it, and in which order, so that power can be cut at any moment afterwards.
import Foundation
import Glibc
import GuestDriver
import Qcow2
import Synchronization
import Testing
import VirtioCore

@testable import VirtioBlkDevice

/// The calls made on a file, one at a time.
final class Qcow2Log: Qcow2Witness {
  private struct State {
    var calls: [Qcow2Call] = []
    var fails: @Sendable (Int, Qcow2Call) -> Int32 = { _, _ in 0 }
    var asked = 0
  }

  private let state = Mutex(State())

  var calls: [Qcow2Call] { state.withLock { $0.calls } }
  var count: Int { state.withLock { $0.calls.count } }

  /// - Parameter rule: receives the number of a call and the call; returns an errno, or 0 if the call is to be made.
  func fail(_ rule: @escaping @Sendable (Int, Qcow2Call) -> Int32) { state.withLock { $0.fails = rule } }

  func witness(_ call: Qcow2Call, _ perform: () -> Int) -> Int {
    state.withLock { state in
      state.asked += 1
      let error = state.fails(state.asked, call)
      guard error == 0 else { return -Int(error) }
      let result = perform()
      guard result >= 0 else { return result }
      if case .store(let offset, let bytes) = call {
        state.calls.append(.store(offset: offset, Array(bytes.prefix(result))))
      } else {
        state.calls.append(call)
      }
      return result
    }
  }
}

extension Qcow2Call {
  var isStable: Bool { if case .stable = self { true } else { false } }
}

/// The bytes of a file as calls change them.
struct FileImage {
  static let sector = 512
  var bytes: [UInt8]

  /// - Parameter takes: for each sector, whether it reaches the medium.
  mutating func apply(_ call: Qcow2Call, takes: () -> Bool = { true }) {
    switch call {
    case .sync: break
    case .stable(let offset, let data): apply(.store(offset: offset, data))
    case .cut(let length): if takes() { bytes.removeLast(max(0, bytes.count - Int(length))) }
    case .zero(let offset, let count):
      // Beyond the end of the file there is nothing to zero.
      let end = min(bytes.count, Int(offset + count))
      each(Int(offset), end) { from, to in
        if takes() { bytes.replaceSubrange(from..<to, with: repeatElement(0, count: to - from)) }
      }
    case .store(let offset, let data):
      let end = Int(offset) + data.count
      each(Int(offset), end) { from, to in
        guard takes() else { return }
        if bytes.count < to { bytes += [UInt8](repeating: 0, count: to - bytes.count) }
        bytes.replaceSubrange(from..<to, with: data[from - Int(offset)..<to - Int(offset)])
      }
    }
  }

  /// Calls the body for whole sectors, and for the partial ones at both ends.
  private func each(_ start: Int, _ end: Int, _ body: (Int, Int) -> Void) {
    var from = start
    while from < end {
      let to = min(end, (from / Self.sector + 1) * Self.sector)
      body(from, to)
      from = to
    }
  }

  /// The content of the disk, read without any of the code that serves it.
  ///
  /// - Parameters:
  ///   - backing: the content of its backing file.
  ///   - name: a snapshot; `nil`: the current disk.
  func content(over backing: [UInt8], snapshot name: String? = nil) throws -> [UInt8] {
    let source = MemorySource(bytes)
    let header = try Qcow2Header(source)
    let (entries, geometry) = (Qcow2Entries(header), header.geometry)
    let (cluster, unit) = (Int(geometry.clusterSize), Int(geometry.subclusterSize))
    let snapshot = try name.map { try header.snapshot($0, source) }
    let (size, level1) = (
      Int(snapshot?.diskSize ?? header.size), try snapshot.map { try header.level1(source, of: $0) } ?? header.level1(source)
    )
    var disk = [UInt8](repeating: 0, count: (size + cluster - 1) / cluster * cluster)
    disk.replaceSubrange(0..<min(backing.count, disk.count), with: backing.prefix(disk.count))
    func take(_ place: UInt64, _ count: Int, _ target: Int) throws {
      let data = try source.read(at: place, count: count)
      disk.replaceSubrange(target..<target + count, with: data + [UInt8](repeating: 0, count: count - data.count))
    }
    for (index, table) in level1.enumerated() where table != 0 {
      let words = try source.read(at: table, count: cluster) + [UInt8](repeating: 0, count: cluster)
      for number in 0..<Int(geometry.level2Entries) {
        let base = index * Int(geometry.level2Span) + number * cluster
        guard base < disk.count else { break }
        func word(_ place: Int) -> UInt64 { words[place..<place + 8].reduce(0) { $0 << 8 | UInt64($1) } }
        let place = number * geometry.entryBytes
        let bitmap = geometry.isExtended ? word(place + 8) : 0
        guard word(place) != 0 || bitmap != 0 else { continue }
        switch try entries.level2(word(place), bitmap: bitmap) {
        case .unallocated: break
        case .zero: disk.replaceSubrange(base..<base + cluster, with: repeatElement(0, count: cluster))
        case .data(let host): try take(host, cluster, base)
        case .compressed(let host, let count):
          let packed = try source.read(at: host, count: count)
          var plain = [UInt8](repeating: 0, count: cluster)
          let isWhole = try unsafe plain.withUnsafeMutableBytes {
            unsafe try Qcow2Decompressor.find(header.compression).decompress(packed, into: $0)
          }
          try #require(isWhole)
          disk.replaceSubrange(base..<base + cluster, with: plain)
        case .subclusters(let host, let data, let zero):
          for part in 0..<32 {
            let target = base + part * unit
            if data >> UInt32(part) & 1 != 0 { try take((host ?? 0) + UInt64(part * unit), unit, target) }
            if zero >> UInt32(part) & 1 != 0 {
              disk.replaceSubrange(target..<target + unit, with: repeatElement(0, count: unit))
            }
          }
        }
      }
    }
    return Array(disk.prefix(size))
  }
}

/// What each sector of a disk may contain. All bytes of a sector have one value.
struct SectorPromise {
  /// Per sector: its value at the last completed flush, and every value written since.
  private(set) var allowed: [Set<UInt8>]
  private var current: [Set<UInt8>]

  init(_ content: [UInt8]) {
    current = stride(from: 0, to: content.count, by: FileImage.sector).map { [content[$0]] }
    allowed = current
  }

  mutating func begin(_ sectors: Range<Int>, _ value: UInt8) { for sector in sectors { allowed[sector].insert(value) } }

  mutating func end(_ sectors: Range<Int>, _ value: UInt8, isDone: Bool) {
    for sector in sectors { if isDone { current[sector] = [value] } else { current[sector].insert(value) } }
  }

  mutating func flushed() { allowed = current }

  /// - Returns: the first sector that has content it may not have.
  func broken(_ content: [UInt8], now: Bool = false) -> String? {
    for (sector, values) in (now ? current : allowed).enumerated() {
      let bytes = content[sector * FileImage.sector..<(sector + 1) * FileImage.sector]
      guard let first = bytes.first, values.contains(first), bytes.allSatisfy({ $0 == first }) else {
        return "sector \(sector) has \(bytes.first ?? 0) to \(bytes.last ?? 0) and may have \(values.sorted())"
      }
    }
    return nil
  }
}

extension Qcow2Disk {
  /// Writes one value, or zeroes.
  func change(
    _ kind: IOOperation.Kind, at offset: Int, count: Int, value: UInt8 = 0, pieces: Int = 1, isDurable: Bool = false
  ) -> Int32 {
    var bytes = [UInt8](repeating: value, count: kind == .write ? count : 0)
    return unsafe bytes.withUnsafeMutableBytes { buffer in
      var segments: [MemorySegment] = []
      let size = max(1, count / pieces)
      if kind == .write {
        for start in stride(from: 0, to: count, by: size) {
          unsafe segments.append(MemorySegment(base: buffer.baseAddress! + start, count: min(size, count - start)))
        }
      }
      return unsafe segments.withUnsafeMutableBufferPointer { segments in
        var operation = unsafe IOOperation(kind: kind)
        operation.isDurable = isDurable
        (operation.offset, operation.length) = (UInt64(offset), UInt64(count))
        unsafe operation.segments = segments.isEmpty ? nil : segments.baseAddress
        operation.segmentCount = segments.count
        // As the engine does. A call may transfer less.
        let result = serve(operation)
        return result == Int32(count) ? 0 : result
      }
    }
  }
}

extension ImageFolder {
  /// - Parameter words: after `qcow2:`; `DIR` stands for the folder.
  func openToWrite(_ words: String, _ witness: (any Qcow2Witness)? = nil, blockSize: Int = 512) throws -> ImageFile {
    let location = try location(words)
    var options = ImageOptions(path: location.path, logicalBlockSize: blockSize)
    options.qcow2 = location
    options.qcow2Witness = witness
    return try ImageFile(options)
  }

  /// Opens a disk, and closes it afterwards.
  func writing(_ words: String, _ witness: (any Qcow2Witness)? = nil, _ body: (Qcow2Disk) throws -> Void) throws {
    let image = try openToWrite(words, witness)
    try body(try #require(image.chain))
    image.finish()
  }

  func bytes(_ name: String) throws -> [UInt8] { Array(try Data(contentsOf: URL(fileURLWithPath: place(name)))) }

  /// An empty image, made by this project's code.
  func make(_ name: String, size: UInt64, clusterBits: UInt32, isExtended: Bool, over backing: String? = nil) throws {
    let layout = try Qcow2Layout(
      size: size, geometry: Qcow2Geometry(clusterBits: clusterBits, isExtended: isExtended),
      backingName: backing.map { Array(place($0).utf8) }, backingFormat: backing.map { _ in "raw" })
    try #require(FileManager.default.createFile(atPath: place(name), contents: nil))
    for piece in layout.pieces { try put(name, piece.offset, piece.bytes) }
    try cut(name, to: Int(layout.fileSize))
  }
}
