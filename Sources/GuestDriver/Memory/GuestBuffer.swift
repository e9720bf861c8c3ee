/// A piece of guest memory that the driver has allocated, with a guard zone on either side.
internal import Glibc
internal import Synchronization
public import VirtioCore

/// Bytes of guest memory that lie in one region. A handle: copies refer to the same bytes, and its owner frees it with
/// `DriverMemory.release`.
@safe
public struct GuestBuffer: @unchecked Sendable {
  public let address: GuestAddress
  public let count: Int
  let region: Int
  let guardBytes: Int
  let host: UnsafeMutableRawPointer

  /// The bytes `range` of the buffer. - Precondition: inside it.
  public func bytes(_ range: Range<Int>) -> [UInt8] {
    precondition(range.lowerBound >= 0 && range.upperBound <= count)
    return unsafe [UInt8](UnsafeRawBufferPointer(start: host + range.lowerBound, count: range.count))
  }

  public var bytes: [UInt8] { bytes(0..<count) }

  public subscript(offset: Int) -> UInt8 {
    get {
      precondition(offset >= 0 && offset < count)
      return unsafe host.load(fromByteOffset: offset, as: UInt8.self)
    }
    nonmutating set {
      precondition(offset >= 0 && offset < count)
      unsafe host.storeBytes(of: newValue, toByteOffset: offset, as: UInt8.self)
    }
  }

  /// Stores bytes from `offset` on. - Precondition: they fit.
  public func store(_ bytes: some Collection<UInt8>, at offset: Int = 0) {
    precondition(offset >= 0 && bytes.count <= count - offset)
    unsafe UnsafeMutableRawBufferPointer(start: host + offset, count: bytes.count).copyBytes(from: bytes)
  }

  public func fill(_ byte: UInt8) { unsafe host.initializeMemory(as: UInt8.self, repeating: byte, count: count) }
}

extension DriverMemory {
  /// Bytes of guard on either side of a buffer.
  public static let guardBytes = 32

  /// Allocates a buffer, and poisons it and its guards.
  ///
  /// - Parameters:
  ///   - count: bytes, at least 1.
  ///   - alignment: of the guest address, a power of two.
  public func allocate(_ count: Int, alignment: Int = 1) throws(DriverError) -> GuestBuffer {
    precondition(count > 0 && alignment > 0 && alignment & (alignment - 1) == 0)
    let guardBytes = Self.guardBytes
    let found = allocator.withLock { allocator in
      allocator.take(count: count, alignment: alignment, before: guardBytes, after: guardBytes) { [regions] in
        regions[$0].start.rawValue
      }
    }
    guard let found else { throw .memoryFull(wanted: count) }
    let region = regions[found.region]
    let buffer = unsafe GuestBuffer(
      address: GuestAddress(region.start.rawValue + UInt64(found.offset)), count: count, region: found.region,
      guardBytes: guardBytes, host: region.host + found.offset)
    Poison.fill(memoryOf: buffer, from: -guardBytes, count: count + 2 * guardBytes)
    return buffer
  }

  /// Reserves a range for manual use: nothing is allocated there from now on, and it is not watched.
  ///
  /// - Precondition: all of it is free memory. It may span adjacent regions.
  public func reserve(_ address: GuestAddress, count: Int) {
    var next = address.rawValue
    var remaining = count
    for (index, region) in regions.enumerated() where remaining > 0 && region.contains(GuestAddress(next)) {
      let offset = Int(next - region.start.rawValue)
      let here = min(remaining, region.size - offset)
      let isTaken = allocator.withLock { $0.take(region: index, offset..<offset + here) }
      precondition(isTaken, "part of the range is in use")
      next &+= UInt64(here)
      remaining -= here
    }
    precondition(remaining == 0, "the range is not memory")
  }

