/// How the model executes a request (virtio 5.2.6).
import VirtioCore

@testable import Conform

extension ModelDevice {
  private static func number(_ bytes: some Sequence<UInt8>) -> UInt64 {
    Array(bytes).reversed().reduce(0) { $0 << 8 | UInt64($1) }
  }

  /// - Parameters:
  ///   - input: the whole readable part, header first.
  ///   - room: writable bytes before the status.
  /// - Returns: the status, and the bytes for the front of the writable part.
  func perform(_ input: [UInt8], room: Int, queue: Int) -> (UInt8, [UInt8]) {
    let type = UInt32(Self.number(input[0..<4]))
    var sector = Self.number(input[8..<16])
    let payload = Array(input[16...])
    if fault == .sectorsAreBlocks, type < 2 { (sector, _) = sector.multipliedReportingOverflow(by: 2) }
    if zones != nil, let answer = performZoned(type, sector, payload, room: room) { return answer }
    let isOther = queue == 1 && fault == .queuesHaveDisks
    switch type {
    case 0:
      guard payload.isEmpty || fault == .directionIsIgnored else { return (1, []) }
      guard isWhole(room) else { return (fault == .oddLengthsOK ? 0 : 1, []) }
      reads += 1
      // The driver may have changed the header by then; here it names another block.
      if fault == .sectorIsReadAgain, reads % 50 == 0 { sector = sectors - UInt64(room / 512) }
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
    case 4 where hasFlush && fault == .flushWrites && payload.count >= 512:
      disk.replaceSubrange(0..<payload.count, with: payload)
      return (0, [])
    case 4 where hasFlush: return (fault == .flushFails ? 1 : 0, [])
    // The legacy FLUSH_OUT.
    case 5 where face.isLegacy && hasFlush && fault != .flushOutIsUnknown && fault != .oldTypesWrite: return (0, [])
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

  /// - Returns: `nil` if the request is handled as on any disk.
  private func performZoned(_ type: UInt32, _ sector: UInt64, _ payload: [UInt8], room: Int) -> (UInt8, [UInt8])? {
    switch type {
    case 0:
      guard payload.isEmpty, isWhole(room), let place = range(sector, room),
        let (status, there) = zones?.read(sector, UInt64(room / 512))
      else { return nil }
      guard status == 0 else { return (status, []) }
      return (0, disk[place].prefix(Int(there) * 512) + [UInt8](repeating: 0, count: room - Int(there) * 512))
    case 1, 15:
      guard
        type == 15
          ? room >= 8 && payload.count % 512 == 0 : room == 0 && isWhole(payload.count) && range(sector, payload.count) != nil
      else { return type == 15 ? (1, []) : nil }
      let (status, place) = zones?.write(sector, UInt64(payload.count / 512), isAppend: type == 15) ?? (1, 0)
      guard status == 0, let place = range(place, payload.count) else { return (status, []) }
      disk.replaceSubrange(place, with: payload)
      guard type == 15 else { return (0, []) }
      let told = fault == .appendSaysNothing ? sector : UInt64(place.lowerBound / 512)
      return (0, [UInt8](repeating: 0, count: room - 8) + (0..<8).map { UInt8(truncatingIfNeeded: told >> UInt64(8 * $0)) })
    case 16: return zones?.report(sector, room)
    case 18, 20, 22, 24, 26: return (zones?.command(type, sector) ?? 1, [])
    // A single range, which counts as a write.
    case 13: return (1, [])
    default: return nil
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
