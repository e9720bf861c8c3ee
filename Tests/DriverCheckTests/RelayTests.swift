/// How a driver's kicks reach the device under watch.
import Glibc
import GuestDriver
import SystemPackage
import TestSupport
import Testing
import VirtioCore

@testable import DriverCheck
@testable import GuestDriver

@Suite struct RelayTests {
  private func isReadable(_ descriptor: Int32, milliseconds: Int32) -> Bool {
    var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    return unsafe poll(&entry, 1, milliseconds) == 1
  }

  @Test("one eventfd that blocks, as the kick of two queues: both are kicked, and queues come and go")
  func blockingKick() throws {
    let rig = try RingRig(.split)
    let findings = DriverFindings()
    let shared = try OwnedDescriptor.eventCounter()
    #expect(fcntl(shared.rawValue, F_SETFL, 0) == 0)
    let relay = try KickRelay()
    let patience = Int32(clamping: Int(Patience.limit / .milliseconds(1)))
    for round in 0..<3 {
      let outputs = try (0..<2).map { queue in
        let own = OwnedDescriptor(fcntl(shared.rawValue, F_DUPFD_CLOEXEC, 3))
        let account = KickAccount(queue, rig.features, findings, limit: Patience.limit)
        let look = RingLook(rig.guest, rig.ring.layout.configuration, isPacked: false)
        return try relay.add(queue, .eventCounter(own), account, look)
      }
      EventCounter.signal(shared.rawValue)
      for output in outputs {
        guard case .eventCounter(let descriptor) = output else {
          Issue.record("no kick is passed on")
          return
        }
        #expect(isReadable(descriptor.rawValue, milliseconds: patience), "round \(round)")
      }
      relay.lookAway(0)
      for queue in 0..<2 { relay.remove(queue) }
    }
    // The driver's own eventfd was not read.
    #expect(isReadable(shared.rawValue, milliseconds: 0))
  }

  @Test("a descriptor that cannot be polled is refused, and the queue's kicks stay as they were")
  func noKick() throws {
    let rig = try RingRig(.split)
    let directory = try TemporaryDirectory()
    let file = OwnedDescriptor(unsafe open(directory.file("plain"), O_RDWR | O_CREAT | O_CLOEXEC, 0o600))
    let account = KickAccount(0, rig.features, DriverFindings(), limit: Patience.limit)
    let look = RingLook(rig.guest, rig.ring.layout.configuration, isPacked: false)
    let relay = try KickRelay()
    #expect(throws: Errno.notPermitted) { try relay.add(0, .eventCounter(file), account, look) }
    relay.remove(0)
  }

  @Test("a device that finds more while it falls asleep waits for no kick")
  func noSleep() throws {
    let rig = try RingRig(.split)
    try rig.begin()
    rig.offer(try rig.good())
    try rig.sleep()
    let kicks = try #require(rig.watch).setup.kicks
    #expect(!kicks.isAwaiting)
    try rig.serve()
    try rig.sleep()
    #expect(kicks.isAwaiting)
  }
}