  /// Frees a buffer, and poisons its contents.
  public func release(_ buffer: GuestBuffer) {
    Poison.fill(memoryOf: buffer, from: -buffer.guardBytes, count: buffer.count + 2 * buffer.guardBytes)
    let start = Int(buffer.address.rawValue - regions[buffer.region].start.rawValue)
    allocator.withLock { allocator in
      allocator.give(region: buffer.region, start - buffer.guardBytes..<start + buffer.count + buffer.guardBytes)
    }
  }

  /// The first byte around the buffer that somebody wrote to; `nil` when both guards are intact.
  public func damage(around buffer: GuestBuffer) -> GuestAddress? {
    Poison.damage(memoryOf: buffer, from: -buffer.guardBytes, count: buffer.guardBytes)
      ?? Poison.damage(memoryOf: buffer, from: buffer.count, count: buffer.guardBytes)
  }

  /// Poisons everything that is not allocated, so that `damageOutside` can detect writes. It touches all the memory.
  public func poisonFreeMemory() {
    unsafe forEachFreeRange { address, host, count in unsafe Poison.fill(host, address: address, count: count) }
  }

  /// The first byte of free memory that somebody wrote to since `poisonFreeMemory`.
  public func damageOutside() -> GuestAddress? {
    var found: GuestAddress? = nil
    unsafe forEachFreeRange { address, host, count in
      if found == nil { found = unsafe Poison.damage(host, address: address, count: count) }
    }
    return found
  }

  private func forEachFreeRange(_ body: (UInt64, UnsafeMutableRawPointer, Int) -> Void) {
    let free = allocator.withLock { $0.free }
    for (region, ranges) in zip(regions, free) {
      for range in ranges {
        unsafe body(region.start.rawValue + UInt64(range.lowerBound), region.host + range.lowerBound, range.count)
      }
    }
  }
}

/// The contents of memory that must not be written: bytes that depend on their address, so that neither a constant nor a copy
/// of other memory looks like them.
enum Poison {
  private static let period = 4096
  /// Two periods, so that it contains any range of up to one period.
  private static let pattern: [UInt8] = {
    var random = SeededRandom(seed: 0x706f_6973_6f6e)
    let page = (0..<period).map { _ in UInt8(truncatingIfNeeded: random.next()) }
    return page + page
  }()

  static func fill(_ host: UnsafeMutableRawPointer, address: UInt64, count: Int) {
    unsafe forEachChunk(address, count) { offset, source, length in
      unsafe (host + offset).copyMemory(from: source, byteCount: length)
      return true
    }
  }

  static func damage(_ host: UnsafeMutableRawPointer, address: UInt64, count: Int) -> GuestAddress? {
    var found: GuestAddress? = nil
    unsafe forEachChunk(address, count) { offset, source, length in
      if unsafe memcmp(host + offset, source, length) == 0 { return true }
      for index in offset..<offset + length
      where unsafe host.load(fromByteOffset: index, as: UInt8.self)
        != source.load(fromByteOffset: index - offset, as: UInt8.self)
      {
        found = GuestAddress(address + UInt64(index))
        return false
      }
      return true
    }
    return found
  }

  static func fill(memoryOf buffer: GuestBuffer, from offset: Int, count: Int) {
    unsafe fill(buffer.host + offset, address: buffer.address.rawValue &+ UInt64(bitPattern: Int64(offset)), count: count)
  }

  static func damage(memoryOf buffer: GuestBuffer, from offset: Int, count: Int) -> GuestAddress? {
    unsafe damage(
      buffer.host + offset, address: buffer.address.rawValue &+ UInt64(bitPattern: Int64(offset)), count: count)
  }

  private static func forEachChunk(_ address: UInt64, _ count: Int, _ body: (Int, UnsafeRawPointer, Int) -> Bool) {
    unsafe pattern.withUnsafeBytes { table in
      guard let base = table.baseAddress else { return }
      var offset = 0
      while offset < count {
        let phase = Int((address &+ UInt64(offset)) % UInt64(period))
        let length = min(count - offset, period)
        guard unsafe body(offset, base + phase, length) else { return }
        offset += length
      }
    }
  }
}
