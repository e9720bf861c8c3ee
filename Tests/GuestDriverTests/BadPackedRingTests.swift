/// Packed rings that no driver may build, in addition to what `BadRingTests` does to both formats: the device ignores chains
/// that are not available, a broken ring stops its queue, and good chains before the bad one are answered.
import CLinux
import Foundation
import Testing
import VirtioCore

@testable import GuestDriver

struct BadPackedRingTests {
  /// A chain that the device may serve or refuse, as long as it does so cleanly.
  /// - Returns: whether the queue was stopped.
  @discardableResult private func servedOrRefused(_ bench: Bench, used: UInt16 = 1) throws -> Bool {
    bench.kickVictim()
    var failed = false
    try waitUntil("it is served or refused") {
      failed = try failed || bench.transport.waitForFailure(queue: 0, milliseconds: 0)
      return failed || bench.victim.usedCount >= used
    }
    try bench.expectWitnessWell()
    return failed
  }

  /// Refused, with the good chains before it answered.
  private func refused(_ bench: Bench, _ place: SourceLocation = #_sourceLocation, bad: (Bench) throws -> UInt16) throws {
    try BadRingTests().goodThenBad(bench, place, bad: bad)
  }

  private func read(_ bench: Bench) throws -> (request: FramedRequest, descriptors: [RawDescriptor]) {
    let request = try bench.frame(.read(sector: 1, bytes: 512))
    return (request, bench.descriptors(request))
  }

  /// Marks that do not make a head available in this lap.
  enum Marks: String, CaseIterable, Sendable {
    case neither, both, lapBefore
    var rawValueInFirstLap: UInt16 {
      switch self {
      case .neither: 0
      case .both: 0x8080
      case .lapBefore: 0x8000
      }
    }
  }

  @Test("marks of another lap are not taken, and the right ones are", arguments: Setup.packed, Marks.allCases)
  func wrongMarks(_ setup: Setup, marks: Marks) throws {
    let bench = try Bench(setup)
    let (request, parts) = try read(bench)
    bench.link(parts)
    bench.victim.offer(0)
    // The device has not been kicked; if it polls, it can only have taken good chains.
    let ring = bench.victim.packed
    let flags = ring.flags(0).loadRelaxed()
    guard bench.victim.usedCount == 0 else { return }
    ring.flags(0).storeRelease(flags & ~RingPosition.marks | marks.rawValueInFirstLap)
    bench.kickVictim()
    try bench.expectWitnessWell()
    usleep(20_000)
    let isUntouched = ring.flags(0).loadAcquire() == flags & ~RingPosition.marks | marks.rawValueInFirstLap
    #expect(isUntouched && request.status == .poison)
    ring.flags(0).storeRelease(flags)
    bench.kickVictim()
    #expect(try bench.waitForUsed(1) == 1)
    #expect(request.status == .ok)
    try bench.expectWitnessWell()
  }

  @Test("a chain with NEXT on every descriptor of the ring", arguments: Setup.packed, [1, 2, 16] as [UInt16])
  func endless(_ setup: Setup, size: UInt16) throws {
    var options = BenchOptions()
    options.queueSize = size
    let bench = try Bench(setup, options)
    let (_, parts) = try read(bench)
    var endless = Array(repeating: parts[0], count: Int(size))
    for place in endless.indices { endless[place].flags.insert(.next) }
    bench.victim.packed.offer(endless, at: .start)
    bench.kickVictim()
    try bench.expectQueueFailure(usedBefore: 0)
  }

  /// The first descriptor's marks make the whole chain available (virtio 2.7.21); the following descriptors may contain
  /// anything.
  @Test("a chain that goes on in descriptors that were never made available", arguments: Setup.packed)
  func unfinished(_ setup: Setup) throws {
    let bench = try Bench(setup)
    var (_, parts) = try read(bench)
    parts[0].flags.insert(.next)
    bench.victim.packed.offer([parts[0]], at: .start)
    // The rest is zeroes: an empty readable descriptor, and the end of the chain without a byte for a status.
    try servedOrRefused(bench)
    try bench.restart()
    try bench.expectWitnessWell()
  }

  @Test("INDIRECT within a list", arguments: Setup.packed, [1, 2])
  func indirectInList(_ setup: Setup, direct: Int) throws {
    try refused(try Bench(setup)) { bench in
      let (_, parts) = try read(bench)
      let table = try bench.table(Array(parts.dropFirst(direct)))
      bench.link(
        parts.prefix(direct) + [RawDescriptor(address: table.address.rawValue, length: UInt32(table.count), flags: .indirect)],
        from: 8)
      return 8
    }
  }

  @Test("INDIRECT inside an indirect table", arguments: Setup.packed)
  func nestedIndirect(_ setup: Setup) throws {
    let bench = try Bench(setup)
    let inner = try bench.table(try read(bench).descriptors)
    let outer = try bench.table([
      RawDescriptor(address: inner.address.rawValue, length: UInt32(inner.count), flags: .indirect)
    ])
    bench.link([RawDescriptor(address: outer.address.rawValue, length: UInt32(outer.count), flags: .indirect)])
    bench.victim.offer(0)
    // A device that ignores the flag finds a request of 48 readable bytes and no room for its status.
    #expect(try servedOrRefused(bench))
    try bench.restart()
    try bench.expectWitnessWell()
  }

