/// The benchmark's client with real devices, and with devices that break rules.
import CLinux
import Foundation
import GuestDriver
import Histogram
import Testing
import VirtioBlkDevice
import VirtioCore

@testable import Bench

@Suite struct ClientTests {
  @Test(
    arguments: AccessPattern.allCases,
    [(true, .split), (false, .split), (true, .packed), (false, .packed)] as [(Bool, RingFormat)])
  func patternsRun(pattern: AccessPattern, ring: (indirect: Bool, format: RingFormat)) throws {
    let indirect = ring.indirect
    let scratch = try Scratch()
    var options = BenchmarkOptions.short(.device(try scratch.device(), name: "disk")) {
      $0.pattern = pattern
      $0.depth = 8
    }
    options.targetOptions.usesIndirect = indirect
    options.targetOptions.usesEventIndex = indirect
    options.targetOptions.ring = ring.format
    let result = try Benchmark.run(options)
    let measurement = try #require(result.measurements.first)
    #expect((measurement.reads.totalCount > 0) == pattern.reads)
    #expect((measurement.writes.totalCount > 0) == pattern.writes)
    #expect(measurement.seconds > 0)
    #expect(result.table().contains("in process"))
  }

  @Test(arguments: EngineKind.allCases.filter { ![.auto, .nbd, .rbd].contains($0) })
  func enginesRun(engine: EngineKind) throws {
    let scratch = try Scratch()
    let device: BlockDevice
    // A container may forbid io_uring; the engine's own tests report that.
    do { device = try scratch.device(engine: engine) } catch EngineError.uringUnavailable { return }
    #expect(try Benchmark.run(.short(.device(device, name: "disk")) { $0.depth = 4 }).requests > 0)
  }

  @Test(arguments: [(false, false), (true, false), (true, true), (false, true)], RingFormat.allCases)
  func severalQueuesRun(threads: (perQueue: Bool, sleep: Bool), ring: RingFormat) throws {
    let scratch = try Scratch()
    var options = BenchmarkOptions.short(.device(try scratch.device(queues: 3), name: "disk")) {
      $0.jobs = 3
      $0.depth = 2
    }
    options.run.hasThreadPerQueue = threads.perQueue
    options.run.sleeps = threads.sleep
    options.targetOptions.ring = ring
    let measurement = try #require(try Benchmark.run(options).measurements.first)
    #expect(measurement.requests > 0)
    if threads.sleep { #expect(measurement.calls > 0) }
  }

  @Test(arguments: [2, 64, 1024])
  func ringSizesRun(size: Int) throws {
    let scratch = try Scratch()
    var options = BenchmarkOptions.short(.device(try scratch.device(), name: "disk")) { $0.depth = 2 }
    options.targetOptions.ringSize = size
    options.targetOptions.memoryRegions = 5
    #expect(try Benchmark.run(options).requests > 0)
  }

  @Test func tooDeepForTheRingIsSaid() throws {
    let scratch = try Scratch()
    var options = BenchmarkOptions.short(.device(try scratch.device(), name: "disk")) { $0.depth = 65 }
    options.targetOptions.ringSize = 64
    #expect(throws: BenchError.self) { try Benchmark.run(options) }
  }

  @Test(arguments: [(true, 1), (false, 1), (true, 2)])
  func theEchoAnswers(indirect: Bool, jobs: Int) throws {
    var options = BenchmarkOptions.short(.echo) {
      $0.depth = 16
      $0.jobs = jobs
    }
    options.targetOptions.usesIndirect = indirect
    let measurement = try #require(try Benchmark.run(options).measurements.first)
    #expect(measurement.requests > 0)
    #expect(measurement.kicks <= 1 + measurement.requests / 1000)
  }

  @Test func theCeilingIsBesideTheResult() throws {
    let scratch = try Scratch()
    var options = BenchmarkOptions.short(.device(try scratch.device(), name: "disk"))
    options.ceilingSeconds = 0.03
    let measurement = try #require(try Benchmark.run(options).measurements.first)
    #expect(try #require(measurement.ceiling) > 0)
  }

  @Test(arguments: [(100_000_000_000 as UInt64, 6), (1, nil)] as [(UInt64, Int?)])
  func theLargestDepthWithinALatency(nanoseconds: UInt64, depth: Int?) throws {
    var options = BenchmarkOptions.short(.echo) { $0.depth = 6 }
    options.latencyTarget = LatencyTarget(nanoseconds: nanoseconds, percentile: 50)
    guard let depth else {
      #expect(throws: BenchError.self) { try Benchmark.run(options) }
      return
    }
    #expect(try Benchmark.run(options).measurements.map(\.workload.depth) == [depth])
  }

  @Test func aReadOnlyDiskIsNotWritten() throws {
    let scratch = try Scratch()
    let device = try BlockDevice(image: try scratch.image(readOnly: true))
    #expect(throws: BenchError.self) { try Benchmark.run(.short(.device(device, name: "disk")) { $0.pattern = .write }) }
  }

  @Test func nobodyListens() {
    #expect(throws: BenchError.self) { try Benchmark.run(.short(.socket(path: "/nonexistent/socket"))) }
  }
}

/// A queue on a ring whose device the test simulates.
@Suite struct BrokenDeviceTests {
  enum Damage: String, CaseIterable, Sendable {
    case foreignID, hugeID, twice, jump, noStatus, failure
  }

  /// The device's operations on a ring of either format.
  private struct Hand {
    let ring: RingMemory
    let memory: DriverMemory
    let isIndirect: Bool

