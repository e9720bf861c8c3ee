/// Sleeping engines wake for everything they wait for, whenever it happens: before the sleep, on the way into it, or during it.
import Foundation
import SystemPackage
import Testing
import VirtioCore

@testable import GuestDriver
@testable import VirtioBlkDevice

@Suite struct WakeTests {
  /// When an event happens, as seen from the sleeper.
  enum Moment: CaseIterable, Sendable {
    /// Before the engine is asked to sleep, without a poll in between.
    case before
    /// Before, and a poll may have fetched it already.
    case lookedAt
    /// On the way into the sleep.
    case atOnce
    case during
  }

  enum Cause: CaseIterable, Sendable {
    case kick
    case doorbell
    case mailbox
    case completion
  }

  enum Kind: CaseIterable, Sendable {
    case uring
    case uringEpoll
    case aio
    case threads
    case sync
  }

  @Test(arguments: Kind.allCases, Cause.allCases) func nothingIsSleptThrough(kind: Kind, cause: Cause) throws {
    // Synchronous calls complete in place.
    guard kind != .sync || cause != .completion else { return }
    let scratch = try Scratch()
    let image = try ImageFile(ImageOptions(path: scratch.image(size: 1 << 20)))
    let mailbox = try OwnedDescriptor.eventCounter()
    let (file, box) = (image.descriptor, mailbox.rawValue)
    switch kind {
    case .uring, .uringEpoll:
      var setup = UringSetup()
      setup.kicksThroughEpoll = kind == .uringEpoll
      try Self.check(try UringEngine(descriptor: file, mailbox: box, depth: 4, setup: setup), cause, mailbox)
    case .aio: try Self.check(try AioEngine(descriptor: file, mailbox: box, depth: 4), cause, mailbox)
    case .threads: try Self.check(try ThreadPoolEngine(descriptor: file, mailbox: box), cause, mailbox)
    case .sync: try Self.check(try SyncEngine(descriptor: file, mailbox: box), cause, mailbox)
    }
  }

  private static func check<Engine: BlockEngine & ~Copyable>(
    _ engine: consuming Engine, _ cause: Cause, _ mailbox: OwnedDescriptor
  ) throws {
    let kick = try OwnedDescriptor.eventCounter()
    let memory = try SharedMemory()
    let word = try memory.driver.allocate(4, alignment: 4)
    word.fill(0)
    let doorbell = unsafe Doorbell(SharedCell(word.host))
    let data = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 4096)
    let segment = UnsafeMutablePointer<MemorySegment>.allocate(capacity: 1)
    unsafe segment.initialize(to: MemorySegment(base: data, count: 4096))
    defer {
      unsafe data.deallocate()
      unsafe segment.deallocate()
    }
    try engine.watch(.eventCounter(kick), lane: 1)
    try engine.watch(.doorbell(doorbell), lane: 2)
    // A new doorbell may report itself once.
    engine.wait(nanoseconds: 20_000_000)
    while engine.nextEvent() != nil {}

    let signal: (@Sendable () -> Void)? =
      switch cause {
      case .kick: { EventCounter.signal(kick.rawValue) }
      case .doorbell: { doorbell.ring() }
      case .mailbox: { EventCounter.signal(mailbox.rawValue) }
      case .completion: nil
      }
    func isExpected(_ event: EngineEvent) -> Bool {
      switch (cause, event) {
      case (.kick, .kick(lane: 1)), (.doorbell, .kick(lane: 2)), (.mailbox, .mailbox): true
      case (.completion, .completion(tag: 3, result: 4096)): true
      default: false
      }
    }

    for moment in Moment.allCases {
      for round in 0..<(moment == .during ? 20 : 100) {
        var thread: SystemThread?
        if let signal {
          switch moment {
          case .before, .lookedAt: signal()
          case .atOnce, .during:
            thread = try SystemThread(name: "cause", cpu: nil) {
              usleep(moment == .during ? 2000 : UInt32(round % 8) * 10)
              signal()
            }
          }
        } else {
          let operation = unsafe IOOperation(kind: .read, length: 4096, segments: segment, segmentCount: 1)
          guard case .pending = engine.start(operation, tag: 3) else { throw Errno.ioError }
          if moment != .atOnce { engine.submit() }
          if moment == .before || moment == .lookedAt { usleep(500) }
        }
        if moment == .lookedAt { engine.poll() }
        // A lost event fails the test and does not hang it: the sleep has a limit that is far longer than anything here takes.
        var isFound = false
        let start = ContinuousClock.now
        while !isFound, ContinuousClock.now - start < Patience.limit {
          engine.wait(nanoseconds: Int64(Patience.limit / .nanoseconds(1)))
          // An event that is found only because the limit expired did not wake the engine.
          guard ContinuousClock.now - start < Patience.limit else { break }
          while let event = engine.nextEvent() { isFound = isExpected(event) || isFound }
        }
        thread?.join()
        #expect(isFound, "\(moment), round \(round)")
        guard isFound else { return }
      }
    }
    engine.unwatch(lane: 1)
    engine.unwatch(lane: 2)
  }

  /// An engine with nothing to do sleeps for the whole time it may: no event is reported twice.
  @Test(arguments: [Kind.uring, .aio, .threads, .sync]) func whatWasToldIsNotToldAgain(kind: Kind) throws {
    let scratch = try Scratch()
    let image = try ImageFile(ImageOptions(path: scratch.image(size: 1 << 20)))
    let mailbox = try OwnedDescriptor.eventCounter()
    let (file, box) = (image.descriptor, mailbox.rawValue)
    switch kind {
    case .uring, .uringEpoll:
      try Self.checkSilence(try UringEngine(descriptor: file, mailbox: box, depth: 4, setup: UringSetup()), box)
    case .aio: try Self.checkSilence(try AioEngine(descriptor: file, mailbox: box, depth: 4), box)
    case .threads: try Self.checkSilence(try ThreadPoolEngine(descriptor: file, mailbox: box), box)
    case .sync: try Self.checkSilence(try SyncEngine(descriptor: file, mailbox: box), box)
    }
  }

  private static func checkSilence<Engine: BlockEngine & ~Copyable>(
    _ engine: consuming Engine, _ mailbox: Int32
  ) throws {
    EventCounter.signal(mailbox)
    var told = 0
    // The first sleep ends with the signal; the others have only their limit.
    for _ in 0..<5 {
      engine.wait(nanoseconds: 3_000_000)
      while let event = engine.nextEvent() { if case .mailbox = event { told += 1 } }
    }
    #expect(told == 1)
  }
}
