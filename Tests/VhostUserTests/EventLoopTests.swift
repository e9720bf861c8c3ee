/// Timers of the event loop.
import Testing
import VirtioCore

@testable import Sockets

@Suite struct EventLoopTests {
  /// Many are pending, as after many connections.
  @Test func everyTimerIsCalledOnce() throws {
    let loop = try EventLoop()
    var called: [Int] = []
    let count = 10_000
    // Not in the order in which they are due: 7,919 has no factor in common with the count.
    for step in 0..<count {
      let place = step * 7919 % count
      loop.after(.microseconds(place)) { called.append(place) }
    }
    // Never called.
    loop.after(.seconds(3600)) { Issue.record("an hour has not passed") }
    loop.after(.microseconds(count)) { loop.stop() }
    try loop.run()
    #expect(called.sorted() == Array(0..<count))
  }

  /// Timers that are due at the same time are called in the order in which they were set.
  @Test func timersThatAreDueTogetherKeepTheirOrder() throws {
    let loop = try EventLoop()
    var called: [Int] = []
    for number in 0..<1000 { loop.after(.zero) { called.append(number) } }
    loop.after(.zero) { loop.stop() }
    try loop.run()
    #expect(called == Array(0..<1000))
  }

  /// A handler that sets a timer for now does not keep the loop from its descriptors.
  @Test func aTimerThatIsSetAgainAndAgainWaitsForItsTurn() throws {
    let loop = try EventLoop()
    let counter = try OwnedDescriptor.eventCounter()
    var turns = 0
    func again() {
      turns += 1
      if turns == 10 { EventCounter.signal(counter.rawValue) }
      loop.after(.zero) { again() }
    }
    _ = try loop.add(counter.rawValue) { _ in loop.stop() }
    again()
    try loop.run()
    #expect(turns >= 10)
  }

  /// As front-ends that connect and leave again cause them.
  @Test func cancelledTimersAreNotCalled() throws {
    let loop = try EventLoop()
    var called: [Int] = []
    for number in 0..<10_000 {
      let timer = loop.timer(after: .microseconds(number)) { called.append(number) }
      if number % 100 != 0 { loop.cancel(timer) }
    }
    loop.after(.milliseconds(10)) { loop.stop() }
    try loop.run()
    #expect(called == stride(from: 0, to: 10_000, by: 100).map(\.self))
  }
}
