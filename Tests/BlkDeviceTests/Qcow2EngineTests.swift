/// The engine for qcow2 images with many transfers at once: copies, system calls and threads, each with its own way to an answer.
import Foundation
import GuestDriver
import Qcow2
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite(.enabled(if: Host.hasQemuImg, "qemu-img is not installed")) struct Qcow2EngineTests {
  private static let size = 4 << 20

  /// Transfers in flight, each with its own memory.
  @safe
  private final class Flight {
    let engine: UnsafeMutablePointer<Qcow2Engine>
    private let mailbox: OwnedDescriptor
    private var segments: [UInt32: UnsafeMutablePointer<MemorySegment>] = unsafe [:]

    init(_ disk: Qcow2Disk, _ kind: EngineKind) throws {
      mailbox = try OwnedDescriptor.eventCounter()
      unsafe engine = .allocate(capacity: 1)
      try unsafe engine.initialize(to: Qcow2Engine(disk, kind, mailbox: mailbox.rawValue))
    }

    deinit {
      unsafe engine.deinitialize(count: 1)
      unsafe engine.deallocate()
    }

    /// - Parameter bytes: those that are written, or memory for those that are read.
    /// - Returns: the result, if it is known at once.
    func start(_ kind: IOOperation.Kind, at offset: Int, _ bytes: [UInt8], tag: UInt32) -> Int32? {
      let segment = UnsafeMutablePointer<MemorySegment>.allocate(capacity: 1)
      let memory = UnsafeMutableRawPointer.allocate(byteCount: bytes.count, alignment: 16)
      unsafe memory.copyMemory(from: bytes, byteCount: bytes.count)
      unsafe segment.initialize(to: MemorySegment(base: memory, count: bytes.count))
      unsafe segments[tag] = segment
      var operation = unsafe IOOperation(kind: kind)
      (operation.offset, operation.length, operation.segmentCount) = (UInt64(offset), UInt64(bytes.count), 1)
      unsafe operation.segments = segment
      guard case .finished(let result) = unsafe engine.pointee.start(operation, tag: tag) else { return nil }
      return result
    }

    /// Waits for the next answer.
    func next() throws -> (tag: UInt32, result: Int32) {
      let end = ContinuousClock.now + .seconds(60)
      while .now < end {
        if case .completion(let tag, let result) = unsafe engine.pointee.nextEvent() { return (tag, result) }
        unsafe engine.pointee.wait(nanoseconds: 1_000_000_000)
      }
      throw TookTooLong(description: "no answer")
    }

    /// What is in a transfer's memory. - Returns: `nil` if it is not in flight.
    func take(_ tag: UInt32) -> [UInt8]? {
      guard let segment = unsafe segments.removeValue(forKey: tag) else { return nil }
      let bytes = unsafe [UInt8](UnsafeRawBufferPointer(start: segment.pointee.base, count: segment.pointee.count))
      unsafe segment.pointee.base.deallocate()
      unsafe segment.deallocate()
      return bytes
    }
  }

  /// Data, zeroes, holes and compressed clusters, in an image and the one below it.
  @Test(arguments: [EngineKind.mapped, .cached, .sync, .threads], ["", "extended_l2=on", "cluster_size=512"])
  func eachTransferIsAnsweredOnceAndRight(engine: EngineKind, kind: String) throws {
    var chance = Chance(UInt64(kind.utf8.count) &+ 3)
    let folder = try ImageFolder(in: (engine == .mapped ? Medium.memory : .disk).folder)
    let words = kind.isEmpty ? [] : ["-o", kind]
    let cluster = kind.contains("512") ? 512 : 64 << 10
    try folder.create("b", "\(Self.size)", words)
    try folder.io("b", Qcow2ReadTests.history(30, size: Self.size, compressed: cluster, &chance))
    try folder.overlay("a", over: "b", "qcow2", words)
    try folder.io("a", Qcow2ReadTests.history(20, size: Self.size, compressed: cluster, &chance))
    var content = try folder.content("a")
    let opened = try folder.openToWrite("DIR/a?backing=qcow2:DIR/b")
    let disk = try #require(opened.chain)
    let flight = try Flight(disk, engine)
    for round in 0..<12 {
      // Ranges that do not overlap, so that their order does not matter.
      let pieces = Array(0..<256).shuffled(using: &chance).prefix(100)
      var started: [UInt32: (offset: Int, written: [UInt8]?)] = [:]
      for (number, piece) in pieces.enumerated() {
        let offset = piece * 16384 + Int.random(in: 0..<8, using: &chance) * 512
        let count = Int.random(in: 1...20, using: &chance) * 512
        let isWrite = round > 2 && Int.random(in: 0..<3, using: &chance) == 0
        let bytes = [UInt8](repeating: isWrite ? UInt8(round * 20 + number % 20 + 1) : 0xa5, count: count)
        let tag = UInt32(number)
        started[tag] = (offset, isWrite ? bytes : nil)
        if let result = flight.start(isWrite ? .write : .read, at: offset, bytes, tag: tag) {
          try check(flight, tag, result, &started, &content)
        }
        if number % 37 == 36 { unsafe flight.engine.pointee.submit() }
      }
      while !started.isEmpty {
        let (tag, result) = try flight.next()
        try check(flight, tag, result, &started, &content)
      }
      let hasMore = unsafe flight.engine.pointee.hasFinished
      #expect(!hasMore)
    }
    let flush = unsafe IOOperation(kind: .flush)
    #expect(disk.perform(flush) == 0)
  }

  private func check(
    _ flight: Flight, _ tag: UInt32, _ result: Int32, _ started: inout [UInt32: (offset: Int, written: [UInt8]?)],
    _ content: inout [UInt8]
  ) throws {
    let transfer = started.removeValue(forKey: tag)
    let (offset, written) = try #require(transfer, "\(tag) was answered twice")
    let bytes = try #require(flight.take(tag))
    try #require(result == Int32(bytes.count), "\(result) for \(bytes.count) at \(offset)")
    let range = offset..<offset + bytes.count
    guard let written else {
      #expect(bytes == Array(content[range]), "\(range)")
      return
    }
    content.replaceSubrange(range, with: written)
  }

  @Test func tablesKeepTheirPlaces() throws {
    let memory = Qcow2TableMemory(tableBytes: 64 << 10)
    /// Stores a number at both ends of a table. - Returns: its address.
    func take(_ number: Int) -> UInt {
      let table = unsafe memory.take()
      unsafe table.storeBytes(of: number, as: Int.self)
      unsafe table.storeBytes(of: number, toByteOffset: table.count - 8, as: Int.self)
      return UInt(bitPattern: table.baseAddress)
    }
    func numbers(_ address: UInt) throws -> [Int] {
      let place = try unsafe #require(UnsafeRawPointer(bitPattern: address))
      return unsafe [place.load(as: Int.self), place.load(fromByteOffset: (64 << 10) - 8, as: Int.self)]
    }
    var tables: [UInt] = []
    // More than have memory of their own.
    for number in 0..<400 {
      tables.append(take(number))
      guard number % 100 == 50 else { continue }
      let table = unsafe UnsafeMutableRawPointer(bitPattern: tables[number])
      unsafe memory.giveBack(UnsafeMutableRawBufferPointer(start: table, count: 64 << 10))
      #expect(take(number) == tables[number])
    }
    #expect(Set(tables).count == 400 && tables.allSatisfy { $0 % 16 == 0 })
    for (number, table) in tables.enumerated() { #expect(try numbers(table) == [number, number]) }
  }
}
