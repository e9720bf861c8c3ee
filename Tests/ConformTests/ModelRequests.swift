/// What the model does with a request (virtio 5.2.6).
import VirtioCore

@testable import Conform

extension ModelDevice {
  private static func number(_ bytes: some Sequence<UInt8>) -> UInt64 {
    Array(bytes).reversed().reduce(0) { $0 << 8 | UInt64($1) }
  }

  /// - Parameters:
  ///   - input: all that is readable, header first.
  ///   - room: writable bytes before the status.
  /// - Returns: the status, and the bytes for the front of the writable part.
  func perform(_ input: [UInt8], room: Int, queue: Int) -> (UInt8, [UInt8]) {
    let type = UInt32(Self.number(input[0..<4]))
    var sector = Self.number(input[8..<16])
    let payload = Array(input[16...])
    if fault == .sectorsAreBlocks, type < 2 { (sector, _) = sector.multipliedReportingOverflow(by: 2) }
    let isOther = queue == 1 && fault == .queuesHaveDisks
    switch type {
    case 0:
      guard payload.isEmpty || fault == .directionIsIgnored else { return (1, []) }
      guard isWhole(room) else { return (fault == .oddLengthsOK ? 0 : 1, []) }
      guard let place = range(sector, room) else {
        return fault == .endsAreNotChecked ? (0, [UInt8](repeating: 0, count: room)) : (1, [])
      }
      return (0, Array((isOther ? other : disk)[place]))
    case 1:
      if isReadOnly {
        guard fault == .readOnlySaysOK || fault == .readOnlyWrites else { return (1, []) }
        guard fault == .readOnlyWrites else { return (0, []) }
      }
      if room > 0 {
        if fault == .directionIsIgnored { disk[Int(sector) * 512] ^= 0xff }
        return (1, [])
      }
      guard isWhole(payload.count) else { return (fault == .oddLengthsOK ? 0 : 1, []) }
      guard let place = range(sector, payload.count) else { return (fault == .endsAreNotChecked ? 0 : 1, []) }
      guard fault != .dropsWrites else { return (0, []) }
      var bytes = payload
      if fault == .tearsWrites, bytes.count > 2048 {
        bytes.replaceSubrange(bytes.count - 512..<bytes.count, with: [UInt8](repeating: 0, count: 512))
      }
      if isOther { other.replaceSubrange(place, with: bytes) } else { disk.replaceSubrange(place, with: bytes) }
      return (0, [])
    case 4: return (fault == .flushFails ? 1 : 0, [])
    case 8:
      let text = Array("model".utf8)
      let filler: UInt8 = fault == .identityWithoutPadding ? 0x2a : 0
      return (0, Array((text + [0] + [UInt8](repeating: filler, count: 14)).prefix(room)))
    case 10 where hasLifetime:
      if fault == .lifetimeFails { return (1, []) }
      return (0, Array([fault == .reservedLifetime ? 9 : 1, 0, 2, 0, 3, 0].prefix(room)))
    case 11, 13, 14: return (ranges(type, payload), [])
    default:
      if fault == .oldTypesWrite, type == 3 || type == 5 { disk[0] &+= 1 }
      return (fault == .unknownTypesFail ? 1 : 2, [])
    }
  }

  private func isWhole(_ bytes: Int) -> Bool { bytes % Self.block == 0 }

  private func range(_ sector: UInt64, _ bytes: Int) -> Range<Int>? {
    let count = UInt64(bytes / 512)
    guard count <= sectors, sector <= sectors - count else { return nil }
    return Int(sector) * 512..<Int(sector) * 512 + bytes
  }

  private func ranges(_ type: UInt32, _ payload: [UInt8]) -> UInt8 {
    if isReadOnly {
      if fault == .readOnlyWrites { disk[3] ^= 1 }
      return fault == .readOnlyRangesOK ? 0 : 1
    }
    let isRight = payload.count % 16 == 0 && (1...4).contains(payload.count / 16)
    if !isRight { return fault == .anyPayload ? 0 : 1 }
    var places: [Range<Int>] = []
    for start in stride(from: 0, to: payload.count, by: 16) {
      let sector = Self.number(payload[start..<start + 8])
      let count = Self.number(payload[start + 8..<start + 12])
      let flags = Self.number(payload[start + 12..<start + 16])
      if flags & ~(type == 13 ? 1 : 0) != 0, fault != .ignoresFlags { return 2 }
      guard count <= 64, let place = range(sector, Int(count) * 512) else {
        if fault == .rangesAreNotChecked { return 0 }
        return 1
      }
      places.append(place)
    }
    if fault == .zeroesNothing { return 0 }
    if fault == .oneSegmentOnly { places = [places[0]] }
    for place in places {
      let end = fault == .discardsTooMuch && type == 11 ? min(place.upperBound + 512, disk.count) : place.upperBound
      disk.replaceSubrange(place.lowerBound..<end, with: [UInt8](repeating: 0, count: end - place.lowerBound))
    }
    return 0
  }
}
