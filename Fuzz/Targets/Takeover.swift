/// The state that another server sends, with descriptors: decoded, checked, and continued.
internal import Glibc

@testable internal import Control
@testable internal import VhostUser
@testable internal import VirtioCore

func attackTakeover(_ shaper: inout Shaper) {
  Handed.open()
  let before = (Descriptors.open, AddressSpace.shared.reserved)
  attackState(&shaper)
  check(Descriptors.open == before.0, "descriptors of another server were left open")
  check(AddressSpace.shared.reserved == before.1, "mappings of another server were leaked")
}

private func attackState(_ shaper: inout Shaper) {
  let list = DescriptorList((0..<shaper.pick([10, 0, 1, 4])).map { Handed.take(&shaper, $0) })
  var text = ControlLine(state(&shaper)).text
  for _ in 0..<shaper.choice(4) where shaper.mistake() {
    let place = Int(shaper.word16()) % text.count
    switch shaper.choice(3) {
    case 0: text[place] = shaper.byte()
    case 1: text.insert(contentsOf: shaper.bytes(upTo: 16), at: place)
    default: text.removeSubrange(place..<min(text.count, place + shaper.choice(32)))
    }
    if text.isEmpty { return }
  }
  guard let state = try? ControlLine(text: text, descriptors: []).decode(ServerState.self), let connection = state.connection
  else { return }
  let device = BackendSession.DeviceDescription(
    features: [.version1, .eventIndex, .indirectDescriptors, .packedRing], queueCount: 2, maximumQueueSize: 256,
    memoryBudget: 4 << 20)
  let restoration = SessionRestoration(state: connection, list: list, device: device, table: MemoryTable())
  guard let session = try? restoration.carryOut() else { return }
  // A session that was taken over can be handed over again, and is unchanged.
  var (again, places) = (connection, DescriptorList())
  session.fill(&again, &places, running: Set(restoration.running))
  check(again.memory.count == connection.memory.count, "the memory is not what was taken over")
  check(again.rings.map(\.size) == connection.rings.map(\.size), "the rings are not those that were taken over")
  var world = World(session)
  world.checkAlive(&shaper)
}

private func state(_ shaper: inout Shaper) -> ServerState {
  func odd(_ ordinary: UInt64) -> UInt64 { shaper.mistake() ? shaper.oddNumber() : ordinary }
  func place(_ ordinary: Int) -> Int {
    shaper.mistake() ? Int(truncatingIfNeeded: shaper.oddNumber()) : shaper.choice(8) == 1 ? shaper.choice(10) : ordinary
  }
  let rings = (0..<(shaper.mistake() ? shaper.choice(6) : 2)).map { index in
    let base = 0x7f00_0000_0000 + UInt64(index) * 0x4000
    return ConnectionState.RingState(
      size: shaper.choice(4) == 1 ? nil : UInt16(truncatingIfNeeded: odd(64)),
      address: shaper.choice(4) == 1
        ? nil
        : .init(
          flags: UInt32(shaper.choice(2)), descriptorTable: odd(base), usedRing: odd(base + 0x2000),
          availableRing: odd(base + 0x1000),
          log: odd(0)),
      available: UInt16(truncatingIfNeeded: odd(0)), used: shaper.flag() ? UInt16(truncatingIfNeeded: odd(0)) : nil,
      isStarted: shaper.choice(4) != 1, isEnabled: shaper.choice(4) != 1, runs: shaper.choice(4) != 1,
      hasFailed: shaper.choice(8) == 1,
      kick: shaper.choice(4) == 1 ? nil : place(4), call: shaper.choice(4) == 1 ? nil : place(4),
      failure: shaper.choice(2) == 1 ? nil : place(4))
  }
  let memory = (0..<shaper.pick([1, 2, 0, 3])).map { index in
    ConnectionState.Region(
      guestAddress: odd(UInt64(index) << 16), size: odd(0x10000), userAddress: odd(0x7f00_0000_0000 + UInt64(index) << 16),
      offset: odd(UInt64(index) << 16), file: place(0))
  }
  let connection = ConnectionState(
    socket: place(8), unread: shaper.choice(4) == 1 ? .init(bytes: shaper.bytes(upTo: 40), descriptors: [place(4)]) : nil,
    unsent: shaper.choice(4) == 1 ? [.init(bytes: shaper.bytes(upTo: 40), descriptors: [place(4)])] : [],
    channel: shaper.choice(4) == 1 ? place(9) : nil, protocolFeatures: odd(ProtocolFeatures.served.rawValue),
    features: shaper.choice(8) == 1 ? nil : odd(1 << 32 | 1 << 29 | (shaper.choice(4) == 1 ? 1 << 34 : 0)),
    status: shaper.byte(),
    memory: memory,
    log: shaper.choice(4) == 1 ? .init(file: place(1), offset: odd(0), size: odd(0x1000)) : nil, logsBuffers: shaper.flag(),
    inflight: shaper.choice(4) == 1
      ? .init(
        file: place(0), offset: odd(0), size: odd(0x8000), queues: Int(truncatingIfNeeded: odd(2)),
        queueSize: UInt16(truncatingIfNeeded: odd(64)))
      : nil,
    owesConfigurationChange: shaper.flag(), rings: rings)
  return ServerState(
    listener: shaper.flag() ? place(9) : nil,
    device: .init(
      features: odd(1 << 32), queues: Int(truncatingIfNeeded: odd(2)), maximumQueueSize: UInt16(truncatingIfNeeded: odd(256)),
      negotiated: shaper.flag() ? odd(1 << 32) : nil, configuration: shaper.bytes(upTo: 96)),
    connection: shaper.mistake() ? nil : connection)
}
