/// In-flight records of unknown origin, for a ring that an unknown device left.
internal import Glibc
internal import VirtioBlkDevice

@testable internal import VirtioCore

func attackInflight(_ shaper: inout Shaper) {
  let isPacked = shaper.flag()
  attackDevice(&shaper, isPacked: isPacked, isRecorded: true) { shaper, guest in
    // Chains that the previous device may have taken.
    guest.submit(&shaper)
    guest.forget()
    let records = isPacked ? Records.packed : Records.split
    guard let region = unsafe records.region(ofQueue: 0) else { fail("there is no region") }
    let (header, entry) = isPacked ? (32, 32) : (16, 16)
    let size = min(guest.size, 256)
    unsafe memset(region, 0, header + entry * 256)
    let version: UInt16 = shaper.mistake() ? shaper.word16() : 1
    unsafe region.storeBytes(of: version, toByteOffset: 8, as: UInt16.self)
    let entries = shaper.mistake() ? shaper.word16() : UInt16(isPacked ? 256 : shaper.pick([size, 256]))
    unsafe region.storeBytes(of: entries, toByteOffset: 10, as: UInt16.self)
    func word(_ offset: Int, _ ordinary: UInt16) {
      let value = shaper.mistake() ? shaper.word16() : ordinary
      unsafe region.storeBytes(of: value, toByteOffset: offset, as: UInt16.self)
    }
    for offset in [12, 14] { word(offset, UInt16(shaper.choice(size))) }
    if isPacked {
      // The current position, and the previous one.
      for offset in [16, 18] { word(offset, UInt16(shaper.choice(2))) }
      word(20, shaper.flag() ? 0x0101 : 0x0100)
    }
    for number in 0..<min(size, 24) {
      let place = header + entry * number
      guard shaper.choice(3) == 1 else { continue }
      unsafe region.storeBytes(of: 1, toByteOffset: place, as: UInt8.self)
      let order = shaper.mistake() ? shaper.oddNumber() : UInt64(shaper.byte())
      unsafe region.storeBytes(of: order, toByteOffset: place + 8, as: UInt64.self)
      guard isPacked else {
        word(place + 6, UInt16(shaper.choice(size)))
        continue
      }
      word(place + 2, UInt16(number + 1))
      word(place + 4, UInt16(number))
      word(place + 6, 1 + UInt16(shaper.choice(3)))
      let address = shaper.mistake() ? shaper.oddNumber() : 0x5000 + UInt64(shaper.byte()) * 16
      let link = UInt64(number) | UInt64(shaper.pick([2, 3, 1, 0, 6, 4])) << 16 | UInt64(16) << 32
      unsafe region.storeBytes(of: shaper.mistake() ? shaper.oddNumber() : link, toByteOffset: place + 16, as: UInt64.self)
      unsafe region.storeBytes(of: address, toByteOffset: place + 24, as: UInt64.self)
    }
  }
}