    /// The first chain's name, and its parts.
    var first: (name: UInt16, descriptor: RawDescriptor, status: GuestAddress) {
      let name: UInt16
      let descriptors: [RawDescriptor]
      switch ring.layout.format {
      case .split:
        let raw = RawRing(ring.layout, in: memory)
        name = raw.availableEntry(0).loadRelaxed()
        descriptors = [raw.descriptor(name), raw.descriptor(name + 2)]
      case .packed:
        let raw = RawPackedRing(ring.layout, in: memory)
        descriptors = [raw.descriptor(0), raw.descriptor(2)]
        name = descriptors[isIndirect ? 0 : 1].next
      }
      // The last of three.
      let status =
        isIndirect
        ? memory.load(UInt64.self, at: GuestAddress(descriptors[0].address + 32)) : descriptors[1].address
      return (name, descriptors[0], GuestAddress(status))
    }

    /// Whether four chains are available.
    var isFull: Bool {
      switch ring.layout.format {
      case .split: return RawRing(ring.layout, in: memory).availableIndex.loadAcquire() == 4
      case .packed:
        let raw = RawPackedRing(ring.layout, in: memory)
        let count: UInt16 = isIndirect ? 4 : 12
        return (0..<count).allSatisfy { raw.flags($0).loadAcquire() & 0x8080 == 0x80 }
          && raw.flags(count).loadAcquire() == 0
      }
    }

    /// - Parameter index: how many chains of this shape were used before.
    func use(_ id: UInt32, at index: UInt16) {
      switch ring.layout.format {
      case .split:
        let raw = RawRing(ring.layout, in: memory)
        raw.usedID(index).storeRelaxed(id)
        raw.usedLength(index).storeRelaxed(1)
        raw.usedIndex.storeRelease(index &+ 1)
      case .packed:
        let used = RawDescriptor(
          address: 0, length: 1, flags: [.available, .used, .write], next: UInt16(truncatingIfNeeded: id))
        RawPackedRing(ring.layout, in: memory).setDescriptor(index * (isIndirect ? 1 : 3), used)
      }
    }
  }

  @Test(arguments: Damage.allCases, [true, false])
  func isNoticed(damage: Damage, indirect: Bool) throws { try notice(SplitBenchRing.self, .split, damage, indirect) }

  /// A packed ring has no index that could jump.
  @Test(arguments: Damage.allCases.filter { $0 != .jump }, [true, false])
  func isNoticedOnPackedRings(damage: Damage, indirect: Bool) throws {
    try notice(PackedBenchRing.self, .packed, damage, indirect)
  }

  private func notice<Ring: BenchRing>(_: Ring.Type, _ format: RingFormat, _ damage: Damage, _ indirect: Bool) throws {
    let memory = try DriverMemory(size: 1 << 20)
    let ring = try RingMemory(size: 64, format: format, shape: .separate, in: memory)
    let features: FeatureSet = indirect ? [.indirectDescriptors, .version1] : [.version1]
    let setup = try QueueSetup(
      index: 0, ring: ring, lines: .eventCounters(kick: try .eventCounter(), call: try .eventCounter()), memory: memory,
      features: features)
    var workload = Workload()
    workload.depth = 4
    let words = try ProgressWords(count: 1)
    var queue = try BenchQueue<Ring>(
      setup, features: features, workload: workload, capacity: 1 << 20, progress: words.word(0))
    queue.fill()
    let hand = Hand(ring: ring, memory: memory, isIndirect: indirect)
    #expect(hand.isFull)
    let (head, first, status) = hand.first
    #expect(first.flags.contains(.indirect) == indirect)
    func use(_ id: UInt32, at index: UInt16) { hand.use(id, at: index) }
    switch damage {
    case .foreignID: use(UInt32(head) + 1 + (indirect ? 8 : 0), at: 0)
    case .hugeID: use(.max, at: 0)
    case .twice:
      memory.store(UInt8(0), at: status)
      use(UInt32(head), at: 0)
      #expect(try queue.turn(refills: false) == 1)
      use(UInt32(head), at: 1)
    case .jump: RawRing(ring.layout, in: memory).usedIndex.storeRelease(5)
    case .noStatus: use(UInt32(head), at: 0)
    case .failure:
      memory.store(UInt8(1), at: status)
      use(UInt32(head), at: 0)
    }
    do {
      _ = try queue.turn(refills: true)
      Issue.record("the damage was not noticed")
    } catch {
      switch error {
      case .requestFailed: #expect(damage == .failure)
      case .brokenRing: #expect(damage != .failure)
      default: Issue.record("\(error)")
      }
    }
  }

  @Test func silenceEndsTheRun() throws {
    let memory = try DriverMemory(size: 1 << 20)
    let ring = try RingMemory(size: 64, shape: .legacy(), in: memory)
    let setup = try QueueSetup(
      index: 0, ring: ring, lines: .eventCounters(kick: try .eventCounter(), call: try .eventCounter()), memory: memory,
      features: .version1)
    var options = RunOptions()
    options.runtime = 0.02
    options.rampTime = 0
    options.patience = 0
    do {
      _ = try Client.run(
        [setup], features: .version1, capacity: 1 << 20, workload: Workload(), options: options,
        meter: OwnProcessMeter(device: nil))
      Issue.record("a device that does not answer was measured")
    } catch {
      guard case .noAnswer = error else {
        Issue.record("\(error)")
        return
      }
    }
  }
}