  @Test("in an indirect table nothing but WRITE counts", arguments: Setup.packed, [1, 0x80, 0x8000, 0x8081] as [UInt16])
  func flagsInTable(_ setup: Setup, more: UInt16) throws {
    let bench = try Bench(setup)
    let (request, parts) = try read(bench)
    let table = try bench.table(
      parts.map {
        var part = $0
        part.flags.formUnion(RawDescriptor.Flags(rawValue: more))
        part.next = 0xffff
        return part
      })
    bench.link([RawDescriptor(address: table.address.rawValue, length: UInt32(table.count), flags: .indirect)])
    bench.victim.offer(0)
    if try !servedOrRefused(bench) { #expect(request.status == .ok) }
    try bench.restart()
    try bench.expectWitnessWell()
  }

  @Test("any ID comes back as it was", arguments: Setup.packed, [0, 15, 16, 0x8000, 0xffff] as [UInt16])
  func anyIdentifier(_ setup: Setup, id: UInt16) throws {
    let bench = try Bench(setup)
    let (request, parts) = try read(bench)
    bench.link(parts, from: id)
    bench.victim.offer(id)
    bench.kickVictim()
    #expect(try bench.waitForUsed(1) == 1)
    #expect(bench.victim.usedElements(since: 0).map(\.id) == [UInt32(id)])
    #expect(request.status == .ok)
    try bench.expectWitnessWell()
  }

  @Test("chains over the end of the ring, lap after lap", arguments: Setup.packed, [3, 4, 5, 7, 16] as [UInt16])
  func overTheEnd(_ setup: Setup, size: UInt16) throws {
    var options = BenchOptions()
    options.queueSize = size
    let bench = try Bench(setup, options)
    let (request, parts) = try read(bench)
    bench.link(parts)
    for round in 1...4 * size {
      bench.victim.offer(0)
      bench.kickVictim()
      #expect(try bench.waitForUsed(round) == round)
      #expect(request.status == .ok)
    }
    try bench.expectWitnessWell()
  }

  /// Each descriptor is read once, so that the value checked is the value used: the data goes to one buffer or the other, or
  /// nowhere.
  @Test("descriptors that change after they were read", arguments: Setup.packed)
  func changingDescriptors(_ setup: Setup) throws {
    var options = BenchOptions()
    // Three descriptors each: the middle one is always the data's, and no answer overwrites it.
    options.queueSize = 15
    let bench = try Bench(setup, options)
    let requests = try (0..<2).map { _ in try bench.frame(.read(sector: 0, bytes: 4096)) }
    let addresses = requests.map { bench.descriptors($0)[1].address } + [bench.unmapped.rawValue]
    let ring = bench.victim.packed
    let stop = try OwnedCounter()
    let done = DispatchSemaphore(value: 0)
    Thread.detachNewThread {
      var round = 0
      while !stop.isSet {
        for slot in stride(from: 1 as UInt16, to: 15, by: 3) {
          ring.address(slot).storeRelaxed(addresses[round % 3])
          ring.length(slot).storeRelaxed(round % 2 == 0 ? 512 : 4096)
        }
        round &+= 1
        // The device's threads need the CPUs, too.
        if round % 16 == 0 { usleep(100) }
      }
      done.signal()
    }
    func end() {
      stop.set()
      done.wait()
    }
    do {
      bench.link(bench.descriptors(requests[0]))
      for round in 1...300 as ClosedRange<UInt16> {
        bench.victim.offer(0)
        bench.kickVictim()
        #expect(try bench.waitForUsed(round) == round)
        #expect([.ok, .ioError].contains(requests[0].status))
      }
    } catch {
      end()
      throw error
    }
    end()
    try bench.expectWitnessWell()
    for request in requests {
      #expect((request.readable + request.writable).allSatisfy { bench.memory.damage(around: $0) == nil })
    }
  }

  @Test("the same descriptor used again and again without a new lap is taken once", arguments: Setup.packed)
  func keptMarks(_ setup: Setup) throws {
    let bench = try Bench(setup)
    let (request, parts) = try read(bench)
    bench.link(parts)
    bench.victim.offer(0)
    for _ in 0..<50 { bench.kickVictim() }
    #expect(try bench.waitForUsed(1) == 1)
    #expect(request.status == .ok)
    // The device is at descriptor 3, whose marks are those of the previous lap; it must not look at the ones after it.
    let ring = bench.victim.packed
    var stray = parts[0]
    stray.flags = RawDescriptor.Flags(rawValue: RingPosition.start.availableMarks)
    ring.setDescriptor(5, stray)
    bench.kickVictim()
    try bench.expectWitnessWell()
    usleep(5000)
    #expect(bench.victim.usedCount == 1 && ring.descriptor(5) == stray)
  }
}
